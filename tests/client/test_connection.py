"""The HTTP client: bodies in any shape and cut anywhere, refusals, streams that are taken over."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiffin.client.connection import Client, DaemonError, Stream, escape, target
from tiffin.client.endpoint import Endpoint
from tiffin.errors import InvalidParameter, Unreachable

Serve = Callable[[Callable[[socket.socket], None]], Client]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Listens, and hands each connection to a function; gives a client of that."""
    listeners: list[tuple[socket.socket, threading.Thread]] = []

    def start(handle: Callable[[socket.socket], None]) -> Client:
        path = f"{tmp_path}/s{len(listeners)}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    handle(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        listeners.append((listener, thread))
        return Client(Endpoint(f"unix://{path}", path, "/nosuch", False))

    yield start
    for listener, thread in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def read_head(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(1)
        if not part:
            return data
        data += part
    return data


class Pieces:
    """A socket whose data come in pieces of given sizes."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._data = data
        self._sizes = sizes

    def recv_into(self, buffer: memoryview) -> int:
        size = min(self._sizes.pop(0) if self._sizes else len(self._data), len(buffer))
        piece, self._data = self._data[:size], self._data[size:]
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        return


@given(st.lists(st.binary(min_size=1)), st.lists(st.integers(1, 40)))
def test_a_chunked_body_is_whole_wherever_it_is_cut(chunks: list[bytes], cuts: list[int]) -> None:
    body = b"".join(b"%x;ext\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\nT: x\r\n\r\n"
    response = Stream(Pieces(data + b"next", cuts)).answer()  # type: ignore[arg-type]
    assert response.read() == b"".join(chunks)
    assert response.reusable


@given(st.binary(), st.lists(st.integers(1, 40)), st.booleans())
def test_a_plain_body_is_whole_wherever_it_is_cut(
    body: bytes, cuts: list[int], measured: bool
) -> None:
    length = b"Content-Length: %d\r\n" % len(body) if measured else b""
    data = b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + body
    response = Stream(Pieces(data, cuts)).answer()  # type: ignore[arg-type]
    assert response.read() == body
    assert response.reusable == measured


@given(st.lists(st.dictionaries(st.text(), st.integers())), st.lists(st.integers(1, 9)))
def test_messages_come_one_by_one(messages: list[dict[str, int]], cuts: list[int]) -> None:
    body = b"".join(json.dumps(message).encode() + b"\r\n" for message in messages)
    data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    response = Stream(Pieces(data, cuts)).answer()  # type: ignore[arg-type]
    assert [json.loads(line) for line in response.lines()] == messages


def test_a_body_that_ends_early_is_an_error() -> None:
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"
    response = Stream(Pieces(data, [])).answer()  # type: ignore[arg-type]
    with pytest.raises(Unreachable, match="in the middle"):
        response.read()


@pytest.mark.parametrize(("method", "asked"), [("GET", 2), ("POST", 1)])
def test_a_question_that_met_a_dying_daemon_is_asked_again(
    serve: Serve, method: str, asked: int
) -> None:
    heard: list[bytes] = []

    def handle(connection: socket.socket) -> None:
        heard.append(read_head(connection))
        if len(heard) > 1:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    client = serve(handle)
    if asked == 1:
        # It may have been done already.
        with pytest.raises(Unreachable):
            client.call(method, "/x")
    else:
        assert client.call(method, "/x").json() == {}
    assert len(heard) == asked
    client.close()


def test_calls_that_follow_each_other_share_a_connection(serve: Serve) -> None:
    connections: list[int] = []

    def handle(connection: socket.socket) -> None:
        connections.append(1)
        while read_head(connection):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    client = serve(handle)
    for _ in range(3):
        assert client.get("/x") == {}
    assert len(connections) == 1
    client.call("GET", "/x").close()
    client.close()


def test_a_connection_that_went_stale_is_replaced(serve: Serve) -> None:
    def handle(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    client = serve(handle)
    assert client.get("/x") == {}
    assert client.get("/x") == {}
    client.close()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"message": "No such container: x"}', "No such container: x"),
        (b"plain text\n", "plain text"),
        (b"[1]", "[1]"),
        (b"", "HTTP status 404"),
    ],
)
def test_an_error_carries_the_daemon_s_words(serve: Serve, body: bytes, message: str) -> None:
    def handle(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 404 X\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    client = serve(handle)
    with pytest.raises(DaemonError) as caught:
        client.get("/x")
    assert caught.value.reason == message
    assert caught.value.http_status == 404
    client.close()


@pytest.mark.parametrize("size", [0, 1, 100_000, 5_000_001])
@pytest.mark.parametrize("kind", ["file", "pipe", "parts"])
def test_a_body_arrives_as_it_was_sent(serve: Serve, tmp_path: Path, size: int, kind: str) -> None:
    content = os.urandom(size)
    received: list[bytes] = []

    def handle(connection: socket.socket) -> None:
        head = read_head(connection)
        with connection.makefile("rb") as stream:
            if b"Content-Length: " in head:
                length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
                received.append(stream.read(length))
            else:
                body = b""
                while count := int(stream.readline(), 16):
                    body += stream.read(count)
                    assert stream.readline() == b"\r\n"
                received.append(body)
                stream.readline()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue")

    client = serve(handle)
    if kind == "file":
        path = tmp_path / "body"
        path.write_bytes(b"skipped" + content)
        with open(path, "rb") as file:
            os.lseek(file.fileno(), 7, os.SEEK_SET)
            answer = client.upload("POST", "/x", {}, file.fileno())
    elif kind == "pipe":
        reader, writer = os.pipe()

        def write() -> None:
            with os.fdopen(writer, "wb") as file:
                file.write(content)

        thread = threading.Thread(target=write)
        thread.start()
        answer = client.upload("POST", "/x", {}, reader)
        thread.join()
        os.close(reader)
    else:
        middle = size // 2
        answer = client.upload("POST", "/x", {}, iter([content[:middle], b"", content[middle:]]))
    assert answer.json() is True
    assert received == [content]
    client.close()


def test_a_refusal_ends_the_sending(serve: Serve) -> None:
    """A daemon that says no and reads no further must not be waited for for ever."""
    done = threading.Event()

    def handle(connection: socket.socket) -> None:
        read_head(connection)
        body = b'{"message": "too large"}'
        connection.sendall(b"HTTP/1.1 413 X\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        done.wait(20)

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * (1 << 20)

    client = serve(handle)
    with pytest.raises(DaemonError, match="too large"):
        client.upload("POST", "/x", {}, endless())
    done.set()
    client.close()


def test_progress_that_comes_while_sending_is_kept(serve: Serve) -> None:
    def handle(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        with connection.makefile("rb") as stream:
            while count := int(stream.readline(), 16):
                stream.read(count + 2)
                connection.sendall(b"3\r\n{}\n\r\n")
            stream.readline()
        connection.sendall(b"0\r\n\r\n")

    client = serve(handle)
    response = client.upload("POST", "/x", {}, iter([b"x" * 70_000] * 5))
    assert list(response.lines()) == [b"{}"] * 5
    client.close()


def test_a_connection_that_is_taken_over_gives_what_came_already(serve: Serve) -> None:
    def handle(connection: socket.socket) -> None:
        head = read_head(connection)
        assert b"Upgrade: tcp" in head
        connection.sendall(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\n\r\nearly")
        while data := connection.recv(100):
            connection.sendall(data.upper())

    connection, initial, _ = serve(handle).hijack("/x")
    with connection:
        assert initial == b"early"
        connection.sendall(b"late")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b"LATE"
        assert connection.recv(100) == b""


def test_something_that_is_no_daemon_is_told_so(serve: Serve) -> None:
    def handle(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH\r\n")
        read_head(connection)

    with pytest.raises(Unreachable, match="no Docker Engine API"):
        serve(handle).get("/x")


def test_nobody_at_a_named_socket_is_told_so(tmp_path: Path) -> None:
    endpoint = Endpoint.choose(f"unix://{tmp_path}/nosuch", "")
    with pytest.raises(Unreachable, match="Is the tiffin daemon running"):
        Client(endpoint).get("/x")


@given(st.text())
def test_queries_are_escaped(text: str) -> None:
    from urllib.parse import parse_qs, unquote

    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert unquote(escape(text)) == text
    query = target("/x", {"a": text, "none": None, "no": False, "yes": True}).partition("?")[2]
    found = parse_qs(query, keep_blank_values=True)
    assert found == {"a": [text], "yes": ["1"]}


def test_lists_repeat_their_name() -> None:
    assert target("/x", {"a": ["b", "c/d"]}) == "/x?a=b&a=c%2Fd"
    assert target("/x", {"a": []}) == "/x"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("unix:///run/x.sock", "/run/x.sock"),
        ("tcp://localhost:1234", ("localhost", 1234)),
        ("tcp://1.2.3.4", ("1.2.3.4", 2375)),
        ("tcp://[::1]:99", ("::1", 99)),
    ],
)
def test_addresses_are_understood(host: str, address: object) -> None:
    endpoint = Endpoint.choose(host, "")
    assert (endpoint.address, endpoint.automatic) == (address, False)


@pytest.mark.parametrize("host", ["foo://x", "unix://", "/run/x.sock", "tcp://x:y", "ssh://h"])
def test_other_addresses_are_refused(host: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid bind address format"):
        Endpoint.choose(host, "")


def test_the_root_decides_where_the_socket_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIFFIN_HOST", "TIFFIN_ROOT"):
        monkeypatch.delenv(name, raising=False)
    assert Endpoint.choose("", "").address == "/run/tiffin/tiffin.sock"
    assert Endpoint.choose("", "/srv/t").address == "/srv/t/tiffin.sock"
    monkeypatch.setenv("TIFFIN_ROOT", "/srv/u")
    assert Endpoint.choose("", "").address == "/srv/u/tiffin.sock"
    assert Endpoint.choose("", "").automatic
    monkeypatch.setenv("TIFFIN_HOST", "unix:///x")
    assert Endpoint.choose("", "/srv/t").address == "/x"
