"""What the keeper keeps of a running process: a container's first one, or an exec'd one.

A process has its pidfd, its ends of the streams, and the clients attached to it. Its end, once it
was reaped: what is in the pipes is read, the log is finished, clients get the rest and the end;
then its exit is announced. Clients that don't read hold that up for two seconds at most; they still
get all of it afterwards.

A container also has a folder, ROOT/keeper/ID, whose ``state.json`` says all that another keeper
needs to know, and after the end its exit, until the daemon has taken it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import struct
import time

from tiffin.errors import Conflict, NotFound
from tiffin.keeper.attachment import Attachment
from tiffin.keeper.loop import Loop, Timer, say
from tiffin.keeper.recorder import STREAMS, Recorder
from tiffin.keeper.stdio import Fifos, Sink, Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tiffin.keeper.forwarding import Forwarder

_TIOCSWINSZ = 0x5414
_FLUSH_SECONDS = 2.0


class Process:
    """A process with streams; it owns its descriptors and attachments."""

    is_exec = True

    def __init__(self, loop: Loop, id: str, announce: Callable[[dict[str, Any]], None]) -> None:
        self.id = id
        self._loop = loop
        self._announce = announce
        self.terminal = False
        self.stdin_once = True
        self.pid = 0
        self.pidfd = -1
        self.terminal_fd = -1
        self.started = 0
        self.running = False
        self.code: int | None = None
        self.at = 0
        self.oom = False
        self.attachments: list[Attachment] = []
        self._sources: list[Source] = []
        self._sink: Sink | None = None
        self._recorder: Recorder | None = None
        self._paused = False
        self._announced = False
        self._timer: Timer | None = None
        self._coming = False
        self._ended_early: int | None = None

    def expect(self) -> None:
        """Its process is on its way to its program: an end that comes before :meth:`came` is told
        after it."""
        self._coming = True

    def came(self) -> None:
        """It executes its program now, and all who wait for that know."""
        self._coming = False
        if self._ended_early is not None:
            self.end(self._ended_early)

    def begin(
        self, pid: int, pidfd: int, terminal_fd: int | None, stdin: int, outputs: tuple[int, int]
    ) -> None:
        """It runs: take over its descriptors (-1: none) and begin to listen to its output.

        Raises OSError; they are its own all the same.
        """
        self.pid, self.pidfd, self.running = pid, pidfd, True
        self.terminal = terminal_fd is not None
        if terminal_fd is not None:
            self.terminal_fd = terminal_fd
            os.set_blocking(terminal_fd, False)
            stdin = os.dup(terminal_fd)
        if stdin >= 0:
            self._sink = Sink(self._loop, stdin)
        if terminal_fd is not None:
            outputs = (os.dup(terminal_fd), -1)
        for stream, fd in enumerate(outputs):
            if fd >= 0:
                self._sources.append(
                    Source(self._loop, fd, stream, self.terminal, self._recorder, self._deliver)
                )
        for source in self._sources:
            source.resume()

    def attach(self, attachment: Attachment) -> None:
        """One more client; it is this process's now."""
        self.attachments.append(attachment)
        attachment.connect(self)

    def signal(self, number: int) -> None:
        """Raises NotFound if it has ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            raise NotFound(f"{self.id} is not running") from None

    def resize(self, rows: int, columns: int) -> None:
        """Raises Conflict if it has no terminal."""
        if self.terminal_fd < 0:
            raise Conflict(f"{self.id} has no terminal")
        fcntl.ioctl(self.terminal_fd, _TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def end(self, code: int | None) -> None:
        """It was reaped, with Docker's exit code (128 and the signal's number if killed)."""
        if self._coming:
            self._ended_early = code
            return
        self.running = False
        self.code, self.at = code, time.time_ns()
        for source in self._sources:
            source.drain()
        # Clients first, they are waiting; the rest takes a moment.
        for attachment in list(self.attachments):
            attachment.finish()
        self._settle()
        if any(attachment.unsent for attachment in self.attachments):
            self._timer = self._loop.after(_FLUSH_SECONDS, self._tell)
        else:
            self._tell()

    def close(self) -> None:
        """Let go of everything; the process itself is not touched."""
        for source in self._sources:
            source.close()
        self._sources = []
        if self._sink is not None:
            self._sink.close()
            self._sink = None
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None
        for attachment in list(self.attachments):
            attachment.close()
        self.attachments = []
        for fd in (self.pidfd, self.terminal_fd):
            if fd >= 0:
                self._loop.drop(fd)
                os.close(fd)
        self.pidfd = self.terminal_fd = -1

    def held(self) -> list[int]:
        """What a daemon shall keep for another keeper: the pidfd, which tells the exit status; the
        terminal, or what holds the FIFOs' content should nobody else have them open."""
        fds = [source.fd for source in self._sources]
        return [self.pidfd, *([self.terminal_fd] if self.terminal else fds)]

    def describe(self) -> dict[str, Any]:
        """The row of KeeperClient.list."""
        row = {
            "id": self.id,
            "exec": self.is_exec,
            "container": self.id,
            "status": "running" if self.running else "exited",
            "pid": self.pid,
            "started": self.started,
            "terminal": self.terminal,
        }
        if not self.running:
            row.update(code=self.code, at=self.at, oom=self.oom)
        return row

    def exit_event(self) -> dict[str, Any]:
        """The event of its end."""
        return {
            "event": "exited",
            "id": self.id,
            "exec": self.is_exec,
            "code": self.code,
            "started": self.started,
            "at": self.at,
            "oom": self.oom,
        }

    # What an attachment asks of its host.

    def feed(self, attachment: Attachment, data: bytes) -> bool:
        """Input from a client."""
        return self._sink is None or self._sink.feed(attachment, data)

    def input_ended(self, attachment: Attachment) -> None:
        """A client will send no more."""
        if attachment.stdin and self.stdin_once and not self.terminal and self._sink is not None:
            self._sink.finish()

    def left(self, attachment: Attachment, *, detached: bool) -> None:
        """A client wants nothing more."""
        self.attachments = [other for other in self.attachments if other is not attachment]
        if detached:
            self._announce({"event": "detached", "id": self.id, "exec": self.is_exec})
        self.flushed(attachment)

    def flushed(self, attachment: Attachment) -> None:
        """A client has caught up."""
        self._consider_going_on()
        if self._timer is not None and not any(other.unsent for other in self.attachments):
            self._tell()

    def _deliver(self, stream: int, data: bytes) -> None:
        for attachment in list(self.attachments):
            attachment.deliver(stream, data)
        if not self._paused and self._must_wait():
            self._paused = True
            for source in self._sources:
                source.pause()

    def _must_wait(self) -> bool:
        """Whether somebody who gets the output is behind."""
        return any(attachment.behind for attachment in self.attachments)

    def _consider_going_on(self) -> None:
        if self._paused and not self._must_wait():
            self._paused = False
            for source in self._sources:
                source.resume()

    def _settle(self) -> None:
        """All output is known: finish what is made of it, let go of what was needed for it."""
        if self._recorder is not None:
            self._recorder.finish()
            self._recorder = None
        attachments, self.attachments = self.attachments, []
        self.close()
        self.attachments = attachments

    def _tell(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._announced:
            self._announced = True
            self._announce(self.exit_event())


class Exec(Process):
    """An exec'd process of ``container``; ``capture`` bytes of its output are kept."""

    def __init__(
        self,
        loop: Loop,
        id: str,
        container: str,
        announce: Callable[[dict[str, Any]], None],
        capture: int = 0,
    ) -> None:
        super().__init__(loop, id, announce)
        self.container = container
        self._capture = capture
        self._captured = b""

    def describe(self) -> dict[str, Any]:
        """The row of KeeperClient.list."""
        return {**super().describe(), "container": self.container}

    def exit_event(self) -> dict[str, Any]:
        """The event of its end, with what was captured."""
        event = super().exit_event()
        if self._capture:
            text = self._captured[: self._capture].decode("utf-8", "replace")
            event["output"] = text + ("..." if len(self._captured) > self._capture else "")
        return event

    def _deliver(self, stream: int, data: bytes) -> None:
        if len(self._captured) <= self._capture:
            self._captured += data[: self._capture + 1]
        super()._deliver(stream, data)


class Container(Process):
    """A container; ``directory`` is its folder."""

    is_exec = False

    def __init__(
        self,
        loop: Loop,
        id: str,
        directory: str,
        announce: Callable[[dict[str, Any]], None],
        settled: Callable[[Container], None],
        sending: Callable[[Forwarder], None],
    ) -> None:
        super().__init__(loop, id, announce)
        self.directory = directory
        self._settled = settled
        self._sending = sending
        self.log: dict[str, Any] | None = None
        self.open_stdin = False
        self.cgroup: str | None = None
        self.entrances: list[str] = []
        self.status = "starting"
        self.process_start = 0
        self.boot = ""
        self.forwarder: Forwarder | None = None
        self.oom_fd = -1
        self.oom_pending = False
        self._oom_kills = 0

    def out_of_memory(self, kills: int) -> bool:
        """Take in how many processes the kernel has killed for want of memory; whether that is
        more than before."""
        more = kills > self._oom_kills
        self._oom_kills = kills
        return more

    def close(self) -> None:
        """Let go of everything; the process itself is not touched."""
        super().close()
        forwarder, self.forwarder = self.forwarder, None
        if forwarder is not None:
            forwarder.close()
        if self.oom_fd >= 0:
            self._loop.drop(self.oom_fd)
            os.close(self.oom_fd)
            self.oom_fd = -1

    def prepare(self, *, terminal: bool) -> tuple[int, int, int] | None:
        """Make the folder and the FIFOs; the container's own ends, or None for a terminal."""
        os.mkdir(self.directory, 0o700)
        self.save()
        if terminal:
            return None
        fifos = Fifos(self.directory)
        for name in STREAMS:
            fifos.make(name)
        if self.open_stdin:
            fifos.make("stdin")
        fds: list[int] = []
        try:
            if not self.open_stdin:
                fds.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            else:
                flags = os.O_RDONLY if self.stdin_once else os.O_RDWR
                fds.append(fifos.open_for_container("stdin", flags))
            fds.extend(fifos.open_for_container(name, os.O_RDWR) for name in STREAMS)
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        return fds[0], fds[1], fds[2]

    def open_ends(self, *, stdin: bool) -> tuple[int, tuple[int, int]]:
        """The keeper's ends of the FIFOs, as :meth:`begin` takes them."""
        fifos = Fifos(self.directory)
        fds: list[int] = []
        try:
            # Open for writing too, so that there is never an end of file to wait out.
            fds.extend(fifos.open(name, os.O_RDWR) for name in STREAMS)
            return fifos.open("stdin", os.O_WRONLY) if stdin else -1, (fds[0], fds[1])
        except OSError:
            for fd in fds:
                os.close(fd)
            raise

    def _must_wait(self) -> bool:
        return super()._must_wait() or (self.forwarder is not None and self.forwarder.full)

    def record(self) -> None:
        """Write a log from now on, if there shall be one; go on with one that is there."""
        if self.log is not None:
            if self.log.get("forward"):
                from tiffin.keeper.forwarding import Forwarder

                self.forwarder = Forwarder(
                    self._loop, self.id, self.log["forward"], self._consider_going_on
                )
            self._recorder = Recorder(self.directory, self.log, self.forwarder)
            try:
                self._recorder.recover()
            except OSError as error:
                say(f"{self.directory}: the log is not recovered: {error}")

    def save(self) -> None:
        """Write state.json; an OSError leaves the one before."""
        path = f"{self.directory}/state.json"
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            text = json.dumps(self._state()).encode()
            if os.write(fd, text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        finally:
            os.close(fd)
        os.rename(f"{path}.new", path)

    def load(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`save` wrote."""
        for name in _STATE:
            setattr(self, name, state[name])
        self.running = self.status == "running"

    def _state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _STATE}

    def _settle(self) -> None:
        # It lives on until it has sent what is left.
        forwarder, self.forwarder = self.forwarder, None
        super()._settle()
        if forwarder is not None:
            self._sending(forwarder)
        self.status = "exited"
        self._settled(self)
        try:
            self.save()
        except OSError as error:
            # The exit is told all the same; only another keeper would not know it.
            say(f"{self.directory}: the exit cannot be recorded: {error}")


_STATE = (
    "id",
    "status",
    "pid",
    "process_start",
    "boot",
    "started",
    "terminal",
    "open_stdin",
    "stdin_once",
    "log",
    "cgroup",
    "entrances",
    "code",
    "at",
    "oom",
)
"""What state.json holds; ``process_start`` (clock ticks) and ``boot`` tell the process from a later
one of the same number."""
