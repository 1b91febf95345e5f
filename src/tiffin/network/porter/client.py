"""The daemon's side of the porter: tells it things, in order, from a thread of its own.

Nobody waits for the porter: sockets that are handed over queue what arrives. When the porter dies,
another is started, and ``restore`` gives the messages that tell it everything again.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tiffin.errors import TiffinError, Unreachable
from tiffin.linux.sockets import connect_unix
from tiffin.network.porter.server import PACKET

Message = tuple[dict[str, Any], Sequence[int]]
"""What to say, and descriptors to hand over, which are the client's from then on."""
_SYNC = "sync"

logger = logging.getLogger("tiffin")
_START_SECONDS = 20.0


class PorterClient:
    """The porter of ``root``, started when there is something to say.

    ``sandboxes`` gives the sandboxes that there are; ``restore`` gets these, those of them whose
    names, and those whose ports, the porter has already, and gives what else it has to be told.
    """

    def __init__(
        self,
        root: Path,
        sandboxes: Callable[[], list[str]],
        restore: Callable[[Sequence[str], set[str], set[str]], Iterable[Message]],
    ) -> None:
        self._directory = root / "network"
        self._root = root
        self._sandboxes = sandboxes
        self._restore = restore
        self._queue: collections.deque[Message] = collections.deque()
        self._lock = threading.Lock()
        self._synced = threading.Condition(self._lock)
        self._asked = self._done = 0
        self._begun = self._closing = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._connection: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """All sandboxes are known from now on. What is said before is not passed on: who is met
        too early would let go of those that he is not told of."""
        with self._lock:
            self._begun = True

    def say(self, *messages: Message) -> None:
        """Say something, soon and in order."""
        if not messages:
            return
        with self._lock:
            if self._closing or not self._begun:
                for _, fds in messages:
                    _close(fds)
                return
            self._queue.extend(messages)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="porter", daemon=True)
                self._thread.start()
        os.eventfd_write(self._wake, 1)

    @property
    def alive(self) -> bool:
        """Whether a porter was ever needed by this process, or is there from before."""
        return self._thread is not None or (self._directory / "porter.sock").exists()

    def sync(self) -> None:
        """Wait until the porter has done what it was told so far, or can't be reached."""
        with self._lock:
            if not self._begun:
                return
            self._asked += 1
            number = self._asked
        self.say(({"do": _SYNC}, ()))
        with self._synced:
            self._synced.wait_for(lambda: self._done >= number or self._closing, 2 * _START_SECONDS)

    def _work(self) -> None:
        while True:
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            if self._connection is not None:
                # Nothing comes but the end.
                poll.register(self._connection.fileno(), select.POLLIN)
            with self._lock:
                if not self._queue and self._closing:
                    return
            for fd, _ in poll.poll():
                if fd == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                elif self._connection is not None:
                    self._connection.close()
                    self._connection = None
            try:
                if self._connection is None and not self._closing:
                    self._connect()
                self._send_all()
            except (TiffinError, OSError) as error:
                logger.error("the porter can't be told: %s", error)
                self._drop_all()

    def _drop_all(self) -> None:
        with self._lock:
            dropped, self._queue = list(self._queue), collections.deque()
            self._done += sum(message["do"] == _SYNC for message, _ in dropped)
            self._synced.notify_all()
        for _, fds in dropped:
            _close(fds)

    def _send_all(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    return
                message, fds = self._queue.popleft()
            try:
                if self._connection is not None:
                    self._send(self._connection, message, fds)
                    if message["do"] == _SYNC:
                        self._await(self._connection)
            except (BrokenPipeError, ConnectionResetError):
                # It died: the message is for the next one, after what that has to know first.
                assert self._connection is not None
                self._connection.close()
                self._connection = None
                with self._lock:
                    self._queue.appendleft((message, fds))
                if self._closing:
                    return
                self._connect()
                continue
            except BaseException:
                self._said(message, fds)
                raise
            self._said(message, fds)

    def _said(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        _close(fds)
        if message["do"] == _SYNC:
            with self._lock:
                self._done += 1
                self._synced.notify_all()

    @staticmethod
    def _await(sock: socket.socket) -> bytes:
        sock.settimeout(_START_SECONDS)
        data = sock.recv(1 << 20)
        sock.settimeout(None)
        if not data:
            raise ConnectionResetError("the porter is gone")
        return data

    @staticmethod
    def _send(sock: socket.socket, message: dict[str, Any], fds: Sequence[int]) -> None:
        socket.send_fds(sock, [json.dumps(message).encode()], list(fds))

    def _connect(self) -> None:
        sock = self._open()
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PACKET * 2)
            # Before a look at the queue: what is said by then of these is in it, or was lost.
            sandboxes = self._sandboxes()
            self._send(sock, {"do": "hello", "sandboxes": sandboxes}, [])
            answer = json.loads(self._await(sock))
            has = {"names": set(answer["named"]), "hold": set(answer["held"])}
            with self._lock:
                # Their sockets are on the way.
                for message, fds in self._queue:
                    if fds and message["do"] in has:
                        has[message["do"]].add(message["sandbox"])
            for message, fds in self._restore(sandboxes, has["names"], has["hold"]):
                try:
                    self._send(sock, message, fds)
                finally:
                    _close(fds)
        except BaseException:
            sock.close()
            raise
        self._connection = sock

    def _open(self) -> socket.socket:
        deadline = time.monotonic() + _START_SECONDS
        problem = "it does not answer"
        while time.monotonic() < deadline:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                connect_unix(sock, self._directory / "porter.sock")
                return sock
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
            problem = self._spawn(deadline)
            if problem == "busy":
                # Another one is just coming or going.
                time.sleep(0.01)
            elif problem != "ok":
                break
        raise Unreachable(f"the porter of {self._root} could not be reached: {problem}")

    def _spawn(self, deadline: float) -> str:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        reader, writer = os.pipe()
        try:
            # Above the descriptor that it becomes.
            ready = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, 10)
            os.close(writer)
            log = str(self._directory / "porter.log")
            main = str(Path(__file__).with_name("__main__.py"))
            try:
                pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, "-I", "-S", main, str(self._root.absolute()), "3"],
                    {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                        (
                            os.POSIX_SPAWN_OPEN,
                            1,
                            log,
                            os.O_WRONLY | os.O_CREAT | os.O_APPEND,
                            0o600,
                        ),
                        (os.POSIX_SPAWN_DUP2, 1, 2),
                        (os.POSIX_SPAWN_DUP2, ready, 3),
                    ],
                    setsid=True,
                    setsigmask=[],
                    setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
                )
            finally:
                os.close(ready)
            said = b""
            poll = select.poll()
            poll.register(reader, select.POLLIN)
            while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                data = os.read(reader, 4096)
                if not data:
                    break
                said += data
            os.waitpid(pid, 0)
        finally:
            os.close(reader)
        return said.decode(errors="replace").strip() or "it ended while starting"

    def close(self, *, shutdown: bool = False) -> None:
        """Say what is left to be said, and leave; with ``shutdown`` the porter leaves too."""
        if shutdown and self.alive:
            self.sync()
            self.say(({"do": "shutdown"}, ()))
        with self._lock:
            self._closing = True
            thread = self._thread
        if thread is not None:
            os.eventfd_write(self._wake, 1)
            thread.join()
            self._drop_all()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        os.close(self._wake)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
