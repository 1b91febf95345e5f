"""The empty files and directories that a container's own mounts need.

As in Docker's init layer, so that images behave the same: what is missing of these is made, what
the image has is left alone, whatever it is.
"""

from __future__ import annotations

import time
from pathlib import Path

from tiffin.errors import InvalidParameter
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.lower import StackLower
from tiffin.layer.writer import LayerWriter
from tiffin.storage.driver import Whiteouts

_MOUNTPOINTS = (
    (b".dockerenv", Kind.FILE),
    (b"dev", Kind.DIRECTORY),
    (b"dev/console", Kind.FILE),
    (b"dev/pts", Kind.DIRECTORY),
    (b"dev/shm", Kind.DIRECTORY),
    (b"etc", Kind.DIRECTORY),
    (b"etc/hostname", Kind.FILE),
    (b"etc/hosts", Kind.FILE),
    (b"etc/mtab", Kind.SYMLINK),
    (b"etc/resolv.conf", Kind.FILE),
    (b"proc", Kind.DIRECTORY),
    (b"sys", Kind.DIRECTORY),
)


def write_mountpoints(directory: Path, whiteouts: Whiteouts, lower: StackLower) -> None:
    """Write what is missing in the stack ``lower`` into the own directory of a snapshot on it."""
    now = time.time_ns()
    writer = LayerWriter(directory, whiteouts, lower)
    # Paths at which the image has something that is no directory: nothing can be put inside.
    blocked: set[bytes] = set()
    try:
        for path, kind in _MOUNTPOINTS:
            parent = path.rpartition(b"/")[0]
            if parent in blocked:
                continue
            if _find(lower, path, follow=False) is not None:
                found = _find(lower, path, follow=True)
                if kind is Kind.DIRECTORY and (found is None or found.kind is not kind):
                    blocked.add(path)
                continue
            mode = 0o644 if kind is Kind.FILE else 0o755 if kind is Kind.DIRECTORY else 0o777
            target = b"/proc/mounts" if kind is Kind.SYMLINK else b""
            writer.add(Entry(path, kind, mode, mtime_ns=now, target=target))
        writer.finish()
    finally:
        writer.close()


def _find(lower: StackLower, path: bytes, follow: bool) -> Entry | None:
    try:
        return lower.resolve(path, follow=follow)
    except InvalidParameter:
        # Symlinks in a circle lead nowhere.
        return None
