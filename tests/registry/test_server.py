"""A registry's keeper's view: users, collection, caches, and how much sharing saves."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from registry.conftest import Connect, MadeImage, Start, digest_of, layer_tar
from registry.test_client import htpasswd
from tiffin.errors import (
    Conflict,
    InvalidParameter,
    NotFound,
    TiffinError,
    Unauthorized,
    Unsupported,
)
from tiffin.image.manifest import OCI_MANIFEST
from tiffin.registry.access import Passwords, Tokens, _crypt
from tiffin.registry.client import Registry
from tiffin.registry.credentials import Credentials
from tiffin.registry.faults import Fault
from tiffin.registry.protocol import Policy
from tiffin.registry.server import RegistryServer
from tiffin.registry.sharing import measure
from tiffin.registry.storage import Storage
from tiffin.registry.sweeping import sweep

BASE = layer_tar({"base": bytes(range(256)) * 400})
ONE = MadeImage([BASE, layer_tar({"one": b"1"})])
TWO = MadeImage([BASE, layer_tar({"two": b"2"})])


def blobs(server: RegistryServer) -> set[str]:
    return {path.name for path in (server.storage.root / "blobs").rglob("*") if path.is_file()}


def aged(server: RegistryServer) -> None:
    """Make everything older than the grace period."""
    old = time.time() - 2 * 24 * 3600
    for path in server.storage.root.rglob("*"):
        if path.is_file():
            os.utime(path, (old, old))


def test_collection_removes_what_nothing_names(registry: Registry, server: RegistryServer) -> None:
    ONE.push(registry, "app", "one")
    TWO.push(registry, "app", "two")
    registry.put_blob("app", b"pushed, and never named")
    before = blobs(server)
    assert sweep(server.storage).blobs == 0, "everything is young"
    aged(server)
    assert sweep(server.storage).blobs == 1
    registry.delete_manifest("app", TWO.digest)
    swept = sweep(server.storage)
    # The manifest, the configuration and the layer that only the second image has.
    assert (swept.links, swept.blobs) == (2, 3)
    assert len(before) - len(blobs(server)) == 4
    for blob in (*ONE.layers, ONE.config_descriptor):
        assert registry.find_blob("app", blob.digest) is not None
    assert registry.manifest("app", "one").digest == ONE.digest


def test_untagged_manifests_go_if_asked(registry: Registry, server: RegistryServer) -> None:
    ONE.push(registry, "app", "latest")
    TWO.push(registry, "app", "latest")
    document = json.loads(TWO.manifest)
    document.update(mediaType=OCI_MANIFEST, subject={"mediaType": "x", "digest": TWO.digest,
                                                     "size": len(TWO.manifest)})  # fmt: skip
    signature = json.dumps(document).encode()
    registry.put_manifest("app", digest_of(signature), signature, OCI_MANIFEST)
    aged(server)
    sweep(server.storage)
    assert registry.manifest("app", ONE.digest).digest == ONE.digest
    swept = sweep(server.storage, untagged=True)
    assert swept.manifests == 1
    with pytest.raises(NotFound):
        registry.manifest("app", ONE.digest)
    # What refers to a tagged image stays with it.
    assert registry.manifest("app", digest_of(signature)).digest == digest_of(signature)
    assert len(registry.referrers("app", TWO.digest)) == 1


def test_whoever_asks_for_a_blob_keeps_it(registry: Registry, server: RegistryServer) -> None:
    digest = registry.put_blob("app", b"about to be named")
    aged(server)
    assert registry.find_blob("app", digest) is not None
    assert sweep(server.storage).links == 0
    assert registry.find_blob("app", digest) is not None


def test_pushes_and_collections_at_once(registry: Registry, server: RegistryServer) -> None:
    """With hardly any grace a push may be refused, and is never broken."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def collect() -> None:
        try:
            while not stop.is_set():
                sweep(server.storage, untagged=True, grace=0.1)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        for number in range(20):
            image = MadeImage([BASE, layer_tar({"n": str(number).encode()})])
            for _ in range(50):
                try:
                    image.push(registry, f"app{number % 3}", "latest")
                    break
                except TiffinError:
                    continue
            else:
                pytest.fail("no push came through")
    finally:
        stop.set()
        thread.join()
    assert failures == []
    for number in range(17, 20):
        found = registry.manifest(f"app{number % 3}", "latest")
        for entry in json.loads(found.raw)["layers"]:
            assert registry.find_blob(f"app{number % 3}", entry["digest"]) is not None


def test_old_uploads_go(server: RegistryServer) -> None:
    upload = server.storage.begin("app")
    assert sweep(server.storage).uploads == 0
    old = time.time() - 30 * 24 * 3600
    data = server.storage.upload_path("app", upload)
    for path in (data, data.parent):
        os.utime(path, (old, old))
    assert sweep(server.storage).uploads == 1
    with pytest.raises(Fault):
        server.storage.upload_path("app", upload)


def test_sharing_is_measured(registry: Registry, server: RegistryServer) -> None:
    ONE.push(registry, "one", "latest")
    TWO.push(registry, "two", "latest")
    report = measure(server.storage)
    base = ONE.layers[0].size
    assert report.referenced - report.stored == base
    assert (report.images, report.tags, report.repositories) == (2, 2, 2)
    assert report.layers[0].digest == ONE.layers[0].digest
    assert report.layers[0].repositories == ("one", "two")
    with urllib.request.urlopen(f"http://{server.address}/tiffin/v1/sharing") as answer:
        document = json.load(answer)
    assert document["bytesSaved"] == base
    with urllib.request.urlopen(f"http://{server.address}/") as answer:
        page = answer.read().decode()
    assert "2 images in 2 repositories" in page
    assert "<td>one, two</td>" in page
    # An image that is there under many names has its layers shared by all of them; its
    # configuration is no layer.
    for name in ("a", "b", "c", "d"):
        ONE.push(registry, name, "latest")
    report = measure(server.storage)
    assert {layer.digest for layer in report.layers} == {
        layer.digest for image in (ONE, TWO) for layer in image.layers
    }
    assert report.referenced - report.stored == 5 * base + 4 * (
        ONE.layers[1].size + ONE.config_descriptor.size
    )
    with urllib.request.urlopen(f"http://{server.address}/") as answer:
        assert "<td>a, b, c, d, one and 1 more</td>" in answer.read().decode()
    request = urllib.request.Request(
        f"http://{server.address}/tiffin/v1/collect", data=b"", method="POST"
    )
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["blobs"] == 0


def test_a_read_only_registry(start_registry: Start, connect: Connect, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    ONE.push(connect(start_registry(folder)), "app", "v1")
    client = connect(start_registry(folder, policy=Policy(read_only=True)))
    assert client.manifest("app", "v1").digest == ONE.digest
    for refused in (
        lambda: TWO.push(client, "app", "v2"),
        lambda: client.delete_manifest("app", "v1"),
        lambda: client.delete_blob("app", ONE.layers[0].digest),
    ):
        with pytest.raises(TiffinError, match="read-only"):
            refused()


def test_everybody_may_pull_if_so_wanted(
    start_registry: Start, connect: Connect, tmp_path: Path
) -> None:
    policy = Policy(Passwords(htpasswd(tmp_path)), anonymous_pull=True)
    server = start_registry(policy=policy)
    ONE.push(connect(server, Credentials("user", "secret")), "app", "v1")
    with connect(server).blob("app", ONE.layers[0]) as stream:
        stream.drain()
    with pytest.raises(Unauthorized):
        TWO.push(connect(server), "app", "v2")
    with pytest.raises(Unauthorized):
        connect(server).delete_manifest("app", "v1")


def test_nobody_gets_a_token_to_pull_if_so_wanted(
    start_registry: Start, connect: Connect, tmp_path: Path
) -> None:
    # Docker's and Podman's clients ask for a token before anything else.
    passwords = Passwords(htpasswd(tmp_path))
    tokens = Tokens(tmp_path, passwords, "tests")
    server = start_registry(policy=Policy(passwords, tokens, anonymous_pull=True))
    scopes = "?scope=repository:app:pull,push&scope=repository:other:push&scope=registry:catalog:*"

    def ask(authorization: str = "") -> dict[str, Any]:
        headers = {"Authorization": authorization} if authorization else {}
        asked = urllib.request.Request(f"http://{server.address}/token{scopes}", headers=headers)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            document: dict[str, Any] = json.load(answer)
        return document

    answer = ask()
    assert answer["scope"] == "repository:app:pull"
    assert "refresh_token" not in answer
    assert tokens.allows(answer["token"], [("repository:app", "pull")]) is True
    assert tokens.allows(answer["token"], [("repository:app", "push")]) is False
    with pytest.raises(HTTPError, match="401") as refused:
        ask("Basic " + b64encode(b"user:wrong").decode())
    refused.value.close()
    # A registry where nobody may pull gives nobody a token.
    closed = start_registry(policy=Policy(passwords, tokens))
    with pytest.raises(HTTPError, match="401") as refused:
        urllib.request.urlopen(f"http://{closed.address}/token{scopes}", timeout=60)
    refused.value.close()


def test_users_files(tmp_path: Path) -> None:
    path = htpasswd(tmp_path)
    passwords = Passwords(path)
    assert passwords.check("user", "secret")
    assert passwords.check("user", "secret")
    assert not passwords.check("user", "Secret")
    # Bcrypt, as `htpasswd -B` makes it; and the file may change meanwhile.
    path.write_text(f"user:{_crypt('pass', '$2y$04$abcdefghijklmnopqrstuu')}\n")
    assert "$2y$04$" in path.read_text()
    assert not passwords.check("user", "secret")
    assert passwords.check("user", "pass")
    (tmp_path / "md5").write_text("user:$apr1$x$y\n")
    with pytest.raises(Unsupported, match="htpasswd -B"):
        Passwords(tmp_path / "md5")
    (tmp_path / "broken").write_text("nobody\n")
    with pytest.raises(InvalidParameter, match="line 1"):
        Passwords(tmp_path / "broken")


def test_an_address_in_use(server: RegistryServer, tmp_path: Path) -> None:
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(Conflict, match=f"127.0.0.1:{port}"):
        RegistryServer(tmp_path / "other", port=port)


def test_what_is_no_http_ends_its_own_connection_only(
    registry: Registry, server: RegistryServer
) -> None:
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 this is not http\r\n\r\n")
        while connection.recv(4096):
            pass
    registry.ping()


def test_a_full_disk(tmp_path: Path, connect: Connect, start_registry: Start) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    from tiffin.linux import syscalls

    small = tmp_path / "small"
    small.mkdir()
    syscalls.mount("tmpfs", str(small), "tmpfs", 0, "size=1m")
    try:
        client = connect(start_registry(small / "data"))
        with pytest.raises(TiffinError, match="no space left"):
            client.put_blob("app", bytes(3 << 20))
        client.put_blob("app", b"small")
    finally:
        syscalls.umount(str(small), syscalls.MNT_DETACH)


def test_storage_lists_repositories_with_deep_names(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    for name in ("a", "a/b", "a/b/c_d", "z"):
        storage.adopt(name, digest_of(b"x"))
    assert storage.repositories() == ["a", "a/b", "a/b/c_d", "z"]
