"""A registry that is a cache of another one, which may fail, or be gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

import pytest

from registry.conftest import HASTY, Connect, MadeImage, Start, digest_of, layer_tar
from registry.faulty import FaultyProxy
from registry.issuer import Guarded, Issuer
from tiffin.errors import DigestMismatch, NotFound, TiffinError
from tiffin.image.manifest import OCI_MANIFEST
from tiffin.registry.client import Registry
from tiffin.registry.endpoints import Configuration
from tiffin.registry.server import RegistryServer

BASE = layer_tar({"base": bytes(range(256)) * 400})
ONE = MadeImage([BASE, layer_tar({"one": b"1"})])
TWO = MadeImage([BASE, layer_tar({"two": b"2"})])


Cache = Callable[..., RegistryServer]


@pytest.fixture
def cache(start_registry: Start) -> Cache:
    """Start caches of registries."""

    def start(address: str, **options: Any) -> RegistryServer:
        (endpoint,) = Configuration(()).endpoints(address, mirrors=False)
        return start_registry(upstream=Registry(endpoint, patience=HASTY), **options)

    return start


def test_a_cache_fetches_once(registry: Registry, connect: Connect, cache: Cache) -> None:
    ONE.push(registry, "app", "v1")
    with FaultyProxy(registry.host) as proxy:
        client = connect(cache(proxy.address))
        for _ in range(2):
            assert client.manifest("app", "v1").digest == ONE.digest
            for blob, data in zip(ONE.layers, ONE.blobs, strict=True):
                with client.blob("app", blob) as stream:
                    assert b"".join(iter(stream.read, b"")) == data
            assert client.read_blob("app", ONE.config_descriptor) == ONE.config
        for blob in (*ONE.layers, ONE.config_descriptor):
            gets = [line for line in proxy.requests if line.startswith("GET")]
            assert sum(blob.digest in line for line in gets) == 1
        # A tag is looked up again, and moves.
        TWO.push(registry, "app", "v1")
        assert client.manifest("app", "v1").digest == TWO.digest
        assert client.manifest("app", ONE.digest).digest == ONE.digest
        with pytest.raises(NotFound):
            client.manifest("app", "none")
        with pytest.raises(TiffinError, match="read-only"):
            ONE.push(client, "app", "v2")


def test_a_cache_serves_what_it_has(connect: Connect, cache: Cache, start_registry: Start) -> None:
    original = start_registry()
    ONE.push(connect(original), "app", "v1")
    with FaultyProxy(original.address) as proxy:
        server = cache(proxy.address)
        client = connect(server)
        client.manifest("app", "v1")
        with client.blob("app", ONE.layers[0]) as stream:
            stream.drain()
        leave(proxy)
    # The original can't be reached any more.
    assert client.manifest("app", "v1").digest == ONE.digest
    with client.blob("app", ONE.layers[0]) as stream:
        stream.drain()
    assert list(client.tags("app")) == ["v1"]
    with pytest.raises(TiffinError), client.blob("app", ONE.layers[1]) as stream:
        stream.drain()


def test_a_cache_keeps_nothing_that_is_wrong(
    registry: Registry, connect: Connect, cache: Cache
) -> None:
    ONE.push(registry, "app", "v1")
    with FaultyProxy(registry.host, "corrupt", at=3, times=1) as proxy:
        server = cache(proxy.address)
        client = connect(server)
        client.manifest("app", "v1")
        with pytest.raises((DigestMismatch, TiffinError)):
            with client.blob("app", ONE.layers[0]) as stream:
                stream.drain()
            raise DigestMismatch("it was good at the second attempt")
        with client.blob("app", ONE.layers[0]) as stream:
            assert b"".join(iter(stream.read, b"")) == ONE.blobs[0]
        assert not list(server.storage.uploads_folder.iterdir())


def leave(proxy: FaultyProxy) -> None:
    """Let whoever stands before the original break every connection from now on."""
    proxy.kind, proxy.at, proxy.times = "cut-head", 0, 10**6


def ask(server: RegistryServer, path: str) -> tuple[int, str]:
    """Status and error code (or nothing) of a GET."""
    host, _, port = server.address.rpartition(":")
    connection = HTTPConnection(host, int(port), timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, "" if answer.status < 400 else json.loads(body)["errors"][0]["code"]
    finally:
        connection.close()


def signature_of(image: MadeImage) -> bytes:
    document = json.loads(image.manifest)
    document.update(
        mediaType=OCI_MANIFEST,
        artifactType="app/signature",
        subject={"mediaType": "any", "digest": image.digest, "size": len(image.manifest)},
    )
    return json.dumps(document).encode()


def test_what_is_not_here_is_not_said_to_be_missing(
    connect: Connect, cache: Cache, start_registry: Start
) -> None:
    """Nobody knows, while the original is gone; what it did not have is not there."""
    original = start_registry()
    ONE.push(connect(original), "app", "v1")
    with FaultyProxy(original.address) as proxy:
        server = cache(proxy.address)
        assert ask(server, "/v2/app/manifests/v1") == (200, "")
        assert ask(server, "/v2/app/manifests/none") == (404, "MANIFEST_UNKNOWN")
        assert ask(server, "/v2/none/manifests/v1") == (404, "NAME_UNKNOWN")
        assert ask(server, "/v2/none/tags/list") == (404, "NAME_UNKNOWN")
        assert ask(server, f"/v2/app/blobs/{digest_of(b'none')}") == (404, "BLOB_UNKNOWN")
        leave(proxy)
    away = (502, "UNAVAILABLE")
    assert ask(server, "/v2/app/manifests/v2") == away
    assert ask(server, f"/v2/app/manifests/{TWO.digest}") == away
    assert ask(server, f"/v2/app/blobs/{ONE.layers[0].digest}") == away
    assert ask(server, "/v2/other/tags/list") == away
    assert ask(server, "/v2/app/manifests/v1") == (200, "")
    assert ask(server, f"/v2/app/manifests/{ONE.digest}") == (200, "")
    assert ask(server, "/v2/") == (200, "")


@pytest.mark.parametrize("kind", ["500", "429", "cut-head", "drop"])
def test_a_tag_is_what_it_was_while_the_original_fails(
    registry: Registry, connect: Connect, cache: Cache, kind: str
) -> None:
    ONE.push(registry, "app", "v1")
    with FaultyProxy(registry.host) as proxy:
        server = cache(proxy.address)
        assert connect(server).manifest("app", "v1").digest == ONE.digest
        TWO.push(registry, "app", "v1")
        before = len(proxy.requests)
        proxy.kind, proxy.at, proxy.times = kind, before, 10**6
        assert connect(server).manifest("app", "v1").digest == ONE.digest
        assert list(connect(server).tags("app")) == ["v1"]
        assert len(proxy.requests) > before


def test_a_tag_that_was_removed_there_stays_here(
    registry: Registry, connect: Connect, cache: Cache
) -> None:
    ONE.push(registry, "app", "v1")
    client = connect(cache(registry.host))
    assert client.manifest("app", "v1").digest == ONE.digest
    registry.delete_manifest("app", "v1")
    assert client.manifest("app", "v1").digest == ONE.digest


def test_who_is_gone_is_not_asked_each_time(
    registry: Registry, connect: Connect, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiffin.registry import passthrough

    ONE.push(registry, "app", "v1")
    with FaultyProxy(registry.host) as proxy:
        client = connect(cache(proxy.address))
        client.manifest("app", "v1")
        leave(proxy)
        client.manifest("app", "v1")
        TWO.push(registry, "app", "v1")
        proxy.kind = ""
        before = len(proxy.requests)
        for _ in range(3):
            assert client.manifest("app", "v1").digest == ONE.digest
        assert len(proxy.requests) == before
        # What is not here is asked for all the same.
        assert client.manifest("app", TWO.digest).digest == TWO.digest
        now = passthrough.time.monotonic
        monkeypatch.setattr(passthrough.time, "monotonic", lambda: now() + 11)
        assert client.manifest("app", "v1").digest == TWO.digest


def test_a_layer_that_came_with_another_image(
    connect: Connect, cache: Cache, start_registry: Start
) -> None:
    """Clients skip what they have: such layers are asked for by the next client first."""
    original = start_registry()
    ONE.push(connect(original), "one", "v1")
    TWO.push(connect(original), "two", "v1")
    with FaultyProxy(original.address) as proxy:
        server = cache(proxy.address)
        client = connect(server)
        client.manifest("one", "v1")
        with client.blob("one", ONE.layers[0]) as stream:
            stream.drain()
        client.manifest("two", "v1")
        leave(proxy)
    with client.blob("two", TWO.layers[0]) as stream:
        assert b"".join(iter(stream.read, b"")) == TWO.blobs[0]
    # But not where no manifest that is here says so.
    assert ask(server, f"/v2/three/blobs/{ONE.layers[0].digest}")[0] == 502
    with client.blob("one", ONE.layers[0]) as stream:
        stream.drain()


def test_who_is_refused_there_is_told_so(registry: Registry, cache: Cache) -> None:
    """Not by 401: the client's own credentials are for the cache."""
    ONE.push(registry, "app", "v1")
    with Issuer() as issuer, Guarded(registry.host, issuer) as guarded:
        issuer.tokens.clear()
        guarded.uses = 0
        server = cache(guarded.address)
        assert ask(server, "/v2/app/manifests/v1") == (403, "DENIED")


def test_referrers_are_the_original_s(
    connect: Connect, cache: Cache, start_registry: Start
) -> None:
    original = start_registry()
    client = connect(original)
    ONE.push(client, "app", "v1")
    raw = signature_of(ONE)
    client.put_manifest("app", digest_of(raw), raw, OCI_MANIFEST)
    with FaultyProxy(original.address) as proxy:
        server = cache(proxy.address)
        through = connect(server)
        (found,) = through.referrers("app", ONE.digest)
        assert found["digest"] == digest_of(raw)
        assert through.referrers("app", ONE.digest, "app/other") == []
        assert through.referrers("app", TWO.digest) == []
        assert ask(server, f"/v2/app/referrers/{ONE.digest}") == (200, "")
        through.manifest("app", digest_of(raw))
        leave(proxy)
    # What was fetched is known.
    assert [each["digest"] for each in through.referrers("app", ONE.digest)] == [digest_of(raw)]
    assert ask(server, f"/v2/app/referrers/{TWO.digest}") == (502, "UNAVAILABLE")


def test_an_original_that_answers_nonsense(
    registry: Registry, server: RegistryServer, cache: Cache
) -> None:
    raw = b"<html>"
    server.storage.put_manifest("app", digest_of(raw), raw, OCI_MANIFEST, ["v1"], {})
    assert ask(cache(registry.host), "/v2/app/manifests/v1") == (502, "UNAVAILABLE")


def test_how_the_original_is_named() -> None:
    from tiffin.cli.command import CommandError
    from tiffin.cli.registry import _upstream

    for url, schemes, prefix in (
        ("registry.test", ("https",), ""),
        ("https://registry.test/", ("https",), ""),
        ("https://registry.test/all/images/", ("https",), "/all/images"),
        ("http://registry.test", ("http",), ""),
    ):
        endpoint = _upstream(url).endpoint
        assert (endpoint.host, endpoint.schemes, endpoint.prefix) == (
            "registry.test",
            schemes,
            prefix,
        )
    assert _upstream("docker.io").endpoint.host == "registry-1.docker.io"
    for wrong in ("ftp://registry.test", "https://"):
        with pytest.raises(CommandError, match="expected HOST or https://HOST"):
            _upstream(wrong)
