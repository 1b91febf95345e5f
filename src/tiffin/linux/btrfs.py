"""btrfs subvolumes, snapshots and quotas by ioctl(2), without btrfs-progs.

The words: a *subvolume* is a tree of its own that looks like a directory; a *snapshot* is a
subvolume that begins as another one, sharing all contents; a *qgroup* (0/ID for the subvolume ID)
counts what is in a subvolume (referenced) and in it alone (exclusive).

Source: ``include/uapi/linux/btrfs.h``, ``btrfs_tree.h`` of Linux 6.12.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

MAGIC = 0x9123683E
"""``f_type`` of statfs(2)."""
SUBVOLUME_INODE = 256
"""The root directory of every subvolume has this inode number."""

_ARGS = 4096
_NAME = 4040


def _ioctl_number(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | 0x94 << 8 | number


_WRITE, _READ_WRITE = 1, 3
_SUBVOL_CREATE = _ioctl_number(_WRITE, 14, _ARGS)
_SNAP_DESTROY = _ioctl_number(_WRITE, 15, _ARGS)
_INO_LOOKUP = _ioctl_number(_READ_WRITE, 18, _ARGS)
_SNAP_CREATE_V2 = _ioctl_number(_WRITE, 23, _ARGS)
_QUOTA_CTL = _ioctl_number(_READ_WRITE, 40, 16)
_QGROUP_CREATE = _ioctl_number(_WRITE, 42, 16)
_QGROUP_LIMIT = _ioctl_number(2, 43, 48)
_QUOTA_ENABLE = 1
_LIMIT_EXCLUSIVE = 1 << 1
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def _call(where: Path, number: int, arguments: bytes, what: str) -> bytes:
    """One ioctl on a directory; what the kernel has written back."""
    fd = os.open(where, _OPEN)
    try:
        buffer = bytearray(arguments)
        fcntl.ioctl(fd, number, buffer, True)
        return bytes(buffer)
    except OSError as error:
        raise OSError(error.errno, f"{what}: {os.strerror(error.errno or 0)}", str(where)) from None
    finally:
        os.close(fd)


def _name(path: Path) -> bytes:
    return struct.pack("q4088s", 0, os.fsencode(path.name))


def create(path: Path) -> None:
    """Make an empty subvolume."""
    _call(path.parent, _SUBVOL_CREATE, _name(path), f"btrfs subvolume create {path.name}")


def snapshot(source: Path, path: Path) -> None:
    """Make a writable snapshot of the subvolume ``source``; all data written before is in it."""
    fd = os.open(source, _OPEN)
    try:
        arguments = struct.pack("qQQ4Q4040s", fd, 0, 0, 0, 0, 0, 0, os.fsencode(path.name)[:_NAME])
        _call(path.parent, _SNAP_CREATE_V2, arguments, f"btrfs subvolume snapshot {path.name}")
    finally:
        os.close(fd)


def destroy(path: Path) -> None:
    """Remove a subvolume with all its files, at once; OSError (ENOTEMPTY) if one lies in it."""
    _call(path.parent, _SNAP_DESTROY, _name(path), f"btrfs subvolume delete {path.name}")


def is_subvolume(path: Path) -> bool:
    """Whether a directory of a btrfs is the root of a subvolume."""
    return os.lstat(path).st_ino == SUBVOLUME_INODE


def identifier(path: Path) -> int:
    """The ID of the subvolume that ``path`` lies in."""
    arguments = struct.pack("QQ4080s", 0, SUBVOLUME_INODE, b"")
    found = _call(path, _INO_LOOKUP, arguments, "btrfs inode lookup")
    return int(struct.unpack_from("Q", found)[0])


def enable_quota(path: Path) -> None:
    """Let the file system count for qgroups; nothing if it does already."""
    arguments = struct.pack("QQ", _QUOTA_ENABLE, 0)
    try:
        _call(path, _QUOTA_CTL, arguments, "btrfs quota enable")
    except OSError as error:
        # Some kernels say so of a file system that counts already.
        if error.errno != errno.EEXIST:
            raise


def limit_exclusive(path: Path, subvolume: int, size: int) -> None:
    """Let the subvolume of that ID hold at most ``size`` bytes that no other one shares."""
    arguments = struct.pack("QQQQQQ", subvolume, _LIMIT_EXCLUSIVE, 0, size, 0, 0)
    _call(path, _QGROUP_LIMIT, arguments, "btrfs qgroup limit")


def destroy_qgroup(path: Path, subvolume: int) -> bool:
    """Forget the qgroup of a subvolume; False while the subvolume is still being deleted."""
    try:
        _call(path, _QGROUP_CREATE, struct.pack("QQ", 0, subvolume), "btrfs qgroup destroy")
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        # Gone already, or the file system has stopped counting.
        if error.errno not in (errno.ENOENT, errno.ENOTCONN, errno.EINVAL):
            raise
    return True
