"""Sends a container's output to a log driver's socket, without ever waiting for it.

Messages wait in a queue of bounded size. When it is full, in the mode ``blocking`` the container's
output is not read until there is room, so that it waits as soon as its pipe is full; but when the
other side has taken nothing for ten seconds, messages are dropped, as in the mode ``non-blocking``
at once. A connection that breaks is made again, with pauses that grow. After the container's end
what is left is sent for some more seconds.

Where the other side is to acknowledge messages (fluentd's ``ack``), each one is kept until it has,
and those that it had not are sent again on the next connection.
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
from tiffin.keeper.messages import acknowledged, chunk_name, message_format, with_chunk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_STALL_SECONDS = 10.0
_OPEN_SECONDS = 10.0
_FLUSH_SECONDS = 5.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
_BATCH = 1 << 16
_KINDS = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}
_FAMILIES = {"unix": socket.AF_UNIX, "inet": socket.AF_INET, "inet6": socket.AF_INET6}


class Forwarder:
    """One container's connection to a log driver's socket.

    ``options``: ``driver`` and what its format needs (:mod:`tiffin.keeper.messages`), ``family``
    (unix, inet, inet6), ``kind`` (stream, datagram), ``address``, ``buffer`` (bytes), ``blocking``;
    and if wanted ``tls`` (see :func:`tiffin.keeper.encryption.wrap`), ``ack``, ``retry_wait``
    (seconds), ``max_retries`` (then what waits is dropped), ``write_timeout``, ``reconnect``
    (seconds after which a connection is made anew).
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
        self._ack = bool(options.get("ack"))
        self._chunks: collections.deque[str] = collections.deque()
        self._unacknowledged: dict[str, bytes] = {}
        self._count = itertools.count(int.from_bytes(os.urandom(12)) << 32)
        self._answer = b""
        self._wants: tuple[type[OSError], ...] = (BlockingIOError,)
        self._first_pause = float(options.get("retry_wait") or _FIRST_PAUSE)
        self._pause = self._first_pause
        self._failures = 0
        self._opened_at = 0.0
        self._opening: Timer | None = None
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
        self._last = self._loop.after(_FLUSH_SECONDS, self.close)
        self._settled()

    def close(self) -> None:
        """Close the connection; what is not sent is dropped."""
        self._drop_connection()
        self._lost += len(self._queue)
        self._forget()
        for timer in (self._retry, self._last):
            if timer is not None:
                timer.cancel()
        self._tell_lost()
        done, self._finished = self._finished, None
        if done is not None:
            done()

    def _forget(self) -> None:
        """Send nothing of what waits."""
        self._queue.clear()
        self._chunks.clear()
        self._size = 0

    @property
    def _dropping(self) -> bool:
        return self._size >= self._limit and (not self._blocking or self._stalled)

    def _put(self, message: bytes) -> None:
        if self._dropping:
            self._lost += 1
            return
        if self._ack:
            chunk = chunk_name(next(self._count))
            message = with_chunk(message, chunk)
            self._chunks.append(chunk)
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
        self._renew()
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
        except self._wants:
            self._loop.watch(sock.fileno(), IN | OUT if self._ack else OUT, self._ready)
            self._watch_writing()
            return
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                self._lost += 1
                self._advance(len(self._queue[0]))
            self._broken(error)
            return
        self._pause, self._failures = self._first_pause, 0
        self._loop.watch(sock.fileno(), IN, self._heard)
        self._settled()

    def _ready(self, events: int) -> None:
        if events & IN:
            self._heard(events)
        if self._connected:
            self._send()

    def _settled(self) -> None:
        """Some of what waited is on its way, or has arrived."""
        if self._size < self._limit // 2:
            self._release()
        self._tell_lost()
        if self._finished is None or self._queue or self._unacknowledged:
            return
        if self._options.get("tls") and self._connected:
            self._part()
        else:
            self.close()

    def _part(self) -> None:
        """End an encrypted connection so that the other side gets all that was sent.

        It has said something itself (its session's tickets), and what is closed with something
        unread is reset.
        """
        sock = self._sock
        assert sock is not None
        try:
            try:
                sock.unwrap()  # type: ignore[attr-defined]
            except self._wants:
                # It has said that this was all; the answer need not be waited for.
                pass
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self._loop.watch(sock.fileno(), IN, lambda _: self._parted(sock))

    def _parted(self, sock: socket.socket) -> None:
        try:
            if sock.recv(1 << 16):
                return
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(error)
        self.close()

    def _renew(self) -> None:
        """Leave a connection that has lasted for long enough, between two messages."""
        longest = float(self._options.get("reconnect") or 0)
        whole = not (self._sent_of_first or self._unacknowledged)
        old = time.monotonic() - self._opened_at > longest
        if longest and self._connected and whole and old:
            self._drop_connection()

    def _watch_writing(self) -> None:
        """Give a connection up that takes nothing for longer than it may."""
        seconds = float(self._options.get("write_timeout") or 0)
        seen, sock = self._moves, self._sock
        if not seconds:
            return

        def look() -> None:
            if self._sock is sock and self._moves == seen and self._queue:
                self._broken(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

        self._loop.after(seconds, look)

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
            message = self._queue.popleft()
            if self._ack:
                # It takes its room until it has arrived.
                self._unacknowledged[self._chunks.popleft()] = message
            else:
                self._size -= len(message)
            self._sent_of_first = 0
            if not self._stream:
                return

    def _connect(self) -> None:
        family = _FAMILIES[self._options["family"]]
        sock = socket.socket(family, _KINDS[self._options["kind"]])
        sock.setblocking(False)
        self._sock, self._connected = sock, False
        self._opening = self._loop.after(_OPEN_SECONDS, self._not_opened)
        error = sock.connect_ex(self._address)
        if error == 0 and self._options.get("tls"):
            self._encrypt()
        elif error == 0:
            self._is_open()
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
        if self._options.get("tls"):
            self._encrypt()
        else:
            self._is_open()
            self._send()

    def _not_opened(self) -> None:
        if not self._connected and self._sock is not None:
            self._broken(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def _is_open(self) -> None:
        self._connected, self._opened_at = True, time.monotonic()
        if self._opening is not None:
            self._opening.cancel()

    def _encrypt(self) -> None:
        from tiffin.keeper import encryption

        assert self._sock is not None
        self._wants = (BlockingIOError, *encryption.WANTS)
        try:
            self._sock = encryption.wrap(self._sock, self._options["tls"])
        except OSError as error:
            self._broken(error)
            return
        self._shake_hands()

    def _shake_hands(self) -> None:
        from tiffin.keeper import encryption

        sock = self._sock
        try:
            sock.do_handshake()  # type: ignore[union-attr]
        except encryption.WANTS as error:
            mask = IN if encryption.wants_to_read(error) else OUT
            self._loop.watch(sock.fileno(), mask, lambda _: self._shake_hands())  # type: ignore[union-attr]
        except OSError as error:
            self._broken(error)
        else:
            self._is_open()
            self._send()

    def _heard(self, _events: int) -> None:
        """Nothing is expected but what acknowledges messages, and the end of the connection."""
        assert self._sock is not None
        try:
            data = self._sock.recv(4096)
            ended = not data and self._stream
        except self._wants:
            return
        except OSError as error:
            self._broken(error)
            return
        if ended:
            self._broken(OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
        elif self._ack:
            self._acknowledged(data)

    def _acknowledged(self, data: bytes) -> None:
        try:
            names, self._answer = acknowledged(self._answer + data)
        except ValueError as error:
            self._broken(OSError(errno.EPROTO, str(error)))
            return
        for name in names:
            message = self._unacknowledged.pop(name, b"")
            self._size -= len(message)
            self._moves += 1
            self._stalled = False
        self._settled()

    def _broken(self, error: OSError) -> None:
        if not self._failures and self._queue:
            print(f"{self._name}: the log driver cannot send: {error}", file=sys.stderr)
        self._drop_connection()
        self._failures += 1
        most = self._options.get("max_retries")
        if most is not None and self._failures > int(most) and self._queue:
            self._lost += len(self._queue)
            self._forget()
            self._failures = 0
            self._settled()
        if self._queue and self._retry is None:
            self._retry = self._loop.after(self._pause, self._try_again)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _try_again(self) -> None:
        self._retry = None
        self._send()

    def _drop_connection(self) -> None:
        sock, self._sock = self._sock, None
        self._connected = False
        # A message of which a part was sent is sent again as a whole, like those of which nobody
        # has said that they have arrived.
        self._sent_of_first = 0
        self._answer = b""
        self._queue.extendleft(reversed(self._unacknowledged.values()))
        self._chunks.extendleft(reversed(self._unacknowledged))
        self._unacknowledged.clear()
        if self._opening is not None:
            self._opening.cancel()
        if sock is not None:
            self._loop.drop(sock.fileno())
            sock.close()

    def _tell_lost(self) -> None:
        if self._lost:
            print(f"{self._name}: the log driver dropped {self._lost} messages", file=sys.stderr)
            self._lost = 0
