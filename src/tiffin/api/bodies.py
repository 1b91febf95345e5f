"""Bodies of requests and answers, as files on a blocking socket.

A body with a ``Content-Length`` is read from the socket without passing through h11 (one copy and
one system call for each read); so is a chunked one, which is decoded here. On the way out chunks
are framed here, so that large writes go to the kernel as they are.
"""

from __future__ import annotations

import io
import os
import re
import select
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from tiffin.errors import InvalidParameter

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

READ_SIZE = 256 * 1024
WRITE_SIZE = 64 * 1024
"""Less than this is gathered before it is sent."""
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")
_MAX_LINE = 16 * 1024
_MAX_TRAILERS = 100


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


def await_data(connection: socket.socket, deadline: float | None) -> None:
    """Return when there is something to receive; raises TimeoutError after the deadline."""
    if deadline is None:
        return
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError("nothing came")


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
        self.deadline: float | None = None
        """Until when ``read1`` may wait, by the monotonic clock."""

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
        await_data(self._connection, self.deadline)
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
    """A request's body in chunks (RFC 9112, 7.1).

    Decoded here, since clients send images in chunks of 32 KiB, ten thousand and more of them.
    """

    def __init__(self, connection: socket.socket, head: bytes, before: Callable[[], None]) -> None:
        self._connection = connection
        self._before: Callable[[], None] | None = before
        self._buffer = bytearray(max(READ_SIZE, len(head)))
        self._view = memoryview(self._buffer)
        self._view[: len(head)] = head
        # What was received and not yet used lies from ``start`` to ``end``.
        self._start = 0
        self._end = len(head)
        self._left = 0  # of the current chunk
        self._first = True
        self.ended = False
        self.broken = False
        """Whether what the client sent makes no sense."""
        self.deadline: float | None = None
        """Until when a read may wait, by the monotonic clock."""

    @property
    def rest(self) -> bytes:
        """What the client sent after this body; complete once it has ended."""
        return bytes(self._view[self._start : self._end])

    def readable(self) -> bool:
        return True

    def _malformed(self, what: str) -> InvalidParameter:
        self.broken = True
        return InvalidParameter(f"the request's body is malformed: {what}")

    def _receive(self, into: memoryview) -> int:
        await_data(self._connection, self.deadline)
        try:
            size = self._connection.recv_into(into)
        except ConnectionResetError as error:
            raise Disconnected("the client closed the connection") from error
        if not size:
            raise self._malformed("it ended before its last chunk")
        return size

    def _refill(self) -> None:
        """Receive more behind what is there."""
        if self._start:
            rest = bytes(self._view[self._start : self._end])
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        self._end += self._receive(self._view[self._end :])

    def _line(self) -> bytes:
        while True:
            end = self._buffer.find(b"\r\n", self._start, self._end)
            if end >= 0:
                line = bytes(self._view[self._start : end])
                self._start = end + 2
                return line
            if self._end - self._start > _MAX_LINE:
                raise self._malformed("a line between its chunks is too long")
            self._refill()

    def _next_chunk(self) -> bool:
        """Go to the next chunk; False at the end of the body."""
        if self._before is not None:
            self._before()
            self._before = None
        if self.ended:
            return False
        if self.broken:
            raise self._malformed("it was given up")
        if not self._first and self._line():
            raise self._malformed("a chunk is longer than it says")
        self._first = False
        size = self._line().partition(b";")[0].rstrip(b" \t")
        if not _CHUNK_SIZE.fullmatch(size):
            raise self._malformed(f"{size[:20]!r} is not the size of a chunk")
        self._left = int(size, 16)
        if not self._left:
            for _ in range(_MAX_TRAILERS):
                if not self._line():
                    self.ended = True
                    return False
            raise self._malformed("too much follows its last chunk")
        return True

    def _piece(self, limit: int) -> memoryview:
        """What is at hand, at most ``limit`` bytes, of the current chunk; waits for something. It
        is good until the next call. Empty at the body's end."""
        if not self._left and not self._next_chunk():
            return self._view[:0]
        if self._start == self._end:
            self._refill()
        start = self._start
        size = min(self._end - start, self._left, limit)
        self._start += size
        self._left -= size
        return self._view[start : start + size]

    def readinto1(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        piece = self._piece(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill ``buffer``; less only at the body's end."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            wanted = min(self._left, len(view) - done)
            if wanted >= READ_SIZE and self._start == self._end:
                # A large chunk goes where it is wanted without another copy.
                size = self._receive(view[done : done + wanted])
                self._left -= size
            else:
                piece = self._piece(len(view) - done)
                size = len(piece)
                if not size:
                    break
                view[done : done + size] = piece
            done += size
        return done

    def read1(self, size: int = -1) -> bytes:
        """The rest of the current chunk, at most ``size`` bytes; waits for the first one."""
        return bytes(self._piece(READ_SIZE if size < 0 else size)) if size else b""

    def read(self, size: int | None = -1) -> bytes:
        """Exactly ``size`` bytes, fewer only at the body's end; all of it if negative."""
        pieces: list[bytes] = []
        left = -1 if size is None or size < 0 else size
        while left:
            piece = bytes(self._piece(READ_SIZE if left < 0 else left))
            if not piece:
                break
            pieces.append(piece)
            if left > 0:
                left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


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
