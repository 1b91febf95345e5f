"""What a client makes of what registries answer, the right and the wrong."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from registry.conftest import HASTY, Connect, MadeImage, Start, digest_of, layer_tar
from registry.faulty import FaultyProxy
from tiffin.errors import (
    DigestMismatch,
    InvalidParameter,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unreachable,
    Unsupported,
)
from tiffin.image.manifest import OCI_MANIFEST, Descriptor, Manifest
from tiffin.registry.access import Passwords, Tokens
from tiffin.registry.client import Registry, referrers_tag
from tiffin.registry.credentials import Credentials
from tiffin.registry.endpoints import Configuration
from tiffin.registry.protocol import Policy
from tiffin.registry.server import RegistryServer

IMAGE = MadeImage([layer_tar({"etc/a": b"a" * 50_000}), layer_tar({"etc/b": b"b" * 9})])


def htpasswd(folder: Path) -> Path:
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", "-salt", "tiffin", "secret"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    path = folder / "htpasswd"
    path.write_text(f"# users\nuser:{hashed}\n")
    return path


def test_an_image_comes_back_as_it_was_pushed(registry: Registry) -> None:
    IMAGE.push(registry, "team/app", "v1")
    found = registry.manifest("team/app", "v1")
    assert isinstance(found, Manifest)
    assert found.raw == IMAGE.manifest
    assert found.digest == IMAGE.digest
    assert registry.read_blob("team/app", found.config) == IMAGE.config
    assert list(registry.tags("team/app")) == ["v1"]
    assert list(registry.catalog()) == ["team/app"]
    described = registry.find_manifest("team/app", "v1")
    assert described is not None
    assert (described.digest, described.size) == (IMAGE.digest, len(IMAGE.manifest))
    assert registry.find_manifest("team/app", "v2") is None


def test_what_is_not_there(registry: Registry) -> None:
    with pytest.raises(NotFound, match="app:v1 not found"):
        registry.manifest("app", "v1")
    with pytest.raises(NotFound):
        list(registry.tags("app"))
    with pytest.raises(NotFound, match=digest_of(b"x")):
        registry.read_blob("app", Descriptor.of(b"x", "any"))
    assert registry.find_blob("app", digest_of(b"x")) is None


def test_tags_come_in_pages(registry: Registry, server: RegistryServer) -> None:
    IMAGE.push(registry, "app", "t0000")
    folder = server.storage.root / "repositories" / "app" / "_tags"
    for number in range(1, 1500):
        (folder / f"t{number:04}").write_text(IMAGE.digest)
    assert list(registry.tags("app")) == [f"t{number:04}" for number in range(1500)]


def test_chunks_and_mounts(registry: Registry) -> None:
    upload = registry.begin_upload("one")
    assert upload is not None
    upload.send(b"first ")
    upload.send(b"second ")
    upload.finish(digest_of(b"first second third"), b"third")
    assert registry.find_blob("one", digest_of(b"first second third")) == 18
    digest = digest_of(b"first second third")
    assert registry.begin_upload("two", mount=digest, source="one") is None
    assert registry.find_blob("two", digest) == 18
    refused = registry.begin_upload("two", mount=digest_of(b"no"), source="one")
    assert refused is not None
    refused.cancel()


def test_a_wrong_digest_is_refused_by_the_registry(registry: Registry) -> None:
    upload = registry.begin_upload("one")
    assert upload is not None
    with pytest.raises(DigestMismatch):
        upload.finish(digest_of(b"other"), b"content")


@pytest.mark.parametrize("kind", ["cut", "drop", "cut-head", "500", "429", "redirect", "delay"])
def test_a_blob_survives_a_fault(
    registry: Registry, connect: Connect, tmp_path: Path, kind: str
) -> None:
    IMAGE.push(registry, "app", "v1")
    with FaultyProxy(registry.host, kind, at=0) as proxy:
        spool = tmp_path / "spool"
        with connect(proxy.address).blob("app", IMAGE.layers[0], spool=spool) as stream:
            assert b"".join(iter(stream.read, b"")) == IMAGE.blobs[0]
        assert spool.read_bytes() == IMAGE.blobs[0]
        if kind == "cut":
            assert proxy.ranges == [f"bytes={len(IMAGE.blobs[0]) // 2}-"]


@pytest.mark.parametrize("kind", ["cut", "drop", "cut-head", "500", "429", "redirect", "delay"])
def test_lists_survive_a_fault(registry: Registry, connect: Connect, kind: str) -> None:
    IMAGE.push(registry, "app", "v1")
    for read in (
        lambda client: list(client.tags("app")) == ["v1"],
        lambda client: list(client.catalog()) == ["app"],
        lambda client: client.referrers("app", IMAGE.digest) == [],
        lambda client: client.manifest("app", "v1").digest == IMAGE.digest,
    ):
        with FaultyProxy(registry.host, kind, at=0) as proxy:
            assert read(connect(proxy.address))
            assert len(proxy.requests) == (1 if kind == "delay" else 2)


def test_lists_that_break_each_time(registry: Registry, connect: Connect) -> None:
    IMAGE.push(registry, "app", "v1")
    with FaultyProxy(registry.host, "drop", at=0, times=1000) as proxy:
        with pytest.raises(Unreachable, match="in the middle of /v2/app/tags/list"):
            list(connect(proxy.address).tags("app"))
        assert len(proxy.requests) == HASTY.attempts


def test_a_blob_goes_on_where_an_earlier_attempt_ended(
    registry: Registry, connect: Connect, tmp_path: Path
) -> None:
    IMAGE.push(registry, "app", "v1")
    spool = tmp_path / "spool"
    spool.write_bytes(IMAGE.blobs[0][:100])
    with FaultyProxy(registry.host) as proxy:
        with connect(proxy.address).blob("app", IMAGE.layers[0], spool=spool) as stream:
            assert b"".join(iter(stream.read, b"")) == IMAGE.blobs[0]
            assert (stream.resumed, stream.fetched) == (100, len(IMAGE.blobs[0]) - 100)
        assert proxy.ranges == ["bytes=100-"]


def test_a_registry_that_goes_on_failing(
    registry: Registry, connect: Connect, tmp_path: Path
) -> None:
    IMAGE.push(registry, "app", "v1")
    spool = tmp_path / "spool"
    with FaultyProxy(registry.host, "drop", at=0, times=1000) as proxy:
        stream = connect(proxy.address).blob("app", IMAGE.layers[0], spool=spool)
        with stream, pytest.raises(Unreachable, match="broke the connection after 0 of"):
            stream.drain()
    with (
        FaultyProxy(registry.host, "cut-head", at=0, times=1000) as proxy,
        pytest.raises(Unreachable, match="can't be reached"),
    ):
        connect(proxy.address).manifest("app", "v1")


def test_corrupt_bytes_are_named_and_not_kept(
    registry: Registry, connect: Connect, tmp_path: Path
) -> None:
    IMAGE.push(registry, "app", "v1")
    spool = tmp_path / "spool"
    with FaultyProxy(registry.host, "corrupt", at=0, times=2) as proxy:
        client = connect(proxy.address)
        stream = client.blob("app", IMAGE.layers[0], spool=spool)
        with stream, pytest.raises(DigestMismatch, match=IMAGE.layers[0].digest):
            stream.drain()
        assert not spool.exists()
        with pytest.raises(DigestMismatch, match=IMAGE.digest):
            client.manifest("app", IMAGE.digest)


def test_a_wrong_size_is_refused(registry: Registry) -> None:
    IMAGE.push(registry, "app", "v1")
    right = IMAGE.layers[0]
    for size in (right.size - 1, right.size + 1):
        wrong = Descriptor(right.media_type, right.digest, size)
        with registry.blob("app", wrong) as stream, pytest.raises(DigestMismatch):
            stream.drain()


def test_too_many_requests(registry: Registry, connect: Connect) -> None:
    with FaultyProxy(registry.host, "429", at=0, times=1000) as proxy:
        with pytest.raises(TooManyRequests, match="toomanyrequests"):
            connect(proxy.address).manifest("app", "v1")
        assert len(proxy.requests) == HASTY.attempts


def test_schema_1_is_refused_by_name(registry: Registry, server: RegistryServer) -> None:
    raw = json.dumps({"schemaVersion": 1, "name": "old", "tag": "x"}).encode()
    kind = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    server.storage.put_manifest("old", digest_of(raw), raw, kind, ["x"], {})
    with pytest.raises(Unsupported, match="schema 1"):
        registry.manifest("old", "x")


def test_a_media_type_that_is_another_one(registry: Registry, server: RegistryServer) -> None:
    raw = IMAGE.manifest
    server.storage.put_manifest("app", digest_of(raw), raw, OCI_MANIFEST, ["x"], {})
    with pytest.raises(InvalidParameter, match="media type"):
        registry.manifest("app", "x")


def test_passwords(start_registry: Start, connect: Connect, tmp_path: Path) -> None:
    policy = Policy(Passwords(htpasswd(tmp_path)))
    server = start_registry(policy=policy)
    client = connect(server, Credentials("user", "secret"))
    IMAGE.push(client, "app", "v1")
    assert client.manifest("app", "v1").digest == IMAGE.digest
    for wrong in (None, Credentials("user", "guess"), Credentials("nobody", "secret")):
        with pytest.raises(Unauthorized) as caught:
            connect(server, wrong).manifest("app", "v1")
        assert "guess" not in str(caught.value)
    with pytest.raises(Unauthorized, match="401"):
        connect(server, Credentials("user", "guess")).login()
    assert client.login() == ""


def test_tokens(start_registry: Start, connect: Connect, tmp_path: Path) -> None:
    passwords = Passwords(htpasswd(tmp_path))
    tokens = Tokens(tmp_path, passwords, "tests")
    server = start_registry(policy=Policy(passwords, tokens))
    with FaultyProxy(server.address) as proxy:
        client = connect(proxy.address, Credentials("user", "secret"))
        IMAGE.push(client, "app", "v1")
        assert client.begin_upload("other", mount=IMAGE.id, source="app") is None
        # The password goes to the token endpoint only.
        for request, sent in zip(proxy.requests, proxy.authorizations, strict=True):
            assert (sent or "").startswith("Basic ") == ("/token" in request)
    refresh = connect(server, Credentials("user", "secret")).login()
    assert refresh
    again = connect(server, Credentials("user", identity_token=refresh))
    assert again.manifest("app", "v1").digest == IMAGE.digest
    with pytest.raises(Unauthorized):
        connect(server, Credentials("user", identity_token=refresh + "x")).manifest("app", "v1")
    with pytest.raises(Unauthorized, match="log in"):
        connect(server).manifest("app", "v1")


def test_a_token_is_good_for_its_scope_only(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path, Passwords(htpasswd(tmp_path)), "tests")
    token = tokens.issue("user", ["repository:app:pull"], refresh=False)["token"]
    assert tokens.allows(token, [("repository:app", "pull")]) is True
    assert tokens.allows(token, [("repository:app", "push")]) is False
    assert tokens.allows(token, [("repository:other", "pull")]) is False
    assert tokens.allows(token[:-2], [("repository:app", "pull")]) is None


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=registry.test",
         "-addext", "subjectAltName=DNS:registry.test,DNS:localhost"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return cert, key


def test_private_authorities(start_registry: Start, connect: Connect, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "own")
    server = start_registry(certificate=(cert, key))
    port = server.address.rpartition(":")[2]
    # On this machine a certificate need not be signed, as for Docker.
    connect(server).ping()
    place = tmp_path / "trusting" / "certs.d" / f"localhost:{port}"
    place.mkdir(parents=True)
    endpoints = Configuration([tmp_path / "trusting"]).endpoints(f"localhost:{port}")
    strict = type(endpoints[0])(f"localhost:{port}", ("https",))
    with (
        Registry(strict, patience=HASTY) as client,
        pytest.raises(Unreachable, match=r"certs\.d/localhost"),
    ):
        client.ping()
    (place / "ca.crt").write_bytes(cert.read_bytes())
    found = Configuration([tmp_path / "trusting"]).endpoints(f"localhost:{port}")[0]
    trusting = type(found)(found.host, ("https",), authorities=found.authorities)
    with Registry(trusting, patience=HASTY) as client:
        client.ping()


def test_plain_http_only_where_it_is_named(tmp_path: Path) -> None:
    plain = Configuration().endpoints("registry.test:5000")[0]
    assert (plain.schemes, plain.verify) == (("https",), True)
    (tmp_path / "registries.toml").write_text(
        '[registry."registry.test:5000"]\ninsecure = true\n'
        '[registry."docker.io"]\nmirrors = ["https://mirror.test", "http://near:5000/hub"]\n'
    )
    configured = Configuration([tmp_path])
    named = configured.endpoints("registry.test:5000")[0]
    assert (named.schemes, named.verify) == (("https", "http"), False)
    hub = configured.endpoints("docker.io")
    assert [(each.host, each.prefix, each.mirror) for each in hub] == [
        ("mirror.test", "", True),
        ("near:5000", "/hub", True),
        ("registry-1.docker.io", "", False),
    ]
    assert [each.host for each in configured.endpoints("docker.io", mirrors=False)] == [
        "registry-1.docker.io"
    ]


def test_a_broken_configuration_says_where(tmp_path: Path) -> None:
    (tmp_path / "registries.toml").write_text("[registry")
    with pytest.raises(InvalidParameter, match=r"registries\.toml"):
        Configuration([tmp_path])
    (tmp_path / "registries.toml").write_text('[registry."x"]\nmiror = []')
    with pytest.raises(InvalidParameter, match="not miror"):
        Configuration([tmp_path])


def test_a_redirect_elsewhere_gets_no_password(
    start_registry: Start, connect: Connect, tmp_path: Path
) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    elsewhere = start_registry()
    IMAGE.push(connect(elsewhere), "app", "v1")

    class Redirecting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") is None:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="x"')
            else:
                self.send_response(307)
                self.send_header("Location", f"http://{proxy.address}{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with FaultyProxy(elsewhere.address) as proxy:
        front = HTTPServer(("127.0.0.1", 0), Redirecting)
        thread = Thread(target=front.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            client = connect(f"127.0.0.1:{front.server_address[1]}", Credentials("user", "secret"))
            with client.blob("app", IMAGE.layers[1]) as stream:
                stream.drain()
        finally:
            front.shutdown()
            front.server_close()
            thread.join()
        assert proxy.authorizations == [None]


def test_referrers_here_and_at_older_registries(registry: Registry, connect: Connect) -> None:
    IMAGE.push(registry, "app", "v1")
    document = json.loads(IMAGE.manifest)
    document["mediaType"] = OCI_MANIFEST
    document["artifactType"] = "app/bom"
    document["subject"] = {
        "mediaType": "any", "digest": IMAGE.digest, "size": len(IMAGE.manifest)
    }  # fmt: skip
    raw = json.dumps(document).encode()
    registry.put_manifest("app", digest_of(raw), raw, OCI_MANIFEST)
    (found,) = registry.referrers("app", IMAGE.digest)
    assert (found["digest"], found["artifactType"]) == (digest_of(raw), "app/bom")
    assert registry.referrers("app", IMAGE.digest, "app/other") == []
    # What a client does for a registry that does not say that it knows subjects.
    registry._refer("app", raw, OCI_MANIFEST, digest_of(raw), document["subject"])
    tagged = registry.raw_manifest("app", referrers_tag(IMAGE.digest))[0]
    assert json.loads(tagged)["manifests"] == [found]
