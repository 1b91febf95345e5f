"""A daemon's connection, seen from the keeper. A broken or slow one is dropped."""

from __future__ import annotations

import collections
import os
import socket

from tiffin.keeper import protocol
from tiffin.keeper.loop import GONE, IN, OUT, Loop, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_MOST_UNSENT = 64 << 20


class Peer:
    """One connection; it owns the socket. ``call(peer, message, fds)`` owns the descriptors."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        call: Callable[[Peer, dict[str, Any], list[int]], None],
        gone: Callable[[Peer], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._call = call
        self._gone = gone
        self._inbox = protocol.Inbox()
        self._unsent: collections.deque[tuple[memoryview, list[int]]] = collections.deque()
        self._size = 0
        self._closed = False
        sock.setblocking(False)
        loop.watch(sock.fileno(), IN, self._ready)

    def send(self, message: dict[str, Any], fds: list[int]) -> None:
        """Send, now or soon; ``fds`` stay the caller's."""
        if self._closed:
            return
        copies: list[int] = []
        try:
            copies.extend(os.dup(fd) for fd in fds)
        except OSError as error:
            # They are there for a keeper's death only.
            say(f"a daemon is given nothing to keep: {error}")
            while copies:
                os.close(copies.pop())
        if copies:
            message["fds"] = len(copies)
        data = memoryview(protocol.encode(message))
        self._unsent.append((data, copies))
        self._size += len(data)
        self._flush()
        if self._size > _MOST_UNSENT:
            say("a daemon does not read what it is told; it is dropped")
            self.close()

    def close(self) -> None:
        """End the connection."""
        if self._closed:
            return
        self._closed = True
        self._loop.drop(self._sock.fileno())
        self._sock.close()
        self._inbox.close()
        for _, fds in self._unsent:
            for fd in fds:
                os.close(fd)
        self._unsent.clear()
        self._gone(self)

    def _ready(self, events: int) -> None:
        if events & OUT:
            self._flush()
        if events & (IN | GONE) and not self._closed:
            self._receive()

    def _receive(self) -> None:
        try:
            messages = self._inbox.receive(self._sock)
        except BlockingIOError:
            return
        except (OSError, protocol.ProtocolError) as error:
            say(f"a daemon's connection is dropped: {error}")
            messages = None
        if messages is None:
            self.close()
            return
        for message, fds in messages:
            self._call(self, message, fds)

    def _flush(self) -> None:
        while self._unsent:
            data, fds = self._unsent[0]
            try:
                sent = protocol.send(self._sock, data, fds)
            except BlockingIOError:
                break
            except OSError:
                self.close()
                return
            for fd in fds:
                os.close(fd)
            self._size -= sent
            if sent < len(data):
                self._unsent[0] = (data[sent:], [])
            else:
                self._unsent.popleft()
        self._loop.watch(self._sock.fileno(), IN | (OUT if self._unsent else 0), self._ready)
