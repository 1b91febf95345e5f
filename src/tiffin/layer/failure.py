"""What a failed system call means for the one who brought a layer."""

from __future__ import annotations

import errno
import os

from tiffin.errors import CorruptArchive, StorageFull, TiffinError


def explain(error: OSError, path: bytes) -> TiffinError:
    """The error to raise for it, which names the entry."""
    name = os.fsdecode(path) or "/"
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"no space left on device while writing {name!r} of a layer")
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.ERANGE, errno.EFBIG):
        return CorruptArchive(f"the entry {name!r} can't be stored: {reason}")
    return TiffinError(f"the entry {name!r} of a layer can't be written: {reason}")
