"""Restart policies: whether a container that has ended is started again, and when.

The delay begins at 100 ms, doubles with each restart up to one minute, and begins anew after a run
of 10 seconds or more. A container that was stopped by hand is not restarted; with ``always`` it is
started again when the machine has booted, like all that were running or waiting to be restarted.

Source: the reference of ``docker run --restart``.
"""

from __future__ import annotations

from collections.abc import Callable

from tiffin.engine.container import Container
from tiffin.engine.schedule import Due, Schedule

_FIRST = 0.1
_LONGEST = 60.0
_GOOD_RUN = 10 * 10**9


def wanted(container: Container, code: int) -> bool:
    """Whether the policy wants a container started again that has ended with ``code``."""
    policy = container.spec.host.get("RestartPolicy") or {}
    most = policy.get("MaximumRetryCount") or 0
    if container.state.stopped_by_hand:
        return False
    match policy.get("Name"):
        case "always" | "unless-stopped":
            return True
        case "on-failure":
            return code != 0 and (most == 0 or container.state.restarts < most)
    return False


def wanted_after_boot(container: Container, boot: str) -> bool:
    """Whether a container that was stopped by hand is started now that the machine has booted."""
    policy = container.spec.host.get("RestartPolicy") or {}
    state = container.state
    return (
        policy.get("Name") == "always"
        and state.status == "exited"
        and state.stopped_by_hand
        and bool(state.boot)
        and state.boot != boot
    )


def delay(container: Container, ran: int) -> float:
    """Seconds until the next restart, after a run of ``ran`` nanoseconds."""
    if ran >= _GOOD_RUN:
        container.backoff = 0.0
    container.backoff = min(_LONGEST, container.backoff * 2 or _FIRST)
    return container.backoff


class Restarts:
    """The restarts to come. ``start`` starts a container again, if that is still wanted."""

    def __init__(self, start: Callable[[Container], None]) -> None:
        self._start = start
        self._schedule = Schedule("restarts")
        self._due: dict[str, Due] = {}

    def plan(self, container: Container, seconds: float) -> None:
        """Start it in so many seconds; an earlier plan is dropped. Its lock must be held."""
        self.cancel(container)
        self._due[container.id] = self._schedule.after(seconds, lambda: self._start(container))

    def cancel(self, container: Container) -> None:
        """Don't start it."""
        due = self._due.pop(container.id, None)
        if due is not None:
            due.cancel()

    def close(self) -> None:
        """Start nothing any more; the next engine of this root goes on."""
        self._schedule.close()
