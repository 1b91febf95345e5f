"""The life of a container after its creation: start, signals, its end.

How its first process is launched and how it is removed, :mod:`tiffin.engine.launches` and
:mod:`tiffin.engine.removal` say.

The keeper tells ends through :meth:`Lifecycle.keeper_event`, in order, on a thread of its own.
After an end the container's restart policy is asked (:mod:`tiffin.engine.restarts`).
Whoever changes a container's state holds ``container.lock``. What takes long after an end
(measuring the layer, ``--rm``) is done by a worker thread, so that ends are noticed at once.

If the daemon dies here: the row says "running", and at the next start
:mod:`tiffin.engine.reconciliation` asks the keeper what became of each such container.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tiffin.engine import health, restarts
from tiffin.engine.container import Container
from tiffin.engine.events import Events
from tiffin.engine.launches import Launches
from tiffin.engine.removal import Removal
from tiffin.engine.restarts import Restarts
from tiffin.engine.root import Root
from tiffin.engine.roster import Roster
from tiffin.engine.sandboxes import Sandboxes
from tiffin.engine.signals import parse_signal
from tiffin.engine.volumes import Volumes
from tiffin.engine.waiting import Waiter
from tiffin.errors import Conflict, NotFound, NotModified, TiffinError, Unreachable
from tiffin.keeper.client import KeeperClient
from tiffin.layer.store import LayerStore
from tiffin.linux.cgroups import Hierarchy
from tiffin.store.database import Database

JSON = dict[str, Any]

UNKNOWN_EXIT = 255
"""The exit code that a container gets whose end nobody saw; ``State.Error`` says so."""


class Lifecycle:
    """Starts and stops the containers of a root."""

    def __init__(
        self,
        database: Database,
        root: Root,
        roster: Roster,
        layers: LayerStore,
        volumes: Volumes,
        sandboxes: Sandboxes,
        events: Events,
        cgroup_prefix: str,
    ) -> None:
        self._database = database
        self._roster = roster
        self._layers = layers
        self.sandboxes = sandboxes
        self._events = events
        self._prefix = cgroup_prefix
        self.keeper = KeeperClient(root.path, self.keeper_event)
        self._cgroups = Hierarchy.detect()
        self.launches = Launches(
            root, roster, layers, volumes, sandboxes, self.keeper, self._cgroups, cgroup_prefix
        )
        self._jobs: queue.SimpleQueue[Container | None] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, name="lifecycle", daemon=True)
        self._worker.start()
        self._watchers: dict[str, Callable[[JSON], None]] = {}
        self._restarts = Restarts(self._start_again)
        self.removal = Removal(
            database,
            root,
            roster,
            layers,
            volumes,
            events,
            self.keeper,
            self._restarts,
            self._kill_and_wait,
        )
        self.boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        """The boot of the machine that this is."""
        self.look: Callable[[Container], None] = lambda container: None
        """Called after each change between running and not running, the container's lock held."""
        self.exec_ended: Callable[[JSON], None] = lambda event: None

    def close(self) -> None:
        """Finish the work that ends have left, and let go of the keeper."""
        self._restarts.close()
        self._jobs.put(None)
        self._worker.join()
        self.keeper.close()
        if not any(container.running for container in self._roster.all()):
            # The group that the containers' own ones were in; False where something is in it yet.
            self._cgroups.delete(self._prefix)

    # -- starting ---------------------------------------------------------------------------

    def start(self, container: Container) -> None:
        """Start a container; raises NotModified if it runs, StartFailure if its program can't."""
        with container.lock:
            if container.removed or container.removing:
                raise Conflict(f"container {container.id} is marked for removal, it can't start")
            if container.state.status == "paused":
                raise Conflict("cannot start a paused container, try unpause instead")
            if container.active:
                raise NotModified(f"container {container.id} is running already")
            container.state.restarts = 0
            container.backoff = 0.0
            self._start_locked(container)

    def _start_again(self, container: Container) -> None:
        """What a restart policy wants, in its time."""
        with container.lock:
            if container.state.status != "restarting" or container.removing or container.removed:
                return
            container.state.restarts += 1
            try:
                self._start_locked(container)
            except (OSError, TiffinError) as error:
                # Nobody is there to be told but who looks at the state.
                container.state.status, container.state.error = "exited", str(error)
                container.save_state(self._database)
                self.finish(container)

    def _start_locked(self, container: Container) -> None:
        try:
            answer = self.launches.launch(container)
        except TiffinError as error:
            container.state.exit_code = error.exit_code
            container.state.error = error.message
            container.save_state(self._database)
            if container.auto_remove:
                self.finish(container)
            raise
        self.begun(container, answer["pid"], answer["started"])
        self.look(container)
        # With the lock still held, as at the end: nobody hears of an end before the start.
        self._tell_volumes(container, "mount")
        self._events.publish("container", "start", container.id, **container.attributes())

    def begun(self, container: Container, pid: int, started: int) -> None:
        """Write down that a run has begun. The lock must be held."""
        state = container.state
        state.status, state.pid, state.started = "running", pid, started
        state.exit_code, state.error, state.oom_killed = 0, "", False
        state.finished = 0
        state.runs += 1
        state.stopped_by_hand, state.boot = False, self.boot
        health.at_start(container)
        container.size = None
        container.save_state(self._database)

    @contextmanager
    def watching(self, container_id: str, ended: Callable[[JSON], None]) -> Iterator[None]:
        """Inside the block, the end of a container that has no row is told to ``ended``."""
        self._watchers[container_id] = ended
        try:
            yield
        finally:
            del self._watchers[container_id]

    # -- ends -------------------------------------------------------------------------------

    def keeper_event(self, event: JSON) -> None:
        """What the keeper tells; called by its client's thread."""
        kind = event.get("event")
        if kind == "exited" and event.get("exec"):
            self.exec_ended(event)
        elif kind == "exited" and (watcher := self._watchers.get(event["id"])) is not None:
            watcher(event)
        elif kind == "exited":
            container = self._roster.find(event["id"])
            if container is None:
                self.keeper.forget(event["id"])
                return
            self._run_ended(container, event)
        elif kind == "oom":
            container = self._roster.find(event["id"])
            if container is not None:
                with container.lock:
                    if container.running:
                        self._out_of_memory(container)
        elif kind == "detached":
            container = self._roster.find(event["id"])
            if container is not None:
                self._events.publish("container", "detach", container.id, **container.attributes())

    def _out_of_memory(self, container: Container) -> None:
        with container.lock:
            if not container.state.oom_killed:
                container.state.oom_killed = True
                container.save_state(self._database)
            self._events.publish("container", "oom", container.id, **container.attributes())

    def _run_ended(self, container: Container, event: JSON) -> None:
        # The lock first: whoever is just starting it may not have written its start down yet.
        with container.lock:
            if event.get("started", container.state.started) != container.state.started:
                # An earlier run's end, told once more.
                return
            if container.running:
                self.ended(container, event["code"], event["at"], bool(event.get("oom")))
            else:
                # The keeper that was told to forget it has died.
                self.keeper.forget(container.id)

    def ended(self, container: Container, code: int | None, at: int, oom: bool) -> None:
        """Write an end down, at a time in nanoseconds, unless that was done; None: a code that
        nobody knows."""
        with container.lock:
            if not container.running:
                return
            state = container.state
            try:
                self.launches.release(container)
            except (OSError, TiffinError) as error:
                # It has ended all the same.
                state.error = str(error)
            if oom and not state.oom_killed:
                self._out_of_memory(container)
            state.exit_code = UNKNOWN_EXIT if code is None else code
            again = not container.removing and restarts.wanted(container, state.exit_code)
            state.status = "restarting" if again else "exited"
            state.pid, state.finished = 0, at
            container.last_end = (state.runs, state.exit_code)
            if code is None:
                state.error = "its exit status is unknown: it ended while nobody watched"
            health.at_end(container)
            container.save_state(self._database)
            self.look(container)
            # Before the lock is given up, so that whoever starts it again finds the keeper clean.
            with suppress(Unreachable):
                # A keeper that has died is followed by one that tells the end again.
                self.keeper.forget(container.id)
            self._events.publish(
                "container",
                "die",
                container.id,
                exitCode=str(state.exit_code),
                execDuration=str(max(0, (at - state.started) // 10**9)),
                **container.attributes(),
            )
            self._tell_volumes(container, "unmount")
            if again:
                self.plan_restart(container, max(0, at - state.started))
                return
        self.finish(container)

    def plan_restart(self, container: Container, ran: int) -> None:
        """Start it again after a while, in view of a run of ``ran`` nanoseconds."""
        self._restarts.plan(container, restarts.delay(container, ran))

    def finish(self, container: Container) -> None:
        """Have done what an end leaves to do, by the worker."""
        self._jobs.put(container)

    def _tell_volumes(self, container: Container, action: str) -> None:
        for point in container.spec.mounts:
            if point.kind == "volume":
                told = {"driver": point.driver, "container": container.id}
                if action == "mount":
                    told["destination"] = point.target
                    told["read/write"] = str(point.writable).lower()
                    told["propagation"] = point.propagation
                self._events.publish("volume", action, point.name, **told)

    def _work(self) -> None:
        while (container := self._jobs.get()) is not None:
            try:
                self._after_end(container)
            except (OSError, TiffinError) as error:
                # One container's trouble must not end this thread; it stays to be seen with it.
                with container.lock:
                    container.state.error = str(error)
                    container.save_state(self._database)

    def _after_end(self, container: Container) -> None:
        with container.lock:
            if container.active or container.removed or container.removing:
                return
            self._layers.release(container.snapshot)
        if container.auto_remove and not container.spared:
            try:
                self.removal.remove(container, force=False, volumes=True)
            except (NotFound, Conflict):
                # Somebody else is removing it.
                return
        else:
            self.measure(container)

    def measure(self, container: Container) -> int:
        """Bytes of the container's own files; kept in the database while it doesn't run."""
        with container.lock:
            if container.size is not None:
                return container.size
            runs, running = container.state.runs, container.running
        size = self._layers.usage(container.snapshot).size
        if container.frozen:
            size += self._layers.size(container.frozen)
            size -= self._layers.size(container.base) if container.base else 0
        with container.lock:
            if not running and not container.running and container.state.runs == runs:
                container.size = size
                if not container.removed:
                    container.save_state(self._database)
        return size

    # -- signals ----------------------------------------------------------------------------

    def kill(self, container: Container, signum: int) -> None:
        """Send a signal to the first process; raises Conflict if the container doesn't run.

        After a signal that is meant to end it, its restart policy lets it rest.
        """
        with container.lock:
            ending = signum in _ENDING or signum == _stop_signal(container)
            if ending:
                self._let_rest(container)
            if not container.running:
                raise Conflict(f"container {container.id} is not running")
        self.keeper.signal(container.id, signum)
        if ending:
            # What is frozen doesn't end.
            self._unpause_if_paused(container)
        self._events.publish(
            "container", "kill", container.id, signal=str(signum), **container.attributes()
        )

    def _let_rest(self, container: Container) -> None:
        """Don't restart it when it ends, or now. Its lock must be held."""
        state = container.state
        if not container.active:
            return
        if state.status == "restarting":
            self._restarts.cancel(container)
            state.status = "exited"
            self.finish(container)
        state.stopped_by_hand = True
        container.save_state(self._database)

    def stop(self, container: Container, timeout: float | None, signum: int | None) -> None:
        """Ask to end by the stop signal, and kill after ``timeout`` seconds (negative: never)."""
        with container.lock:
            if not container.active:
                raise NotModified(f"container {container.id} is not running")
            self._let_rest(container)
            waiter = Waiter(container, "not-running")
        if timeout is None:
            given = container.spec.config.get("StopTimeout")
            timeout = 10 if given is None else given
        self._unpause_if_paused(container)
        for number, patience in ((signum or _stop_signal(container), timeout), (9, None)):
            try:
                self.kill(container, number)
            except (Conflict, NotFound):
                # It has ended, and its end is about to be told.
                break
            if waiter.result(None if patience is None or patience < 0 else patience) is not None:
                break
        waiter.result()
        self._events.publish("container", "stop", container.id, **container.attributes())

    def pause(self, container: Container) -> None:
        """Freeze all processes; raises Conflict unless it runs."""
        with container.lock:
            if container.state.status == "paused":
                raise Conflict(f"Container {container.id} is already paused")
            if not container.running:
                raise Conflict(f"Container {container.id} is not running")
            try:
                self._cgroups.freeze(self.launches.cgroup(container))
            except FileNotFoundError as error:
                # It has ended, and its end is about to be told.
                raise Conflict(f"Container {container.id} is not running") from error
            container.state.status = "paused"
            container.save_state(self._database)
            self.look(container)
            self._events.publish("container", "pause", container.id, **container.attributes())

    def unpause(self, container: Container) -> None:
        """Thaw a paused container; raises Conflict if it isn't one."""
        with container.lock:
            if container.state.status != "paused":
                raise Conflict(f"Container {container.id} is not paused")
            try:
                self._cgroups.thaw(self.launches.cgroup(container))
            except FileNotFoundError:
                raise Conflict(f"Container {container.id} is not running") from None
            container.state.status = "running"
            container.save_state(self._database)
            self.look(container)
            self._events.publish("container", "unpause", container.id, **container.attributes())

    def _unpause_if_paused(self, container: Container) -> None:
        with container.lock:
            if container.state.status == "paused":
                with suppress(Conflict):
                    # It has ended, and its end is about to be told.
                    self.unpause(container)

    @contextmanager
    def frozen(self, container: Container) -> Iterator[None]:
        """Inside the block a running container is paused, but its row does not say so: should this
        process be killed, the next one lets it go on."""
        with container.lock:
            ours = container.state.status == "running"
            if ours:
                try:
                    self._cgroups.freeze(self.launches.cgroup(container))
                    container.state.status = "paused"
                except FileNotFoundError:
                    # It has ended, and its end is about to be told: nothing of it moves.
                    ours = False
        try:
            yield
        finally:
            with container.lock:
                # It may have been unpaused by hand, or killed, meanwhile.
                if ours and container.state.status == "paused":
                    container.state.status = "running"
                    try:
                        self._cgroups.thaw(self.launches.cgroup(container))
                    except FileNotFoundError:
                        # What was killed has ended, frozen or not: its end is about to be told.
                        pass

    def let_go(self, container: Container) -> None:
        """Thaw what a daemon has left frozen that died in :meth:`frozen`."""
        group = self.launches.cgroup(container)
        if container.state.status == "running" and self._cgroups.frozen(group):
            self._cgroups.thaw(group)

    def _kill_and_wait(self, container: Container) -> None:
        """End it, whatever it does with signals."""
        waiter = Waiter(container, "not-running")
        self._unpause_if_paused(container)
        try:
            self.keeper.signal(container.id, signal.SIGKILL)
        except NotFound:
            # It has ended, and its end is about to be told.
            pass
        waiter.result()


_ENDING = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT)
"""Who sends one of these does not want the container to come back by itself."""


def _stop_signal(container: Container) -> int:
    return parse_signal(container.spec.config.get("StopSignal") or "SIGTERM")
