"""Bodies of requests and answers, as files on a blocking socket.

A body with a ``Content-Length`` is read from the socket without passing through h11 (one copy and
one system call for each read); a chunked one is decoded by h11. On the way out chunks are framed
here, so that large writes go to the kernel as they are.
"""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

import h11

from tiffin.errors import InvalidParameter

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

READ_SIZE = 256 * 1024
WRITE_SIZE = 64 * 1024
"""Less than this is gathered before it is sent."""


class Disconnected(Exception):
    """The client went away; nothing is left to answer."""


def send(connection: socket.socket, parts: list[ReadableBuffer]) -> None:
    """Send all of ``parts`` in as few system calls as the socket's buffer allows."""
    try:
        views = [memoryview(part).cast("B") for part in parts]
        total = sum(map(len, views))
        sent = connection.sendmsg(views)
        while sent < total:
            total -= sent
            while sent >= len(views[0]):
                sent -= len(views.pop(0))
            views[0] = views[0][sent:]
            sent = connection.sendmsg(views)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise Disconnected("the client closed the connection") from error


def receive(connection: socket.socket, size: int, flags: int = 0) -> bytes:
    """Up to ``size`` bytes, empty at the end of the stream; raises Disconnected on a reset."""
    try:
        return connection.recv(size, flags)
    except ConnectionResetError as error:
        raise Disconnected("the client closed the connection") from error


class SizedBody(io.BufferedIOBase):
    """A request's body whose length was announced."""

    def __init__(
        self, connection: socket.socket, head: bytes, size: int, before: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._head = head[:size]
        self.rest = head[size:]
        """What the client sent after this body."""
        self._left = size - len(self._head)
        self.broken = False
        """Whether the client sent something else than it announced."""
        self._before: Callable[[], None] | None = before

    @property
    def unread(self) -> int:
        return len(self._head) + self._left

    def readable(self) -> bool:
        return True

    def _started(self) -> None:
        if self._before is not None:
            self._before()
            self._before = None

    def _missing(self) -> InvalidParameter:
        self.broken = True
        return InvalidParameter(f"the request's body ended {self._left} bytes early")

    def read(self, size: int | None = -1) -> bytes:
        """Exactly ``size`` bytes, fewer only at the body's end; all of it if negative."""
        self._started()
        wanted = self.unread if size is None or size < 0 else min(size, self.unread)
        if self._head:
            start, self._head = self._head[:wanted], self._head[wanted:]
            if len(start) == wanted:
                return start
            return start + self._take(wanted - len(start))
        return self._take(wanted)

    def _take(self, wanted: int) -> bytes:
        if not wanted:
            return b""
        data = receive(self._connection, wanted, socket.MSG_WAITALL)
        self._left -= len(data)
        # A signal (the daemon handles a few) may cut a waiting recv short.
        while len(data) < wanted:
            more = receive(self._connection, wanted - len(data), socket.MSG_WAITALL)
            if not more:
                raise self._missing()
            self._left -= len(more)
            data += more
        return data

    def read1(self, size: int = -1) -> bytes:
        """What is there, at most ``size`` bytes; waits for the first one."""
        self._started()
        size = READ_SIZE if size < 0 else size
        if self._head:
            start, self._head = self._head[:size], self._head[size:]
            return start
        if not self._left or not size:
            return b""
        data = receive(self._connection, min(size, self._left))
        if not data:
            raise self._missing()
        self._left -= len(data)
        return data

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill ``buffer``; less only at the body's end."""
        self._started()
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self.unread)
        done = 0
        if self._head:
            done = min(wanted, len(self._head))
            view[:done] = self._head[:done]
            self._head = self._head[done:]
        while done < wanted:
            try:
                got = self._connection.recv_into(view[done:wanted], 0, socket.MSG_WAITALL)
            except ConnectionResetError as error:
                raise Disconnected("the client closed the connection") from error
            if not got:
                raise self._missing()
            done += got
            self._left -= got
        return done

    readinto1 = readinto


class ChunkedBody(io.BufferedIOBase):
    """A request's body in chunks, decoded by h11."""

    def __init__(
        self, connection: socket.socket, parser: h11.Connection, before: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._parser = parser
        self._before: Callable[[], None] | None = before
        self._buffer = bytearray(READ_SIZE)
        self._current = memoryview(b"")
        self.ended = False
        self.broken = False
        """Whether what the client sent makes no sense."""

    @property
    def rest(self) -> bytes:
        """What the client sent after this body; complete once it has ended."""
        return self._parser.trailing_data[0]

    def readable(self) -> bool:
        return True

    def _fill(self) -> bool:
        """Make the next piece current; False at the end."""
        if self._before is not None:
            self._before()
            self._before = None
        while not self.ended:
            try:
                event = self._parser.next_event()
                if event is h11.NEED_DATA:
                    try:
                        size = self._connection.recv_into(self._buffer)
                    except ConnectionResetError as error:
                        raise Disconnected("the client closed the connection") from error
                    self._parser.receive_data(memoryview(self._buffer)[:size])  # type: ignore[arg-type]
                    continue
            except h11.RemoteProtocolError as error:
                self.broken = True
                raise InvalidParameter(f"the request's body is malformed: {error}") from None
            if isinstance(event, h11.Data):
                self._current = memoryview(event.data)
                if self._current:
                    return True
            else:
                self.ended = True
        return False

    def readinto1(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        if not self._current and not self._fill():
            return 0
        size = min(len(view), len(self._current))
        view[:size] = self._current[:size]
        self._current = self._current[size:]
        return size

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill ``buffer``; less only at the body's end."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            size = self.readinto1(view[done:])
            if not size:
                break
            done += size
        return done

    def read1(self, size: int = -1) -> bytes:
        """The rest of the current chunk, at most ``size`` bytes; waits for the first one."""
        if not self._current and not self._fill():
            return b""
        if size < 0:
            size = len(self._current)
        data = bytes(self._current[:size])
        self._current = self._current[size:]
        return data

    def read(self, size: int | None = -1) -> bytes:
        """Exactly ``size`` bytes, fewer only at the body's end; all of it if negative."""
        pieces: list[memoryview] = []
        left = -1 if size is None or size < 0 else size
        while left:
            if not self._current and not self._fill():
                break
            piece = self._current if left < 0 else self._current[:left]
            self._current = self._current[len(piece) :]
            pieces.append(piece)
            if left > 0:
                left -= len(piece)
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)


class Sink(Protocol):
    """Where a written body goes: the answer that it belongs to."""

    @property
    def started(self) -> bool: ...

    def send_piece(
        self,
        parts: list[ReadableBuffer],
        descriptor: int = -1,
        offset: int = 0,
        count: int = 0,
    ) -> None: ...


class BodyWriter(io.BufferedIOBase):
    """An answer's body of unknown length, written like a file.

    It has no ``fileno``: the bytes are framed. ``sendfile`` is there instead.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._pending: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    @property
    def started(self) -> bool:
        """Whether any byte of the answer is out, so that no other status can be sent."""
        return self._sink.started

    @property
    def file(self) -> BinaryIO:
        """The writer, for those who ask for a file."""
        return cast(BinaryIO, self)

    def write(self, data: ReadableBuffer) -> int:
        """Take all of ``data``; raises Disconnected if the client is gone."""
        view = memoryview(data).cast("B")
        size = len(view)
        if size >= WRITE_SIZE:
            self._sink.send_piece([*self._take(), view])
        elif size:
            self._pending.append(bytes(view))
            self._size += size
            if self._size >= WRITE_SIZE:
                self._sink.send_piece(self._take())
        return size

    def _take(self) -> list[ReadableBuffer]:
        pending, self._pending, self._size = self._pending, [], 0
        return [b"".join(pending)] if len(pending) > 64 else list(pending)

    def flush(self) -> None:
        """Send the head, if it is not sent yet, and all that was written."""
        self._sink.send_piece(self._take())

    def close(self) -> None:
        """Nothing happens: the body ends with the answer, and whoever was given the file as an
        output does not decide about that. (The collector calls this too.)"""

    def sendfile(self, descriptor: int, offset: int, count: int) -> int:
        """Send ``count`` bytes of a file from ``offset`` without copying them; returns ``count``.

        Raises OSError if the file is shorter: the answer is then cut off, and the client sees it.
        """
        if count < WRITE_SIZE:
            self.write(os.pread(descriptor, count, offset))
            return count
        self._sink.send_piece(self._take(), descriptor, offset, count)
        return count
