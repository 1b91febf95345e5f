"""Copying a folder of an image into a new volume, with owners, modes, times and attributes."""

from __future__ import annotations

import os
import stat

from tiffin.engine.trees import open_in


def copy_tree(tree: int, path: str, target: str) -> None:
    """Copy what is inside ``path`` of the tree into the host's folder ``target``, which gets the
    folder's own owner and mode as well."""
    source = open_in(tree, os.fsencode(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        place = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _copy_directory(source, place)
        finally:
            os.close(place)
    finally:
        os.close(source)


def _copy_directory(source: int, target: int) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    for name in os.listdir(source):
        status = os.lstat(name, dir_fd=source)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=target)
            inner = os.open(name, flags | os.O_DIRECTORY, dir_fd=source)
            copy = os.open(name, flags | os.O_DIRECTORY, dir_fd=target)
            try:
                _copy_directory(inner, copy)
            finally:
                os.close(inner)
                os.close(copy)
        elif kind == stat.S_IFREG:
            inner = os.open(name, flags, dir_fd=source)
            copy = os.open(
                name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target
            )
            try:
                while os.copy_file_range(inner, copy, 1 << 30):
                    pass
                _attributes(inner, copy, status)
            finally:
                os.close(inner)
                os.close(copy)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
        elif kind != stat.S_IFSOCK:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
    _attributes(source, target, os.fstat(source))


def _attributes(source: int, target: int, status: os.stat_result) -> None:
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for attribute in os.listxattr(source):
        if not attribute.startswith("trusted.overlay."):
            os.setxattr(target, attribute, os.getxattr(source, attribute))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
