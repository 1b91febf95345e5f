"""The HTTP server, spoken to byte by byte."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiffin.api.exchange import Request, Response
from tiffin.api.routing import Router
from tiffin.api.server import Server
from tiffin.errors import Conflict, InvalidParameter, NotModified, StorageFull

Start = Callable[..., Any]


@pytest.fixture
def router() -> Router:
    router = Router()
    router.add("GET", "/_ping", lambda request, response: response.whole(b"OK", "text/plain"))
    router.add("HEAD", "/_ping", lambda request, response: response.whole(b"OK", "text/plain"))
    router.add("POST", "/echo", echo)
    router.add("POST", "/length", length)
    return router


def echo(request: Request, response: Response) -> None:
    output = response.stream("application/octet-stream")
    while data := request.body.read(1 << 16):
        output.write(data)


def length(request: Request, response: Response) -> None:
    buffer = bytearray(100_000)
    total = 0
    while size := request.body.readinto(buffer):  # type: ignore[attr-defined]
        total += size
    response.json(total)


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


CHUNKED_POST = b"POST /echo HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n"
PING = b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n"


def test_one_connection_serves_many_requests(start: Start, router: Router) -> None:
    client = start(router).client()
    for _ in range(3):
        answer = client.request("GET", "/_ping")
        assert (answer.status, answer.body) == (200, b"OK")
    assert client.request("HEAD", "/_ping").headers["content-length"] == "2"
    assert client.request("GET", "/v1.30/_ping").body == b"OK"


def test_pipelined_requests_are_answered_in_order(start: Start, router: Router) -> None:
    client = start(router).client()
    post = b"POST /echo HTTP/1.1\r\nHost: d\r\n"
    client.send(
        post
        + b"Content-Length: 3\r\n\r\nabc"
        + PING
        + post
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + chunked(b"de", b"f")
        + PING
    )
    assert [client.answer().body for _ in range(4)] == [b"abc", b"OK", b"def", b"OK"]


def test_a_request_may_arrive_byte_by_byte(start: Start, router: Router) -> None:
    client = start(router).client()
    for byte in b"POST /echo HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(
        b"abc"
    ):
        client.send(bytes([byte]))
    assert client.answer().body == b"abc"


@pytest.mark.parametrize("form", ["sized", "chunked"])
def test_large_bodies_go_in_and_out(start: Start, router: Router, form: str) -> None:
    running = start(router)
    data = os.urandom(3_000_001)
    client = running.client()
    pieces = [data[:1], data[1:70_000], data[70_000:]]
    head = b"POST /echo HTTP/1.1\r\nHost: d\r\n"
    if form == "sized":
        request = head + b"Content-Length: %d\r\n\r\n" % len(data) + data
    else:
        request = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(*pieces)
    sender = threading.Thread(target=client.send, args=(request,))
    sender.start()
    assert client.answer().body == data
    sender.join()
    sender = threading.Thread(target=client.send, args=(request.replace(b"/echo", b"/length", 1),))
    sender.start()
    assert client.answer().json() == len(data)
    sender.join()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.data())
def test_any_cut_of_a_chunked_body_is_read_whole(
    start: Start, router: Router, shared: dict[str, Any], pieces: list[bytes], data: Any
) -> None:
    if "running" not in shared:
        shared["running"] = start(router)
    client = shared["running"].client()
    request = b"POST /echo HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(
        *pieces
    )
    cut = data.draw(st.integers(0, len(request)))
    client.send(request[:cut])
    client.send(request[cut:])
    assert client.answer().body == b"".join(pieces)
    client.close()


@pytest.fixture
def shared() -> dict[str, Any]:
    """What the examples of one property test have in common."""
    return {}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=400))
def test_garbage_gets_an_error_or_nothing_and_disturbs_nobody(
    start: Start, router: Router, shared: dict[str, Any], garbage: bytes
) -> None:
    if "running" not in shared:
        shared["running"] = start(router)
        shared["other"] = shared["running"].client()
    client = shared["running"].client()
    client.send(garbage)
    client.socket.shutdown(socket.SHUT_WR)
    answer = client.to_end()
    assert not answer or answer.startswith(b"HTTP/1.1 "), answer
    client.close()
    assert shared["other"].request("GET", "/_ping").body == b"OK"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET\r\n\r\n", 400),
        (b"GET /_ping HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /_ping HTTP/1.1\r\nHost: d\r\nBad Header\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: d\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: d\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /echo HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /_ping HTTP/1.1\r\nHost: d\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 200_000, 431),
    ],
)
def test_broken_requests_are_refused_and_the_connection_ends(
    start: Start, router: Router, request_bytes: bytes, status: int
) -> None:
    client = start(router).client()
    client.send(request_bytes)
    answer = client.answer()
    assert answer.status == status
    assert answer.json()["message"]
    assert answer.headers["connection"] == "close"
    assert client.to_end() == b""


def test_a_body_that_ends_early_is_an_error(start: Start, router: Router) -> None:
    client = start(router).client()
    client.send(b"POST /length HTTP/1.1\r\nHost: d\r\nContent-Length: 100\r\n\r\nabc")
    client.socket.shutdown(socket.SHUT_WR)
    answer = client.answer()
    assert answer.status == 400
    assert "97 bytes early" in answer.json()["message"]


def test_a_client_that_only_closes_its_writing_half_gets_its_answer(
    start: Start, router: Router
) -> None:
    router.add("GET", "/patient", patient := Patient())
    client = start(router).client()
    client.send(b"GET /patient HTTP/1.1\r\nHost: d\r\n\r\n")
    client.socket.shutdown(socket.SHUT_WR)
    assert patient.entered.wait(20)
    patient.leave.set()
    answer = client.answer()
    assert answer.json() == {"cancelled": False}
    assert client.to_end() == b""


class Patient:
    """A handler that waits, and says whether it was cancelled."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.leave = threading.Event()
        self.cancelled = threading.Event()

    def __call__(self, request: Request, response: Response) -> None:
        self.entered.set()
        while not self.leave.wait(0.02):
            if request.cancelled():
                self.cancelled.set()
                return
        response.json({"cancelled": request.cancelled()})


def test_a_vanished_client_is_noticed(start: Start, router: Router) -> None:
    router.add("GET", "/patient", patient := Patient())
    client = start(router).client()
    client.send(b"GET /patient HTTP/1.1\r\nHost: d\r\n\r\n")
    assert patient.entered.wait(20)
    client.close()
    assert patient.cancelled.wait(20)


def test_a_stopping_server_cancels_waits_and_ends_idle_connections(
    start: Start, router: Router
) -> None:
    router.add("GET", "/patient", patient := Patient())
    running = start(router)
    idle = running.client()
    assert idle.request("GET", "/_ping").status == 200
    client = running.client()
    client.send(b"GET /patient HTTP/1.1\r\nHost: d\r\n\r\n")
    assert patient.entered.wait(20)
    running.server.stop()
    assert patient.cancelled.wait(20)
    assert idle.to_end() == b""


def test_a_stopping_server_finishes_what_is_under_way(start: Start, router: Router) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(request: Request, response: Response) -> None:
        entered.set()
        leave.wait(20)
        response.json("done")

    router.add("GET", "/slow", slow)
    running = start(router)
    client = running.client()
    client.send(b"GET /slow HTTP/1.1\r\nHost: d\r\n\r\n")
    assert entered.wait(20)
    running.server.stop()
    leave.set()
    answer = client.answer()
    assert answer.json() == "done"


def test_who_came_in_just_before_the_stop_is_served(router: Router, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    came: list[socket.socket] = []

    def leave() -> bool:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        came.append(client)
        threading.Timer(0.1, client.sendall, [PING]).start()
        return True

    with Server(router) as server:
        server.listen(path)
        server.serve(leave, 0.01)
    with came[0] as client:
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_a_stalled_reader_holds_up_nobody_else(start: Start, router: Router) -> None:
    def endless(request: Request, response: Response) -> None:
        output = response.stream("application/octet-stream")
        while True:
            output.write(bytes(1 << 20))

    router.add("GET", "/endless", endless)
    running = start(router)
    stalled = running.client()
    stalled.send(b"GET /endless HTTP/1.1\r\nHost: d\r\n\r\n")
    assert stalled.head().status == 200
    half = running.client()
    half.send(b"GET /_pi")
    for _ in range(10):
        assert running.request("GET", "/_ping").body == b"OK"


def test_a_slow_head_is_given_up(start: Start, router: Router) -> None:
    client = start(router, head_seconds=0.1).client()
    client.send(b"GET /_ping HT")
    assert client.answer().status == 408


def test_an_idle_connection_is_closed_in_silence(start: Start, router: Router) -> None:
    client = start(router, idle_seconds=0.1).client()
    assert client.request("GET", "/_ping").status == 200
    assert client.to_end() == b""


def test_connections_are_bounded(start: Start, router: Router) -> None:
    running = start(router, connections=2)
    clients = [running.client() for _ in range(2)]
    for client in clients:
        assert client.request("GET", "/_ping").status == 200
    third = running.client()
    answer = third.answer()
    assert answer.status == 503
    assert "too many connections" in answer.json()["message"]
    clients[0].close()
    while running.server.active > 1:
        pass
    assert running.request("GET", "/_ping").status == 200


def test_continue_is_said_when_the_body_is_wanted(start: Start, router: Router) -> None:
    running = start(router)
    client = running.client()
    head = b"POST %b HTTP/1.1\r\nHost: d\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    client.send(head % b"/echo")
    assert client.head().status == 100
    client.send(b"abc")
    assert client.answer().body == b"abc"
    client.send(head % b"/nowhere")
    answer = client.answer()
    assert answer.status == 404
    # Whether the body comes after all can't be known: the connection ends.
    assert answer.headers["connection"] == "close"
    assert client.to_end() == b""


def test_an_unread_body_is_skipped_or_ends_the_connection(start: Start, router: Router) -> None:
    running = start(router)
    client = running.client()
    assert client.request("POST", "/nowhere", b"x" * 1000).status == 404
    assert client.request("GET", "/_ping").status == 200
    assert client.request("POST", "/nowhere", b"x" * 1_000_000).status == 404
    assert client.to_end() == b""


def test_http_1_0_gets_a_body_that_ends_with_the_connection(start: Start, router: Router) -> None:
    client = start(router).client()
    client.send(b"POST /echo HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc")
    answer = client.answer()
    assert "transfer-encoding" not in answer.headers
    assert answer.body == b"abc"


def test_a_failure_before_the_first_byte_has_its_status(start: Start, router: Router) -> None:
    def refuse(request: Request, response: Response) -> None:
        response.stream("application/x-tar")
        raise Conflict("in use")

    router.add("GET", "/refuse", refuse)
    router.add("GET", "/full", raising(StorageFull("no room")))
    router.add("GET", "/same", raising(NotModified("runs")))
    running = start(router)
    answer = running.request("GET", "/refuse")
    assert (answer.status, answer.json()) == (409, {"message": "in use"})
    assert running.request("GET", "/full").status == 507
    answer = running.request("GET", "/same")
    assert (answer.status, answer.body) == (304, b"")


def test_a_failure_in_the_middle_cuts_the_answer_off(start: Start, router: Router) -> None:
    def break_off(request: Request, response: Response) -> None:
        output = response.stream("application/x-tar")
        output.write(b"half")
        output.flush()
        raise InvalidParameter("the rest is lost")

    router.add("GET", "/break", break_off)
    client = start(router).client()
    client.send(b"GET /break HTTP/1.1\r\nHost: d\r\n\r\n")
    assert client.head().status == 200
    assert client.chunk() == b"half"
    assert client.to_end() == b""


def test_an_unexpected_exception_is_an_error_500_with_a_traceback_in_the_log(
    start: Start, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    router.add("GET", "/bug", raising(ZeroDivisionError("oops")))
    running = start(router)
    client = running.client()
    answer = client.request("GET", "/bug")
    assert answer.status == 500
    assert "ZeroDivisionError: oops" in answer.json()["message"]
    assert client.request("GET", "/_ping").status == 200
    assert "Traceback" in caplog.text


def raising(error: Exception) -> Callable[[Request, Response], None]:
    def handler(request: Request, response: Response) -> None:
        raise error

    return handler


def test_files_are_sent_without_copying(start: Start, router: Router, tmp_path: Path) -> None:
    data = os.urandom(500_000)
    (tmp_path / "file").write_bytes(data)

    def send(request: Request, response: Response) -> None:
        output = response.stream("application/x-tar")
        with open(tmp_path / "file", "rb") as file:
            output.write(b"<")
            assert output.sendfile(file.fileno(), 10, 400_000) == 400_000
            output.sendfile(file.fileno(), 5, 10)
            output.write(b">")

    router.add("GET", "/file", send)
    body = start(router).request("GET", "/file").body
    assert body == b"<" + data[10:400_010] + data[5:15] + b">"


@pytest.mark.parametrize("upgrade", [True, False])
@pytest.mark.parametrize("body", [b"", b'{"Tty": true}'])
def test_a_hijacked_connection_is_just_the_socket(
    start: Start, router: Router, upgrade: bool, body: bytes
) -> None:
    taken: list[socket.socket] = []

    def take(request: Request, response: Response) -> None:
        assert (request.json() or {}) == ({"Tty": True} if body else {})
        hijacked = response.hijack("application/vnd.docker.raw-stream")
        mine = hijacked.connection.dup()
        taken.append(mine)
        threading.Thread(target=speak, args=(mine, hijacked.initial)).start()

    def speak(connection: socket.socket, initial: bytes) -> None:
        with connection:
            connection.sendall(b"[" + initial)
            while data := connection.recv(100):
                connection.sendall(data)
            connection.sendall(b"]")

    router.add("POST", "/attach", take)
    running = start(router)
    client = running.client()
    lines = [b"POST /attach HTTP/1.1", b"Host: d", b"Content-Length: %d" % len(body)]
    lines += [b"Content-Type: application/json; charset=utf-8"] if body else []
    if upgrade:
        lines += [b"Connection: Upgrade", b"Upgrade: tcp"]
    # The first bytes of the new protocol come in one piece with the request.
    client.send(b"\r\n".join([*lines, b"", b""]) + body + b"early ")
    answer = client.head()
    if upgrade:
        assert answer.status == 101
        assert (answer.headers["connection"], answer.headers["upgrade"]) == ("Upgrade", "tcp")
    else:
        assert answer.status == 200
    assert answer.headers["content-type"] == "application/vnd.docker.raw-stream"
    assert "transfer-encoding" not in answer.headers
    assert "content-length" not in answer.headers
    # The server has let go of its own copy, and the connection goes on.
    while running.server.active:
        pass
    client.send(b"late")
    client.socket.shutdown(socket.SHUT_WR)
    assert client.to_end() == b"[early late]"


def test_a_left_over_socket_is_replaced_and_a_live_one_is_not(
    start: Start, router: Router, tmp_path: Path
) -> None:
    path = tmp_path / "old.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    with Server(router) as server:
        server.listen(path)
        assert path.stat().st_mode & 0o777 == 0o660
        with Server(router) as second, pytest.raises(Conflict, match="in use"):
            second.listen(path)
        assert path.exists()
    assert not path.exists()
    path.write_text("precious")
    with Server(router) as server, pytest.raises(Conflict, match="not a socket"):
        server.listen(path)
    assert path.read_text() == "precious"


def test_a_socket_that_another_daemon_has_made_meanwhile_is_left_alone(
    router: Router, tmp_path: Path
) -> None:
    path = tmp_path / "d" / "api.sock"
    with Server(router) as server:
        server.listen(path)
        path.rename(tmp_path / "d" / "moved")
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_an_idle_server_leaves_when_it_may(router: Router, tmp_path: Path) -> None:
    asked: list[int] = []

    def leave() -> bool:
        asked.append(server.active)
        return len(asked) == 3

    with Server(router) as server:
        server.listen(tmp_path / "api.sock")
        server.serve(leave, 0.05)
    assert asked == [0, 0, 0]
    assert not (tmp_path / "api.sock").exists()
