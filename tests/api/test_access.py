"""Who may talk to the daemon: the socket's group, TLS with client certificates, plain TCP."""

from __future__ import annotations

import os
import select
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tiffin.api import tls
from tiffin.api.daemon import Access, tcp_address
from tiffin.api.exchange import Request, Response
from tiffin.api.routing import Router
from tiffin.api.server import Limits, Server
from tiffin.errors import Forbidden, InvalidParameter


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA, a server's and a client's certificate, and a stranger's."""
    if shutil.which("openssl") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("openssl is not installed")
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    for authority, name in (("ca", "server"), ("ca", "client"), ("other", "stranger")):
        if not (folder / f"{authority}.pem").exists():
            names = ("-keyout", f"{authority}.key", "-out", f"{authority}.pem")
            openssl(folder, "req", "-x509", *key, "-subj", f"/CN={authority}", *names)
        names = ("-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
        signer = ("-CA", f"{authority}.pem", "-CAkey", f"{authority}.key")
        openssl(
            folder, "req", "-x509", *key, *names, *signer, "-addext", "subjectAltName=IP:127.0.0.1"
        )
    return folder


@pytest.fixture
def router() -> Router:
    router = Router()

    def echo(request: Request, response: Response) -> None:
        output = response.stream("application/octet-stream")
        while data := request.body.read(1 << 16):
            output.write(data)

    def hijack(request: Request, response: Response) -> None:
        connection, initial = response.hijack("application/vnd.docker.raw-stream")
        copy = connection.dup()

        def converse() -> None:
            with copy:
                data = initial
                while piece := copy.recv(1 << 16):
                    data += piece
                copy.sendall(data.upper())

        threading.Thread(target=converse).start()

    router.add("POST", "/echo", echo)
    router.add("POST", "/hijack", hijack)
    router.add("GET", "/_ping", lambda request, response: response.whole(b"OK", "text/plain"))
    return router


@pytest.fixture
def port(router: Router, certificates: Path) -> Iterator[int]:
    """A TCP port with TLS."""
    access = Access(
        authority=str(certificates / "ca.pem"),
        certificate=str(certificates / "server.pem"),
        key=str(certificates / "server.key"),
    )
    with Server(router, Limits(stop_seconds=20)) as server:
        number = server.listen_tcp(("127.0.0.1", 0), access.context("tcp://127.0.0.1"))
        thread = threading.Thread(target=server.serve)
        thread.start()
        yield number
        server.stop()
        thread.join(20)
        assert server.active == 0


def connect(port: int, certificates: Path, name: str | None) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    if name:
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    connection = socket.create_connection(("127.0.0.1", port), 20)
    return context.wrap_socket(connection, server_hostname="127.0.0.1")


def read_all(connection: ssl.SSLSocket) -> bytes:
    data = b""
    while piece := connection.recv(1 << 16):
        data += piece
    return data


def converse(connection: ssl.SSLSocket, data: bytes) -> bytes:
    """Send and receive at once until the other side ends. By one thread: a TLS connection of
    Python's must not be read and written by two."""
    connection.setblocking(False)
    received, sent = b"", 0
    while True:
        wanted = [connection] if sent < len(data) else []
        ready, _, _ = select.select([connection], wanted, [], 20)
        try:
            if sent < len(data):
                sent += connection.send(data[sent : sent + 16384])
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        try:
            while ready or connection.pending():
                piece = connection.recv(1 << 16)
                if not piece:
                    return received
                received += piece
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass


def test_a_client_with_a_certificate_is_served(port: int, certificates: Path) -> None:
    body = os.urandom(3_000_000)
    with connect(port, certificates, "client") as connection:
        head = (
            f"POST /echo HTTP/1.1\r\nHost: d\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        answer, _, rest = converse(connection, head.encode() + body).partition(b"\r\n\r\n")
    assert b" 200 " in answer
    data = b""
    while size := int((line := rest.partition(b"\r\n"))[0], 16):
        data += line[2][:size]
        rest = line[2][size + 2 :]
    assert data == body


@pytest.mark.parametrize("name", [None, "stranger"])
def test_others_are_refused(port: int, certificates: Path, name: str | None) -> None:
    with (
        pytest.raises((ssl.SSLError, ConnectionError)),
        connect(port, certificates, name) as connection,
    ):
        connection.sendall(b"GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
        assert b"OK" not in read_all(connection)
        raise ConnectionResetError("the server closed without an answer")
    with connect(port, certificates, "client") as connection:
        connection.sendall(b"GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
        assert read_all(connection).endswith(b"OK")


def test_what_is_no_tls_disturbs_nobody(port: int, certificates: Path) -> None:
    with socket.create_connection(("127.0.0.1", port), 20) as plain:
        plain.sendall(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
        assert b"OK" not in plain.recv(1000)
    with connect(port, certificates, "client") as connection:
        connection.sendall(b"GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
        assert read_all(connection).endswith(b"OK")


def test_a_handshake_is_bounded_in_time(
    port: int, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", port), 60) as silent:
        assert silent.recv(1000) == b""


def test_a_hijacked_connection_may_be_closed_half(port: int, certificates: Path) -> None:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", port), 20) as connection:

        def until_done(step: Any, *arguments: Any) -> Any:
            while True:
                try:
                    result = step(*arguments)
                    connection.sendall(outgoing.read())
                    return result
                except ssl.SSLWantReadError:
                    connection.sendall(outgoing.read())
                    incoming.write(connection.recv(1 << 16))

        until_done(tls.do_handshake)
        upgrade = b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        until_done(tls.write, b"POST /hijack HTTP/1.1\r\nHost: d\r\n" + upgrade + b"hel")
        until_done(tls.write, b"lo")
        # Only the closing alert is sent; the answer is still read.
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()
        connection.sendall(outgoing.read())
        data = b""
        while not data.endswith(b"HELLO"):
            data += until_done(tls.read, 1 << 16)
        assert data.startswith(b"HTTP/1.1 101")


def test_tcp_without_tls_has_to_be_said_twice(router: Router) -> None:
    with pytest.raises(Forbidden, match="root on this machine"):
        Access().context("tcp://127.0.0.1:0")
    assert Access(insecure_tcp=True).context("tcp://127.0.0.1:0") is None
    with Server(router) as server:
        port = server.listen_tcp(("127.0.0.1", 0), None)
        thread = threading.Thread(target=server.serve)
        thread.start()
        with socket.create_connection(("127.0.0.1", port), 20) as connection:
            connection.sendall(b"GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
            assert connection.makefile("rb").read().endswith(b"OK")
        server.stop()
        thread.join(20)


def test_half_of_the_certificates_are_not_enough(certificates: Path) -> None:
    with pytest.raises(InvalidParameter, match="needs all of"):
        Access(certificate=str(certificates / "server.pem")).context("tcp://x")
    with pytest.raises(InvalidParameter, match="cannot use the certificates"):
        Access(authority="/nothing", certificate="/nothing", key="/nothing").context("tcp://x")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("tcp://127.0.0.1:99", ("127.0.0.1", 99)),
        ("tcp://0.0.0.0", ("0.0.0.0", 2376)),
        ("tcp://[::1]:7", ("::1", 7)),
    ],
)
def test_addresses(host: str, expected: tuple[str, int]) -> None:
    assert tcp_address(host, 2376) == expected


@pytest.mark.parametrize("host", ["tcp://", "tcp://a:b", "tcp://a:70000", "tcp://a/b", "tcp://u@a"])
def test_what_is_no_address(host: str) -> None:
    with pytest.raises(InvalidParameter):
        tcp_address(host, 2376)


@pytest.mark.root
def test_the_socket_is_the_groups(router: Router, tmp_path: Path) -> None:
    with Server(router) as server:
        server.listen(tmp_path / "a.sock")
        server.listen(tmp_path / "b.sock", Access(group="daemon").group_id())
        for name, group in (("a.sock", 0), ("b.sock", 1)):
            status = (tmp_path / name).stat()
            assert stat.S_IMODE(status.st_mode) == 0o660
            assert (status.st_uid, status.st_gid) == (0, group)
    with pytest.raises(InvalidParameter, match="there is no group"):
        Access(group="no-such-group").group_id()
