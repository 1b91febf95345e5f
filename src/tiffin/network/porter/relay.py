"""Connections that the firewall can't redirect, carried from a held port to a container.

The firewall redirects what comes to a published port before it gets to the socket that holds the
port. What does get there: connections to ``::1`` (the kernel routes no such address elsewhere), and
IPv6 ones to a container that has IPv4 only.
"""

from __future__ import annotations

import errno
import socket

from tiffin.network.porter.loop import IN, OUT, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_BLOCK = 1 << 16
_FULL = 1 << 18
"""So much may wait to be written. Of SCTP one message at a time, so that each stays what it is."""
_IDLE_SECONDS = 90.0


class _Side:
    """One socket of a pair, and what waits to be written to it."""

    __slots__ = ("buffer", "connected", "ended", "other", "socket", "shut")

    def __init__(self, sock: socket.socket, connected: bool) -> None:
        self.socket = sock
        self.connected = connected
        self.buffer = bytearray()
        self.ended = False
        """Nothing more comes from it."""
        self.shut = False
        """Nothing more goes to it."""
        self.other: _Side


class Connection:
    """A connection to a held port, by TCP or SCTP, and the one to the container.

    Of SCTP messages are carried, in their order; which stream they were on is not.
    """

    def __init__(
        self,
        loop: Loop,
        client: socket.socket,
        target: tuple[str, int],
        closed: Callable[[Connection], None],
    ) -> None:
        self._loop = loop
        self._closed = closed
        self._open = True
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        server = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, client.proto)
        self._full = 1 if client.proto == socket.IPPROTO_SCTP else _FULL
        client.setblocking(False)
        self._client, self._server = _Side(client, True), _Side(server, False)
        self._client.other, self._server.other = self._server, self._client
        code = server.connect_ex(target)
        if code not in (0, errno.EINPROGRESS):
            self.close()
            return
        self._watch()

    def _watch(self) -> None:
        if not self._open:
            return
        for side in (self._client, self._server):
            events = 0
            if side.connected and not side.ended and len(side.other.buffer) < self._full:
                events |= IN
            if side.buffer or not side.connected:
                events |= OUT
            self._loop.watch(side.socket.fileno(), events, self._ready(side))

    def _ready(self, side: _Side) -> Callable[[int], None]:
        def ready(events: int) -> None:
            try:
                self._move(side, events)
            except OSError:
                # Either end broke off: so does the other.
                self.close()
            else:
                self._watch()

        return ready

    def _move(self, side: _Side, events: int) -> None:
        if not side.connected:
            code = side.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, "connect")
            side.connected = True
        if events & ~OUT and not side.ended:
            try:
                data = side.socket.recv(_BLOCK)
            except BlockingIOError:
                data = None
            if data:
                side.other.buffer += data
                self._flush(side.other)
            elif data is not None:
                side.ended = True
                self._flush(side.other)
        if events & OUT:
            self._flush(side)
        if (
            self._client.ended
            and self._server.ended
            and not (self._client.buffer or self._server.buffer)
        ):
            self.close()

    @staticmethod
    def _flush(side: _Side) -> None:
        if not side.connected:
            return
        while side.buffer:
            try:
                sent = side.socket.send(side.buffer)
            except BlockingIOError:
                return
            del side.buffer[:sent]
        if side.other.ended and not side.shut:
            side.shut = True
            side.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Break it off."""
        if not self._open:
            return
        self._open = False
        for side in (self._client, self._server):
            self._loop.forget(side.socket.fileno())
            side.socket.close()
        self._closed(self)


class Datagrams:
    """A held UDP port: each sender gets a socket to the container until it is silent for long."""

    def __init__(self, loop: Loop, sock: socket.socket, target: tuple[str, int]) -> None:
        self._loop = loop
        self._socket = sock
        self._target = target
        self._peers: dict[object, socket.socket] = {}
        loop.watch(sock.fileno(), IN, self._outward)

    def aim(self, address: str) -> None:
        """Send what comes elsewhere."""
        self._target = (address, self._target[1])
        for sender in list(self._peers):
            self._drop(sender)

    def _outward(self, _: int) -> None:
        try:
            data, sender = self._socket.recvfrom(_BLOCK)
        except OSError:
            return
        peer = self._peers.get(sender)
        if peer is None:
            family = socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET
            peer = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                peer.connect(self._target)
            except OSError:
                peer.close()
                return
            self._peers[sender] = peer
            self._loop.watch(peer.fileno(), IN, self._inward(sender, peer))
        try:
            peer.send(data)
        except OSError:
            # As on any network, a datagram may be lost.
            pass
        self._loop.after((self, sender), _IDLE_SECONDS, lambda: self._drop(sender))

    def _inward(self, sender: Any, peer: socket.socket) -> Callable[[int], None]:
        def ready(_: int) -> None:
            try:
                self._socket.sendto(peer.recv(_BLOCK), sender)
            except BlockingIOError:
                pass
            except OSError:
                # Nobody listens in the container, or the sender is gone.
                self._drop(sender)

        return ready

    def _drop(self, sender: object) -> None:
        peer = self._peers.pop(sender, None)
        self._loop.cancel((self, sender))
        if peer is not None:
            self._loop.forget(peer.fileno())
            peer.close()

    def close(self) -> None:
        """Let go of the port."""
        for sender in list(self._peers):
            self._drop(sender)
        self._loop.forget(self._socket.fileno())
        self._socket.close()
