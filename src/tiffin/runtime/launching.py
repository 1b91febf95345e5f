"""A start under way: a generator of what it waits for.

Starting a container takes as long as mounts, a runtime's command and the container's own cgroup
let it: a frozen one, or a network file system that hangs, for ever. So whoever starts one is not
kept waiting. A start (:data:`Launching`) is a generator, which yields

- :class:`Begun`: there is this child now; go on;
- :class:`Readable`: go on when this descriptor can be read;
- :class:`Ended`: go on with the exit code of this child, which was reaped;

and returns a :class:`Launched`, or raises :class:`tiffin.errors.StartFailure`. Closing it ends it:
it kills its children and lets go of its descriptors. The streams that it was given may be closed
after the first wait. Killed children are reaped by whoever drives it, who also removes the cgroups
then.

The keeper drives many at a time; :func:`finish` drives one to its end.

This module is part of the keeper: it imports next to nothing.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal, without the enums
import os
import select
import time

from tiffin.errors import StartFailure

TYPE_CHECKING = False  # typing itself would cost the keeper more than all the rest
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any, TypeAlias

    Step: TypeAlias = "Begun | Readable | Ended"
    Launching = Generator[Step, Any, "Launched"]

PATIENCE = 120.0
"""Seconds that a start may take."""


class Stdio:
    """Where a process's streams lead: three descriptors, or None for a terminal of its own.

    The descriptors stay the caller's; the child gets copies. ``size`` is the terminal's (rows,
    columns), (0, 0) for none.
    """

    __slots__ = ("fds", "size")

    def __init__(
        self, fds: tuple[int, int, int] | None, size: tuple[int, int] | None = None
    ) -> None:
        self.fds = fds
        self.size = size or (0, 0)


class Launched:
    """A started process: ``pid``, ``pidfd``, ``terminal_fd`` (the master, or None), ``warnings``.
    The descriptors are the caller's, close-on-exec."""

    __slots__ = ("pid", "pidfd", "terminal_fd", "warnings")

    def __init__(self, pid: int, pidfd: int, terminal_fd: int | None, warnings: list[str]) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.terminal_fd = terminal_fd
        self.warnings = warnings


class Begun:
    """There is a child ``pid``, which the driver reaps. Its ``own`` one is the container's (or the
    exec'd) process itself, on its way to its program; another one helps with that."""

    __slots__ = ("own", "pid")

    def __init__(self, pid: int, *, own: bool) -> None:
        self.pid = pid
        self.own = own


class Readable:
    """Go on when ``fd``, which stays the start's, can be read, or its other end is gone."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd


class Ended:
    """Go on when the child ``pid``, of which :class:`Begun` told, has ended and was reaped; with
    its exit code (negative: the signal that killed it)."""

    __slots__ = ("pid",)

    def __init__(self, pid: int) -> None:
        self.pid = pid


def too_late() -> StartFailure:
    """Why a start was closed that has taken :data:`PATIENCE` seconds."""
    return StartFailure("the container did not start in time")


def kill(pidfd: int) -> None:
    """Kill a child, told by its pidfd: it may have ended and been reaped, and its number be
    another process's."""
    try:
        _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)
    except ProcessLookupError:
        # It has ended.
        pass


def finish(start: Launching) -> Launched:
    """Drive a start to its end, and wait meanwhile. Raises StartFailure; all is reaped then."""
    deadline = time.monotonic() + PATIENCE
    children: list[int] = []
    answer = None
    try:
        while True:
            wanted = start.send(answer)
            answer = None
            if isinstance(wanted, Begun):
                children.append(wanted.pid)
                continue
            if isinstance(wanted, Ended):
                pidfd = os.pidfd_open(wanted.pid)
                try:
                    _await(pidfd, deadline)
                finally:
                    os.close(pidfd)
                answer = os.waitstatus_to_exitcode(os.waitpid(wanted.pid, 0)[1])
                children.remove(wanted.pid)
            else:
                _await(wanted.fd, deadline)
    except StopIteration as end:
        launched: Launched = end.value
        return launched
    except BaseException:
        start.close()
        for pid in children:
            _reap(pid)
        raise


def _await(fd: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise too_late()


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        # The caller's own SIGCHLD handler was faster.
        pass
