"""A small HTTP/1.1 client for the Docker Engine API.

Over a socket and nothing else: JSON calls, bodies streamed up from a file or a pipe and down into
one, and *hijacked* connections (attach, exec), which stop being HTTP after the answer's headers.
One connection is kept for calls that come one after the other; a call that streams holds its own.

Docker's API takes paths without a version and answers in the daemon's own one.
"""

from __future__ import annotations

import os
import select
from json import dumps, loads

from tiffin.errors import TiffinError, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping
    from typing import Any

    from tiffin.client.endpoint import Endpoint

_AGENT = "tiffin-cli"
_BLOCK = 1 << 20
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/")

UPGRADE = {"Connection": "Upgrade", "Upgrade": "tcp"}
"""What a request says that wants to take its connection over."""


class DaemonError(TiffinError):
    """The daemon answered that it could not do it; the message is the daemon's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(f"Error response from daemon: {message}")
        self.http_status = status
        self.reason = message


def escape(text: str) -> str:
    """``text`` for use inside a path or a query."""
    return "".join(
        chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in os.fsencode(text)
    )


def target(path: str, query: Mapping[str, Any]) -> str:
    """A path with a query; values None are left out, True is 1, lists repeat their name."""
    pairs = []
    for name, value in query.items():
        for item in value if isinstance(value, list) else (value,):
            if item is None or item is False:
                continue
            text = "1" if item is True else str(item)
            pairs.append(f"{name}={escape(text).replace('/', '%2F')}")
    return f"{path}?{'&'.join(pairs)}" if pairs else path


def request_head(agent: str, method: str, where: str, headers: Mapping[str, str] | None) -> str:
    """The head of a request, but for what says of its body."""
    lines = [f"{method} {where} HTTP/1.1", "Host: tiffin", f"User-Agent: {agent}"]
    lines.extend(f"{name}: {value}" for name, value in (headers or {}).items())
    return "\r\n".join(lines) + "\r\n"


def request(
    agent: str,
    method: str,
    path: str,
    query: Mapping[str, Any] | None,
    body: Any,
    headers: Mapping[str, str] | None,
) -> bytes:
    """A whole request, with a JSON body or (None) without one."""
    data = b"" if body is None else dumps(body).encode()
    head = request_head(agent, method, target(path, query or {}), headers)
    if body is not None:
        head += "Content-Type: application/json\r\n"
    if body is not None or method in ("POST", "PUT"):
        head += f"Content-Length: {len(data)}\r\n"
    return head.encode("latin-1") + b"\r\n" + data


class Response:
    """One answer; its body is read once, through one of the methods."""

    def __init__(
        self, stream: Stream, status: int, headers: dict[str, str], *, bodiless: bool = False
    ) -> None:
        self._stream = stream
        self.status = status
        self.headers = headers
        self._chunked = headers.get("transfer-encoding", "") == "chunked"
        length = headers.get("content-length")
        self._left: int | None = int(length) if length is not None else None
        if bodiless or status in (204, 304) or status < 200:
            self._left, self._chunked = 0, False
        self._done = self._left == 0 and not self._chunked
        if self._chunked:
            self._left = 0

    @property
    def socket(self) -> socket.socket:
        """The connection, to poll on."""
        return self._stream.socket

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another call now."""
        return self._done and self.headers.get("connection", "").lower() != "close"

    def parts(self) -> Iterator[memoryview]:
        """The body as it arrives; each part is valid until the next one is asked for."""
        stream = self._stream
        while not self._done:
            if self._chunked and self._left == 0:
                size = int(stream.line().split(b";")[0], 16)
                if size == 0:
                    while stream.line():
                        continue
                    self._done = True
                    return
                self._left = size
            part = stream.some(self._left)
            if not part:
                if self._left is None:
                    self._done = True
                    self.headers["connection"] = "close"
                    return
                raise Unreachable("The daemon closed the connection in the middle of its answer")
            if self._left is not None:
                self._left -= len(part)
                if not self._chunked and self._left == 0:
                    self._done = True
            yield part
            if self._chunked and self._left == 0:
                stream.line()

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(map(bytes, self.parts()))

    def complaint(self) -> str:
        """What an answer of 400 and above says, in its whole body."""
        text = self.read().decode(errors="replace").strip()
        try:
            return str(loads(text)["message"])
        except (ValueError, KeyError, TypeError):
            return text or f"HTTP status {self.status}"

    def json(self) -> Any:
        """The whole body, parsed; None when there is none."""
        body = self.read()
        return loads(body) if body else None

    def lines(self) -> Iterator[bytes]:
        """The body line by line (the API's streams of JSON messages)."""
        rest = b""
        for part in self.parts():
            *lines, rest = (rest + bytes(part)).split(b"\n")
            yield from (line for line in lines if line.strip())
        if rest.strip():
            yield rest

    def copy_to(self, fd: int) -> int:
        """Writes the body to a file descriptor; returns how many bytes there were."""
        total = 0
        for part in self.parts():
            total += len(part)
            write_all(fd, part)
        return total

    def close(self) -> None:
        """Ends the call: an answer that was not read to its end takes its connection along."""
        if not self._done:
            self._stream.close()

    def drop(self) -> None:
        """Ends the call and its connection, which was for this call alone."""
        self._stream.close()


def write_all(fd: int, data: memoryview | bytes) -> None:
    """Writes all of ``data``, however the kernel cuts it; raises OSError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            # Somebody made the terminal non-blocking: wait as long as it takes.
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()


class Stream:
    """A connection with a buffer of what was received and not yet used."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.used = False
        self._buffer = bytearray(65536)
        self._start = 0
        self._end = 0

    def close(self) -> None:
        """Closes the connection."""
        self.socket.close()

    def _receive(self) -> int:
        """Receives more behind what is there; returns 0 at the end of the stream."""
        if self._start == self._end:
            self._start = self._end = 0
        if self._end == len(self._buffer):
            if self._start:
                rest = self._buffer[self._start : self._end]
                self._buffer[: len(rest)] = rest
                self._start, self._end = 0, len(rest)
            else:
                self._buffer = self._buffer + bytearray(len(self._buffer))
        count = self.socket.recv_into(memoryview(self._buffer)[self._end :])
        self._end += count
        return count

    def some(self, limit: int | None) -> memoryview:
        """What is at hand, at most ``limit`` bytes; waits for something; empty at the end."""
        if self._start == self._end:
            if len(self._buffer) < _BLOCK and (limit is None or limit > len(self._buffer)):
                self._buffer = bytearray(_BLOCK)
                self._start = self._end = 0
            self._receive()
        size = self._end - self._start
        if limit is not None:
            size = min(size, limit)
        view = memoryview(self._buffer)[self._start : self._start + size]
        self._start += size
        return view

    def line(self) -> bytes:
        """One line of the protocol, without its end; raises Unreachable at the end."""
        searched = self._start
        while True:
            found = self._buffer.find(b"\r\n", searched, self._end)
            if found >= 0:
                line = bytes(self._buffer[self._start : found])
                self._start = found + 2
                return line
            offset = max(self._end - self._start - 1, 0)
            if not self._receive():
                raise Unreachable("The daemon closed the connection without an answer")
            searched = self._start + offset

    def rest(self) -> bytes:
        """What was received behind the answer's headers (the start of a hijacked stream)."""
        data = bytes(self._buffer[self._start : self._end])
        self._start = self._end
        return data

    def has_refusal(self) -> bool:
        """Receives what is there and says whether an error's status line is among it.

        Called while a body is still being sent: a daemon that refuses answers early.
        """
        if not self._receive():
            return True
        head = bytes(self._buffer[self._start : self._start + 12])
        return len(head) == 12 and head[9:10] in (b"4", b"5")

    def ask(self, message: bytes, *, bodiless: bool) -> Response:
        """Sends a whole request and reads the answer's headers; raises Unreachable, and closes the
        connection, where the daemon ends it."""
        try:
            self.socket.sendall(message)
            return self.answer(bodiless=bodiless)
        except (BrokenPipeError, ConnectionResetError) as error:
            self.close()
            raise Unreachable("The daemon closed the connection without an answer") from error
        except BaseException:
            self.close()
            raise

    def answer(self, *, bodiless: bool = False) -> Response:
        """Reads the status line and the headers; ``bodiless`` for an answer to HEAD."""
        while True:
            status_line = self.line()
            try:
                status = int(status_line.split(b" ", 2)[1])
            except (IndexError, ValueError):
                raise Unreachable(
                    f"What answers is no Docker Engine API: {status_line[:80]!r}"
                ) from None
            headers = {}
            while line := self.line():
                name, _, value = line.partition(b":")
                headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
            if status != 100:
                return Response(self, status, headers, bodiless=bodiless)


class Client:
    """The calls of one command line to its daemon, one after the other."""

    def __init__(self, endpoint: Endpoint, *, start: bool = True) -> None:
        self._endpoint = endpoint
        self._start = start
        self._idle: Stream | None = None
        self._last: Response | None = None
        self._tiffin: bool | None = None

    def _take(self) -> Stream:
        if self._last is not None:
            if self._last.reusable:
                self._idle = self._last._stream
            else:
                self._last._stream.close()
            self._last = None
        stream, self._idle = self._idle, None
        return stream or Stream(self._endpoint.connect(start=self._start))

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Sends a request with a JSON body (or none) and reads the answer's headers.

        Raises DaemonError for an answer of 400 and above, and Unreachable.
        """
        message = request(_AGENT, method, path, query, body, headers)
        stream = self._take()
        try:
            response = stream.ask(message, bodiless=method == "HEAD")
        except Unreachable:
            if not stream.used and method not in ("GET", "HEAD"):
                raise
            # The daemon had closed a connection that was idle for long, or it was killed in the
            # moment of the question: ask again on a new one.
            stream = Stream(self._endpoint.connect(start=self._start))
            response = stream.ask(message, bodiless=method == "HEAD")
        return self._checked(stream, response)

    def _checked(self, stream: Stream, response: Response) -> Response:
        stream.used = True
        self._last = response
        self._tiffin = response.headers.get("server", "").lower().startswith("tiffin")
        if response.status < 400:
            return response
        raise DaemonError(response.complaint(), response.status)

    def close(self) -> None:
        """Lets go of the connection that is kept."""
        if self._last is not None:
            self._last._stream.close()
        if self._idle is not None:
            self._idle.close()
        self._last = self._idle = None

    def get(self, path: str, **query: Any) -> Any:
        """GET, and the parsed answer."""
        return self.call("GET", path, query).json()

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        """POST, and the parsed answer (None where there is none)."""
        return self.call("POST", path, query, body).json()

    def delete(self, path: str, **query: Any) -> Any:
        """DELETE, and the parsed answer (None where there is none)."""
        return self.call("DELETE", path, query).json()

    def start(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> Response:
        """Like ``call``, on a connection of its own: other calls may follow before it is read."""
        response = self.call(method, path, query, body)
        self._last = None
        return response

    def is_tiffin(self) -> bool:
        """Whether the daemon is tiffin's, which takes more than the API says."""
        if self._tiffin is None:
            self.call("GET", "/_ping").read()
        return bool(self._tiffin)

    def upload(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        source: int | Iterator[bytes],
        headers: Mapping[str, str] | None = None,
        *,
        content_type: str = "application/x-tar",
    ) -> Response:
        """Sends a body from a file descriptor (regular file or pipe) or from parts.

        A refusal that comes before all is sent ends the sending. Raises as ``call`` does.
        """
        from tiffin.client.upload import send_body

        head = request_head(_AGENT, method, target(path, query), headers)
        head += f"Content-Type: {content_type}\r\n"
        stream = self._take()
        try:
            send_body(stream, head, source)
            response = stream.answer()
        except BaseException:
            stream.close()
            raise
        return self._checked(stream, response)

    def hijack(
        self, path: str, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> tuple[socket.socket, bytes, str]:
        """POSTs and takes the connection over.

        Returns the socket, what has arrived already, and the content type, which says whether the
        stream is multiplexed. Raises as ``call`` does.
        """
        stream = Stream(self._endpoint.connect(start=self._start))
        stream.socket.sendall(request(_AGENT, "POST", path, query, body, UPGRADE))
        response = stream.answer()
        if response.status >= 400:
            self._checked(stream, response)
        return stream.socket, stream.rest(), response.headers.get("content-type", "")
