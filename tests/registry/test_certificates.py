"""Client certificates, in Docker's layout of ``certs.d``, and whom they are shown to."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from urllib3.exceptions import SSLError

from registry.conftest import HASTY, MadeImage, layer_tar
from registry.faulty import FaultyProxy
from tiffin.errors import Forbidden, InvalidParameter, Unreachable
from tiffin.registry.answers import Answer
from tiffin.registry.client import Registry
from tiffin.registry.endpoints import Configuration
from tiffin.registry.transport import Transport

IMAGE = MadeImage([layer_tar({"etc/a": b"a" * 50_000})])


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


class Authority:
    """A CA of our own, and what it signs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.cert, self.key = folder / f"{name}-ca.crt", folder / f"{name}-ca.key"
        openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", self.key, "-out", self.cert, "-days", "2", "-subj", f"/CN={name}"),
        )

    def sign(self, name: str) -> tuple[Path, Path]:
        """A certificate and key for a host or a user."""
        cert, key = self.folder / f"{name}.cert", self.folder / f"{name}.key"
        request = self.folder / f"{name}.csr"
        openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", key, "-out", request, "-subj", f"/CN={name}"),
        )
        names = self.folder / f"{name}.ext"
        names.write_text(f"subjectAltName=DNS:{name},DNS:localhost,IP:127.0.0.1\n")
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self.key),
            *("-CAcreateserial", "-days", "2", "-extfile", names, "-out", cert),
        )
        return cert, key


class Asking(FaultyProxy):
    """Speaks TLS, and asks for a certificate; ``subjects`` says who has come."""

    def __init__(
        self, upstream: str, context: ssl.SSLContext, elsewhere: str = "", moved: str = "https"
    ) -> None:
        super().__init__(upstream)
        self.subjects: list[Any] = []
        self._elsewhere = f"{moved}://{elsewhere}" if elsewhere else ""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        assert isinstance(request.connection, ssl.SSLSocket)
        found: Any = request.connection.getpeercert() or {}
        self.subjects.append(dict(pair for (pair,) in found.get("subject", ())).get("commonName"))
        if self._elsewhere and "/blobs/" in request.path:
            request.send_response(307)
            request.send_header("Location", f"{self._elsewhere}{request.path}?sign=secret-word")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        super().handle(request)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("authority"), "tests")
    made.sign("server")
    made.sign("somebody")
    return made


def context(authority: Authority, asking: ssl.VerifyMode) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(authority.folder / "server.cert", authority.folder / "server.key")
    made.load_verify_locations(authority.cert)
    made.verify_mode = asking
    return made


def trusting(folder: Path, host: str, authority: Authority, user: str = "") -> Path:
    """What Docker's users put into ``certs.d``."""
    place = folder / "certs.d" / host
    place.mkdir(parents=True)
    (place / "ca.crt").write_bytes(authority.cert.read_bytes())
    if user:
        (place / "client.cert").write_bytes((authority.folder / f"{user}.cert").read_bytes())
        (place / "client.key").write_bytes((authority.folder / f"{user}.key").read_bytes())
    return folder


@contextmanager
def client_of(folder: Path, host: str) -> Iterator[Registry]:
    """As of a host that is not this machine: what is not signed is refused."""
    found = Configuration([folder]).endpoints(host, mirrors=False)[0]
    strict = type(found)(
        host, ("https",), authorities=found.authorities, certificate=found.certificate
    )
    with Registry(strict, patience=HASTY) as client:
        yield client


def pull(client: Registry) -> None:
    assert client.manifest("app", "v1").digest == IMAGE.digest
    with client.blob("app", IMAGE.layers[0]) as stream:
        assert b"".join(iter(stream.read, b"")) == IMAGE.blobs[0]


def test_a_registry_that_wants_a_certificate(
    registry: Registry, authority: Authority, tmp_path: Path
) -> None:
    IMAGE.push(registry, "app", "v1")
    with Asking(registry.host, context(authority, ssl.CERT_REQUIRED)) as server:
        host = server.address
        with client_of(trusting(tmp_path / "with", host, authority, "somebody"), host) as client:
            pull(client)
        assert set(server.subjects) == {"somebody"}
        without = trusting(tmp_path / "without", host, authority)
        # The server hangs up right after it has said why, which may get lost on the way.
        with client_of(without, host) as client, pytest.raises(Unreachable):
            client.manifest("app", "v1")
        # Somebody whom another authority has signed.
        (tmp_path / "strange").mkdir()
        strange = Authority(tmp_path / "strange", "strange")
        strange.sign("stranger")
        place = trusting(tmp_path / "wrong", host, authority) / "certs.d" / host
        (place / "client.cert").write_bytes((strange.folder / "stranger.cert").read_bytes())
        (place / "client.key").write_bytes((strange.folder / "stranger.key").read_bytes())
        with client_of(tmp_path / "wrong", host) as client, pytest.raises(Unreachable):
            client.manifest("app", "v1")  # the reason may get lost, too
        assert set(server.subjects) == {"somebody"}


@pytest.mark.parametrize(
    "alert", ["TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_BAD_CERTIFICATE"]
)
def test_tls_that_is_refused_is_no_reason_for_plain_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alert: str
) -> None:
    (endpoint,) = Configuration([tmp_path]).endpoints("localhost:5000", mirrors=False)
    assert endpoint.schemes == ("https", "http")
    asked: list[str] = []

    def refuse(self: Transport, method: str, url: str, *rest: object) -> Answer:
        asked.append(url)
        raise SSLError(f"[SSL: {alert}] alert")

    monkeypatch.setattr(Transport, "_open", refuse)
    with (
        Registry(endpoint, patience=HASTY) as client,
        pytest.raises(Unreachable, match=r"wants a client certificate: .*client\.cert"),
    ):
        client.ping()
    assert asked == ["https://localhost:5000/v2/"]


def test_a_certificate_that_is_refused_is_named(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Transport, method: str, url: str, *rest: object) -> Answer:
        raise SSLError("[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca")

    monkeypatch.setattr(Transport, "_open", refuse)
    folder = trusting(tmp_path, "registry.test", authority, "somebody")
    with (
        client_of(folder, "registry.test") as client,
        pytest.raises(Unreachable, match=r"refuses the client certificate .*client\.cert"),
    ):
        client.ping()


def test_a_registry_without_a_certificate_that_is_trusted(
    registry: Registry, authority: Authority, tmp_path: Path
) -> None:
    with Asking(registry.host, context(authority, ssl.CERT_NONE)) as server:
        with (
            client_of(tmp_path, server.address) as client,
            pytest.raises(Unreachable, match=rf"certs\.d/{server.address}/ca\.crt"),
        ):
            client.ping()
        assert server.requests == []


def test_another_host_is_shown_no_certificate(
    registry: Registry, authority: Authority, tmp_path: Path
) -> None:
    IMAGE.push(registry, "app", "v1")
    settings = context(authority, ssl.CERT_OPTIONAL)
    with (
        Asking(registry.host, settings) as elsewhere,
        Asking(registry.host, settings, elsewhere.address) as server,
    ):
        host = server.address
        folder = trusting(tmp_path, host, authority, "somebody")
        with client_of(folder, host) as client:
            client.manifest("app", "v1")
            with (
                pytest.raises(Unreachable, match=f"certificate of registry {elsewhere.address}"),
                client.blob("app", IMAGE.layers[0]) as stream,
            ):
                stream.drain()  # this registry's CA is nobody's else
            assert elsewhere.subjects == []
            # Even where the other host is trusted.
            client.transport._pool(f"https://{elsewhere.address}/").connection_pool_kw[
                "ca_certs"
            ] = str(authority.cert)
            pull(client)
        assert set(server.subjects) == {"somebody"}
        assert elsewhere.subjects == [None]


def test_a_redirect_out_of_tls_is_refused(
    registry: Registry, authority: Authority, tmp_path: Path
) -> None:
    IMAGE.push(registry, "app", "v1")
    with (
        FaultyProxy(registry.host) as plain,
        Asking(registry.host, context(authority, ssl.CERT_NONE), plain.address, "http") as server,
    ):
        with client_of(trusting(tmp_path, server.address, authority), server.address) as client:
            client.manifest("app", "v1")
            with (
                pytest.raises(Forbidden, match="no TLS") as caught,
                client.blob("app", IMAGE.layers[0]) as stream,
            ):
                stream.drain()
        # What signs the address is no part of the message.
        assert "secret-word" not in str(caught.value)
        assert plain.requests == []


def test_a_certificate_without_its_key(authority: Authority, tmp_path: Path) -> None:
    place = trusting(tmp_path, "registry.test", authority, "somebody") / "certs.d/registry.test"
    (place / "client.key").unlink()
    with pytest.raises(InvalidParameter, match=r"missing key client\.key .*client\.cert"):
        Configuration([tmp_path]).endpoints("registry.test")
    (place / "client.key").write_text("no key")
    (endpoint,) = Configuration([tmp_path]).endpoints("registry.test")
    with pytest.raises(InvalidParameter, match=r"registry\.test can't be used"):
        Registry(endpoint)
