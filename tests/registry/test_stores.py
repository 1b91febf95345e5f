"""A registry whose contents are in an object store: a real client of S3, against a server of it."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from registry.conftest import Connect, MadeImage, digest_of, layer_tar
from tiffin.errors import InvalidParameter, NotFound, TiffinError, Unreachable, Unsupported
from tiffin.image.manifest import Descriptor
from tiffin.registry import leases as leasing
from tiffin.registry.faults import Fault
from tiffin.registry.leases import Leases
from tiffin.registry.server import RegistryServer
from tiffin.registry.sharing import measure
from tiffin.registry.storage import Storage
from tiffin.registry.stores import LocalStore, ObjectStore, Store
from tiffin.registry.sweeping import Swept, sweep

BASE = layer_tar({"base": bytes(range(256)) * 40_000})
ONE = MadeImage([BASE, layer_tar({"one": b"1"})])
TWO = MadeImage([BASE, layer_tar({"two": b"2"})])


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3-compatible store."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def url(s3: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A new bucket, found through the environment."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "who",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{time.time_ns()}"
    client = boto3.client("s3")
    client.create_bucket(Bucket=bucket)
    client.close()
    return f"s3://{bucket}/registry"


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    return ObjectStore(request.getfixturevalue("url"))


def test_a_store_gives_back_what_it_got(store: Store, tmp_path: Path) -> None:
    before = time.time() - 2
    store.write("a/b/small", b"one")
    store.write("a/b/small", b"two")
    store.write("a/b/empty", b"")
    store.write("a/top", b"x")
    (tmp_path / "file").write_bytes(BASE)
    store.take(tmp_path / "file", "a/c/large")
    assert not (tmp_path / "file").exists()
    assert store.read("a/b/small") == b"two"
    assert store.read("a/b/empty") == b""
    assert (store.size("a/b/small"), store.size("a/c/large")) == (3, len(BASE))
    assert store.time("a/b/small") > before
    with store.open("a/c/large") as file:
        assert file.seek(0, io.SEEK_END) == len(BASE)
        file.seek(5_000_000)
        assert file.read(100) == BASE[5_000_000:5_000_100]
    assert store.names("a") == ["b", "c", "top"]
    assert store.names("a/b") == ["empty", "small"]
    assert store.names("nothing") == []
    store.delete("a/b/small")
    assert store.names("a/b") == ["empty"]


def test_what_a_store_has_not_is_not_found(store: Store) -> None:
    store.write("folder/key", b"")
    for missing in ("nothing", "folder", "folder/other"):
        for action in (store.size, store.time, store.touch, store.delete):
            if missing == "folder" and isinstance(store, LocalStore):
                continue
            with pytest.raises(FileNotFoundError):
                action(missing)
        with pytest.raises((FileNotFoundError, IsADirectoryError)):
            store.read(missing)


def test_images_live_in_a_bucket(url: str, tmp_path: Path, connect: Connect) -> None:
    with RegistryServer(tmp_path / "one", store=ObjectStore(url)) as server:
        registry = connect(server)
        ONE.push(registry, "app", "one")
        TWO.push(registry, "team/app", "two")
        with pytest.raises(NotFound):
            registry.manifest("app", "two")
    assert not list((tmp_path / "one" / "uploads").iterdir())
    assert not (tmp_path / "one" / "blobs").exists(), "nothing of them is on the disk"

    # Another machine serves the same bucket.
    with RegistryServer(tmp_path / "two", store=ObjectStore(url)) as server:
        registry = connect(server)
        assert registry.manifest("app", "one").digest == ONE.digest
        for layer, blob in zip(ONE.layers, ONE.blobs, strict=True):
            assert registry.read_blob("app", layer) == blob
        assert server.storage.mount("other", ONE.layers[0].digest, "app")
        assert list(registry.tags("team/app")) == ["two"]
        storage = server.storage
        assert storage.repositories() == ["app", "other", "team/app"]
        report = measure(storage)
        assert (report.images, report.tags) == (2, 2)
        assert report.referenced - report.stored == ONE.layers[0].size


def test_a_blob_in_a_bucket_is_read_in_ranges(url: str, tmp_path: Path, connect: Connect) -> None:
    data = bytes(range(251)) * 60_000
    with RegistryServer(tmp_path, store=ObjectStore(url)) as server:
        registry = connect(server)
        digest = registry.put_blob("app", data)
        descriptor = Descriptor("any", digest, len(data))
        spool = tmp_path / "spool"
        spool.write_bytes(data[:9_000_000])
        with registry.blob("app", descriptor, spool=spool) as stream:
            stream.drain()
            assert (stream.resumed, stream.fetched) == (9_000_000, len(data) - 9_000_000)


def test_collection_in_a_bucket(url: str, tmp_path: Path, connect: Connect) -> None:
    with RegistryServer(tmp_path, store=ObjectStore(url)) as server:
        registry = connect(server)
        ONE.push(registry, "app", "one")
        TWO.push(registry, "app", "two")
        registry.put_blob("app", b"pushed, and never named")
        assert sweep(server.storage).blobs == 0, "everything is young"
        registry.delete_manifest("app", TWO.digest)
        # S3's clock has whole seconds.
        swept = sweep(server.storage, grace=-2)
        assert (swept.links, swept.blobs) == (3, 4)
        assert registry.manifest("app", "one").digest == ONE.digest
        for layer in ONE.layers:
            assert registry.find_blob("app", layer.digest) is not None
        assert registry.find_blob("app", TWO.layers[1].digest) is None


def test_two_machines_keep_each_others_collection_away(store: Store, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    pushing = Storage(tmp_path / "one", store)
    collecting = Storage(tmp_path / "two", store)
    for blob in (*ONE.blobs, ONE.config):
        upload = pushing.begin("app")
        pushing.append("app", upload, _reader(blob), None)
        pushing.finish("app", upload, digest_of(blob))
    checked = pushing._check_references
    swept: list[Swept] = []
    collection = threading.Thread(target=lambda: swept.append(sweep(collecting, grace=-2)))

    def check(name: str, document: dict[str, Any]) -> None:
        checked(name, document)
        # All blobs are there. A collection that begins now would remove them: no manifest has them.
        collection.start()
        while not store.names("locks/exclusive") and collection.is_alive():
            time.sleep(0.01)

    pushing._check_references = check  # type: ignore[method-assign]
    document = json.loads(ONE.manifest)
    kind = document["mediaType"]
    pushing.put_manifest("app", ONE.digest, ONE.manifest, kind, ["one"], document)
    collection.join(60)
    assert swept[0].blobs == 0
    for blob in (*ONE.blobs, ONE.config):
        assert collecting.has_blob("app", digest_of(blob)) == len(blob)
    # Nothing is left of the locks.
    assert store.names("locks/shared") + store.names("locks/exclusive") == []


def test_two_collections_come_one_after_the_other(store: Store) -> None:
    leases = [Leases(store), Leases(store)]
    inside: list[int] = []

    def collect(number: int) -> None:
        for _ in range(2):
            with leases[number].held(exclusive=True):
                inside.append(1)
                assert len(store.names("locks/exclusive")) >= 1
                assert sum(inside) == 1
                inside.append(-1)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(collect, number) for number in range(2)]:
            done.result(120)
    assert store.names("locks/exclusive") == []


def test_whoever_was_killed_holds_nobody_up(store: Store) -> None:
    # As a machine leaves them that lost its power.
    store.write("locks/exclusive/dead", b"")
    store.write("locks/shared/dead", b"")
    leases = Leases(store, lifetime=3)
    with leases.held(exclusive=False) as hold:
        hold.assure()
    with leases.held(exclusive=True) as hold:
        hold.assure()
    assert store.names("locks/shared") + store.names("locks/exclusive") == []


def test_whoever_was_asleep_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    now = leasing._now
    with Leases(store).held(exclusive=True) as hold:
        hold.assure()
        monkeypatch.setattr(leasing, "_now", lambda: now() + 16)
        with pytest.raises(TiffinError, match="was not renewed for 16 seconds"):
            hold.assure()


def test_wrong_bytes_leave_nothing_in_a_bucket(url: str, tmp_path: Path) -> None:
    storage = Storage(tmp_path, ObjectStore(url))
    upload = storage.begin("app")
    storage.append("app", upload, _reader(b"these bytes"), None)
    with pytest.raises(Fault):
        storage.finish("app", upload, digest_of(b"other bytes"))
    assert storage.store.names("blobs") == []
    assert storage.repositories() == []


def _reader(data: bytes) -> Callable[[memoryview], int]:
    return io.BytesIO(data).readinto


def test_a_store_that_cannot_be_used_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidParameter, match="names no bucket"):
        ObjectStore("s3://")
    with pytest.raises(InvalidParameter, match="no object store"):
        ObjectStore("nosuch://bucket/x")
    with pytest.raises(NotFound, match="s3://no-such-bucket/x"):
        ObjectStore("s3://no-such-bucket/x")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(Unsupported, match=r"pip install 'tiffin\[s3\]'"):
        ObjectStore(url)


def test_a_store_out_of_reach_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    options: dict[str, Any] = {"config_kwargs": {"retries": {"max_attempts": 1}}}
    with pytest.raises(Unreachable, match="s3://bucket"):
        ObjectStore(url, **options)
