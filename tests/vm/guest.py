"""Runs a command in a guest whose kernel has another version of cgroups than the machine's own.

The guest is User-Mode Linux (Debian's package ``user-mode-linux``): a process that needs neither
KVM nor an image of a disk. It sees the host's files, read-only, and has memory of its own.

``python tests/vm/guest.py VERSION COMMAND…`` (1, 2 or hybrid) does it by hand, in this folder and
with this environment; temporary files go to ``/mnt``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

KERNEL = shutil.which("linux.uml")
"""None where the package is not installed."""
TEMPORARY = "/mnt"
INIT = Path(__file__).with_name("init")


class GuestFailure(Exception):
    """The guest ended without having run its command."""


def run(
    version: str, command: Sequence[str], memory: str = "2G", modules: Sequence[str] = ()
) -> tuple[int, str]:
    """The exit code and the output of ``command``, with further modules of the guest's kernel.

    Raises GuestFailure.
    """
    assert KERNEL is not None
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        job = {
            "cgroups": version,
            "modules": list(modules),
            "command": list(command),
            "folder": os.getcwd(),
            "environment": {
                **os.environ,
                "TMPDIR": TEMPORARY,
                "PYTHONDONTWRITEBYTECODE": "1",
                "HOME": TEMPORARY,
            },
        }
        Path(folder, "job.json").write_text(json.dumps(job))
        done = subprocess.run(
            [
                *(KERNEL, f"mem={memory}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/"),
                *("ro", f"init={INIT}", f"VM_FOLDER={folder}", "quiet", "loglevel=3"),
                *("con=null", "con0=null,fd:2", "con1=null,fd:1", "ssl=null"),
            ],
            # The guest's memory is a file there.
            env={**os.environ, "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        output = done.stdout.decode(errors="replace")
        status = Path(folder, "status")
        if not status.exists():
            raise GuestFailure(output + done.stderr.decode(errors="replace"))
        return int(status.read_text()), output


if __name__ == "__main__":
    exit_code, text = run(sys.argv[1], sys.argv[2:])
    sys.stdout.write(text)
    sys.exit(exit_code)
