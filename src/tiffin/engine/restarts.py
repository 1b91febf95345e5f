"""Restart policies: whether a container that has ended is started again, and when.

The delay begins at 100 ms, doubles with each restart up to one minute, and begins anew after a run
of 10 seconds or more. A container that was stopped by hand is not restarted; with ``always``, and
with ``on-failure`` if it failed, it is started again with the daemon, as Docker does. That is a
daemon that stays (``tiffin serve``), or the first one after a boot: those that commands start come
and go with the commands.

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


def wanted_anew(container: Container, boot: str, lasting: bool) -> bool:
    """Whether a container that rests is started with the daemon: one that stays (``lasting``), or
    the first in the machine's present ``boot``."""
    policy = container.spec.host.get("RestartPolicy") or {}
    state = container.state
    if (
        state.status != "exited"
        or not state.runs
        or not (lasting or (state.boot and state.boot != boot))
    ):
        return False
    most = policy.get("MaximumRetryCount") or 0
    match policy.get("Name"):
        case "always":
            return True
        case "on-failure":
            return state.exit_code != 0 and (most == 0 or state.restarts < most)
    return False


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
