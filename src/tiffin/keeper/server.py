"""The keeper's own work: answers daemons, starts processes, reaps them, adopts them.

One keeper serves one engine root; a lock on ROOT/keeper/lock makes sure of it. It is a subreaper: a
container's processes that lose their parent while they share the host's process IDs end up here
and are reaped. It leaves when it has had neither containers nor connections for a while.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from tiffin.errors import Conflict, InvalidParameter, NotFound, StartFailure, TiffinError
from tiffin.keeper import adoption
from tiffin.keeper.attachment import Attachment
from tiffin.keeper.container import Container, Exec, Process
from tiffin.keeper.launcher import NativeLauncher
from tiffin.keeper.loop import IN, Loop, Timer
from tiffin.keeper.peer import Peer
from tiffin.linux.sockets import bind_unix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Fields = dict[str, Any]

_STATUS_TRIES = 3000
_STATUS_PAUSE = 0.02
_REMOVE_TRIES = 250
_REMOVE_PAUSE = 0.02


class Server:
    """The keeper of the engine root ``root``; ``directory`` is ROOT/keeper."""

    def __init__(self, root: str, idle: float, launcher: NativeLauncher | None = None) -> None:
        self._directory = f"{root}/keeper"
        self._path = f"{self._directory}/keeper.sock"
        self._idle = idle
        self._launcher = launcher or NativeLauncher()
        self._loop = Loop()
        self._peers: list[Peer] = []
        self._containers: dict[str, Container] = {}
        self._execs: dict[str, Exec] = {}
        self._by_pid: dict[int, Process] = {}
        self._pending: dict[str, list[Attachment]] = {}
        self._offers: dict[str, list[int]] = {}
        self._found: list[tuple[str, Fields]] = []
        self._boot = adoption.boot_id()
        self._idle_timer: Timer | None = None
        self._stopping = False
        self._requests: dict[str, Callable[[Peer, Fields, list[int]], object]] = {
            "start": self._start,
            "exec": self._exec,
            "attach": self._attach,
            "signal": self._signal,
            "resize": self._resize,
            "forget": self._forget,
            "list": self._list,
            "shutdown": self._shutdown,
        }

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until it is time to leave. ``ready`` is called once clients can connect."""
        wake, woken = os.pipe()
        for fd in (wake, woken):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._listen()
        self._found = adoption.find_states(self._directory)
        self._loop.watch(wake, IN, lambda _: self._reap(wake))
        ready()
        self._launcher.load()
        try:
            self._consider_leaving()
            while not self._stopping:
                self._loop.turn()
                self._consider_leaving()
        finally:
            self._end()
            signal.set_wakeup_fd(-1)
            os.close(wake)
            os.close(woken)

    # Connections.

    def _listen(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if os.path.exists(self._path):
            os.unlink(self._path)
        bind_unix(listener, self._path)
        os.chmod(self._path, 0o600)
        listener.listen(64)
        self._listener = listener
        self._loop.watch(listener.fileno(), IN, self._knocked)

    def _knocked(self, _events: int) -> None:
        self._accept()

    def _accept(self) -> bool:
        """Take one connection; False if there is none."""
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        self._peers.append(Peer(self._loop, sock, self._called, self._peers.remove))
        return True

    def _called(self, peer: Peer, message: Fields, fds: list[int]) -> None:
        """Any message of a daemon. Descriptors that nobody took are closed here."""
        try:
            if message.get("do") == "offer":
                self._take_offer(str(message.get("container")), fds)
                return
            answer: Fields = {"id": message.get("id")}
            held: list[int] = []
            try:
                if message.get("do") == "hello":
                    self._hello(peer)
                else:
                    request = self._requests.get(str(message.get("do")))
                    if request is None:
                        raise InvalidParameter(f"the keeper knows no {message.get('do')!r}")
                    result = request(peer, message, fds)
                    answer["result"] = result
                    if request == self._start:
                        answer["held"] = message["container"]
                        held = self._containers[message["container"]].held()
            except TiffinError as error:
                answer["error"] = _problem(error)
            except (KeyError, TypeError, ValueError) as error:
                self._report()
                text = f"the keeper does not understand this request: {error!r}"
                answer["error"] = _problem(InvalidParameter(text))
            except Exception as error:
                # A mistake in here, or a failing file system: this request fails, the others'
                # containers go on.
                self._report()
                answer["error"] = _problem(TiffinError(f"the keeper failed: {error}"))
            peer.send(answer, held)
        finally:
            for fd in fds:
                os.close(fd)

    def _report(self) -> None:
        import traceback

        traceback.print_exc(file=sys.stderr)

    def _broadcast(self, event: Fields) -> None:
        for peer in list(self._peers):
            peer.send(dict(event), [])

    def _hello(self, peer: Peer) -> None:
        self._adopt()
        for container in self._containers.values():
            if container.running:
                peer.send({"held": container.id}, container.held())
            else:
                peer.send(container.exit_event(), [])

    # Requests.

    def _start(self, _peer: Peer, message: Fields, _fds: list[int]) -> Fields:
        id = _name(message["container"])
        known = self._containers.get(id)
        if known is not None and known.running:
            raise Conflict(f"container {id} is running already")
        if known is not None:
            self._remove(known)
        plan, terminal = message["plan"], bool(message["terminal"])
        container = Container(
            self._loop, id, f"{self._directory}/{id}", self._broadcast, self._settled
        )
        container.boot = self._boot
        container.log = message["log"]
        container.open_stdin = bool(message["open_stdin"])
        container.stdin_once = bool(message["stdin_once"])
        container.terminal = terminal
        cgroup = plan.get("cgroup")
        if cgroup is not None:
            container.cgroup, container.entrances = cgroup["name"], cgroup["entrances"]
        try:
            fds = container.prepare(terminal=terminal)
            try:
                ends = (-1, (-1, -1))
                if fds is not None:
                    ends = container.open_ends(stdin=container.open_stdin)
                try:
                    launched = self._launcher.launch(plan, fds, _size(message["size"]))
                except BaseException:
                    _close(ends[0], *ends[1])
                    raise
            finally:
                _close(*(fds or ()))
        except BaseException:
            adoption.remove_folder(container.directory)
            self._drop_pending(id)
            raise
        container.started = time.time_ns()
        container.record()
        container.begin(launched.pid, launched.pidfd, launched.terminal_fd, *ends)
        container.process_start = adoption.process_start(launched.pid) or 0
        container.status = "running"
        container.save()
        self._containers[id] = self._by_pid[launched.pid] = container
        for attachment in self._pending.pop(id, []):
            if not attachment.closed:
                container.attach(attachment)
        return {
            "pid": launched.pid,
            "started": container.started,
            "warnings": launched.warnings,
        }

    def _exec(self, _peer: Peer, message: Fields, fds: list[int]) -> Fields:
        id = _name(message["exec"])
        container = self._containers.get(_name(message["container"]))
        if container is None or not container.running:
            raise NotFound(f"container {message['container']} is not running")
        if id in self._execs:
            raise Conflict(f"exec {id} is running already")
        process = Exec(self._loop, id, container.id, self._exec_ended)
        options, terminal = message["attachment"], bool(message["terminal"])
        theirs: list[int] = []
        ours = [-1, -1, -1]
        try:
            if not terminal:
                wanted = (
                    bool(message["open_stdin"]),
                    options is not None and options["stdout"],
                    options is not None and options["stderr"],
                )
                for number, pipe in enumerate(wanted):
                    theirs.append(_stream(number, pipe, ours))
            launched = self._launcher.enter(
                container.pidfd,
                container.entrances,
                message["process"],
                None if terminal else (theirs[0], theirs[1], theirs[2]),
                _size(message["size"]),
            )
        except BaseException:
            _close(*ours)
            raise
        finally:
            _close(*theirs)
        process.started = time.time_ns()
        process.begin(
            launched.pid, launched.pidfd, launched.terminal_fd, ours[0], (ours[1], ours[2])
        )
        self._execs[id] = self._by_pid[launched.pid] = process
        if options is not None:
            process.attach(Attachment(self._loop, fds.pop(0), options))
        return {
            "pid": launched.pid,
            "started": process.started,
            "warnings": launched.warnings,
        }

    def _attach(self, _peer: Peer, message: Fields, fds: list[int]) -> None:
        id = _name(message["container"])
        attachment = Attachment(self._loop, fds.pop(0), message["attachment"])
        container = self._containers.get(id)
        if container is None or not container.running:
            waiting = [other for other in self._pending.get(id, []) if not other.closed]
            self._pending[id] = [*waiting, attachment]
        else:
            container.attach(attachment)

    def _signal(self, _peer: Peer, message: Fields, _fds: list[int]) -> None:
        self._running(message["target"]).signal(int(message["signal"]))

    def _resize(self, _peer: Peer, message: Fields, _fds: list[int]) -> None:
        rows, columns = message["size"]
        self._running(message["target"]).resize(int(rows), int(columns))

    def _forget(self, _peer: Peer, message: Fields, _fds: list[int]) -> None:
        id = _name(message["container"])
        container = self._containers.get(id)
        if container is not None:
            if container.running:
                raise Conflict(f"container {id} is running")
            self._remove(container)
        self._drop_pending(id)

    def _list(self, _peer: Peer, _message: Fields, _fds: list[int]) -> list[Fields]:
        everything: list[Process] = [*self._containers.values(), *self._execs.values()]
        return [process.describe() for process in everything]

    def _shutdown(self, _peer: Peer, message: Fields, _fds: list[int]) -> None:
        running = [name for name, item in self._containers.items() if item.running]
        if running and not message["force"]:
            raise Conflict(f"{len(running)} containers are running, {running[0]} is one of them")
        self._stopping = True

    def _running(self, id: str) -> Process:
        process = self._containers.get(id) or self._execs.get(id)
        if process is None or not process.running:
            raise NotFound(f"{id} is not running")
        return process

    def _remove(self, container: Container) -> None:
        del self._containers[container.id]
        container.close()
        adoption.remove_folder(container.directory)

    def _drop_pending(self, id: str) -> None:
        for attachment in self._pending.pop(id, []):
            attachment.close()

    # Ends.

    def _reap(self, wake: int) -> None:
        try:
            while os.read(wake, 4096):
                pass
        except BlockingIOError:
            pass
        while True:
            try:
                result = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return
            if result is None:
                return
            process = self._by_pid.pop(result.si_pid, None)
            if process is not None:
                killed = result.si_code != os.CLD_EXITED
                process.end(result.si_status + (128 if killed else 0))

    def _settled(self, container: Container) -> None:
        if container.cgroup is not None:
            try:
                container.oom = self._launcher.oom_killed(container.cgroup)
                self._remove_cgroup(container.cgroup, _REMOVE_TRIES)
            except OSError as error:
                print(f"cgroup {container.cgroup}: {error}", file=sys.stderr)

    def _remove_cgroup(self, name: str, tries: int) -> None:
        """Remove it, if need be in several tries: the killed need a moment to be gone."""
        if self._launcher.remove(name):
            return
        if tries:
            self._loop.after(_REMOVE_PAUSE, lambda: self._remove_cgroup(name, tries - 1))
        else:
            print(f"cgroup {name} still has processes", file=sys.stderr)

    def _exec_ended(self, event: Fields) -> None:
        if event["event"] == "exited":
            self._execs.pop(event["id"], None)
        self._broadcast(event)

    # Adoption.

    def _take_offer(self, id: str, fds: list[int]) -> None:
        if self._found and fds:
            _close(*self._offers.pop(id, []))
            self._offers[id] = [fds.pop(0) for _ in range(len(fds))]

    def _adopt(self) -> None:
        """Take over what an earlier keeper left. What a daemon has offered is known by now."""
        found, self._found = self._found, []
        offers, self._offers = self._offers, {}
        for directory, state in found:
            fds = offers.pop(os.path.basename(directory), [])
            try:
                self._adopt_one(directory, state, fds)
            except (OSError, KeyError, TypeError, ValueError):
                # What can't be taken over must not keep the others from it.
                print(f"{directory} could not be adopted", file=sys.stderr)
                self._report()
        for fds in offers.values():
            _close(*fds)

    def _adopt_one(self, directory: str, state: Fields, fds: list[int]) -> None:
        id = os.path.basename(directory)
        container = Container(self._loop, id, directory, self._broadcast, self._settled)
        container.load(state)
        if container.status == "starting":
            _close(*fds)
            if container.cgroup is not None:
                self._remove_cgroup(container.cgroup, _REMOVE_TRIES)
            adoption.remove_folder(directory)
            return
        self._containers[id] = container
        if container.status == "exited":
            _close(*fds)
            return
        pidfd = fds.pop(0) if fds else adoption.open_living(state, self._boot)
        terminal = fds.pop(0) if fds and container.terminal else None
        # The rest held the content of the FIFOs, which are opened below.
        container.record()
        stdin, outputs = -1, (-1, -1)
        if not container.terminal:
            keep = container.open_stdin and not container.stdin_once
            stdin, outputs = container.open_ends(stdin=keep)
        container.begin(container.pid, pidfd if pidfd is not None else -1, terminal, stdin, outputs)
        container.terminal = bool(state["terminal"])
        if pidfd is None:
            container.end(None)
            return
        if adoption.has_ended(pidfd):
            self._adopted_ended(container, _STATUS_TRIES)
            return
        self._loop.watch(pidfd, IN, lambda _: self._adopted_ended(container, _STATUS_TRIES))
        self._broadcast(
            {
                "event": "adopted",
                "id": id,
                "pid": container.pid,
                "started": container.started,
            }
        )

    def _adopted_ended(self, container: Container, tries: int) -> None:
        """The kernel tells the status once the parent, which is not this process, has reaped it;
        an older kernel never does."""
        self._loop.drop(container.pidfd)
        # Asked first, so that a status that appears in between is not missed.
        gone = adoption.process_start(container.pid) != container.process_start
        status = self._launcher.exit_status(container.pidfd)
        if status is None and tries and not gone:
            self._loop.after(_STATUS_PAUSE, lambda: self._adopted_ended(container, tries - 1))
            return
        code = None
        if status is not None:
            number = os.waitstatus_to_exitcode(status)
            code = number if number >= 0 else 128 - number
        container.end(code)

    # Leaving.

    def _terminate(self, *_: object) -> None:
        self._stopping = True

    def _consider_leaving(self) -> None:
        busy = (
            self._peers or self._by_pid or any(item.running for item in self._containers.values())
        )
        if busy:
            if self._idle_timer is not None:
                self._idle_timer.cancel()
                self._idle_timer = None
        elif self._idle_timer is None:
            self._idle_timer = self._loop.after(self._idle, self._leave)

    def _leave(self) -> None:
        # Once the name is gone nobody can come; but somebody may have come just before.
        self._idle_timer = None
        os.unlink(self._path)
        if self._accept():
            self._loop.drop(self._listener.fileno())
            self._listener.close()
            self._listen()
        else:
            self._stopping = True

    def _end(self) -> None:
        if os.path.exists(self._path):
            os.unlink(self._path)
        self._loop.drop(self._listener.fileno())
        self._listener.close()
        for process in [*self._containers.values(), *self._execs.values()]:
            process.close()
        for attachments in self._pending.values():
            for attachment in attachments:
                attachment.close()
        for fds in self._offers.values():
            _close(*fds)
        for peer in list(self._peers):
            peer.close()
        self._loop.close()


def _problem(error: TiffinError) -> Fields:
    kind = "StartFailure" if isinstance(error, StartFailure) else type(error).__name__
    return {"kind": kind, "message": error.message, "exit_code": error.exit_code}


def _name(value: object) -> str:
    """A name that is a folder's."""
    if not isinstance(value, str) or not value.replace("-", "").replace("_", "").isalnum():
        raise InvalidParameter(f"{value!r} is no container's ID")
    return value


def _size(value: Any) -> tuple[int, int] | None:
    return None if value is None else (int(value[0]), int(value[1]))


def _stream(number: int, pipe: bool, ours: list[int]) -> int:
    """An exec'd process's end of a stream; the other end goes into ``ours``."""
    if not pipe:
        return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    reader, writer = os.pipe()
    theirs, ours[number] = (reader, writer) if number == 0 else (writer, reader)
    os.set_blocking(ours[number], False)
    os.fchmod(theirs, 0o666)
    return theirs


def _close(*fds: int) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)
