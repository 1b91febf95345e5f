"""A forward proxy, as companies have it: absolute URLs for http, CONNECT for https."""

from __future__ import annotations

import http.client
import select
import socket
from urllib.parse import urlsplit

from registry.serving import Handler, Serving


class ForwardProxy(Serving):
    """Sends everything to ``upstream``, whatever its host; wants ``authorization`` if given."""

    def __init__(self, upstream: str, authorization: str = "") -> None:
        self.requests: list[str] = []
        self.authorizations: list[str | None] = []
        proxy = self
        host, _, port = upstream.rpartition(":")

        class Requests(Handler):
            def allowed(self) -> bool:
                proxy.requests.append(f"{self.command} {self.path}")
                given = self.headers.get("Proxy-Authorization")
                proxy.authorizations.append(given)
                if authorization and given != authorization:
                    self.send_response(407)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return False
                return True

            def do_CONNECT(self) -> None:
                if not self.allowed():
                    return
                self.close_connection = True
                with socket.create_connection((host, int(port)), timeout=20) as there:
                    self.send_response(200)
                    self.end_headers()
                    ends = {self.connection: there, there: self.connection}
                    while True:
                        ready, _, _ = select.select(list(ends), [], [], 20)
                        for one in ready:
                            data = one.recv(1 << 16)
                            if not data:
                                return
                            ends[one].sendall(data)
                        if not ready:
                            return

            def forward(self) -> None:
                if not self.allowed():
                    return
                parts = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                connection = http.client.HTTPConnection(host, int(port), timeout=20)
                hidden = ("connection", "proxy-authorization")
                headers = {k: v for k, v in self.headers.items() if k.lower() not in hidden}
                path = f"{parts.path}?{parts.query}" if parts.query else parts.path
                connection.request(self.command, path, body or None, headers)
                answer = connection.getresponse()
                data = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                        self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)
                connection.close()

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = forward

        super().__init__(Requests)
