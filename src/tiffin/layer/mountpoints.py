"""The empty files and directories that a container's own mounts need.

As in Docker's init layer, so that images behave the same: what is missing of these is made, what
the image has is left alone, whatever it is.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from tiffin.errors import InvalidParameter
from tiffin.layer.capture import own_entries
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.index import Index
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


def remove_mountpoints(tree: Path, ready: Path, image: Path | None, index: Index) -> None:
    """Take them out of a whole tree that was copied from ``ready``, which is ``image`` and the
    mount points, and that has become the layer of ``index``: those that nobody changed since."""
    for entry in reversed(list(own_entries(ready, Whiteouts.NONE, lower_tree=image))):
        place = tree / os.fsdecode(entry.path)
        if index.get(entry.path) is not None or (
            image is not None and os.path.lexists(image / os.fsdecode(entry.path))
        ):
            continue
        try:
            above = os.lstat(place.parent)
            if entry.kind is Kind.DIRECTORY:
                place.rmdir()
            else:
                place.unlink()
        except OSError as error:
            # It has been done before; or the directory holds files of the layer.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY):
                raise
            continue
        os.utime(place.parent, ns=(above.st_atime_ns, above.st_mtime_ns))


def _find(lower: StackLower, path: bytes, follow: bool) -> Entry | None:
    try:
        return lower.resolve(path, follow=follow)
    except InvalidParameter:
        # Symlinks in a circle lead nowhere.
        return None
