"""Makes the probes of health checks: execs of the keeper, planned by one thread for all containers.

A probe's end comes as an event of the keeper, with its output; it is then written down, and the
next one planned. A probe that takes too long is killed. Paused and stopped containers have none.
"""

from __future__ import annotations

import signal
import time

from tiffin.engine import health
from tiffin.engine.container import Container, Probe
from tiffin.engine.events import Events
from tiffin.engine.execs import Exec, Execs
from tiffin.engine.health import Check
from tiffin.engine.lifecycle import Lifecycle
from tiffin.engine.schedule import Due, Schedule
from tiffin.errors import NotFound, TiffinError
from tiffin.store.database import Database

_KILLED = 128 + signal.SIGKILL
_GRACE = 2.0


class _Monitor:
    """The probes of one run of a container. Its fields are changed with the container's lock."""

    def __init__(self, container: Container, check: Check) -> None:
        self.container = container
        self.check = check
        self.due: Due | None = None
        self.deadline: Due | None = None
        self.started = 0
        self.late = False
        self.over = False


class HealthChecks:
    """The health checks of a root's containers."""

    def __init__(
        self, database: Database, lifecycle: Lifecycle, execs: Execs, events: Events
    ) -> None:
        self._database = database
        self._lifecycle = lifecycle
        self._execs = execs
        self._events = events
        self._schedule = Schedule("health")
        self._monitors: dict[str, _Monitor] = {}
        lifecycle.look = self._look

    def close(self) -> None:
        """Make no further probe."""
        self._schedule.close()

    def _look(self, container: Container) -> None:
        """The container's state has changed; its lock is held."""
        known = self._monitors.pop(container.id, None)
        if known is not None:
            known.over = True
            for due in (known.due, known.deadline):
                if due is not None:
                    due.cancel()
        check = health.check_of(container)
        if container.state.status != "running" or check is None:
            return
        if container.state.health is None:
            health.at_start(container)
        monitor = self._monitors[container.id] = _Monitor(container, check)
        self._plan(monitor)

    def _plan(self, monitor: _Monitor) -> None:
        seconds = health.pause(monitor.container, monitor.check, time.time_ns())
        monitor.due = self._schedule.after(seconds, lambda: self._probe(monitor))

    def _probe(self, monitor: _Monitor) -> None:
        container, check = monitor.container, monitor.check
        with container.lock:
            if monitor.over:
                return
            monitor.started, monitor.late = time.time_ns(), False
        try:
            exec_id = self._execs.create(container.id, {"Cmd": check.command})["Id"]
            with container.lock:
                monitor.deadline = self._schedule.after(
                    check.timeout / 1e9, lambda: self._too_late(monitor, exec_id)
                )
            self._execs.capture(
                exec_id, health.LONGEST_OUTPUT, lambda one: self._ended(monitor, one)
            )
        except TiffinError as error:
            self._result(monitor, -1, error.message)

    def _too_late(self, monitor: _Monitor, exec_id: str) -> None:
        with monitor.container.lock:
            monitor.late = True
        try:
            self._lifecycle.keeper.signal(exec_id, signal.SIGKILL)
        except NotFound:
            # It has just ended by itself.
            pass

    def _ended(self, monitor: _Monitor, one: Exec) -> None:
        if one.exit_code == _KILLED and not monitor.late:
            # It may have died with its container, whose end is told after this one: that would say
            # nothing of its health.
            self._schedule.after(_GRACE, lambda: self._result(monitor, _KILLED, one.output))
        elif monitor.late:
            text = f"Health check exceeded timeout ({health.duration(monitor.check.timeout)})"
            self._result(monitor, -1, f"{text}: {one.output}" if one.output else text)
        elif one.exit_code is None:
            self._result(monitor, -1, "the keeper died while the health check ran")
        else:
            self._result(monitor, one.exit_code, one.output)

    def _result(self, monitor: _Monitor, code: int, output: str) -> None:
        container = monitor.container
        with container.lock:
            if monitor.deadline is not None:
                monitor.deadline.cancel()
            if monitor.over:
                return
            probe = Probe(monitor.started, time.time_ns(), code, output)
            changed = health.record(container, monitor.check, probe)
            if changed:
                container.save_state(self._database)
            self._plan(monitor)
        if changed:
            self._events.publish(
                "container",
                f"health_status: {health.status(container)}",
                container.id,
                **container.attributes(),
            )
