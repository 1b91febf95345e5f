"""``rootless.py COMMAND…``, as root: runs the command as the root of a user namespace, which is the
user 1000 outside, with 65,535 more ids and a mount namespace of its own."""

from __future__ import annotations

import os
import sys

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
USER = 1000
MAP = f"0 {USER} 1\n1 100000 65535\n"


def main() -> int:
    """The exit code of the command."""
    unshared, mapped = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(mapped[1])
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        _unshare()
        os.write(unshared[1], b"x")
        if not os.read(mapped[0], 1):
            os._exit(1)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        os.execvp(sys.argv[1], sys.argv[1:])
    os.close(unshared[1])
    if os.read(unshared[0], 1):
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write(MAP)
        os.write(mapped[1], b"x")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _unshare() -> None:
    # os.unshare came with Python 3.12.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        code = ctypes.get_errno()
        raise OSError(code, f"unshare: {os.strerror(code)}")


if __name__ == "__main__":
    sys.exit(main())
