"""The HTTP server of the API: a thread for each connection, blocking sockets, h11.

Why not asyncio: the engine below is synchronous, so that each request would hop to a thread
anyway; bodies of gigabytes go straight between the socket and the engine; a hijacked connection is
just the socket; and start-up is quicker (asyncio costs 36 ms to import). A thread costs 50 µs to
start and some 20 KiB of memory, its stack is small, and the number of connections is bounded.

The rules:

- A connection's thread owns its socket and closes it. A hijacked socket is closed without a
  shutdown: who goes on using it has duplicated the descriptor.
- Heads are bounded in size, and in time from their first byte; connections are bounded in number,
  and in the time that they may lie idle between requests. Bodies are not bounded in time: a paused
  ``docker logs | less`` and a slow ``tar | docker load`` are both legitimate.
- One request after the other on a connection (pipelined ones wait their turn in the socket).
- Whatever one connection does (broken bytes, a stalled reader, a vanished client) happens in its
  own thread, and no other connection sees it.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h11

from tiffin.api.bodies import READ_SIZE, Disconnected, receive
from tiffin.api.exchange import MAX_HEAD, Request, Response, error_answer
from tiffin.errors import Conflict
from tiffin.linux.sockets import bind_unix, connect_unix

if TYPE_CHECKING:
    import ssl

logger = logging.getLogger("tiffin.api")

HEAD_READ_SIZE = 64 * 1024

Handler = Callable[[Request, Response], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take."""

    connections: int = 4096
    head_seconds: float = 30
    """From a head's first byte to its last."""
    idle_seconds: float = 300
    """Between two requests of a connection."""
    linger_seconds: float = 2
    """How long to go on reading from a client that was refused, so that it can read why."""
    late_seconds: float = 0.5
    """From a connection to its first request, if the server stops meanwhile."""
    stop_seconds: float = 10
    """How long a graceful stop waits for requests under way."""
    stack_bytes: int = 4 * 1024 * 1024
    """Of each thread; Python's JSON decoder takes two of it where a document is nested without
    end, before it refuses (Python 3.13)."""


class Server:
    """Listens on sockets, and gives each request to ``handler`` in the connection's thread.

    ``handler`` answers every request, failures included; what it raises all the same is logged and
    ends the connection.
    """

    def __init__(self, handler: Handler, limits: Limits | None = None) -> None:
        self._handler = handler
        self.limits = limits or Limits()
        self._listeners: list[_Listener | _TcpListener] = []
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # Held to write to it, or to close it; a signal may come to the thread that holds it.
        self._waking = threading.RLock()
        self._changed = threading.Condition()
        # Guarded by _changed:
        self._active = 0
        self._last_activity = time.monotonic()
        self._stopping = False

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def active(self) -> int:
        """The number of open connections; hijacked ones are no longer the server's."""
        return self._active

    @property
    def stopping(self) -> bool:
        return self._stopping

    def listen(self, path: Path, group: int | None = None) -> None:
        """Listen on a unix socket that root and the group (root's own, if None) may use.

        A socket left behind by a killed process is replaced. Raises Conflict if somebody answers
        on it, or if the path is something else.
        """
        self._listeners.append(_Listener(path, group))

    def listen_tcp(self, address: tuple[str, int], context: ssl.SSLContext | None) -> int:
        """Listen on a TCP port, with TLS if there is a ``context``; the port that it is."""
        listener = _TcpListener(address, context)
        self._listeners.append(listener)
        return listener.port

    def serve(self, leave: Callable[[], bool] | None = None, after: float = 30) -> None:
        """Accept connections until ``stop``; blocks.

        ``leave`` is asked when there was no connection for ``after`` seconds; if it says True,
        the server stops listening, serves who came in that moment, and returns.
        """
        threading.stack_size(self.limits.stack_bytes)
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        for listener in self._listeners:
            poll.register(listener.socket, select.POLLIN)
        while not self._stopping:
            timeout = None if leave is None else max(0.05, self._idle_left(after))
            ready = poll.poll(None if timeout is None else timeout * 1000)
            for descriptor, _ in ready:
                for listener in self._listeners:
                    if listener.socket.fileno() == descriptor:
                        self._accept(listener)
            if leave is not None and not ready and self._idle_left(after) <= 0:
                if leave():
                    break
                with self._changed:
                    self._last_activity = time.monotonic()
        self.close()

    def _idle_left(self, after: float) -> float:
        if self._active:
            return after
        return self._last_activity + after - time.monotonic()

    def stop(self) -> None:
        """Make ``serve`` return once the requests under way are done; safe in a signal handler."""
        self._stopping = True
        with self._waking:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Stop listening, remove the sockets, wait (for a bounded time) for requests under way."""
        while self._listeners:
            listener = self._listeners.pop()
            # Nobody new comes once the path is gone; who came before is still served.
            listener.unlink()
            while self._accept(listener):
                pass
            listener.socket.close()
        self.stop()
        deadline = time.monotonic() + self.limits.stop_seconds
        with self._changed:
            while self._active and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            if self._active:
                logger.warning("left %d requests unfinished", self._active)
                return
        with self._waking:
            wake, self._wake = self._wake, -1
            if wake >= 0:
                os.close(wake)

    def _accept(self, listener: _Listener | _TcpListener) -> bool:
        try:
            connection, _ = listener.socket.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                # The client stays in the queue; another connection's end makes room.
                logger.error("cannot accept a connection: %s", error)
                with self._changed:
                    self._changed.wait(0.1)
                return False
            if error.errno in (errno.ECONNABORTED, errno.EINTR):
                return False
            raise
        self._begin(connection, listener.opened)
        return True

    def adopt(self, connection: socket.socket) -> None:
        """Serve a connection that came another way than through a listener."""
        self._begin(connection, lambda same: same)

    def _begin(
        self, connection: socket.socket, opened: Callable[[socket.socket], socket.socket]
    ) -> None:
        connection.setblocking(True)
        with self._changed:
            full = self._active >= self.limits.connections
            self._active += 1
            self._last_activity = time.monotonic()
        try:
            if full:
                message = f"too many connections (at most {self.limits.connections} at a time)"
                connection.sendall(error_answer(503, message))
            else:
                connection = opened(connection)
                threading.Thread(
                    target=self._converse, args=(connection,), name="connection", daemon=True
                ).start()
                return
        except (OSError, RuntimeError) as error:
            # RuntimeError: no thread could be started.
            logger.error("refused a connection: %s", error)
        self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        connection.close()
        with self._changed:
            self._active -= 1
            self._last_activity = time.monotonic()
            self._changed.notify_all()

    def _converse(self, connection: socket.socket) -> None:
        """One connection, from its first request to its end."""
        try:
            rest = self._exchange(connection, b"", first=True)
            while rest is not None:
                rest = self._exchange(connection, rest)
        except Disconnected:
            # As clients may, at any time.
            pass
        except Exception:
            logger.exception("a connection failed")
        finally:
            self._close(connection)

    def _exchange(
        self, connection: socket.socket, rest: bytes, *, first: bool = False
    ) -> bytes | None:
        """One request and its answer; gives what came after it, or None when this was the last."""
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        try:
            head = self._read_head(connection, parser, rest, first)
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint
            self._refuse(connection, status, f"malformed HTTP request: {error}")
            return None
        if head is None:
            return None
        try:
            request = Request(connection, head, parser, lambda: self._stopping)
        except ValueError as error:
            self._refuse(connection, 400, f"malformed HTTP request: {error}")
            return None
        response = Response(connection, request, parser, self._stopping)
        self._handler(request, response)
        if response.hijacked:
            return None
        drained = request.drain()
        if response.keeps_alive and drained:
            return request.rest
        if not drained:
            self._linger(connection)
        return None

    def _read_head(
        self, connection: socket.socket, parser: h11.Connection, rest: bytes, first: bool
    ) -> h11.Request | None:
        """The next request's head; None when the client leaves, idles too long, or we stop."""
        if rest:
            parser.receive_data(rest)
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        deadline = time.monotonic() + (
            self.limits.head_seconds if rest else self.limits.idle_seconds
        )
        begun = bool(rest)
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Request):
                return event
            if event is not h11.NEED_DATA:
                return None
            ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if connection.fileno() not in ready:
                if first and self._wake in ready:
                    # It came in just before we stopped listening: its request is on the way.
                    first = False
                    poll.unregister(self._wake)
                    deadline = min(deadline, time.monotonic() + self.limits.late_seconds)
                    continue
                if begun and not self._stopping:
                    self._refuse(connection, 408, "the request's head took too long to arrive")
                return None
            # In steps that are smaller than a head may be: h11 looks at the size in between.
            data = receive(connection, HEAD_READ_SIZE)
            parser.receive_data(data)
            if data and not begun:
                begun = True
                deadline = time.monotonic() + self.limits.head_seconds

    def _refuse(self, connection: socket.socket, status: int, message: str) -> None:
        try:
            connection.sendall(error_answer(status, message))
        except OSError as error:
            raise Disconnected("the client closed the connection") from error
        self._linger(connection)

    def _linger(self, connection: socket.socket) -> None:
        """Let a client that is still sending read our answer: closing now would reset it."""
        deadline = time.monotonic() + self.limits.linger_seconds
        try:
            connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise Disconnected("the client closed the connection") from error
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0 and poll.poll(left * 1000):
            if not receive(connection, READ_SIZE):
                return


class _Listener:
    """A listening unix socket, and the file that stands for it."""

    def __init__(self, path: Path, group: int | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._clear()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The mode is the umask's at bind; a chmod afterwards would leave it open for a moment.
            before = os.umask(0o117)
            try:
                bind_unix(self.socket, path)
            finally:
                os.umask(before)
            if group is not None:
                os.chown(path, -1, group, follow_symlinks=False)
            self._identity = self._stat()
            self.socket.listen(1024)
            self.socket.setblocking(False)
        except BaseException:
            self.socket.close()
            raise

    def opened(self, connection: socket.socket) -> socket.socket:
        """What the server speaks on."""
        return connection

    def _stat(self) -> tuple[int, int]:
        status = self.path.lstat()
        return status.st_dev, status.st_ino

    def _clear(self) -> None:
        """Remove what a killed process left at the path."""
        try:
            mode = self.path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise Conflict(f"{self.path} exists and is not a socket: remove it, or choose another")
        if answers(self.path):
            raise Conflict(f"{self.path} is in use: another daemon listens there")
        self.path.unlink(missing_ok=True)

    def unlink(self) -> None:
        """Remove the socket's file, unless it is somebody else's by now."""
        try:
            if self._stat() == self._identity:
                self.path.unlink()
        except FileNotFoundError:
            pass


class _TcpListener:
    """A listening TCP socket; with TLS each connection goes through a tunnel."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext | None) -> None:
        self._context = context
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.socket = socket.create_server(address, family=family, backlog=1024)
        self.socket.setblocking(False)
        self.port: int = self.socket.getsockname()[1]

    def opened(self, connection: socket.socket) -> socket.socket:
        """What the server speaks on."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is None:
            return connection
        from tiffin.api.tls import tunnel

        return tunnel(connection, self._context)

    def unlink(self) -> None:
        """A TCP socket leaves no file behind."""


def answers(path: Path) -> bool:
    """Whether somebody accepts connections on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            connect_unix(probe, path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:
            # Its queue is full: somebody is there.
            return True
        return True
