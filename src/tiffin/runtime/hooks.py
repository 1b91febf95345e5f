"""The hooks of an OCI configuration: programs that are run at points of a container's life.

Each gets the container's state as JSON on its standard input. Source: OCI runtime specification
1.2, ``config.md``, POSIX-platform Hooks.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from tiffin.errors import StartFailure
from tiffin.linux import syscalls

JSON = dict[str, Any]


def run(
    config: JSON, kind: str, state: JSON, complain: Callable[[str], None] | None = None
) -> None:
    """Run the hooks of a kind in their order.

    One that fails raises StartFailure; with ``complain`` it is told there, and the others go on.
    """
    for hook in (config.get("hooks") or {}).get(kind) or []:
        try:
            _run(hook, kind, json.dumps(state).encode())
        except StartFailure as failure:
            if complain is None:
                raise
            complain(failure.message)


def _run(hook: JSON, kind: str, state: bytes) -> None:
    path = hook["path"]
    reader, writer = os.pipe()
    pid = syscalls.clone(0)
    if pid == 0:
        try:
            os.dup2(reader, 0)
            syscalls.close_range(3)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            environment = dict(text.partition("=")[::2] for text in hook.get("env") or [])
            os.execve(path, hook.get("args") or [path], environment)
        except OSError as error:
            os.write(2, f"{path}: {error.strerror}\n".encode())
        finally:
            os._exit(127)
    os.close(reader)
    try:
        os.write(writer, state)
    except BrokenPipeError:
        # It doesn't read its input, as it may.
        pass
    finally:
        os.close(writer)
    status = _wait(pid, hook.get("timeout"))
    if status is None:
        raise StartFailure(f"{kind} hook {path}: it took longer than {hook['timeout']} s")
    if status != 0:
        raise StartFailure(f"{kind} hook {path}: exit status {status}")


def _wait(pid: int, timeout: float | None) -> int | None:
    """The exit code; None for a process that took too long, and was killed."""
    ended = True
    if timeout:
        pidfd = os.pidfd_open(pid)
        try:
            deadline = time.monotonic() + timeout
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            ended = bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        finally:
            os.close(pidfd)
        if not ended:
            os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if ended else None
