"""A client's connection that is attached to a container's streams.

Towards the client goes output: raw, or in Docker's frames (a header of 8 bytes: the stream's
number, three zeros, the length in big-endian; then the bytes). From the client comes standard
input, in which a terminal's detach keys are looked for. Each direction ends by itself: a client
that has finished its input still gets all output; at the container's end the output's rest is
delivered, then the connection is closed.

The socket's flags are never changed (it may be shared with others): every call says MSG_DONTWAIT.

Source: https://docs.docker.com/reference/api/engine/ (attach: "Stream format").
"""

from __future__ import annotations

import collections
import socket
import struct

from tiffin.keeper.keys import KeyMatcher
from tiffin.keeper.loop import GONE, IN, OUT, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Host(Protocol):
        """What an attachment is attached to."""

        terminal: bool

        def feed(self, attachment: Attachment, data: bytes) -> bool:
            """Deliver input; False: no more for now, :meth:`Attachment.resume` will follow."""

        def input_ended(self, attachment: Attachment) -> None:
            """No more input comes from this client."""

        def left(self, attachment: Attachment, *, detached: bool) -> None:
            """The client is gone, or wants to be: nothing is delivered any more."""

        def flushed(self, attachment: Attachment) -> None:
            """What was unsent has become little."""


UNSENT_LIMIT = 1 << 20
"""More than this unsent, and the container has to wait for the client."""
_READ = 1 << 16
_LINGER = 2.0
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_HEADER = struct.Struct(">BxxxI")


class Attachment:
    """One client; ``options`` as client._attachment makes them.

    It owns the descriptor ``fd``, once it could be made. Raises OSError: that is no socket.
    """

    def __init__(self, loop: Loop, fd: int, options: dict[str, Any]) -> None:
        self._loop = loop
        self._fd = fd
        self.wanted = (bool(options["stdout"]), bool(options["stderr"]))
        self._framed = bool(options["multiplexed"])
        self.stdin = bool(options["stdin"])
        self._initial = str(options["initial"]).encode("latin-1")
        self._keys = KeyMatcher(str(options["keys"]).encode("latin-1"))
        self._host: Host | None = None
        self._unsent: collections.deque[memoryview] = collections.deque()
        self.unsent = 0
        self._reading = True
        self._held_up = False
        self._leaving = False
        self._finished = False
        self.closed = False
        self._sock = socket.socket(fileno=fd)
        # Not read before it has a host; but that it vanished is heard.
        loop.watch(fd, 0, self._ready)

    def connect(self, host: Host) -> None:
        """Begin to read input, for ``host``."""
        self._host = host
        initial, self._initial = self._initial, b""
        if initial:
            self._take(initial)
        self._watch()

    @property
    def behind(self) -> bool:
        """Whether the client has too much unsent."""
        return self.unsent > UNSENT_LIMIT

    def deliver(self, stream: int, data: bytes) -> None:
        """Send output of stream 0 (stdout) or 1 (stderr), now or when the client takes it."""
        if self.closed or self._leaving or self._finished or not self.wanted[stream]:
            return
        parts = [data] if not self._framed else [_HEADER.pack(stream + 1, len(data)), data]
        size = sum(map(len, parts))
        sent = 0
        if not self.unsent:
            try:
                sent = self._sock.sendmsg(parts, (), _FLAGS)
            except BlockingIOError:
                pass
            except OSError:
                self._vanish()
                return
        if sent < size:
            rest = memoryview(b"".join(parts))[sent:]
            self._unsent.append(rest)
            self.unsent += len(rest)
            self._watch()

    def finish(self) -> None:
        """No more output comes: close once everything is sent."""
        if not self.closed and not self._finished:
            self._finished = True
            self._end_if_sent()

    def resume(self) -> None:
        """Input may be delivered again."""
        self._held_up = False
        self._watch()

    def close(self) -> None:
        """End it now, whatever is unsent."""
        if self.closed:
            return
        self.closed = True
        self._unsent.clear()
        self.unsent = 0
        self._loop.drop(self._fd)
        try:
            # Not only close: another process may still have the connection open.
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            # The client has closed it already.
            pass
        self._sock.close()

    def abandon(self) -> None:
        """Let go of the connection without a word: it goes on being its owner's."""
        self.closed = True
        self._loop.drop(self._fd)
        self._sock.close()

    def _watch(self) -> None:
        if self.closed:
            return
        mask = IN if self._reading and not self._held_up and self._host is not None else 0
        self._loop.watch(self._fd, mask | (OUT if self.unsent else 0), self._ready)

    def _ready(self, events: int) -> None:
        if events & OUT and self.unsent:
            self._send()
        if self.closed:
            return
        if events & GONE:
            self._vanish()
        elif events & IN and self._reading:
            self._receive()

    def _send(self) -> None:
        behind = self.behind
        while self._unsent:
            part = self._unsent[0]
            try:
                sent = self._sock.send(part, _FLAGS)
            except BlockingIOError:
                break
            except OSError:
                self._vanish()
                return
            self.unsent -= sent
            if sent < len(part):
                self._unsent[0] = part[sent:]
            else:
                self._unsent.popleft()
        if not self.unsent:
            self._watch()
        self._end_if_sent()
        if self._host is not None and ((behind and not self.behind) or not self.unsent):
            self._host.flushed(self)

    def _receive(self) -> bool:
        """Read once; whether there may be more."""
        try:
            data = self._sock.recv(_READ, _FLAGS)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data and self._leaving:
            return True
        if data:
            self._take(data)
            return True
        self._end_input()
        if self._leaving:
            self.close()
        return False

    def _take(self, data: bytes) -> None:
        host = self._host
        assert host is not None
        detached = False
        if host.terminal and self.stdin:
            data, detached = self._keys.feed(data)
        if data and self.stdin and not host.feed(self, data):
            self._held_up = True
            self._watch()
        if detached:
            self._leave(detached=True)

    def _end_input(self) -> None:
        if not self._reading:
            return
        self._reading = False
        self._watch()
        host = self._host
        if host is None or self._leaving:
            return
        held = self._keys.finish()
        if held and self.stdin:
            host.feed(self, held)
        host.input_ended(self)

    def _end_if_sent(self) -> None:
        if self._finished and not self.unsent and not self.closed and not self._leaving:
            self._leave(detached=False)

    def _leave(self, *, detached: bool) -> None:
        """Say goodbye: the client sees the end; its last words are read and dropped.

        To close a socket with unread input would be a reset, which takes unread output along.
        """
        self._leaving = True
        self._unsent.clear()
        self.unsent = 0
        host = self._host
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            # It is closed on the other side; the reading below sees it.
            pass
        if host is not None:
            host.left(self, detached=detached)
        self._held_up = False
        if not self._reading:
            self.close()
            return
        self._loop.after(_LINGER, self.close)
        self._watch()
        while not self.closed and self._receive():
            pass

    def _vanish(self) -> None:
        """The client is gone; what it had sent before still counts as input."""
        self._unsent.clear()
        self.unsent = 0
        host = self._host
        if self._reading and not self._leaving and host is not None:
            while not self.closed and self._reading and self._receive():
                pass
            self._end_input()
        if not self.closed:
            self.close()
            if host is not None and not self._leaving:
                self._leaving = True
                host.left(self, detached=False)
