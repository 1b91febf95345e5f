"""One entry of a layer: a file, directory, link, device, or the mark of something deleted.

Source: OCI image specification, ``layer.md`` (file types, whiteouts, opaque whiteouts).
"""

from __future__ import annotations

import enum
import stat
from dataclasses import dataclass


class Kind(enum.StrEnum):
    """What an entry is; the values are what the index file stores."""

    FILE = "f"
    DIRECTORY = "d"
    SYMLINK = "l"
    HARDLINK = "h"
    CHARACTER_DEVICE = "c"
    BLOCK_DEVICE = "b"
    FIFO = "p"
    WHITEOUT = "w"
    """The path is deleted from the layers below."""
    OPAQUE = "o"
    """What the layers below have inside the directory ``path`` is hidden."""


KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
    stat.S_IFIFO: Kind.FIFO,
}
"""What a file's mode says of its form; a socket is no entry."""


@dataclass(slots=True)
class Entry:
    """What a layer says of one path."""

    path: bytes
    """Relative to the root: no leading ``/`` or ``./``, no trailing ``/``; the root is ``b""``.
    For a whiteout the path that is deleted, for an opaque mark the directory itself."""
    kind: Kind
    mode: int = 0
    """Permission bits, with set-id and sticky: twelve bits."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    """Bytes of content; 0 for everything but a file."""
    target: bytes = b""
    """A symlink's text, or the path (as ``path``) that a hard link names."""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device."""
    xattrs: dict[str, bytes] | None = None
    """Extended attributes, by full name (``security.capability``), without the driver's own."""
    digest: bytes = b""
    """sha256 of a file's content, 32 bytes; empty for everything else."""
