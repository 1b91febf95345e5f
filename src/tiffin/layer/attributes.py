"""Extended attributes of a layer's files, and what directories pass on.

Overlay's own attributes (``trusted.overlay.*``, or ``user.overlay.*`` where those are what it
reads) are never taken from a layer: one of them in a tar could hide or redirect what another layer
has.
"""

from __future__ import annotations

import errno
import os
import stat

from tiffin.layer.entry import Entry

DEFAULT_ACL = "system.posix_acl_default"
ACLS = ("system.posix_acl_access", DEFAULT_ACL)


def inherits(fd: int) -> bool:
    """Whether what is made inside the directory gets more than it is made with: a group, an ACL."""
    return bool(os.fstat(fd).st_mode & stat.S_ISGID) or DEFAULT_ACL in list_xattrs(fd)


def list_xattrs(fd: int) -> list[str]:
    """The names of a file's attributes; none where the file system has no such thing."""
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return []


def set_xattrs(where: int | bytes, entry: Entry, private: tuple[str, ...]) -> None:
    """Give a file (a descriptor, or a path whose end is not followed) its entry's attributes, but
    those that begin as ``private`` says."""
    for name, value in (entry.xattrs or {}).items():
        if name.startswith(private):
            continue
        try:
            os.setxattr(where, name, value, follow_symlinks=isinstance(where, int))
        except OSError as error:
            # As Docker: a file system without such attributes, or a kind of file that may not
            # have the user's, is no reason to refuse the layer. The index keeps them.
            allowed = error.errno == errno.ENOTSUP or (
                error.errno == errno.EPERM and name.startswith("user.")
            )
            if not allowed:
                raise
