"""Every parameter of the API's description is looked at by the route that it belongs to.

An engine that agrees to everything stands behind the routes, so that each gets as far as to ask
for all its parameters; what each does with them is the matter of other tests.
"""

from __future__ import annotations

import socket
from typing import Any
from unittest.mock import MagicMock
from urllib.parse import urlencode

import pytest

from api_schema import api_schema
from tiffin.api.exchange import Request, Response
from tiffin.api.routes import all_routes
from tiffin.api.server import Server

ABSENT = ("/swarm", "/services", "/tasks", "/nodes", "/secrets", "/configs", "/plugins", "/session")
"""What is refused as a whole, whatever is asked."""
NEEDLESS = {
    ("GET", "/images/json", "digests"): "they are always told, as Docker does",
    ("POST", "/build", "forcerm"): "a step's container never outlives its step",
    ("PUT", "/volumes/{name}", "version"): "there are no cluster volumes: refused as a whole",
}
VALUES = {
    "filters": "{}",
    "platform": '{"os": "linux", "architecture": "amd64"}',
    "platforms": '{"os": "linux", "architecture": "amd64"}',
    **dict.fromkeys(("since", "until", "h", "w", "limit", "t", "tail"), "1"),
    **dict.fromkeys(("memory", "memswap", "cpushares", "cpuperiod", "cpuquota", "shmsize"), "1"),
    **dict.fromkeys(("keep-storage", "max-used-space", "min-free-space", "verbose"), "1"),
    "reserved-space": "0",
    **dict.fromkeys(("buildargs", "labels"), "{}"),
    "cachefrom": "[]",
    "changes": "CMD true",
    "condition": "next-exit",
    "stdout": "1",
    "stream": "0",
    "type": "image",
    "outputs": "",
    "version": "1",
    "fromSrc": "-",
}


class Asked(dict[str, Any]):
    """A mapping that remembers which keys were asked for."""

    def __init__(self, members: dict[str, Any], log: set[str]) -> None:
        super().__init__(members)
        self._log = log

    def get(self, key: str, default: Any = None) -> Any:
        self._log.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self._log.add(key)
        return super().__getitem__(key)


def ask(method: str, path: str, query: dict[str, str]) -> set[str]:
    """The names that the route of an operation has looked up."""
    asked: set[str] = set()
    engine = MagicMock()
    container = {"Id": "it", "State": {"Paused": False}, "Config": {"Tty": False}}
    engine.containers.inspect.return_value = container
    route = all_routes(engine, MagicMock())

    def handle(request: Request, response: Response) -> None:
        request.query = Asked(dict(request.query), asked)
        request.headers = Asked(request.headers, asked)
        route(request, response)

    ours, theirs = socket.socketpair()
    target = path.replace("{id}", "it").replace("{name}", "it")
    body = b"" if method in ("GET", "HEAD") else b"{}"
    head = f"{method} {target}?{urlencode(query)} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n"
    if path.endswith("/ws"):
        head += "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        head += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    elif body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    with Server(handle) as server, ours:
        server.adopt(theirs)
        ours.settimeout(60)
        ours.sendall(head.encode() + b"\r\n" + body)
        ours.shutdown(socket.SHUT_WR)
        while ours.recv(65536):
            pass
    return asked


OPERATIONS = [
    pytest.param(method, path, id=f"{method} {path}")
    for method, path in api_schema().operations()
    if not path.startswith(ABSENT) and api_schema().parameters(method, path)
]


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_parameter_is_looked_at(method: str, path: str) -> None:
    names = set(api_schema().parameters(method, path))
    headers = {name.lower() for name in api_schema().parameters(method, path, "header")}
    needless = {name for name in names if (method, path, name) in NEEDLESS}
    query = {name: VALUES.get(name, "x") for name in names}
    asked = ask(method, path, query)
    if "fromImage" in names:
        # Without one, a file is imported: another half of the parameters.
        query.pop("fromImage")
        asked |= ask(method, path, query)
    assert names - asked == needless
    # What a build's context is packed with is seen by its first bytes.
    assert headers - asked <= {"content-type"}
