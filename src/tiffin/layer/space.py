"""A full disk, told as such; and room that is set aside for what must not meet one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiffin.errors import StorageFull

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ROOM = 1 << 20
"""More than a new snapshot's folders, its mount points and their rows take."""


@contextmanager
def space_needed(root: Path, what: str, kept: str = "nothing was kept of it") -> Iterator[None]:
    """Raise StorageFull where the block meets a full disk, or the end of a quota."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageFull(
            f"no space left on device: the file system under {root} has no room for {what}, and "
            f"{kept}; make room (tiffin system prune) and try again"
        ) from error


@contextmanager
def room_set_aside(folder: Path) -> Iterator[None]:
    """Keep room for small things that are made right after the block, when there is no way back
    any more. Raises OSError (ENOSPC) before the block where there is none."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, _ROOM)
        except OSError as error:
            if error.errno in _FULL:
                raise
            # A file system that can't set aside.
        yield
