"""A proxy that does to one request in turn what networks and registries do."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler

from registry.serving import Handler, Serving

KINDS = ("cut", "cut-head", "delay", "corrupt", "429", "500", "redirect", "drop")
UPLOAD_KINDS = (*KINDS, "half", "lost", "unheard")
"""Also: the registry gets half of a request's body, and then the connection breaks (and it gives up
the upload: lost); it gets all of it, and its answer is not heard."""


class FaultyProxy(Serving):
    """Stands before a registry; the request number ``at`` (from 0) meets ``kind``."""

    def __init__(self, upstream: str, kind: str = "", at: int = -1, times: int = 1) -> None:
        self.upstream = upstream
        self.kind = kind
        self.at = at
        self.times = times
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.authorizations: list[str | None] = []
        self._lock = threading.Lock()
        proxy = self

        class Requests(Handler):
            def handle_one(self) -> None:
                proxy.handle(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

        super().__init__(Requests)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        with self._lock:
            number = len(self.requests)
            self.requests.append(f"{request.command} {request.path}")
            self.authorizations.append(request.headers.get("Authorization"))
            if request.headers.get("Range"):
                self.ranges.append(request.headers["Range"])
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        kind = self.kind if self.at <= number < self.at + self.times else ""
        if "moved=1" in request.path:
            kind = ""
        if kind == "cut-head":
            request.close_connection = True
            request.connection.close()
            return
        if kind in ("429", "500"):
            request.send_response(int(kind))
            if kind == "429":
                request.send_header("Retry-After", "0")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if kind == "redirect" and request.command in ("GET", "HEAD"):
            request.send_response(307)
            separator = "&" if "?" in request.path else "?"
            request.send_header("Location", f"{request.path}{separator}moved=1")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if kind == "delay":
            threading.Event().wait(0.3)
        if kind in ("half", "lost"):
            self._forward_half(request, body)
            if kind == "lost" and "/uploads/" in request.path:
                self._ask("DELETE", request)[0].close()
            return
        if kind == "unheard":
            self._ask(request.command, request, body)[0].close()
            request.close_connection = True
            request.connection.close()
            return
        self._forward(request, body, kind)

    def _forward_half(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        host, _, port = self.upstream.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        connection.putrequest(
            request.command, request.path, skip_host=True, skip_accept_encoding=True
        )
        for name, value in request.headers.items():
            if name.lower() != "connection":
                connection.putheader(name, value)
        connection.endheaders()
        connection.send(body[: len(body) // 2])
        connection.close()
        request.close_connection = True
        request.connection.close()

    def _ask(
        self, method: str, request: BaseHTTPRequestHandler, body: bytes = b""
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse, bytes]:
        host, _, port = self.upstream.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        headers = {
            name: value
            for name, value in request.headers.items()
            # With its Host: some registries answer with URLs of it, which lead back here.
            if name.lower() not in ("connection", "content-length")
        }
        path = request.path.replace("&moved=1", "").replace("?moved=1", "")
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        return connection, answer, answer.read()

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes, kind: str) -> None:
        connection, answer, data = self._ask(request.command, request, body)
        try:
            if kind == "corrupt" and data:
                middle = len(data) // 2
                data = data[:middle] + bytes([data[middle] ^ 0x55]) + data[middle + 1 :]
            request.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                    request.send_header(name, value)
            request.end_headers()
            if request.command == "HEAD":
                return
            if kind in ("cut", "drop"):
                request.wfile.write(data[: len(data) // 2] if kind == "cut" else b"")
                request.wfile.flush()
                request.close_connection = True
                request.connection.close()
                return
            request.wfile.write(data)
        finally:
            connection.close()
