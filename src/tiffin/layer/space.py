"""A full disk, told as such."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiffin.errors import StorageFull


@contextmanager
def space_needed(root: Path, what: str) -> Iterator[None]:
    """Raise StorageFull where the block meets a full disk, or the end of a quota."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageFull(
            f"no space left on device: the file system under {root} has no room for {what}, and "
            "nothing was kept of it; make room (tiffin system prune) and try again"
        ) from error
