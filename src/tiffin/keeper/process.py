"""The keeper as a process: alone, in a session of its own, with nothing inherited."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource

from tiffin.keeper.launcher import NativeLauncher
from tiffin.keeper.loop import say
from tiffin.keeper.server import Server
from tiffin.linux.syscalls import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, prctl

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_MEMORY = 4 << 20


def become_keeper(
    root: str, idle: float, ready: int, launcher: NativeLauncher | None = None
) -> None:
    """Serve ``root`` until it is time to leave; ``ok``, ``busy`` or an error goes to ``ready``."""
    try:
        os.chdir("/")
        os.umask(0o022)
        os.closerange(ready + 1, _open_limit())
        os.set_inheritable(ready, False)
        directory = f"{root}/keeper"
        os.makedirs(directory, mode=0o700, exist_ok=True)
        lock = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.write(ready, b"busy")
            return
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        # Children inherit it and are born with it in a container's pid namespace: until they exec,
        # nothing in there can look at their program, files or memory.
        prctl(PR_SET_DUMPABLE, 0)
        _keep_memory()
        server = Server(root, idle, launcher)

        def tell() -> None:
            os.write(ready, b"ok")
            os.close(ready)

        server.run(tell)
    except OSError as error:
        text = f"the keeper of {root} cannot go on: {error}"
        say(text)
        try:
            os.write(ready, text.encode())
        except OSError:
            # It was ready already; the log has the text.
            pass
        raise SystemExit(1) from error


def _keep_memory() -> None:
    """Keep a little freed memory: to get blocks of 64 KiB from the kernel, zeroed, and give them
    back for each read of output takes more time than all else that is done with them."""
    libc = ctypes.CDLL(None)
    # Other C libraries than glibc have none of this.
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_MEMORY)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_MEMORY)


def _open_limit() -> int:
    """Make room for many containers' descriptors; how many there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
