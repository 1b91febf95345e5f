"""Daemons: processes that outlive the one that starts them.

What is started forks the process that stays, and ends. It has a session of its own, nothing of our
terminal, signals and descriptors, and says on one descriptor what became of its start.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

_READY = 3
_LOWEST = 10
"""Above the descriptors that a daemon begins with."""


def above(fd: int) -> int:
    """A copy of a descriptor that is in no daemon's way; both are the caller's."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST)


def start(
    words: Sequence[str], log: Path, kept: Iterable[str], deadline: float, program: str = ""
) -> str:
    """Start a daemon, and wait until it is ready: what it said, empty if it died.

    ``words`` are its command line, to which the number is added of the descriptor on which it
    speaks; ``program`` is the file that is executed, if not their first. ``log`` gets its output,
    ``kept`` are the variables of our environment that it has too, and ``deadline`` is on the
    monotonic clock. Raises OSError if it can't be started.
    """
    reader, writer = os.pipe()
    try:
        ready = above(writer)
        os.close(writer)
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            pid = os.posix_spawn(
                program or words[0],
                [*words, str(_READY)],
                {name: os.environ[name] for name in kept if name in os.environ},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                    (os.POSIX_SPAWN_DUP2, ready, _READY),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            )
        finally:
            os.close(ready)
        said = b""
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            data = os.read(reader, 4096)
            if not data:
                break
            said += data
        os.waitpid(pid, 0)
    finally:
        os.close(reader)
    return said.decode(errors="replace").strip()
