"""The console script ``tiffin-runtime``: seals the interpreter, then loads the command.

What starts processes in containers is run from a read-only copy of the interpreter, so that nothing
in a container can overwrite it through ``/proc/PID/exe`` (CVE-2019-5736).
"""

from __future__ import annotations

import os
import sys

_SEALED = "_TIFFIN_RUNTIME_SEALED"
_STARTING = {"create", "exec", "run"}


def _seal() -> None:
    if os.environ.pop(_SEALED, "") or not _STARTING.intersection(sys.argv[1:]):
        return
    from tiffin.linux.mounts import read_only_executable

    program = read_only_executable(sys.executable)
    words = [sys.executable, *sys.orig_argv[1:]]
    os.execve(f"/proc/self/fd/{program}", words, {**os.environ, _SEALED: "1"})


def main() -> None:
    """Run the command of this process's arguments."""
    _seal()
    from tiffin.runtime.command import main as command

    raise SystemExit(command(sys.argv[1:]))


if __name__ == "__main__":
    main()
