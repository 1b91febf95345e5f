"""The machine that is measured on: what it is, and how much memory it has left."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SETTLED = 512 * 1024
"""Two readings that differ by less than this are one."""
_IMAGE_SIZE = 48 << 30


def facts(folder: Path) -> dict[str, str]:
    """What a reader must know of the machine; ``folder`` is where the engine roots lie."""
    names = os.uname()
    memory = _meminfo("MemTotal") / (1 << 30)
    return {
        "kernel": f"{names.sysname} {names.release} {names.machine}",
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": _processor(),
        "memory": f"{memory:.0f} GiB",
        "file system": _file_system(folder),
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def _file_system(folder: Path) -> str:
    found = subprocess.run(
        ["findmnt", "-n", "-o", "FSTYPE,OPTIONS", "-T", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    return " ".join(found.stdout.split()) or "unknown"


def _meminfo(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise LookupError(name)


def available_memory() -> int:
    """MemAvailable in bytes with caches dropped, once it no longer moves (10 s at most).

    Caches are dropped before each reading, so that what is left is what processes and the kernel
    really hold.
    """
    before = -1
    now = 0
    for _ in range(10):
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        time.sleep(1)
        now = _meminfo("MemAvailable")
        if abs(now - before) < _SETTLED:
            break
        before = now
    return now


@contextmanager
def file_system(folder: Path, kind: str) -> Iterator[Path]:
    """A new file system in a sparse file in ``folder``; gives where it is mounted.

    What others write and delete on the machine's own one would be measured along. (An ext4
    without a journal, as many virtual machines have, creates files 20 times more slowly for
    minutes after many were deleted.)
    """
    image, mounted = folder / "file-system", folder / "mounted"
    with image.open("wb") as file:
        file.truncate(_IMAGE_SIZE)
    _run(f"mkfs.{kind}", "-q", image)
    mounted.mkdir()
    _run("mount", "-o", "loop", image, mounted)
    try:
        yield mounted
    finally:
        _run("umount", mounted)
        image.unlink()


def _run(*words: str | Path) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def settle() -> None:
    """Let what was written before be on the disk, so that nobody pays for another's writes."""
    os.sync()
