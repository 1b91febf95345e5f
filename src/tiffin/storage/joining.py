"""Layers joined into one tree by hard links: what the first overlay driver lies its containers on.

The layers are own directories with overlayfs's marks, applied from the lowest up. Directories are
made, everything else is linked, so a joined tree takes room for directories alone; nobody may
write to its files, which are the layers' own.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from tiffin.storage import tree

_ANCHOR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_DIRECTORY = _ANCHOR | os.O_NOFOLLOW


def join(layers: Iterable[Path], target: Path, opaque: str) -> None:
    """Put the layers, the lowest first, into the empty directory ``target``, on the same file
    system. ``opaque`` is the attribute of directories that hide what is below."""
    above = os.open(target, _ANCHOR)
    try:
        for layer in layers:
            below = os.open(layer, _ANCHOR)
            try:
                _apply(below, above, opaque)
                _attributes(below, above, opaque)
            finally:
                os.close(below)
    finally:
        os.close(above)


def _apply(source: int, target: int, opaque: str) -> None:
    if is_opaque(source, opaque):
        for name in os.listdir(target):
            _remove(target, name)
    with os.scandir(source) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                _directory(source, target, entry.name, opaque)
                continue
            _remove(target, entry.name)
            if not tree.is_whiteout(status):
                _link(source, target, entry.name)


def _directory(source: int, target: int, name: str, opaque: str) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=target)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=target, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=target)
            os.mkdir(name, 0o700, dir_fd=target)
    below = os.open(name, _DIRECTORY, dir_fd=source)
    try:
        above = os.open(name, _DIRECTORY, dir_fd=target)
        try:
            _apply(below, above, opaque)
            # Last: what is put into a directory changes its times.
            _attributes(below, above, opaque)
        finally:
            os.close(above)
    finally:
        os.close(below)


def _attributes(source: int, target: int, opaque: str) -> None:
    for name in os.listxattr(target):
        try:
            os.removexattr(target, name)
        except OSError as error:
            # XFS shows access control lists under two names, and they go together.
            if error.errno != errno.ENODATA:
                raise
    tree.copy_attributes(source, target)
    if is_opaque(target, opaque):
        # All that it hid is gone: the tree stands for itself.
        os.removexattr(target, opaque)


def is_opaque(directory: int | Path, opaque: str) -> bool:
    """Whether a directory has that attribute."""
    try:
        return os.getxattr(directory, opaque) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise


def _link(source: int, target: int, name: str) -> None:
    try:
        os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EMLINK:
            raise
        # It has as many names as the file system allows.
        tree.copy_entry(source, target, name)


def _remove(directory: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        tree.delete(Path(f"/proc/self/fd/{directory}/{name}"))
