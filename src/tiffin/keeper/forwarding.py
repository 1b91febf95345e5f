"""Sends a container's output to a log driver's socket, without ever waiting for it.

Messages wait in a queue of bounded size. When it is full, in the mode ``blocking`` the container's
output is not read until there is room, so that it waits as soon as its pipe is full; but when the
other side has taken nothing for ten seconds, messages are dropped, as in the mode ``non-blocking``
at once. A connection that breaks is made again, with pauses that grow. After the container's end
what is left is sent for some more seconds.
"""

from __future__ import annotations

import collections
import errno
import itertools
import os
import socket
import sys
import time

from tiffin.keeper.logfile import record_end
from tiffin.keeper.loop import IN, OUT, Loop, Timer
from tiffin.keeper.messages import message_format

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_STALL_SECONDS = 10.0
_FLUSH_SECONDS = 5.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
_BATCH = 1 << 16
_KINDS = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}
_FAMILIES = {"unix": socket.AF_UNIX, "inet": socket.AF_INET, "inet6": socket.AF_INET6}


class Forwarder:
    """One container's connection to a log driver's socket.

    ``options``: ``driver`` and what its format needs (:mod:`tiffin.keeper.messages`), ``family``
    (unix, inet, inet6), ``kind`` (stream, datagram), ``address``, ``buffer`` (bytes), ``blocking``.
    ``room`` is called when there is room again after :attr:`full`.
    """

    def __init__(
        self, loop: Loop, name: str, options: dict[str, Any], room: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._name = name
        self._options = options
        self._room = room
        self._format = message_format(options)
        self._stream = options["kind"] == "stream"
        address = options["address"]
        self._address = tuple(address) if isinstance(address, list) else address
        self._limit = int(options["buffer"])
        self._blocking = bool(options["blocking"])
        self._queue: collections.deque[bytes] = collections.deque()
        self._size = 0
        self._sent_of_first = 0
        self._sock: socket.socket | None = None
        self._connected = False
        self._pause = _FIRST_PAUSE
        self._retry: Timer | None = None
        self._last: Timer | None = None
        self._moves = 0
        self._stalled = False
        self._waiting = False
        self._lost = 0
        self._finished: Callable[[], None] | None = None

    @property
    def full(self) -> bool:
        """Whether the container's output should wait until ``room`` is called."""
        return self._waiting

    def take(self, stream: str, raw: bytes) -> None:
        """Send the records that ``raw`` consists of."""
        if self._dropping:
            self._lost += raw.count(b"\n")
            self._send()
            return
        now = time.time_ns()
        start = 0
        while start < len(raw):
            end = record_end(raw, start, last=True)
            text = raw[start:end]
            partial = not text.endswith(b"\n")
            self._put(self._format(stream, text if partial else text[:-1], partial, now))
            start = end
        self._send()
        if self._blocking and self._size >= self._limit and not (self._waiting or self._stalled):
            self._waiting = True
            self._watch_progress()

    def finish(self, done: Callable[[], None]) -> None:
        """Nothing more comes: ``done`` is called once all is sent, or given up."""
        self._finished = done
        if not self._queue:
            self.close()
        else:
            self._last = self._loop.after(_FLUSH_SECONDS, self.close)

    def close(self) -> None:
        """Close the connection; what is not sent is dropped."""
        self._lost += len(self._queue)
        self._queue.clear()
        self._size = 0
        self._drop_connection()
        for timer in (self._retry, self._last):
            if timer is not None:
                timer.cancel()
        self._tell_lost()
        done, self._finished = self._finished, None
        if done is not None:
            done()

    @property
    def _dropping(self) -> bool:
        return self._size >= self._limit and (not self._blocking or self._stalled)

    def _put(self, message: bytes) -> None:
        if self._dropping:
            self._lost += 1
            return
        # In the mode "blocking" all that was read is kept: it is not more than a pipe holds.
        self._queue.append(message)
        self._size += len(message)

    def _watch_progress(self) -> None:
        """Let the container go on when the other side takes nothing for too long."""
        seen = self._moves

        def look() -> None:
            if self._waiting and self._moves == seen:
                self._stalled = True
                self._release()
            elif self._waiting:
                self._watch_progress()

        self._loop.after(_STALL_SECONDS, look)

    def _release(self) -> None:
        if self._waiting:
            self._waiting = False
            self._room()

    def _send(self) -> None:
        if self._sock is None and self._retry is None and self._queue:
            self._connect()
        sock = self._sock
        if sock is None or not self._connected:
            return
        try:
            while self._queue:
                self._advance(sock.send(self._next()))
                if self._size < self._limit // 2:
                    self._release()
        except BlockingIOError:
            self._loop.watch(sock.fileno(), OUT, lambda _: self._send())
            return
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                self._lost += 1
                self._advance(len(self._queue[0]))
            self._broken(error)
            return
        self._pause = _FIRST_PAUSE
        self._loop.watch(sock.fileno(), IN, self._heard)
        self._release()
        self._tell_lost()
        if self._finished is not None:
            self.close()

    def _next(self) -> bytes:
        """What to send now: one datagram, or as much as there is for a stream."""
        if not self._stream:
            return self._queue[0]
        parts, size = [self._queue[0][self._sent_of_first :]], len(self._queue[0])
        for message in itertools.islice(self._queue, 1, None):
            if size >= _BATCH:
                break
            parts.append(message)
            size += len(message)
        return b"".join(parts)

    def _advance(self, sent: int) -> None:
        self._moves += 1
        self._stalled = False
        while self._queue and (not self._stream or sent):
            rest = len(self._queue[0]) - self._sent_of_first
            if self._stream and sent < rest:
                self._sent_of_first += sent
                return
            sent -= rest
            self._size -= len(self._queue.popleft())
            self._sent_of_first = 0
            if not self._stream:
                return

    def _connect(self) -> None:
        family = _FAMILIES[self._options["family"]]
        sock = socket.socket(family, _KINDS[self._options["kind"]])
        sock.setblocking(False)
        self._sock, self._connected = sock, False
        error = sock.connect_ex(self._address)
        if error == 0:
            self._connected = True
        elif error == errno.EINPROGRESS:
            self._loop.watch(sock.fileno(), OUT, lambda _: self._opened())
        else:
            self._broken(OSError(error, os.strerror(error)))

    def _opened(self) -> None:
        assert self._sock is not None
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._broken(OSError(error, os.strerror(error)))
            return
        self._connected = True
        self._send()

    def _heard(self, _events: int) -> None:
        """Nothing is expected but the end of the connection."""
        assert self._sock is not None
        try:
            ended = not self._sock.recv(4096) and self._stream
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(error)
            return
        if ended:
            self._broken(OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))

    def _broken(self, error: OSError) -> None:
        if self._pause == _FIRST_PAUSE and self._queue:
            print(f"{self._name}: the log driver cannot send: {error}", file=sys.stderr)
        self._drop_connection()
        if self._queue and self._retry is None:
            self._retry = self._loop.after(self._pause, self._try_again)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _try_again(self) -> None:
        self._retry = None
        self._send()

    def _drop_connection(self) -> None:
        sock, self._sock = self._sock, None
        self._connected = False
        # A message of which a part was sent is sent again as a whole.
        self._sent_of_first = 0
        if sock is not None:
            self._loop.drop(sock.fileno())
            sock.close()

    def _tell_lost(self) -> None:
        if self._lost:
            print(f"{self._name}: the log driver dropped {self._lost} messages", file=sys.stderr)
            self._lost = 0
