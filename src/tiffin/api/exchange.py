"""One HTTP request and its answer, on a blocking socket.

The words: a *head* is the request line or status line with the headers, a *body* what follows. To
*hijack* a connection is to stop speaking HTTP on it: after the answer's head the socket carries a
container's input and output, and belongs to whoever duplicated it.

h11 parses and writes heads; bodies are in the module ``bodies``.

An answer's head is sent with its first bytes of body, never earlier, so that an operation that
fails before it has written anything is still answered with a proper status. Whoever must be seen
to have started (``wait``, ``logs --follow``) calls ``flush``.

Source: RFC 9112; the hijacking of Docker's Engine API (``POST /containers/{id}/attach``).
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import sys
import termios
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast
from urllib.parse import parse_qs, unquote

import h11

from tiffin.api import documents
from tiffin.api.bodies import BodyWriter, ChunkedBody, Disconnected, SizedBody, send
from tiffin.api.shapes import checked
from tiffin.errors import InvalidParameter, TooSlow
from tiffin.version import API_VERSION, __version__

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Headers = Iterable[tuple[str, str]]

MAX_HEAD = 128 * 1024
"""The longest request head; X-Registry-Config (credentials of every registry) needs tens of KB."""
MAX_JSON = 16 * 1024 * 1024
"""The longest JSON body: a container's configuration with very many labels is far below this."""

DRAIN_LIMIT = 256 * 1024
"""An unread rest of a body up to this size is skipped to keep the connection, as Go does."""

JSON_SECONDS = 60.0
"""A JSON body has this long to arrive."""
DRAIN_SECONDS = 5.0
"""And the rest of one that nobody wanted this long."""

COMMON_HEADERS = (
    ("Api-Version", API_VERSION),
    ("Docker-Experimental", "false"),
    ("Ostype", "linux"),
    ("Server", f"tiffin/{__version__} (linux)"),
)

RAW_STREAM = "application/vnd.docker.raw-stream"
MULTIPLEXED_STREAM = "application/vnd.docker.multiplexed-stream"


class Hijacked(NamedTuple):
    """A connection that no longer speaks HTTP."""

    connection: socket.socket
    initial: bytes
    """Bytes of the new protocol that arrived together with the request."""


class Request:
    """What a client asks. ``version`` and ``names`` are filled in by the router."""

    def __init__(
        self,
        connection: socket.socket,
        head: h11.Request,
        parser: h11.Connection,
        stopping: Callable[[], bool],
    ) -> None:
        self._connection = connection
        self._stopping = stopping
        self._parser = parser
        self.method = head.method.decode("ascii")
        target, _, query = head.target.decode("latin-1").partition("?")
        if "://" in target[:8]:  # the absolute form, which proxies send
            target = "/" + target.split("://", 1)[1].partition("/")[2]
        self.path = unquote(target, errors="surrogateescape")
        # Names of files may hold any byte, but 0; the module ``query`` cleans everything else.
        self.query: Mapping[str, list[str]] = parse_qs(
            query, keep_blank_values=True, errors="surrogateescape"
        )
        if "%00" in query or "\0" in self.path:
            raise ValueError("a byte 0 in the path or the query")
        self.headers: dict[str, str] = {}
        for name, value in head.headers:
            key, text = name.decode("ascii"), value.decode("latin-1")
            # Several headers of one name are one list (RFC 9110, 5.3).
            self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text
        self.http_version = head.http_version.decode("ascii")
        self.version: tuple[int, int] = (1, 50)
        """The API version that the client asked for."""
        self.names: dict[str, str] = {}
        """The variable parts of the path."""
        self.continued = not parser.they_are_waiting_for_100_continue
        """Whether the client was told to send its body (or sends it without being told)."""
        self._body: SizedBody | ChunkedBody
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._body = ChunkedBody(connection, parser.trailing_data[0], self._continue)
        else:
            self._body = SizedBody(
                connection,
                parser.trailing_data[0],
                int(self.headers.get("content-length", 0)),
                self._continue,
            )

    @property
    def body(self) -> BinaryIO:
        """The body as a file that can be read once; ``read`` and ``readinto`` never come short.

        Raises InvalidParameter where the client sends less than it announced.
        """
        return cast(BinaryIO, self._body)

    @property
    def keeps_alive(self) -> bool:
        """Whether the client wants to send more requests on this connection."""
        tokens = self.headers.get("connection", "").lower()
        return self.http_version == "1.1" and "close" not in tokens

    @property
    def wants_upgrade(self) -> bool:
        return "upgrade" in self.headers.get("connection", "").lower() and bool(
            self.headers.get("upgrade")
        )

    def json(self) -> Any:
        """The body's JSON; None if there is no body. Raises InvalidParameter.

        It has to say that it is JSON, as Docker wants it: a page in somebody's browser can send
        other types anywhere without being asked.
        """
        data = self._small_body()
        if not data.strip():
            return None
        said = self.headers.get("content-type", "")
        if said.partition(";")[0].strip().lower() != "application/json":
            raise InvalidParameter(
                f"unsupported Content-Type header ({said}): must be 'application/json'"
            )
        return documents.decode(data)

    def _small_body(self) -> bytes:
        """A whole body that is bounded in size and in time. Raises InvalidParameter, TooSlow."""
        body = self._body
        data = bytearray()
        try:
            with self._within(JSON_SECONDS):
                while piece := body.read1():
                    data += piece
                    if len(data) > MAX_JSON:
                        raise InvalidParameter(
                            f"invalid JSON: the body is larger than {MAX_JSON} bytes"
                        )
        except TimeoutError:
            body.broken = True
            raise TooSlow("the request's body took too long to arrive") from None
        return bytes(data)

    @contextmanager
    def _within(self, seconds: float) -> Iterator[None]:
        """Have a read of the body raise TimeoutError where it waits beyond a moment from now."""
        self._body.deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            self._body.deadline = None

    def json_object(self, shape: Any) -> dict[str, Any]:
        """The body's JSON object, checked against a shape of :mod:`tiffin.api.shapes`.

        Raises InvalidParameter if there is no body, or another value.
        """
        value = self.json()
        if value is None:
            raise InvalidParameter("invalid JSON: got EOF while reading request body")
        if not isinstance(value, dict):
            raise InvalidParameter("invalid JSON: expected an object")
        found: dict[str, Any] = checked(value, shape)
        return found

    def cancelled(self) -> bool:
        """Whether an answer is no longer wanted: the client closed, or the server is stopping.

        A client that only closed its writing half still waits for its answer.
        """
        return self._stopping() or self.gone()

    def gone(self) -> bool:
        """Whether the client closed the connection."""
        poll = select.poll()
        # Without asked-for events, poll reports hang-ups and errors alone.
        poll.register(self._connection, 0)
        return bool(poll.poll(0))

    def _continue(self) -> None:
        if not self.continued:
            self.continued = True
            send(self._connection, [b"HTTP/1.1 100 Continue\r\n\r\n"])

    @property
    def stuck(self) -> bool:
        """Whether the way to a next request on this connection is known to be blocked."""
        body = self._body
        return (
            body.broken
            or not self.continued
            or (isinstance(body, SizedBody) and body.unread > DRAIN_LIMIT)
        )

    def drain(self) -> bool:
        """Skip what was not read of the body; False if that is too much, takes too long, or can't
        be done."""
        body = self._body
        if self.stuck:
            return False
        skipped = 0
        try:
            with self._within(DRAIN_SECONDS):
                while skipped <= DRAIN_LIMIT:
                    piece = body.read1()
                    if not piece:
                        return True
                    skipped += len(piece)
        except (InvalidParameter, TimeoutError):
            # A body that is malformed has no end to skip to.
            pass
        return False

    @property
    def rest(self) -> bytes:
        """What the client sent after this request."""
        return self._body.rest


class Response:
    """The answer to one request. Exactly one of its methods begins it."""

    def __init__(
        self, connection: socket.socket, request: Request, parser: h11.Connection, closing: bool
    ) -> None:
        self._connection = connection
        self._request = request
        self._parser = parser
        self._closing = closing
        self._status = 200
        self._headers: list[tuple[str, str]] = []
        self._writer: BodyWriter | None = None
        self.started = False
        """Whether the head is out."""
        self.complete = False
        self.hijacked = False
        self._chunked = request.http_version == "1.1"

    @property
    def keeps_alive(self) -> bool:
        """Whether the next request may follow on the connection."""
        return self.complete and not self._closing and not self.hijacked

    def json(self, value: Any, status: int = 200, headers: Headers = ()) -> None:
        """Answer with a JSON value."""
        self.whole(documents.encode(value) + b"\n", "application/json", status, headers)

    def empty(self, status: int = 204, headers: Headers = ()) -> None:
        """Answer without a body."""
        self.whole(b"", None, status, headers)

    def whole(
        self, data: bytes, content_type: str | None, status: int = 200, headers: Headers = ()
    ) -> None:
        """Answer with a body at hand; to HEAD with its length alone."""
        self._status = status
        self._headers = list(headers)
        if content_type:
            self._headers.append(("Content-Type", content_type))
        if status not in (204, 304):
            self._headers.append(("Content-Length", str(len(data))))
        head = self._head()
        self.complete = True
        if self._request.method == "HEAD" or not data:
            send(self._connection, [head])
        else:
            send(self._connection, [head, data])

    def stream(
        self,
        content_type: str,
        pieces: Iterable[ReadableBuffer] | None = None,
        *,
        headers: Headers = (),
        flush: bool = False,
    ) -> BodyWriter:
        """Answer with a body of unknown length; its head goes out with its first bytes.

        ``pieces``, if given, are written one after the other (``flush``: each at once).
        """
        self._headers = [*headers, ("Content-Type", content_type)]
        self._writer = writer = BodyWriter(self)
        if pieces is not None:
            if flush:
                writer.flush()
            for piece in pieces:
                writer.write(piece)
                if flush:
                    writer.flush()
        return writer

    def hijack(self, content_type: str) -> Hijacked:
        """Send the head that ends HTTP on this connection, and give the socket.

        The socket stays the server's, which closes it (without a shutdown) once the handler
        returns: who goes on using it duplicates the descriptor first.
        """
        if not self._request.drain():
            raise InvalidParameter("the request's body is too large for a connection to attach to")
        lines = [f"Content-Type: {content_type}"]
        if self._request.wants_upgrade:
            status = "101 UPGRADED"
            lines += ["Connection: Upgrade", f"Upgrade: {self._request.headers['upgrade']}"]
        else:
            status = "200 OK"
        lines += [f"{name}: {value}" for name, value in COMMON_HEADERS]
        head = f"HTTP/1.1 {status}\r\n" + "".join(f"{line}\r\n" for line in lines) + "\r\n"
        self.started = self.hijacked = True
        send(self._connection, [head.encode("latin-1")])
        self._until_read()
        return Hijacked(self._connection, self._request.rest)

    def _until_read(self) -> None:
        """Wait a moment until the client has read the head that was sent.

        docker-py reads the head through a buffer, and what follows past it: bytes that arrive
        together with the head are lost to it. What starts here is quick enough for that.
        """
        deadline = time.monotonic() + _HEAD_READ_SECONDS
        while _unread(self._connection) and time.monotonic() < deadline:
            time.sleep(0.0002)

    def switch(self, protocol: str, *headers: tuple[str, str]) -> Hijacked:
        """Send the head that turns the connection over to another protocol, and give the socket.

        As with :meth:`hijack`, the server closes the socket once the handler returns.
        """
        lines = ["HTTP/1.1 101 Switching Protocols", f"Upgrade: {protocol}", "Connection: Upgrade"]
        lines += [f"{name}: {value}" for name, value in (*headers, *COMMON_HEADERS)]
        self.started = self.hijacked = True
        send(self._connection, ["".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")])
        return Hijacked(self._connection, self._request.rest)

    def last_words(self, data: bytes) -> None:
        """Say something on a hijacked connection that nobody took over."""
        send(self._connection, [data])

    def abandon(self) -> None:
        """Leave a begun answer as it is, since nobody reads it; the connection is closed."""
        raise Disconnected("the answer is no longer wanted")

    def discard(self) -> None:
        """Forget a streamed answer of which nothing was sent, to begin another one."""
        self._writer = None

    def finish(self) -> None:
        """End a streamed answer properly; an answer that nobody began is an empty one."""
        if self.complete or self.hijacked:
            return
        if self._writer is None:
            self.empty(200)
            return
        self._writer.flush()
        self.complete = True
        if self._framed:
            send(self._connection, [b"0\r\n\r\n"])

    @property
    def _framed(self) -> bool:
        return self._chunked and self._request.method != "HEAD"

    def _head(self) -> bytes:
        # A streamed answer may begin while its handler still reads.
        if not self._request.keeps_alive or (self._writer is None and self._request.stuck):
            self._closing = True
        headers = [*COMMON_HEADERS, ("Date", _date()), *self._headers]
        if self._closing:
            headers.append(("Connection", "close"))
        elif not self._chunked:
            self._closing = True
        self.started = True
        data = self._parser.send(
            h11.Response(
                status_code=self._status, headers=headers, reason=_REASONS.get(self._status, b"")
            )
        )
        return data or b""

    def send_piece(
        self,
        parts: list[ReadableBuffer],
        descriptor: int = -1,
        offset: int = 0,
        count: int = 0,
    ) -> None:
        """Send a part of a streamed body: ``parts``, then ``count`` bytes of a file."""
        size = count + sum(memoryview(part).nbytes for part in parts)
        out: list[ReadableBuffer] = [] if self.started else [self._head()]
        if size and self._request.method != "HEAD":
            if self._chunked:
                out.append(b"%x\r\n" % size)
            out += parts
            if count:
                send(self._connection, out)
                out = []
                self._splice(descriptor, offset, count)
            if self._chunked:
                out.append(b"\r\n")
        if out:
            send(self._connection, out)

    def _splice(self, descriptor: int, offset: int, count: int) -> None:
        target = self._connection.fileno()
        while count:
            try:
                sent = os.sendfile(target, descriptor, offset, count)
            except (BrokenPipeError, ConnectionResetError) as error:
                raise Disconnected("the client closed the connection") from error
            if not sent:
                raise OSError(f"a file ended {count} bytes before its recorded size")
            offset += sent
            count -= sent


_REASONS = {
    100: b"Continue",
    200: b"OK",
    201: b"Created",
    202: b"Accepted",
    204: b"No Content",
    304: b"Not Modified",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    408: b"Request Timeout",
    409: b"Conflict",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    503: b"Service Unavailable",
    507: b"Insufficient Storage",
}


_HEAD_READ_SECONDS = 0.1


def _unread(connection: socket.socket) -> int:
    """How much the other side has not read (unix), or not acknowledged (TCP)."""
    size = fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0\0\0\0")
    return int.from_bytes(size, sys.byteorder)


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def _date() -> str:
    now = time.gmtime()
    return (
        f"{_DAYS[now.tm_wday]}, {now.tm_mday:02} {_MONTHS[now.tm_mon - 1]} {now.tm_year} "
        f"{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02} GMT"
    )


def media_type(request: Request, *, multiplexed: bool) -> str:
    """What a container's output is called; older clients know one name for both forms."""
    return MULTIPLEXED_STREAM if multiplexed and request.version >= (1, 42) else RAW_STREAM


def error_answer(status: int, message: str) -> bytes:
    """A whole answer to a request that could not even be read; it closes the connection."""
    body = documents.encode({"message": message}) + b"\n"
    reason = _REASONS.get(status, b"Error").decode()
    return (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body
