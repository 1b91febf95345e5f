"""Uploads that break: what the registry has is not sent again, what it gave up is."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from uuid import uuid4

import pytest

from registry.conftest import HASTY, Connect, Start, digest_of, layer_tar
from registry.faulty import UPLOAD_KINDS, FaultyProxy
from tiffin.engine import Engine
from tiffin.errors import TiffinError
from tiffin.image.manifest import Descriptor, Manifest
from tiffin.registry import upload as uploads
from tiffin.registry.client import Registry
from tiffin.registry.upload import Forgotten

DATA = random.Random(7).randbytes(100_000)
DIGEST = digest_of(DATA)
CHUNK = 30_000


def send(client: Registry, repository: str, chunk: int) -> None:
    upload = client.begin_upload(repository)
    assert upload is not None
    start = 0
    while start + chunk < len(DATA):
        upload.send(DATA[start : start + chunk])
        start += chunk
    upload.finish(DIGEST, DATA[start:])


def stored(registry: Registry, repository: str) -> bytes:
    with registry.blob(repository, Descriptor("", DIGEST, len(DATA))) as stream:
        return b"".join(iter(stream.read, b""))


@pytest.mark.parametrize("chunk", [len(DATA), CHUNK])
@pytest.mark.parametrize("kind", UPLOAD_KINDS)
def test_every_request_in_turn_meets_a_fault(
    registry: Registry, connect: Connect, kind: str, chunk: int
) -> None:
    at = 0
    while True:
        repository = f"app{at}"
        with FaultyProxy(registry.host, kind, at=at) as proxy:
            client = connect(proxy.address)
            try:
                send(client, repository, chunk)
            except Forgotten:
                # Whoever has the bytes begins anew; of a blob in one piece the upload itself does.
                assert (kind, chunk) == ("lost", CHUNK)
                send(client, repository, chunk)
            assert stored(registry, repository) == DATA
            if len(proxy.requests) <= at:
                break
        at += 1
    assert at >= (2 if chunk == len(DATA) else 5)


def test_a_blob_in_one_piece_that_is_lost_is_sent_to_another_upload(
    registry: Registry, connect: Connect
) -> None:
    with FaultyProxy(registry.host, "lost", at=1) as proxy:
        send(connect(proxy.address), "app", len(DATA))
        methods = [request.partition(" ")[0] for request in proxy.requests]
    # It is asked for what it has, and whether it has all.
    assert methods == ["POST", "PUT", "GET", "HEAD", "POST", "PUT"]
    assert stored(registry, "app") == DATA


def test_what_was_finished_unheard_is_not_sent_again(registry: Registry, connect: Connect) -> None:
    with FaultyProxy(registry.host, "unheard", at=1) as proxy:
        send(connect(proxy.address), "app", len(DATA))
        methods = [request.partition(" ")[0] for request in proxy.requests]
    assert methods == ["POST", "PUT", "GET", "HEAD"]


def test_a_blob_that_is_lost_each_time(registry: Registry, connect: Connect) -> None:
    with FaultyProxy(registry.host, "lost", at=1, times=1000) as proxy:
        with pytest.raises(TiffinError):
            send(connect(proxy.address), "app", len(DATA))
        assert len(proxy.requests) <= 6 * HASTY.attempts
    assert registry.find_blob("app", DIGEST) is None


@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
def test_an_upload_that_was_begun_at_another_machine_is_unknown(
    start_registry: Start, connect: Connect, method: str
) -> None:
    """As the specification has it of an upload that is not there, whatever is asked of it."""
    here, there = start_registry(), start_registry()
    upload = connect(there).begin_upload("app")
    assert upload is not None
    location = upload.location.removeprefix(f"http://{there.address}")
    if method == "PUT":
        location += f"?digest={DIGEST}"
    host, _, port = here.address.rpartition(":")
    connection = HTTPConnection(host, int(port), timeout=60)
    try:
        connection.request(method, location, DATA if method in ("PATCH", "PUT") else None)
        answer = connection.getresponse()
        assert answer.status == 404
        assert json.loads(answer.read())["errors"][0]["code"] == "BLOB_UPLOAD_UNKNOWN"
    finally:
        connection.close()


@pytest.mark.parametrize("chunk", [len(DATA), CHUNK])
def test_a_push_that_comes_to_another_machine_begins_there(
    start_registry: Start, connect: Connect, chunk: int
) -> None:
    client = connect(start_registry())
    upload = client.begin_upload("app")
    assert upload is not None
    upload.location = upload.location.rpartition("/")[0] + f"/{uuid4()}"
    if chunk == CHUNK:
        with pytest.raises(Forgotten):
            upload.send(DATA[:CHUNK])
        return
    upload.finish(DIGEST, DATA)
    assert stored(client, "app") == DATA


@pytest.fixture
def holding(root: Path) -> Iterator[Engine]:
    """An engine with the image ``app``, which takes several chunks."""
    with Engine(root, what="a test") as engine:
        engine.registries.patience = HASTY
        engine.images.import_(
            io.BytesIO(layer_tar({"data": random.Random(7).randbytes(4 << 20)})), "app"
        )
        yield engine


@pytest.mark.root
@pytest.mark.parametrize("kind", ["half", "lost", "unheard", "cut-head", "500"])
def test_a_layer_in_chunks(
    holding: Engine, registry: Registry, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(uploads, "CHUNK", 1 << 20)
    at = 0
    while True:
        repository = f"app{kind}{at}"
        with FaultyProxy(registry.host, kind, at=at) as proxy:
            name = f"{proxy.address}/{repository}:v1"
            holding.images.tag("app", name)
            (pushed,) = holding.registries.push(name)
            found = registry.manifest(repository, "v1")
            assert isinstance(found, Manifest)
            assert found.digest == pushed["Digest"]
            for layer in found.layers:
                with registry.blob(repository, layer) as stream:
                    stream.drain()
            if len(proxy.requests) <= at:
                break
            assert sum(line.startswith("PATCH") for line in proxy.requests) >= 3
        holding.registries.memory._database.execute("DELETE FROM blobs")
        holding.registries.memory._database.execute("DELETE FROM manifests")
        at += 1
    assert at >= 8
