"""The embedded name server of one sandbox: its two sockets, and what is asked of other servers.

What the directory knows is answered at once, also when it has no address of the wanted type. The
rest goes to the sandbox's servers, one after the other: over UDP what came by UDP, over TCP what
came by TCP. A sandbox with internal networks only has no servers, and is told that there is no such
name.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from tiffin.network.porter import wire
from tiffin.network.porter.loop import IN, OUT, Loop
from tiffin.network.porter.names import Directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_PATIENCE = 3.0
_TCP_IDLE = 30.0
_MOST_AT_ONCE = 256
"""Questions of one sandbox that are asked elsewhere at a time; more are refused."""


class Names:
    """The name server of one sandbox."""

    def __init__(
        self, loop: Loop, directory: Directory, udp: socket.socket, tcp: socket.socket
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._udp = udp
        self._tcp = tcp
        self.networks: list[str] = []
        self.servers: list[str] = []
        self.links: dict[str, str] = {}
        self._asking: set[_Asking] = set()
        self._clients: set[_Client] = set()
        loop.watch(udp.fileno(), IN, self._datagram)
        loop.watch(tcp.fileno(), IN, self._connection)

    def _datagram(self, _: int) -> None:
        for _ in range(32):
            try:
                message, sender = self._udp.recvfrom(4096)
            except OSError:
                return

            def reply(answer: bytes, to: Any = sender) -> None:
                try:
                    self._udp.sendto(answer, to)
                except OSError:
                    # Whoever asked is gone.
                    pass

            self.ask(message, reply, stream=False)

    def _connection(self, _: int) -> None:
        try:
            sock, _ = self._tcp.accept()
        except OSError:
            return
        self._clients.add(_Client(self._loop, sock, self, self._clients))

    def ask(self, message: bytes, reply: Callable[[bytes], None], *, stream: bool) -> None:
        """Answer a message, now or later."""
        question = wire.parse(message)
        if question is not None:
            records = self._known(question)
            if records is not None:
                limit = None if stream else question.size
                reply(wire.answer(message, question, records, limit=limit))
                return
            if not self.servers:
                reply(wire.answer(message, question, [], code=wire.NXDOMAIN))
                return
            if len(self._asking) >= _MOST_AT_ONCE:
                reply(wire.answer(message, question, [], code=wire.REFUSED))
                return
        elif len(message) < 12 or not self.servers or len(self._asking) >= _MOST_AT_ONCE:
            return
        self._asking.add(
            _Asking(self._loop, message, question, list(self.servers), reply, stream, self._asking)
        )

    def _known(self, question: wire.Question) -> list[tuple[int, bytes]] | None:
        """The records of a name that is somebody's here; None if it is not."""
        if question.kind == wire.PTR:
            address = wire.reversed_address(question.name)
            title = self._directory.title(address, self.networks) if address else ""
            return [(wire.PTR, wire.encode_name(title))] if title else None
        name = self.links.get(question.name, question.name)
        found = self._directory.find(name, self.networks)
        if not found:
            return None
        records = []
        for entry in found:
            if question.kind in (wire.A, wire.ANY) and entry.v4:
                records.append((wire.A, socket.inet_pton(socket.AF_INET, entry.v4)))
            if question.kind in (wire.AAAA, wire.ANY) and entry.v6:
                records.append((wire.AAAA, socket.inet_pton(socket.AF_INET6, entry.v6)))
        return records

    def close(self) -> None:
        """Let go of the sockets, which would keep the namespace."""
        for sock in (self._udp, self._tcp):
            self._loop.forget(sock.fileno())
            sock.close()
        for client in list(self._clients):
            client.close()
        for asking in list(self._asking):
            asking.close()


class _Client:
    """A TCP connection from inside: messages with their length before them."""

    def __init__(
        self, loop: Loop, sock: socket.socket, names: Names, clients: set[_Client]
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._names = names
        self._clients = clients
        self._buffer = b""
        self._open = True
        sock.setblocking(False)
        loop.watch(sock.fileno(), IN, self._read)
        self._rest()

    def _rest(self) -> None:
        self._loop.after(self, _TCP_IDLE, self.close)

    def _read(self, _: int) -> None:
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._rest()
        self._buffer += data
        while self._open and len(self._buffer) >= 2:
            end = 2 + struct.unpack_from("!H", self._buffer)[0]
            if len(self._buffer) < end:
                return
            message, self._buffer = self._buffer[2:end], self._buffer[end:]
            self._names.ask(message, self._reply, stream=True)

    def _reply(self, answer: bytes) -> None:
        if not self._open:
            return
        try:
            # An answer is smaller than a socket's buffer: it goes at once or not at all.
            self._socket.sendall(struct.pack("!H", len(answer)) + answer)
        except OSError:
            self.close()

    def close(self) -> None:
        """Break it off."""
        if self._open:
            self._open = False
            self._loop.cancel(self)
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._clients.discard(self)


class _Asking:
    """A question that was passed on, until somebody answers or all servers have failed."""

    def __init__(
        self,
        loop: Loop,
        message: bytes,
        question: wire.Question | None,
        servers: list[str],
        reply: Callable[[bytes], None],
        stream: bool,
        all_: set[_Asking],
    ) -> None:
        self._loop = loop
        self._message = message
        self._question = question
        self._servers = servers
        self._reply = reply
        self._stream = stream
        self._all = all_
        self._socket: socket.socket | None = None
        self._received = b""
        self._last = b""
        # Another number than the container's own: guessing it must not help anybody.
        self._identity = os.urandom(2)
        self._next()

    def _next(self) -> None:
        self._drop()
        while self._servers:
            server = self._servers.pop(0)
            family = socket.AF_INET6 if ":" in server else socket.AF_INET
            kind = socket.SOCK_STREAM if self._stream else socket.SOCK_DGRAM
            try:
                sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
            except OSError:
                continue
            self._socket = sock
            code = sock.connect_ex((server, 53))
            if code not in (0, errno.EINPROGRESS):
                self._drop()
                continue
            self._received = b""
            self._loop.after(self, _PATIENCE, self._next)
            if self._stream:
                self._loop.watch(sock.fileno(), OUT, self._connected)
                return
            try:
                sock.send(self._identity + self._message[2:])
            except OSError:
                self._drop()
                continue
            self._loop.watch(sock.fileno(), IN, self._answered)
            return
        # The answer of the last that refused is better than none.
        last = self._last
        if not last and self._question is not None:
            last = wire.answer(self._message, self._question, [], code=wire.SERVFAIL)
        self._finish(last)

    def _connected(self, _: int) -> None:
        assert self._socket is not None
        query = self._identity + self._message[2:]
        try:
            self._socket.sendall(struct.pack("!H", len(query)) + query)
        except OSError:
            self._next()
            return
        self._loop.watch(self._socket.fileno(), IN, self._answered)

    def _answered(self, _: int) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            self._next()
            return
        if self._stream:
            if not data:
                self._next()
                return
            self._received += data
            if len(self._received) < 2:
                return
            end = 2 + struct.unpack_from("!H", self._received)[0]
            if len(self._received) < end:
                return
            data = self._received[2:end]
        if data[:2] != self._identity:
            return
        answer = self._message[:2] + data[2:]
        if wire.code_of(answer) in (wire.SERVFAIL, wire.REFUSED) and self._servers:
            self._last = answer
            self._next()
            return
        self._finish(answer)

    def _finish(self, answer: bytes) -> None:
        self.close()
        if answer:
            self._reply(answer)

    def _drop(self) -> None:
        self._loop.cancel(self)
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Give it up."""
        self._drop()
        self._all.discard(self)
