"""Health checks: what is asked for, and what their results mean.

A *probe* is one check: a command run in the container. Exit code 0 means healthy; as many failures
in a row as ``Retries`` says mean unhealthy, but while a container is still starting, failures in
its start period do not count. :mod:`tiffin.engine.probes` makes the probes.

Source: Docker Engine API v1.50, ``HealthConfig`` and ``Health``; the reference of HEALTHCHECK.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tiffin.engine import timestamps
from tiffin.engine.container import Container, Health, Probe
from tiffin.errors import InvalidParameter

JSON = dict[str, Any]

STATUSES = ("starting", "healthy", "unhealthy", "none")
LONGEST_OUTPUT = 4096
_LONGEST_LOG = 5
_SECOND = 1_000_000_000
_FIELDS = ("Test", "Interval", "Timeout", "StartPeriod", "StartInterval", "Retries")


@dataclass(frozen=True, slots=True)
class Check:
    """A container's health check; times are nanoseconds."""

    command: list[str]
    interval: int
    timeout: int
    start_period: int
    start_interval: int
    retries: int


def validate(check: Mapping[str, Any] | None) -> None:
    """Check a ``HealthConfig``. Raises InvalidParameter, in Docker's words."""
    if not check:
        return
    for key in ("Interval", "Timeout", "StartPeriod", "StartInterval"):
        if check.get(key) and check[key] < 1_000_000:
            raise InvalidParameter(f"{key} in Healthcheck cannot be less than 1ms")
    if (check.get("Retries") or 0) < 0:
        raise InvalidParameter("Retries in Healthcheck cannot be negative")
    test = check.get("Test")
    if test and test[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise InvalidParameter(
            f"unknown health check '{test[0]}': a Test begins with NONE, CMD or CMD-SHELL"
        )
    if test and test[0] != "NONE" and len(test) < 2:
        raise InvalidParameter(f"the health check {test[0]} has no command")


def merge(own: Mapping[str, Any] | None, image: Mapping[str, Any] | None) -> JSON | None:
    """The container's check with the image's filled in where the user said nothing."""
    if not own:
        return dict(image) if image else None
    merged = {key: own.get(key) or (image or {}).get(key) for key in _FIELDS}
    return {key: value for key, value in merged.items() if value}


def check_of(container: Container) -> Check | None:
    """The check that a container has, or None."""
    config = container.spec.config.get("Healthcheck") or {}
    test = config.get("Test") or ["NONE"]
    if test[0] == "NONE":
        return None
    command = list(test[1:])
    if test[0] == "CMD-SHELL":
        command = [*(container.spec.config.get("Shell") or ["/bin/sh", "-c"]), *command[:1]]
    return Check(
        command,
        config.get("Interval") or 30 * _SECOND,
        config.get("Timeout") or 30 * _SECOND,
        config.get("StartPeriod") or 0,
        config.get("StartInterval") or 5 * _SECOND,
        config.get("Retries") or 3,
    )


def at_start(container: Container) -> None:
    """The container starts: nothing is known of its health. Its lock must be held."""
    state = container.state
    if check_of(container) is None:
        state.health = None
    else:
        state.health = Health(log=state.health.log if state.health else [])


def at_end(container: Container) -> None:
    """It has ended; as in Docker that is unhealthy. Its lock must be held."""
    if container.state.health is not None:
        container.state.health.status = "unhealthy"


def status(container: Container) -> str:
    """One of :data:`STATUSES`."""
    return container.state.health.status if container.state.health else "none"


def pause(container: Container, check: Check, now: int) -> float:
    """Seconds until the next probe."""
    starting = status(container) == "starting"
    if starting and now - container.state.started < check.start_period:
        return check.start_interval / _SECOND
    return check.interval / _SECOND


def record(container: Container, check: Check, probe: Probe) -> bool:
    """Take a probe's result in; whether the status has changed. The lock must be held."""
    health = container.state.health
    if health is None:
        return False
    before = health.status
    health.log = [*health.log, probe][-_LONGEST_LOG:]
    early = probe.start - container.state.started < check.start_period
    if probe.exit_code == 0:
        health.status, health.streak = "healthy", 0
    elif not (before == "starting" and early):
        health.streak += 1
        if health.streak >= check.retries:
            health.status = "unhealthy"
    return health.status != before


def view(health: Health) -> JSON:
    """``State.Health`` of ``inspect``."""
    return {
        "Status": health.status,
        "FailingStreak": health.streak,
        "Log": [
            {
                "Start": timestamps.rfc3339(probe.start),
                "End": timestamps.rfc3339(probe.end),
                "ExitCode": probe.exit_code,
                "Output": probe.output,
            }
            for probe in health.log
        ],
    }


def duration(nanoseconds: int) -> str:
    """A duration as Go writes it: ``1m30s``, ``1.5s``, ``200ms``."""
    if nanoseconds < _SECOND:
        return f"{nanoseconds / 1_000_000:.6f}".rstrip("0").rstrip(".") + "ms"
    minutes, rest = divmod(nanoseconds, 60 * _SECOND)
    seconds = f"{rest / _SECOND:.9f}".rstrip("0").rstrip(".") + "s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds
