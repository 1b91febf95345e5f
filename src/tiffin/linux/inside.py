"""Paths inside a container: looked up under its root file system, which nothing leads out of.

openat2(2) with RESOLVE_IN_ROOT does it: whatever symlinks an image holds, they stay inside. What a
mount needs to be attached to is made where it is missing, also behind a symlink that dangles.

Everything raises OSError that names the path.
"""

from __future__ import annotations

import errno
import os

from tiffin.linux import syscalls


def named(error: OSError, what: str) -> OSError:
    """The same error, saying what was done to which thing."""
    return OSError(error.errno, f"{what}: {os.strerror(error.errno or 0)}")


def _link(name: str, directory: int) -> str | None:
    """Where a symlink points to; None if it is none."""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError:
        return None


def _follow(path: str, target: str) -> str:
    return target if target.startswith("/") else f"{path.rstrip('/').rpartition('/')[0]}/{target}"


_FINE_IN_PROC = frozenset(
    f"/proc/{name}"
    for name in (
        "cpuinfo",
        "diskstats",
        "loadavg",
        "meminfo",
        "net/dev",
        "slabinfo",
        "stat",
        "swaps",
        "uptime",
    )
)
"""What a mount may hide in /proc: files that tell something, and that nothing else depends on."""


def may_cover(path: str) -> bool:
    """Whether something may be mounted at this path of /proc."""
    return path in _FINE_IN_PROC


def refuse_proc(fd: int, path: str) -> None:
    """Keep mounts out of /proc, however the path leads there: what is masked, read-only, or
    written to in there must be what it seems."""
    if not may_cover(path) and syscalls.file_system(fd) == syscalls.PROC_SUPER_MAGIC:
        raise OSError(errno.EPERM, f"{path} is inside /proc, where nothing can be mounted")


class Inside:
    """The paths below ``root``, a descriptor; -1 until there is one."""

    __slots__ = ("root",)

    def __init__(self) -> None:
        self.root = -1

    def open(self, path: str, flags: int = os.O_PATH) -> int:
        """What is there."""
        try:
            return syscalls.openat2(self.root, path, flags, 0, syscalls.RESOLVE_IN_ROOT)
        except OSError as error:
            raise named(error, path) from None

    def parent(self, path: str, mode: int = 0o755) -> tuple[int, str]:
        """The directory that a path's last name is in, made with its parents; and that name."""
        parent, _, name = path.rstrip("/").rpartition("/")
        return self.directory(parent or "/", mode), name

    def directory(self, path: str, mode: int = 0o755, links: int = 40) -> int:
        """A directory, made with its parents if missing; where a symlink dangles, its target."""
        flags = os.O_PATH | os.O_DIRECTORY
        try:
            return syscalls.openat2(self.root, path, flags, 0, syscalls.RESOLVE_IN_ROOT)
        except OSError as error:
            if error.errno != errno.ENOENT or path == "/" or not links:
                raise named(error, path) from None
        parent, name = self.parent(path, mode)
        try:
            os.mkdir(name, mode, dir_fd=parent)
        except FileExistsError:
            target = _link(name, parent)
            if target is not None:
                return self.directory(_follow(path, target), mode, links - 1)
        finally:
            os.close(parent)
        return self.open(path, flags)

    def target(self, path: str, directory: bool, links: int = 40) -> int:
        """What a mount is attached to; made if missing, as a directory or as an empty file."""
        if directory:
            return self.directory(path)
        try:
            return syscalls.openat2(self.root, path, os.O_PATH, 0, syscalls.RESOLVE_IN_ROOT)
        except OSError as error:
            if error.errno != errno.ENOENT or not links:
                raise named(error, path) from None
        parent, name = self.parent(path)
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=parent))
        except FileExistsError:
            target = _link(name, parent)
            if target is not None:
                return self.target(_follow(path, target), False, links - 1)
        finally:
            os.close(parent)
        return self.open(path)

    def find(self, path: str) -> int | None:
        """As :meth:`open`; None if nothing is there."""
        try:
            return syscalls.openat2(self.root, path, os.O_PATH, 0, syscalls.RESOLVE_IN_ROOT)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise named(error, path) from None
