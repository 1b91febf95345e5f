"""The porter's server: what the daemon tells it, and the sandboxes.

Messages are JSON objects, one a packet, with ``do``:

- ``hello`` {``sandboxes``}: a daemon has come; sandboxes that it does not name are let go.
  Answered by {``named``, ``held``: the sandboxes whose names, and ports, are there}. ``settled``:
  it has told all names; others are forgotten.
- ``open`` {``sandbox``} with a pidfd, or without one as long as there is no process.
- ``names`` {``sandbox``, ``networks``, ``servers``, ``links``}, with two sockets the first time;
  ``unname`` {``sandbox``}: it has no name server any more.
- ``hold`` {``sandbox``, ``ports``: [[protocol, address, port], …]} with a socket each: where what
  comes to them is to go. ``aim`` {``sandbox``, ``address``}: it is to go there instead, or, where
  that is empty, the ports are let go.
- ``close`` {``sandbox``}.
- ``join`` {``endpoint``, ``network``, ``sandbox``, ``names``, ``title``, ``v4``, ``v6``};
  ``leave`` {``endpoint``}.
- ``sync``: answered by {``synced``: true}, so that the daemon knows that all before it is done.
- ``shutdown``.
"""

from __future__ import annotations

import json
import os
import socket
import sys

from tiffin.linux.sockets import bind_unix
from tiffin.network.porter.loop import IN, Loop
from tiffin.network.porter.names import Directory, Entry
from tiffin.network.porter.questions import Names
from tiffin.network.porter.relay import Connection, Datagrams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PACKET = 1 << 17
DESCRIPTORS = 250


class Sandbox:
    """What belongs to one container."""

    def __init__(self, loop: Loop, key: str) -> None:
        self._loop = loop
        self.key = key
        self.pidfd = -1
        self.names: Names | None = None
        self._target = ""
        self._listeners: list[socket.socket] = []
        self._datagrams: list[Datagrams] = []
        self._connections: set[Connection] = set()

    @property
    def holds(self) -> bool:
        """Whether it has ports."""
        return bool(self._listeners or self._datagrams)

    def hold(self, sock: socket.socket, protocol: str, target: tuple[str, int]) -> None:
        """Hold a published port; all of a sandbox lead to one address."""
        self._target = target[0]
        if protocol == "udp":
            self._datagrams.append(Datagrams(self._loop, sock, target))
            return
        self._listeners.append(sock)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            # It only holds the port.
            return

        def accept(_: int) -> None:
            try:
                client, _ = sock.accept()
            except OSError:
                return
            self._connections.add(
                Connection(self._loop, client, (self._target, target[1]), self._connections.discard)
            )

        self._loop.watch(sock.fileno(), IN, accept)

    def aim(self, address: str) -> None:
        """Lead what comes to the ports elsewhere."""
        self._target = address
        for datagrams in self._datagrams:
            datagrams.aim(address)

    def release_ports(self) -> None:
        """Let go of the ports."""
        for sock in self._listeners:
            self._loop.forget(sock.fileno())
            sock.close()
        self._listeners.clear()
        for datagrams in self._datagrams:
            datagrams.close()
        self._datagrams.clear()
        for connection in list(self._connections):
            connection.close()

    def unname(self) -> None:
        """Let go of the name server."""
        if self.names is not None:
            self.names.close()
            self.names = None

    def close(self) -> None:
        """Let go of everything."""
        self.release_ports()
        self.unname()
        if self.pidfd >= 0:
            self._loop.forget(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1


class Server:
    """Listens at ``path`` and does what daemons say."""

    def __init__(self, path: str) -> None:
        self._loop = Loop()
        self._path = path
        self._directory = Directory()
        self._sandboxes: dict[str, Sandbox] = {}
        self._daemons: set[socket.socket] = set()
        self._verbs: dict[str, Callable[[dict[str, Any], list[int]], None]] = {
            "open": self._open,
            "names": self._names,
            "unname": self._unname,
            "hold": self._hold,
            "aim": self._aim,
            "close": self._close,
            "join": self._join,
            "leave": lambda message, fds: self._directory.leave(message["endpoint"]),
            "settled": lambda message, fds: self._directory.settle(),
            "shutdown": self._shutdown,
        }
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        bind_unix(self._listener, path)
        os.chmod(path, 0o600)
        self._listener.listen(8)
        self._listener.setblocking(False)

    def run(self, ready: Callable[[], None], patience: float) -> None:
        """Serve until there is nothing to do; ``patience`` seconds for the first daemon."""
        self._loop.watch(self._listener.fileno(), IN, self._accept)
        self._loop.after("patience", patience, self._leave_if_idle)
        ready()
        try:
            self._loop.run()
        finally:
            os.unlink(self._path)
            for sandbox in self._sandboxes.values():
                sandbox.close()

    def _leave_if_idle(self) -> None:
        if not self._sandboxes and not self._daemons:
            self._loop.running = False

    def _accept(self, _: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        self._daemons.add(sock)
        self._loop.watch(sock.fileno(), IN, lambda events: self._receive(sock))

    def _receive(self, sock: socket.socket) -> None:
        fds: list[int] = []
        try:
            data, fds, _, _ = socket.recv_fds(sock, PACKET, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            data = b""
        if not data:
            self._loop.forget(sock.fileno())
            sock.close()
            self._daemons.discard(sock)
            self._leave_if_idle()
            return
        try:
            message = json.loads(data)
            if message["do"] == "hello":
                self._hello(sock, message)
            elif message["do"] == "sync":
                sock.send(b'{"synced":true}')
            else:
                self._verbs[message["do"]](message, fds)
        except (ValueError, KeyError, TypeError, OSError) as error:
            # One message that makes no sense must not end what others need.
            print(f"{data[:200]!r}: {error!r}", file=sys.stderr, flush=True)
        finally:
            for fd in fds:
                os.close(fd)

    def _hello(self, sock: socket.socket, message: dict[str, Any]) -> None:
        for key in set(self._sandboxes) - set(message["sandboxes"]):
            self._sandboxes.pop(key).close()
        self._directory.begin()
        named = [key for key, sandbox in self._sandboxes.items() if sandbox.names is not None]
        held = [key for key, sandbox in self._sandboxes.items() if sandbox.holds]
        sock.send(json.dumps({"named": named, "held": held}).encode())

    def _sandbox(self, key: str) -> Sandbox:
        if key not in self._sandboxes:
            self._sandboxes[key] = Sandbox(self._loop, key)
        return self._sandboxes[key]

    # The descriptors of a message are closed after it: what is kept is a copy.

    def _open(self, message: dict[str, Any], fds: list[int]) -> None:
        sandbox = self._sandbox(message["sandbox"])
        if fds:
            if sandbox.pidfd >= 0:
                self._loop.forget(sandbox.pidfd)
                os.close(sandbox.pidfd)
            sandbox.pidfd = os.dup(fds[0])
            self._loop.watch(sandbox.pidfd, IN, lambda events: self._end(sandbox))

    def _end(self, sandbox: Sandbox) -> None:
        """The container has ended."""
        self._directory.leave_all(sandbox.key)
        if self._sandboxes.get(sandbox.key) is sandbox:
            del self._sandboxes[sandbox.key]
        sandbox.close()
        self._leave_if_idle()

    def _names(self, message: dict[str, Any], fds: list[int]) -> None:
        sandbox = self._sandbox(message["sandbox"])
        if fds:
            if sandbox.names is not None:
                sandbox.names.close()
            udp, tcp = (socket.socket(fileno=os.dup(fd)) for fd in fds[:2])
            udp.setblocking(False)
            tcp.setblocking(False)
            sandbox.names = Names(self._loop, self._directory, udp, tcp)
        if sandbox.names is not None:
            sandbox.names.networks = message["networks"]
            sandbox.names.servers = message["servers"]
            sandbox.names.links = message["links"]

    def _hold(self, message: dict[str, Any], fds: list[int]) -> None:
        sandbox = self._sandbox(message["sandbox"])
        if message.get("anew"):
            sandbox.release_ports()
        for (protocol, address, port), fd in zip(message["ports"], fds, strict=True):
            sock = socket.socket(fileno=os.dup(fd))
            sock.setblocking(False)
            sandbox.hold(sock, protocol, (address, port))

    def _unname(self, message: dict[str, Any], fds: list[int]) -> None:
        sandbox = self._sandboxes.get(message["sandbox"])
        if sandbox is not None:
            sandbox.unname()

    def _aim(self, message: dict[str, Any], fds: list[int]) -> None:
        sandbox = self._sandboxes.get(message["sandbox"])
        if sandbox is not None and message["address"]:
            sandbox.aim(message["address"])
        elif sandbox is not None:
            sandbox.release_ports()

    def _close(self, message: dict[str, Any], fds: list[int]) -> None:
        sandbox = self._sandboxes.pop(message["sandbox"], None)
        if sandbox is not None:
            sandbox.close()

    def _join(self, message: dict[str, Any], fds: list[int]) -> None:
        self._directory.join(
            Entry(
                message["endpoint"],
                message["network"],
                message["sandbox"],
                message["names"],
                message["title"],
                message["v4"],
                message["v6"],
            )
        )

    def _shutdown(self, message: dict[str, Any], fds: list[int]) -> None:
        self._loop.running = False
