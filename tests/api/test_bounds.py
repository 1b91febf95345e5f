"""What a client may take of the server, in depth, bytes and time; and what breaks no bound."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.test_websocket import masked
from tiffin.api import documents, exchange
from tiffin.api.exchange import Request, Response
from tiffin.api.routing import Router
from tiffin.api.websocket import carry
from tiffin.engine import Engine
from tiffin.errors import InvalidParameter

Start = Callable[..., Any]


@pytest.fixture
def router() -> Router:
    router = Router()
    router.add("GET", "/_ping", lambda request, response: response.whole(b"OK", "text/plain"))
    router.add("POST", "/json", lambda request, response: response.json(request.json()))
    router.add("GET", "/headers", lambda request, response: response.json(request.headers))
    router.add("POST", "/attach", attach)
    return router


def attach(request: Request, response: Response) -> None:
    response.hijack("application/vnd.docker.raw-stream")
    response.last_words(b"hijacked")


def post(size: int, path: str = "/json") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {size}\r\n\r\n".encode()


DEEP = [
    pytest.param(opening * 100_000, id=opening.decode())
    for opening in (b"[", b'{"a":', b'[{"a":[', b'["]",', b'["\\"]",')
]


@pytest.mark.parametrize("data", DEEP)
def test_json_is_bounded_in_depth(start: Start, router: Router, data: bytes) -> None:
    client = start(router).client()
    client.send(post(len(data)) + data)
    answer = client.answer()
    assert (answer.status, "levels deep" in answer.json()["message"]) == (400, True)
    assert client.request("GET", "/_ping").status == 200


VALUES = st.recursive(
    st.text(alphabet='[]{}"\\é', max_size=9),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(max_size=2), inner)),
    max_leaves=400,
)


@given(VALUES)
def test_brackets_in_texts_are_no_depth(value: Any) -> None:
    assert documents.decode(json.dumps([value, ["[{" * 300] * 300]).encode())[0] == value


@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_are_json_or_refused(data: bytes, depth: int) -> None:
    try:
        documents.decode(b"[" * depth + data)
    except InvalidParameter as error:
        assert error.message.startswith("invalid JSON: ")


def test_a_json_body_is_bounded_in_time(
    start: Start, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "JSON_SECONDS", 0.1)
    for data in (post(5) + b"{", CHUNKED + b"3\r\n"):
        client = start(router).client()
        client.send(data)
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert client.to_end() == b""


CHUNKED = (
    b"POST /json HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def test_a_json_body_is_bounded_in_size(
    start: Start, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "MAX_JSON", 1000)
    text = json.dumps("x" * 1000).encode()
    for data in (post(len(text)) + text, CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(text), text)):
        answer = (client := start(router).client()).send(data) or client.answer()
        assert answer.status == 400
        assert "larger than 1000 bytes" in answer.json()["message"]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"1;" + b"x" * 20_000, "a line between its chunks is too long"),
        (b"0\r\n" + b"a: b\r\n" * 101 + b"\r\n", "too much follows its last chunk"),
        (b"f" * 17 + b"\r\n", "is not the size of a chunk"),
        (b"-1\r\n", "is not the size of a chunk"),
        (b"2\r\n{}}\r\n", "a chunk is longer than it says"),
    ],
)
def test_what_lies_between_chunks_is_bounded(
    start: Start, router: Router, body: bytes, complaint: str
) -> None:
    client = start(router).client()
    client.send(CHUNKED + body)
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert complaint in answer.json()["message"]
    assert client.to_end() == b""


@pytest.mark.parametrize("path", ["/nowhere", "/attach"])
def test_a_body_that_nobody_reads_and_that_does_not_come_is_not_waited_for(
    start: Start, router: Router, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(exchange, "DRAIN_SECONDS", 0.1)
    running = start(router, linger_seconds=0.1)
    client = running.client()
    client.send(post(5, path) + b"{")
    assert client.answer().status in (400, 404)
    assert client.to_end() == b""


@pytest.mark.parametrize("target", ["/a%00b", "/_ping?a=%00", "/_ping?%00"])
def test_a_byte_0_is_refused(start: Start, router: Router, target: str) -> None:
    answer = start(router).request("GET", target)
    assert answer.status == 400
    assert "a byte 0" in answer.json()["message"]


def test_headers_of_one_name_are_a_list(start: Start, router: Router) -> None:
    client = start(router).client()
    lines = b"GET /headers HTTP/1.1\r\nHost: d\r\nConnection: close\r\nConnection: x\r\n\r\n"
    client.send(lines)
    assert client.answer().json()["connection"] == "close, x"
    assert client.to_end() == b""


def test_a_program_may_answer_while_it_is_written_to() -> None:
    """A WebSocket whose client sends all it has before it reads."""
    client, ours = socket.socketpair()
    container, other = socket.socketpair()
    data = os.urandom(1 << 20)
    read = bytearray()

    def echo() -> None:
        while piece := container.recv(1 << 16):
            container.sendall(piece)

    def receive() -> None:
        while len(read) < len(data) and (piece := client.recv(1 << 16)):
            read.extend(piece)

    with client, ours, container, other:
        for one in (client, container):
            one.settimeout(60)
        threads = [
            threading.Thread(target=run, args=arguments, kwargs=named)
            for run, arguments, named in (
                (echo, (), {}),
                (receive, (), {}),
                (carry, (ours, b"", other), {"text": False}),
            )
        ]
        for thread in threads:
            thread.start()
        for start_ in range(0, len(data), 1 << 16):
            client.sendall(masked(2, data[start_ : start_ + (1 << 16)]))
        threads[1].join(60)
        client.sendall(masked(8, b""))
        threads[2].join(60)
        container.shutdown(socket.SHUT_RDWR)
        threads[0].join(60)
    assert len(read) >= len(data)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("goodbye", [masked(8, b""), b""])
def test_what_was_sent_before_a_client_left_still_arrives(goodbye: bytes) -> None:
    client, ours = socket.socketpair()
    container, other = socket.socketpair()
    data = b"x" * 1_000_000
    with client, ours, container, other:
        container.settimeout(60)
        carrier = threading.Thread(target=carry, args=(ours, b"", other), kwargs={"text": False})
        carrier.start()
        client.sendall(masked(2, data) + goodbye)
        client.shutdown(socket.SHUT_WR)
        read = 0
        while read < len(data):
            read += len(container.recv(1 << 16))
        carrier.join(60)
        assert not carrier.is_alive()


@pytest.mark.root
def test_a_file_name_may_be_any_bytes(engine: Engine, api: Callable[[Any], Any]) -> None:
    docker = api(engine)
    made = engine.containers.create({"Image": "busybox", "Cmd": ["true"]})["Id"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(os.fsdecode(b"n\xff\n"))
        info.size = 2
        tar.addfile(info, io.BytesIO(b"hi"))
    target = f"/containers/{made}/archive?path="
    assert docker.request("PUT", f"{target}/", buffer.getvalue()).status == 200
    answer = docker.request("GET", target + quote_from_bytes(b"/n\xff\n"))
    assert answer.status == 200
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as tar:
        assert [os.fsencode(name) for name in tar.getnames()] == [b"n\xff\n"]
