"""The daemon's side of the keeper: asks it to start, attach, signal; hears of exits.

The keeper of an engine root is started when it is first needed. When it dies, the client says so
(``{"event": "lost"}``), starts another one, and hands it what it kept for this: of each container a
pidfd, and its terminal or its FIFOs. The new keeper adopts what lives.

Events come one after the other, in order, in a thread of the client's own:

- ``{"event": "exited", "id", "exec": bool, "code": int | None, "started": ns, "at": ns, "oom":
  bool}``. All output is in the log and with the attached clients before it. For a container it is
  repeated to each client that connects until :meth:`KeeperClient.forget`, so a listener must not
  mind it twice.
- ``{"event": "oom", "id"}``: the kernel killed a process in it for want of memory.
- ``{"event": "detached", "id", "exec": bool}``: an attached client typed its detach keys.
- ``{"event": "adopted", "id", "pid", "started"}``: a new keeper found the container alive.
- ``{"event": "lost"}``: the keeper died. Exec'd processes are reported as exited, code None.

Sockets and descriptors that are handed over stay the caller's: the keeper has its own copies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tiffin import errors
from tiffin.keeper import protocol
from tiffin.keeper.connection import START_SECONDS, Connection, NotAnswered, NotSent
from tiffin.keeper.keys import parse_keys
from tiffin.linux.mounts import read_only_executable
from tiffin.linux.sockets import connect_unix

Event = dict[str, Any]
_Fds = list[int]
_READY_FD = 3
_TRIES = 4
_DIED = "it ended while starting"
_START_TRIES = 5
_ONLY_ONCE = ("start", "exec", "signal")
"""Requests that must not be repeated when it is unknown whether a keeper that died did them."""


class KeeperClient:
    """A connection to the keeper of ``root``; usable from any thread.

    ``idle`` is how many seconds a keeper stays that has neither containers nor clients. ``command``
    replaces the program that is started as the keeper (tests).
    """

    def __init__(
        self,
        root: Path,
        on_event: Callable[[Event], None],
        *,
        idle: float = 10.0,
        command: Sequence[str] | None = None,
    ) -> None:
        self._directory = Path(root) / "keeper"
        self._on_event = on_event
        main = str(Path(__file__).with_name("__main__.py"))
        self._command = [
            *(command or [sys.executable, "-I", "-S", main]),
            str(Path(root).absolute()),
            str(idle),
        ]
        self._connecting = threading.Lock()
        self._connection: Connection | None = None
        self._closed = False
        self._kept_lock = threading.Lock()
        self._kept: dict[str, _Fds] = {}
        self._execs: set[str] = set()
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._teller: threading.Thread | None = None

    def ensure(self) -> None:
        """Connect, starting the keeper if there is none. Raises Unreachable."""
        self._connected()

    def start(
        self,
        id: str,
        plan: dict[str, Any],
        *,
        log: dict[str, Any] | None = None,
        terminal: bool = False,
        open_stdin: bool = False,
        stdin_once: bool = False,
        size: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
        """Start a container; ``{"pid", "started", "warnings"}`` (nanoseconds of the clock).

        ``log`` is ``{"path": str | None, "max_size": int | None, "max_file": int, "compress": bool,
        "attrs": dict, "forward": dict}`` (only the path is required; ``forward`` is
        :class:`tiffin.keeper.forwarding.Forwarder`'s); ``size`` is (rows, columns) of the terminal.
        An earlier exit of the same container is forgotten.

        Raises StartFailure; Conflict if it runs.
        """
        answer = self._ask(
            "start",
            container=id,
            plan=plan,
            log=log,
            terminal=terminal,
            open_stdin=open_stdin,
            stdin_once=stdin_once,
            size=size,
        )
        return dict(answer)

    def exec(
        self,
        exec_id: str,
        container: str,
        process: dict[str, Any],
        *,
        terminal: bool = False,
        stdin: bool = False,
        attachment: tuple[int | socket.socket, dict[str, Any]] | None = None,
        size: tuple[int, int] | None = None,
        capture: int = 0,
    ) -> dict[str, Any]:
        """Start a process in a running container; ``{"pid", "started", "warnings"}``.

        ``attachment`` is a client's connection and the keyword arguments of :meth:`attach`.
        With ``capture`` the event of its end has so many bytes of its output as ``output``.
        Raises StartFailure; NotFound if the container does not run.
        """
        fds, options = [], None
        if attachment is not None:
            fds, options = [_fileno(attachment[0])], _attachment(**attachment[1])
        with self._kept_lock:
            self._execs.add(exec_id)
        try:
            answer = self._ask(
                "exec",
                fds,
                exec=exec_id,
                container=container,
                process=process,
                terminal=terminal,
                open_stdin=stdin,
                attachment=options,
                size=size,
                capture=capture,
            )
        except errors.TiffinError:
            with self._kept_lock:
                self._execs.discard(exec_id)
            raise
        return dict(answer)

    def attach(
        self,
        id: str,
        fd: int | socket.socket,
        *,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        multiplexed: bool = True,
        detach_keys: str | None = None,
        initial: bytes = b"",
    ) -> None:
        """Connect a client's stream socket with a container's streams.

        A container that is not started yet is attached once it starts, and gives every byte.
        ``initial`` is what was already read from the socket. Raises InvalidParameter (keys).
        """
        options = _attachment(
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            multiplexed=multiplexed,
            detach_keys=detach_keys,
            initial=initial,
        )
        self._ask("attach", [_fileno(fd)], container=id, attachment=options)

    def signal(self, id: str, signum: int) -> None:
        """Send a signal to a container's first process, or to an exec'd one. Raises NotFound."""
        self._ask("signal", target=id, signal=signum)

    def resize(self, id: str, rows: int, columns: int) -> None:
        """Set the size of a terminal. Raises NotFound; Conflict if it has no terminal."""
        self._ask("resize", target=id, size=(rows, columns))

    def forget(self, id: str) -> None:
        """Drop what is kept of an exited container, and clients waiting for one to start.

        Nothing happens if there is nothing. Raises Conflict if the container runs.
        """
        self._ask("forget", container=id)

    def list(self) -> list[dict[str, Any]]:
        """All containers and exec'd processes that the keeper knows.

        ``{"id", "exec": bool, "container", "status": "running" | "exited", "pid", "started",
        "terminal": bool}``, and for exited ones ``"code", "at", "oom"``.
        """
        return list(self._ask("list"))

    def shutdown(self, *, force: bool = False) -> None:
        """End the keeper. Raises Conflict while containers run, unless forced (they run on)."""
        with self._connecting:
            connection, self._connection = self._connection, None
        if connection is None:
            connection = self._open(start=False)
            if connection is None:
                return
        connection.expected_end = True
        try:
            connection.ask({"do": "shutdown", "force": force}, [])
        except errors.Conflict:
            connection.expected_end = False
            with self._connecting:
                if self._connection is None and connection.alive:
                    self._connection, connection = connection, None
            raise
        except errors.Unreachable:
            # It was gone already, or went before it could answer: that is what was asked for.
            pass
        finally:
            if connection is not None:
                connection.close()

    def close(self) -> None:
        """Leave the keeper to itself; no event comes after this returns."""
        with self._connecting:
            self._closed = True
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.expected_end = True
            connection.close()
        teller, self._teller = self._teller, None
        if teller is not None:
            self._events.put(None)
            if teller is not threading.current_thread():
                teller.join()
        with self._kept_lock:
            kept, self._kept = self._kept, {}
        for fds in kept.values():
            _close(fds)

    def __enter__(self) -> KeeperClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, do: str, fds: Sequence[int] = (), **fields: Any) -> Any:
        message = {"do": do, **fields}
        for _ in range(_TRIES - 1):
            try:
                return self._connected().ask(message, fds)
            except NotSent:
                # The keeper had died unnoticed; nothing of the request reached it.
                continue
            except NotAnswered:
                if do in _ONLY_ONCE:
                    raise
        return self._connected().ask(message, fds)

    def _connected(self) -> Connection:
        with self._connecting:
            if self._closed:
                raise errors.Unreachable("the connection to the keeper was closed")
            if self._connection is None or not self._connection.alive:
                self._connection = self._open(start=True)
            assert self._connection is not None
            return self._connection

    def _open(self, *, start: bool) -> Connection | None:
        """A new connection that has said hello; None if there is no keeper and none is wanted."""
        if self._teller is None:
            self._teller = threading.Thread(target=self._tell, name="keeper-events", daemon=True)
            self._teller.start()
        deadline = time.monotonic() + START_SECONDS
        problem = "it does not answer"
        failures = 0
        while time.monotonic() < deadline:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connect_unix(sock, self._directory / "keeper.sock")
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
                if not start:
                    return None
                problem = self._spawn(deadline)
                if problem == "busy":
                    # Another one is just coming or going.
                    time.sleep(0.01)
                elif problem == _DIED and failures < _START_TRIES:
                    # Killed, as the one before it may have been: containers need another.
                    failures += 1
                    time.sleep(0.05 * failures)
                elif problem != "ok":
                    break
                continue
            except OSError as error:
                sock.close()
                raise errors.Unreachable(
                    f"cannot connect to the keeper at {self._directory}: {error}"
                ) from error
            connection = Connection(sock, self._receive, self._lost)
            try:
                with self._kept_lock:
                    offers = [
                        (name, [os.dup(fd) for fd in fds]) for name, fds in self._kept.items()
                    ]
                for name, fds in offers:
                    try:
                        connection.post({"do": "offer", "container": name}, fds)
                    finally:
                        _close(fds)
                connection.hello()
            except (OSError, protocol.ProtocolError) as error:
                # A keeper that was about to leave when the connection was made.
                problem = str(error)
                connection.close()
                continue
            return connection
        raise errors.Unreachable(
            f"the keeper of {self._directory.parent} could not be reached: {problem}; "
            f"{self._directory / 'keeper.log'} may say why"
        )

    def _spawn(self, deadline: float) -> str:
        """Start a keeper and wait until it is ready; what it said."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        reader, writer = os.pipe()
        try:
            # Above the descriptors that the file actions below write to.
            ready = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, 10)
            os.close(writer)
            log = str(self._directory / "keeper.log")
            append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            kept = ("PATH", "LD_LIBRARY_PATH", "LANG", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")
            program = _sealed(self._command[0])
            try:
                pid = os.posix_spawn(
                    self._command[0] if program is None else f"/proc/self/fd/{program}",
                    [*self._command, str(_READY_FD)],
                    {name: os.environ[name] for name in kept if name in os.environ},
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                        (os.POSIX_SPAWN_OPEN, 1, log, append, 0o600),
                        (os.POSIX_SPAWN_DUP2, 1, 2),
                        (os.POSIX_SPAWN_DUP2, ready, _READY_FD),
                    ],
                    setsid=True,
                    setsigmask=[],
                    setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
                )
            except OSError as error:
                raise errors.Unreachable(f"the keeper cannot be started: {error}") from error
            finally:
                os.close(ready)
                if program is not None:
                    os.close(program)
            said = b""
            poll = select.poll()
            poll.register(reader, select.POLLIN)
            while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                data = os.read(reader, 4096)
                if not data:
                    break
                said += data
            # What was started forks the keeper, which belongs to no one, and ends.
            os.waitpid(pid, 0)
        finally:
            os.close(reader)
        return said.decode(errors="replace").strip() or _DIED

    def _receive(self, message: dict[str, Any], fds: _Fds) -> None:
        """What is not an answer to a request; and the descriptors of those that are."""
        name = message.get("held")
        if isinstance(name, str):
            with self._kept_lock:
                old = self._kept.pop(name, [])
                if self._closed:
                    old += fds
                else:
                    self._kept[name] = fds
            _close(old)
        else:
            _close(fds)
        if "event" not in message:
            return
        if message["event"] == "exited":
            with self._kept_lock:
                self._execs.discard(message["id"])
                old = self._kept.pop(message["id"], [])
            _close(old)
        self._events.put(message)

    def _lost(self, connection: Connection) -> None:
        """The reader's last word on a connection that ended."""
        if connection.expected_end or self._closed:
            return
        self._events.put({"event": "lost"})
        with self._kept_lock:
            execs, self._execs = self._execs, set()
        for name in execs:
            self._events.put(
                {
                    "event": "exited",
                    "id": name,
                    "exec": True,
                    "code": None,
                    "at": time.time_ns(),
                    "oom": False,
                }
            )
        # Without a keeper nobody could be told; whoever asks next tries again and is.
        with contextlib.suppress(errors.Unreachable):
            self.ensure()

    def _tell(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                self._on_event(event)
            except Exception:
                # One listener's mistake must not end the telling; it is shown as a thread's end.
                threading.excepthook(
                    threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread()))
                )


def _sealed(program: str) -> int | None:
    """A read-only copy of the interpreter, for a keeper that no container can overwrite through
    ``/proc/PID/exe``; None for another program, and where we may not mount (nor start containers).
    """
    if program != sys.executable:
        return None
    try:
        fd = read_only_executable(program)
    except PermissionError:
        return None
    try:
        # Above the descriptors that the file actions write to.
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    finally:
        os.close(fd)


def _attachment(
    *,
    stdin: bool = False,
    stdout: bool = True,
    stderr: bool = True,
    multiplexed: bool = True,
    detach_keys: str | None = None,
    initial: bytes = b"",
) -> dict[str, Any]:
    return {
        "stdin": stdin,
        "stdout": stdout,
        "stderr": stderr,
        "multiplexed": multiplexed,
        "keys": parse_keys(detach_keys).decode("latin-1"),
        "initial": initial.decode("latin-1"),
    }


def _fileno(sock: int | socket.socket) -> int:
    return sock if isinstance(sock, int) else sock.fileno()


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
