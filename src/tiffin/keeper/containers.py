"""All the keeper's containers and exec'd processes: started, reaped, adopted, forgotten.

The keeper is a subreaper: a container's processes that lose their parent while they share the
host's process IDs end up here, and are reaped with the others.
"""

from __future__ import annotations

import os
import signal
import time

from tiffin.errors import Conflict, NotFound, StartFailure
from tiffin.keeper import adoption
from tiffin.keeper.arrival import Arrival
from tiffin.keeper.attachment import Attachment
from tiffin.keeper.container import Container, Exec, Process
from tiffin.keeper.launcher import NativeLauncher
from tiffin.keeper.loop import IN, Loop, attempt, report, say
from tiffin.keeper.memory import MemoryWatch
from tiffin.keeper.remains import Remains
from tiffin.keeper.stdio import exec_streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tiffin.keeper.forwarding import Forwarder
    from tiffin.runtime.launching import Launched, Launching

    Fields = dict[str, Any]
    Done = Callable[[Fields | StartFailure], None]

_STATUS_TRIES = 3000
_STATUS_PAUSE = 0.02
_REAP_SECONDS = 2.0


class Containers:
    """The containers whose folders are in ``directory``; ``tell`` hears of events."""

    def __init__(
        self,
        loop: Loop,
        directory: str,
        launcher: NativeLauncher,
        tell: Callable[[Fields], None],
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._launcher = launcher
        self._tell = tell
        self._boot = adoption.boot_id()
        self._containers: dict[str, Container] = {}
        self._execs: dict[str, Exec] = {}
        self._starting: dict[str, tuple[Container, Arrival, object]] = {}
        self._by_pid: dict[int, Process] = {}
        self._helpers: dict[int, Arrival] = {}
        self._reaped: dict[int, Callable[[], None]] = {}
        self._adopted: set[str] = set()
        self._pending: dict[str, list[Attachment]] = {}
        self._found: list[tuple[str, Fields]] = []
        self._offers: dict[str, list[int]] = {}
        self._forwarders: set[Forwarder] = set()
        self._memory = MemoryWatch(loop, launcher, tell)
        self._remains = Remains(
            loop,
            directory,
            launcher,
            known=lambda id: id in self._starting or id in self._containers,
            used=self._uses,
        )

    @property
    def busy(self) -> bool:
        """Whether anything runs."""
        return bool(self._starting or self._by_pid or self._adopted or self._forwarders)

    def all(self) -> list[Container]:
        """The running containers, and the exited ones that are not forgotten."""
        return list(self._containers.values())

    def held(self, id: str) -> list[int]:
        """What a daemon shall keep of a container."""
        return self._containers[id].held()

    def running(self, id: str) -> Process:
        """A container or exec'd process. Raises NotFound if it does not run."""
        process = self._containers.get(id) or self._execs.get(id)
        if process is None or not process.running:
            raise NotFound(f"{id} is not running")
        return process

    def describe(self) -> list[Fields]:
        """The rows of KeeperClient.list."""
        everything: list[Process] = [*self._containers.values(), *self._execs.values()]
        return [process.describe() for process in everything]

    def start(
        self,
        id: str,
        plan: Fields,
        *,
        log: Fields | None,
        terminal: bool,
        open_stdin: bool,
        stdin_once: bool,
        size: tuple[int, int] | None,
        asker: object,
        done: Done,
    ) -> None:
        """Start a container; ``done`` is told of it, or why it can't be: nothing is left then.

        Nobody else waits for that: its files may be on a disk that hangs. Raises Conflict if it
        runs, or is being started. See :meth:`leave` for the ``asker``.
        """
        known = self._containers.get(id)
        if id in self._starting or (known is not None and known.running):
            raise Conflict(f"container {id} is running already")
        if known is not None:
            self._remove(known)
        else:
            adoption.remove_folder(f"{self._directory}/{id}")
        container = self._new(id)
        container.boot, container.log, container.terminal = self._boot, log, terminal
        container.open_stdin, container.stdin_once = open_stdin, stdin_once
        cgroup = plan.get("cgroup")
        if cgroup is not None:
            container.cgroup, container.entrances = cgroup["name"], cgroup["entrances"]
        ends = (-1, (-1, -1))
        fds = None
        try:
            fds = container.prepare(terminal=terminal)
            if fds is not None:
                ends = container.open_ends(stdin=open_stdin)
            container.record()
        except BaseException:
            _close(ends[0], *ends[1], *(fds or ()))
            container.close()
            self._remains.of_start(id, None)
            self._drop_pending(id)
            raise

        def arrived(outcome: Launched | StartFailure) -> None:
            if isinstance(outcome, StartFailure):
                _close(ends[0], *ends[1])
            else:
                try:
                    answer = self._run(container, outcome, ends)
                except OSError as error:
                    outcome = StartFailure(f"container {id} cannot be recorded: {error}")
                else:
                    self._starting.pop(id, None)
                    done(answer)
                    container.came()
                    return
            container.close()
            self._when_reaped(container.pid, lambda: failed(outcome))

        def failed(failure: StartFailure) -> None:
            self._starting.pop(id, None)
            self._remains.of_start(id, container.cgroup)
            self._drop_pending(id)
            done(failure)

        try:
            self._begin(
                container,
                self._launcher.launch(plan, fds, size),
                arrived,
                lambda arrival: self._starting.update({id: (container, arrival, asker)}),
            )
        finally:
            _close(*(fds or ()))

    def _when_reaped(self, pid: int, call: Callable[[], None]) -> None:
        """Make a call once a killed child was reaped, which is at once; if it hangs, soon."""
        if self._by_pid.pop(pid, None) is None:
            call()
            return

        def late() -> None:
            if self._reaped.pop(pid, None) is not None:
                call()

        timer = self._loop.after(_REAP_SECONDS, late)

        def reaped() -> None:
            timer.cancel()
            call()

        self._reaped[pid] = reaped

    def leave(self, asker: object) -> None:
        """Who asked for some starts is gone: nobody would know that the containers run."""
        for _, arrival, other in list(self._starting.values()):
            if other is asker:
                arrival.abandon(StartFailure("the daemon that asked for this is gone"))

    def _begin(
        self,
        process: Process,
        start: Launching,
        done: Callable[[Launched | StartFailure], None],
        known: Callable[[Arrival], None],
    ) -> None:
        """Begin a start, and tell the process of its pid as soon as there is one."""

        def begun(pid: int, own: bool) -> None:
            if own:
                process.pid = pid
                process.expect()
                self._by_pid[pid] = process
            else:
                self._helpers[pid] = arrival

        arrival = Arrival(self._loop, start, begun, done)
        known(arrival)
        arrival.go()

    def _run(
        self, container: Container, launched: Launched, ends: tuple[int, tuple[int, int]]
    ) -> Fields:
        """A container executes its program: it is one of those that run. Raises OSError if that
        can't be written down; then it is killed."""
        container.started = time.time_ns()
        try:
            container.begin(launched.pid, launched.pidfd, launched.terminal_fd, *ends)
            container.process_start = adoption.process_start(launched.pid) or 0
            container.status = "running"
            container.save()
        except OSError:
            # Nobody but this keeper would know that it runs.
            container.signal(signal.SIGKILL)
            raise
        self._containers[container.id] = container
        for attachment in self._pending.pop(container.id, []):
            if not attachment.closed:
                container.attach(attachment)
        # Once the daemon, which waits for the answer, has it.
        self._loop.after(0, lambda: self._memory.watch(container))
        return _started(container, launched.warnings)

    def exec(
        self,
        id: str,
        container_id: str,
        plan: Fields,
        *,
        terminal: bool,
        stdin: bool,
        attachment: Attachment | None,
        size: tuple[int, int] | None,
        capture: int = 0,
        done: Done,
    ) -> None:
        """Start a process in a container; ``done`` is told of it, or why it can't be.

        Nobody else waits for that: the container may be frozen, or out of memory. Raises NotFound
        and Conflict; then the attachment is still the caller's.
        """
        container = self._containers.get(container_id)
        if container is None or not container.running:
            raise NotFound(f"container {container_id} is not running")
        if id in self._execs:
            raise Conflict(f"exec {id} is running already")
        process = Exec(self._loop, id, container_id, self._exec_tells, capture)
        wanted = (False, False) if attachment is None else attachment.wanted
        theirs: list[int] = []
        ours = [-1, -1, -1]
        if not terminal:
            theirs, ours = exec_streams(stdin, *wanted, captured=bool(capture))

        def arrived(outcome: Launched | StartFailure) -> None:
            if isinstance(outcome, StartFailure):
                _close(*ours)
            else:
                process.started = time.time_ns()
                ends = (ours[0], (ours[1], ours[2]))
                try:
                    process.begin(outcome.pid, outcome.pidfd, outcome.terminal_fd, *ends)
                except OSError as error:
                    process.signal(signal.SIGKILL)
                    process.close()
                    outcome = StartFailure(f"exec {id} cannot be attended to: {error}")
            if isinstance(outcome, StartFailure):
                self._by_pid.pop(process.pid, None)
                self._execs.pop(id, None)
                if attachment is not None:
                    attachment.abandon()
                done(outcome)
                return
            if attachment is not None:
                process.attach(attachment)
            done(_started(process, outcome.warnings))
            process.came()

        start = self._launcher.enter(
            container.pidfd,
            container.entrances,
            plan,
            None if terminal else (theirs[0], theirs[1], theirs[2]),
            size,
        )
        try:
            self._begin(process, start, arrived, lambda _: self._execs.update({id: process}))
        finally:
            _close(*theirs)

    def attach(self, id: str, attachment: Attachment) -> None:
        """Attach a client, now or when the container starts."""
        container = self._containers.get(id)
        if container is not None and container.running:
            container.attach(attachment)
            return
        waiting = [other for other in self._pending.get(id, []) if not other.closed]
        self._pending[id] = [*waiting, attachment]

    def forget(self, id: str) -> None:
        """Drop an exited container, and the clients that wait for one to start.

        Raises Conflict if it runs.
        """
        container = self._containers.get(id)
        if id in self._starting:
            raise Conflict(f"container {id} is being started")
        if container is not None:
            if container.running:
                raise Conflict(f"container {id} is running")
            self._remove(container)
        self._drop_pending(id)

    def reap(self) -> None:
        """Take the exit statuses of all children that have ended."""
        while True:
            try:
                result = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return
            if result is None:
                return
            # What fails at one's end must not keep the others from being reaped.
            attempt(self._ended, result.si_pid, result.si_status, result.si_code != os.CLD_EXITED)

    def _ended(self, pid: int, status: int, killed: bool) -> None:
        """A child was reaped."""
        if process := self._by_pid.pop(pid, None):
            process.end(status + (128 if killed else 0))
        elif call := self._reaped.pop(pid, None):
            call()
        elif arrival := self._helpers.pop(pid, None):
            arrival.ended(pid, -status if killed else status)

    def close(self) -> None:
        """Let go of everything; what runs goes on, what is being started is ended."""
        for _, arrival, _ in list(self._starting.values()):
            arrival.abandon(StartFailure("the keeper ends"))
        for process in [*self._containers.values(), *self._execs.values()]:
            process.close()
        for id in list(self._pending):
            self._drop_pending(id)
        for forwarder in list(self._forwarders):
            forwarder.close()
        for fds in self._offers.values():
            _close(*fds)

    def _new(self, id: str) -> Container:
        directory = f"{self._directory}/{id}"
        return Container(self._loop, id, directory, self._tell, self._settled, self._sending)

    def _sending(self, forwarder: Forwarder) -> None:
        """A container has ended, and its log driver has some more to send."""
        self._forwarders.add(forwarder)
        forwarder.finish(lambda: self._forwarders.discard(forwarder))

    def _remove(self, container: Container) -> None:
        del self._containers[container.id]
        container.close()
        adoption.remove_folder(container.directory)

    def _drop_pending(self, id: str) -> None:
        for attachment in self._pending.pop(id, []):
            attachment.close()

    def _uses(self, cgroup: str) -> bool:
        """Whether something runs, or is being started, in a cgroup."""
        return any(one.cgroup == cgroup for one, _, _ in self._starting.values()) or any(
            one.cgroup == cgroup for one in self._containers.values() if one.running
        )

    def _settled(self, container: Container) -> None:
        """A container has ended; what remains is its cgroup."""
        self._adopted.discard(container.id)
        if container.cgroup is not None:
            try:
                container.oom = self._launcher.oom_kills(container.cgroup) > 0
                self._remains.cgroup(container.cgroup)
            except OSError as error:
                say(f"cgroup {container.cgroup}: {error}")

    def _exec_tells(self, event: Fields) -> None:
        if event["event"] == "exited":
            self._execs.pop(event["id"], None)
        self._tell(event)

    # Adoption.

    def find(self) -> None:
        """See what an earlier keeper left; :meth:`adopt` takes it over."""
        self._found = adoption.find_states(self._directory)

    def take_offer(self, id: str, fds: list[int]) -> None:
        """Keep what a daemon has kept of a container, until it is adopted."""
        if self._found and fds:
            _close(*self._offers.pop(id, []))
            self._offers[id] = [fds.pop(0) for _ in range(len(fds))]

    def adopt(self) -> None:
        """Take over what an earlier keeper left. What a daemon has offered is known by now."""
        found, self._found = self._found, []
        offers, self._offers = self._offers, {}
        for directory, state in found:
            fds = offers.pop(os.path.basename(directory), [])
            try:
                self._adopt_one(directory, state, fds)
            except (OSError, KeyError, TypeError, ValueError):
                # What can't be taken over must not keep the others from it.
                say(f"{directory} could not be adopted")
                report()
        for fds in offers.values():
            _close(*fds)

    def _adopt_one(self, directory: str, state: Fields, fds: list[int]) -> None:
        id = os.path.basename(directory)
        container = self._new(id)
        container.load(state)
        if container.status == "starting":
            _close(*fds)
            self._remains.of_start(id, container.cgroup)
            return
        self._containers[id] = container
        if container.status == "exited":
            _close(*fds)
            return
        self._adopted.add(id)
        pidfd = fds.pop(0) if fds else adoption.open_living(state, self._boot)
        terminal = fds.pop(0) if fds and container.terminal else None
        ends = (-1, (-1, -1))
        try:
            container.record()
            if not container.terminal:
                keep = container.open_stdin and not container.stdin_once
                ends = container.open_ends(stdin=keep)
        except OSError as error:
            # It runs all the same, and can be signalled, and its end be told.
            say(f"{directory}: its streams are lost: {error}")
        # The rest held the content of the FIFOs, which are open now.
        _close(*fds)
        container.begin(container.pid, pidfd if pidfd is not None else -1, terminal, *ends)
        container.terminal = bool(state["terminal"])
        if pidfd is None:
            container.end(None)
        elif adoption.has_ended(pidfd):
            self._adopted_ended(container, _STATUS_TRIES)
        else:
            self._loop.watch(pidfd, IN, lambda _: self._adopted_ended(container, _STATUS_TRIES))
            self._memory.watch(container)
            self._tell(
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


def _started(process: Process, warnings: list[str]) -> Fields:
    return {"pid": process.pid, "started": process.started, "warnings": warnings}


def _close(*fds: int) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)
