"""A server on its own socket, an engine to put behind it, and a client that speaks raw HTTP."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tiffin.api.routes import all_routes
from tiffin.api.routing import Router
from tiffin.api.server import Limits, Server
from tiffin.linux.sockets import connect_unix


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    rest: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection; what it sends is exactly what it is told."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(20)
        connect_unix(self.socket, path)
        self.buffer = b""

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def _more(self) -> bool:
        data = self.socket.recv(1 << 16)
        self.buffer += data
        return bool(data)

    def head(self) -> Answer:
        """Read one head; the body's first bytes stay in the buffer."""
        while b"\r\n\r\n" not in self.buffer:
            assert self._more(), f"the connection ended inside a head: {self.buffer!r}"
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        return Answer(int(first.split()[1]), headers, b"")

    def take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            assert self._more(), f"the connection ended early: {self.buffer!r}"
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def line(self) -> bytes:
        while b"\r\n" not in self.buffer:
            assert self._more(), f"the connection ended inside a line: {self.buffer!r}"
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line

    def chunk(self) -> bytes:
        """One chunk of a chunked body; empty at its end."""
        size = int(self.line(), 16)
        data = self.take(size)
        assert self.line() == b""
        return data

    def to_end(self) -> bytes:
        while self._more():
            pass
        data, self.buffer = self.buffer, b""
        return data

    def answer(self, method: str = "GET") -> Answer:
        answer = self.head()
        if answer.status in (204, 304) or method == "HEAD":
            return answer
        if answer.headers.get("transfer-encoding") == "chunked":
            while piece := self.chunk():
                answer.body += piece
        elif "content-length" in answer.headers:
            answer.body = self.take(int(answer.headers["content-length"]))
        else:
            answer.body = self.to_end()
        return answer

    def request(
        self, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body else b""
        lines = [f"{method} {target} HTTP/1.1", "Host: docker", f"Content-Length: {len(data)}"]
        if data and not isinstance(body, bytes):
            lines.append("Content-Type: application/json")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + data)
        return self.answer(method)


class Running:
    """A server in a thread of this process, and its clients."""

    def __init__(self, server: Server, path: Path) -> None:
        self.server = server
        self.path = path
        self.clients: list[Client] = []

    def client(self) -> Client:
        client = Client(self.path)
        self.clients.append(client)
        return client

    def request(self, *arguments: Any, **named: Any) -> Answer:
        """One request on a connection of its own."""
        client = Client(self.path)
        try:
            return client.request(*arguments, **named)
        finally:
            client.close()


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers; they are stopped at the end, and must then have no connection left."""
    running: list[tuple[Running, threading.Thread]] = []

    def start(router: Router, **limits: Any) -> Running:
        limits.setdefault("stop_seconds", 20)
        server = Server(router, Limits(**limits))
        path = tmp_path / f"api{len(running)}.sock"
        server.listen(path)
        thread = threading.Thread(target=server.serve)
        thread.start()
        one = Running(server, path)
        running.append((one, thread))
        return one

    yield start
    for one, thread in running:
        for client in one.clients:
            client.close()
        one.server.stop()
        thread.join(20)
        assert not thread.is_alive()
        assert one.server.active == 0
        assert not one.path.exists()


@pytest.fixture
def api(start: Start) -> Callable[[Any], Running]:
    """The whole API in front of an engine (a stub)."""

    def api(engine: Any, shutdown: Callable[[bool], None] = lambda keeper: None) -> Running:
        return start(all_routes(engine, shutdown))

    return api


@pytest.fixture
def clients() -> Iterator[Callable[[Path], Client]]:
    """Clients of a socket, which are closed at the end."""
    made: list[Client] = []

    def connect(path: Path) -> Client:
        made.append(Client(path))
        return made[-1]

    yield connect
    for client in made:
        client.close()
