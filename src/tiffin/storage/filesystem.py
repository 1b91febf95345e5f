"""Which file system lies under a path, by the name that ``docker info`` gives it.

Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_DOCKER_NAMES = {"ext2": "extfs", "ext3": "extfs", "ext4": "extfs", "overlay": "overlayfs"}


_MOUNTINFO = Path("/proc/self/mountinfo")


def file_system_name(path: Path, mountinfo: Path = _MOUNTINFO) -> str:
    """The type of the file system that holds ``path`` (which need not exist yet), or "unknown"."""
    found, _ = mount_source(path, mountinfo)
    return _DOCKER_NAMES.get(found, found)


def mount_source(path: Path, mountinfo: Path = _MOUNTINFO) -> tuple[str, str]:
    """The type of the file system that holds ``path``, and what it was mounted from."""
    wanted = path.resolve()
    best, found = -1, ("unknown", "")
    for line in mountinfo.read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        # Octal escapes: blank, tab, newline and backslash.
        point = before.split(" ")[4]
        for escape, character in (
            ("\\040", " "),
            ("\\011", "\t"),
            ("\\012", "\n"),
            ("\\134", "\\"),
        ):
            point = point.replace(escape, character)
        # The last of several mounts on the same point is the one that is seen.
        if wanted.is_relative_to(point) and len(point) >= best:
            kind, source = after.split(" ")[:2]
            best, found = len(point), (kind, source)
    return found


def file_system_type(path: Path) -> int:
    """``f_type`` of statfs(2) of a path that exists. Raises OSError."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(path), buffer) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    return int(ctypes.c_ulong.from_buffer(buffer).value) & 0xFFFFFFFF
