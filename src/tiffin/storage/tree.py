"""Trees of files on the disk: copied, measured, deleted.

Rules: nothing follows a symlink (but the one that the path of a driver's own directory may be, when
it leads through a descriptor), and a tree may be deeper than a path may be long (a container can
make such a tree). So paths are relative to an *anchor*, an open directory, and a directory whose
path from its anchor grows long becomes an anchor itself.

A tree may change while it is read (a running container): what has gone when its turn comes is
left out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

from tiffin.storage.usage import Usage

_ANCHOR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_DIRECTORY = _ANCHOR | os.O_NOFOLLOW
_FICLONE = 0x40049409
# A path from its anchor: this long, plus one name, plus a slash, is well below PATH_MAX.
_LONG = 2000
_CHUNK = 1 << 30
_GONE = (FileNotFoundError, NotADirectoryError)
# What a file system, or a pair of them, answers when it can't clone or copy inside the kernel.
_INCAPABLE = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EBADF}
)
PRIVATE_XATTRS = ("trusted.overlay.", "user.fuseoverlayfs.", "trusted.SGI_ACL_")
"""What overlayfs and fuse-overlayfs note on the files of own directories begins with these, and
what XFS shows of access control lists beside ``system.posix_acl_*``."""
OPAQUE = "trusted.overlay.opaque"
"""``y`` on a directory that hides all that lies below it."""


def is_whiteout(status: os.stat_result) -> bool:
    """Whether this is overlayfs's mark of a deleted file: a 0/0 character device."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def measure(directory: Path) -> Usage:
    """Count what lies below ``directory``, as :class:`Usage` says."""
    fd = os.open(directory, _ANCHOR)
    try:
        return Usage(*_measure(fd, set()))
    finally:
        os.close(fd)


def _measure(anchor: int, seen: set[tuple[int, int]]) -> tuple[int, int]:
    size = inodes = 0
    pending = ["."]
    while pending:
        path = pending.pop()
        try:
            fd = os.open(path, _DIRECTORY, dir_fd=anchor)
        except _GONE:
            continue
        try:
            if len(path) > _LONG:
                below, more = _measure(fd, seen)
                size += below
                inodes += more
                continue
            with os.scandir(fd) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        inodes += 1
                        pending.append(f"{path}/{entry.name}")
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if is_whiteout(status):
                        continue
                    if status.st_nlink > 1:
                        identity = (status.st_dev, status.st_ino)
                        if identity in seen:
                            continue
                        seen.add(identity)
                    size += status.st_size
                    inodes += 1
        finally:
            os.close(fd)
    return size, inodes


def delete(directory: Path) -> None:
    """Delete ``directory`` and all below it; no error for what is gone already."""
    try:
        fd = os.open(directory, _DIRECTORY)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        directory.unlink(missing_ok=True)
        return
    try:
        _empty(fd)
    finally:
        os.close(fd)
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return


def _empty(anchor: int) -> None:
    pending, found = ["."], []
    while pending:
        path = pending.pop()
        try:
            fd = os.open(path, _DIRECTORY, dir_fd=anchor)
        except FileNotFoundError:
            continue
        try:
            if len(path) > _LONG:
                _empty(fd)
            else:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(f"{path}/{entry.name}")
                            continue
                        try:
                            os.unlink(entry.name, dir_fd=fd)
                        except FileNotFoundError:
                            continue
        finally:
            os.close(fd)
        found.append(path)
    # Found from the top down, so removed from the bottom up; the first is the anchor itself.
    for path in reversed(found[1:]):
        try:
            os.rmdir(path, dir_fd=anchor)
        except FileNotFoundError:
            continue


def can_reflink(directory: Path) -> bool:
    """Whether files in this directory can share contents; makes and leaves two small files."""
    with open(directory / "source", "wb") as source, open(directory / "target", "wb") as target:
        source.write(b"reflink")
        source.flush()
        with open(directory / "source", "rb") as reader:
            try:
                fcntl.ioctl(target, _FICLONE, reader.fileno())
            except OSError as error:
                if error.errno in _INCAPABLE:
                    return False
                raise
    return True


def copy_attributes(source: int, target: int) -> None:
    """Give the open file ``target`` the owner, mode, xattrs and times of ``source``."""
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    _copy_xattrs(source, target)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_xattrs(source: int | str, target: int | str) -> None:
    follow = isinstance(source, int)
    try:
        names = os.listxattr(source, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOENT):
            return
        raise
    for name in names:
        # All but the opaque mark ties a copied-up file to the very layers that it came from.
        if name.startswith(PRIVATE_XATTRS) and name != OPAQUE:
            continue
        try:
            value = os.getxattr(source, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.ENOENT):
                continue
            raise
        os.setxattr(target, name, value, follow_symlinks=follow)


def copy(source: Path, target: Path) -> None:
    """Copy all of the directory ``source`` into the existing, empty directory ``target``.

    Owners, modes, times, xattrs, hard links, devices and holes are kept; contents are shared
    (reflinks) where the file system can do that. ``source``'s own attributes go to ``target``.
    """
    source_fd = os.open(source, _ANCHOR)
    try:
        target_fd = os.open(target, _ANCHOR)
        try:
            copy_open(source_fd, target_fd)
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


def copy_open(source: int, target: int) -> None:
    """As :func:`copy`, of open directories."""
    _Copier(target).directory(source, target, "")


def copy_entry(source: int, target: int, name: str) -> None:
    """Copy one thing that is no directory from an open directory into another."""
    status = os.stat(name, dir_fd=source, follow_symlinks=False)
    _Copier(target).entry(source, target, name, status, "")


class _Copier:
    """One copy of one tree: the hard links met so far, and what the file system can do."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._links: dict[tuple[int, int], str] = {}
        self._reflink = True

    def directory(self, source_anchor: int, target_anchor: int, prefix: str) -> None:
        """Copy what lies below the one open directory into the other; ``prefix`` is the path of
        the latter from the root of the copy, with a slash at its end unless empty."""
        pending, found = ["."], []
        while pending:
            path = pending.pop()
            try:
                source = os.open(path, _DIRECTORY, dir_fd=source_anchor)
            except _GONE:
                continue
            try:
                target = os.open(path, _DIRECTORY, dir_fd=target_anchor)
                try:
                    if len(path) > _LONG:
                        self.directory(source, target, f"{prefix}{path}/")
                    else:
                        pending.extend(self._entries(source, target, path, f"{prefix}{path}/"))
                        found.append(path)
                finally:
                    os.close(target)
            finally:
                os.close(source)
        # Last, from the bottom up: adding files to a directory changes its times.
        for path in reversed(found):
            try:
                source = os.open(path, _DIRECTORY, dir_fd=source_anchor)
            except _GONE:
                continue
            try:
                target = os.open(path, _DIRECTORY, dir_fd=target_anchor)
                try:
                    copy_attributes(source, target)
                finally:
                    os.close(target)
            finally:
                os.close(source)

    def _entries(self, source: int, target: int, path: str, prefix: str) -> list[str]:
        directories = []
        with os.scandir(source) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    os.mkdir(entry.name, 0o700, dir_fd=target)
                    directories.append(f"{path}/{entry.name}")
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                    self.entry(source, target, entry.name, status, prefix)
                except FileNotFoundError:
                    continue
        return directories

    def entry(
        self, source: int, target: int, name: str, status: os.stat_result, prefix: str
    ) -> None:
        identity = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and (first := self._links.get(identity)) is not None:
            self._link(first, target, name)
            return
        if stat.S_ISREG(status.st_mode):
            self._file(source, target, name)
        else:
            if stat.S_ISLNK(status.st_mode):
                os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            else:
                os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)
            _copy_xattrs(f"/proc/self/fd/{source}/{name}", f"/proc/self/fd/{target}/{name}")
            times = (status.st_atime_ns, status.st_mtime_ns)
            os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)
        if status.st_nlink > 1:
            self._links[identity] = prefix + name

    def _link(self, first: str, target: int, name: str) -> None:
        parts, fd = first.split("/"), os.dup(self._root)
        try:
            # One directory at a time: the whole path may be longer than a path may be.
            for part in parts[:-1]:
                below = os.open(part, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            os.link(parts[-1], name, src_dir_fd=fd, dst_dir_fd=target, follow_symlinks=False)
        finally:
            os.close(fd)

    def _file(self, source_directory: int, target_directory: int, name: str) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        source = os.open(name, flags, dir_fd=source_directory)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            target = os.open(name, flags, 0o600, dir_fd=target_directory)
            try:
                self._content(source, target)
                copy_attributes(source, target)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _content(self, source: int, target: int) -> None:
        status = os.fstat(source)
        if status.st_size == 0:
            return
        if self._reflink:
            try:
                fcntl.ioctl(target, _FICLONE, source)
                return
            except OSError as error:
                if error.errno not in _INCAPABLE:
                    raise
                self._reflink = False
        if status.st_blocks * 512 >= status.st_size:
            _copy_range(source, target, 0, status.st_size)
            return
        position = 0
        while position < status.st_size:
            try:
                start = os.lseek(source, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise
            position = os.lseek(source, start, os.SEEK_HOLE)
            _copy_range(source, target, start, position)
        os.ftruncate(target, status.st_size)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        try:
            count = os.copy_file_range(source, target, min(end - start, _CHUNK), start, start)
        except OSError as error:
            if error.errno not in _INCAPABLE:
                raise
            data = os.pread(source, min(end - start, 1 << 20), start)
            count = os.pwrite(target, data, start) if data else 0
        if count == 0:
            return
        start += count
