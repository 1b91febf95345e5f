"""One HTTP request to a registry of ours, and its answer, on top of the standard library's server.

Bodies come sized or chunked and are read as they are wanted; what was not read of a small one is
skipped so that the connection can go on, and a large one ends it.
"""

from __future__ import annotations

import io
import json
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qs, unquote, urlsplit

from tiffin.registry.faults import Fault

_SKIP = 64 << 20
_PIECE = 1 << 20


class Exchange(BaseHTTPRequestHandler):
    """See the module's text; ``answer_request`` is the server's."""

    protocol_version = "HTTP/1.1"
    server_version = "tiffin-registry"
    sys_version = ""
    timeout = 120
    answer_request: Callable[[Exchange], None]
    # The answer's head and a small body leave together.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        self.route = unquote(parts.path)
        self.query: Mapping[str, list[str]] = parse_qs(parts.query, keep_blank_values=True)
        self._answered = False
        self._chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        length = self.headers.get("Content-Length", "0")
        self._left = int(length) if length.isdigit() else 0
        self._ended = not self._chunked and not self._left
        try:
            type(self).answer_request(self)
            self.wfile.flush()
            self._skip()
        except (ConnectionError, TimeoutError, ssl.SSLError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _handle

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""

    def parameter(self, name: str) -> str:
        """The first value of a query parameter, or ""."""
        return self.query.get(name, [""])[0]

    @property
    def content_type(self) -> str:
        """The media type of the body, without parameters."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip()

    @property
    def has_body(self) -> bool:
        """Whether a body was announced."""
        return self._chunked or self._left > 0

    # The body.

    def read_into(self, view: memoryview) -> int:
        """The next bytes of the body, at the view's beginning; 0 at the end. Raises Fault where
        it ends early."""
        if self._ended:
            return 0
        if self._chunked and not self._left:
            self._next_chunk()
            if not self._left:
                return 0
        count = cast(io.BufferedReader, self.rfile).readinto(view[: min(len(view), self._left)])
        if not count:
            self._ended = True
            self.close_connection = True
            raise Fault("SIZE_INVALID", "the request's body ended early")
        self._left -= count
        if not self._left:
            if self._chunked:
                self.rfile.readline(16)
            else:
                self._ended = True
        return int(count)

    def _next_chunk(self) -> None:
        line = self.rfile.readline(1024)
        try:
            self._left = int(line.partition(b";")[0], 16)
        except ValueError:
            self.close_connection = True
            self._ended = True
            raise Fault("SIZE_INVALID", "malformed chunk in the request's body") from None
        if not self._left:
            while self.rfile.readline(1024).strip():
                pass
            self._ended = True

    def body(self, limit: int) -> bytes:
        """The whole body; raises Fault (413) where it is longer."""
        if self._left > limit:
            raise Fault("SIZE_INVALID", f"the body may have {limit} bytes at most", 413)
        parts = []
        total = 0
        view = memoryview(bytearray(min(_PIECE, limit + 1)))
        while count := self.read_into(view):
            total += count
            if total > limit:
                raise Fault("SIZE_INVALID", f"the body may have {limit} bytes at most", 413)
            parts.append(bytes(view[:count]))
        return b"".join(parts)

    def _skip(self) -> None:
        if self._ended or self.close_connection:
            return
        view = memoryview(bytearray(1 << 16))
        skipped = 0
        try:
            while count := self.read_into(view):
                skipped += count
                if skipped > _SKIP:
                    self.close_connection = True
                    return
        except Fault:
            self.close_connection = True

    # The answer.

    @property
    def answered(self) -> bool:
        """Whether an answer has begun."""
        return self._answered

    def begin(self, status: int, headers: Mapping[str, str], length: int | None) -> None:
        """Send the head."""
        self._answered = True
        self.send_response(status)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None and status != 204:
            self.send_header("Content-Length", str(length))
        elif length is None:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()

    def empty(self, status: int, **headers: str) -> None:
        """Answer without a body; ``_`` in the names of headers stand for ``-``."""
        self.begin(status, {key.replace("_", "-"): value for key, value in headers.items()}, 0)

    def whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Answer with a body at hand, to HEAD with its length."""
        self.begin(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        """Answer with a JSON value."""
        body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
        self.whole(status, body, {"Content-Type": "application/json", **headers})

    def fault(self, fault: Fault, headers: Mapping[str, str] = {}) -> None:
        """Answer with an error."""
        if self._answered:
            self.close_connection = True
            return
        self.json(fault.document(), fault.http_status, headers)

    def file(self, file: BinaryIO, size: int, headers: Mapping[str, str]) -> None:
        """Answer with a file, or with the range of it that is asked for."""
        start, end = 0, size
        asked = self.headers.get("Range", "")
        status = 200
        headers = {**headers, "Accept-Ranges": "bytes"}
        if asked.startswith("bytes=") and "," not in asked:
            found = _range(asked.removeprefix("bytes="), size)
            if found is None:
                self.json(
                    Fault("SIZE_INVALID", "there is no such range").document(),
                    416,
                    {"Content-Range": f"bytes */{size}"},
                )
                return
            if found != (-1, -1):
                start, end = found
                status = 206
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self.begin(status, headers, end - start)
        if self.command == "HEAD":
            return
        self.wfile.flush()
        if isinstance(self.connection, ssl.SSLSocket) or not isinstance(file, io.FileIO):
            file.seek(start)
            left = end - start
            while left and (data := file.read(min(_PIECE, left))):
                self.wfile.write(data)
                left -= len(data)
            return
        _send_file(self.connection, file.fileno(), start, end, self.timeout)


def _send_file(
    connection: socket.socket, source: int, start: int, end: int, timeout: float
) -> None:
    # sendfile on a socket with a timeout is non-blocking: let the kernel wait instead.
    connection.settimeout(None)
    try:
        while start < end:
            sent = os.sendfile(connection.fileno(), source, start, end - start)
            if not sent:
                raise ConnectionError("the file became shorter")
            start += sent
    finally:
        connection.settimeout(timeout)


def _range(text: str, size: int) -> tuple[int, int] | None:
    """Start and end of a byte range; None if it can't be given, (-1, -1) if it is malformed."""
    first, dash, last = text.strip().partition("-")
    if not dash or not (first or last) or (first + last).strip("0123456789"):
        return (-1, -1)
    if not first:
        count = min(int(last), size)
        return (size - count, size) if count else None
    start = int(first)
    end = min(int(last) + 1, size) if last else size
    return (start, end) if start < end else None
