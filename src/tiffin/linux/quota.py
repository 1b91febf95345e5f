"""Quotas of projects: how much a tree of directories may hold.

Every file belongs to a *project*, a number; what is made in a directory that hands its project on
belongs to that one too. A file system that was mounted with ``prjquota`` (``pquota`` on XFS) counts
the blocks of each project, and refuses more than its limit.

Source: quotactl(2), xfsctl(3); ``include/uapi/linux/dqblk_xfs.h`` and ``fs.h`` of Linux 6.18.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import struct
from pathlib import Path

_GET_ATTRIBUTES = 0x801C581F
_SET_ATTRIBUTES = 0x401C5820
_ATTRIBUTES = struct.Struct("=IIIII8x")
"""struct fsxattr: flags, extent size, extents, project, extent size of copies."""
_HAND_ON = 0x200
_QUOTACTL_FD = 443
_PROJECT = 2
_SET_LIMIT = ((ord("X") << 8) + 4) << 8 | _PROJECT
_GET_USE = ((ord("X") << 8) + 3) << 8 | _PROJECT
_LIMITS = struct.Struct("=bbHIQQQQQQiiHHiQQQiHh8x")
"""struct fs_disk_quota; a block has 512 bytes."""
_VERSION, _IS_PROJECT = 1, 2
_BLOCK_LIMITS = 1 << 2 | 1 << 3
_BLOCK = 512

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

FIRST, _PROJECTS = 1 << 24, 1 << 31
"""The numbers of projects are taken at random, out of so many that nobody meets another, neither
another root on the same file system, nor Docker, which counts from 1."""


def any_project() -> int:
    """A number that nobody has."""
    return secrets.randbelow(_PROJECTS) + FIRST


def project_of(directory: Path) -> int:
    """The project that a directory belongs to; 0 is everybody's. Raises OSError."""
    return _read(directory)[3]


def _read(directory: Path) -> list[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        buffer = bytearray(_ATTRIBUTES.size)
        fcntl.ioctl(fd, _GET_ATTRIBUTES, buffer)
        return list(_ATTRIBUTES.unpack(buffer))
    finally:
        os.close(fd)


def assign(directory: Path, project: int) -> None:
    """Give an empty directory to a project, with all that will be made in it. Raises OSError."""
    attributes = _read(directory)
    attributes[0] |= _HAND_ON
    attributes[3] = project
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _SET_ATTRIBUTES, _ATTRIBUTES.pack(*attributes))
    finally:
        os.close(fd)


def limit(directory: Path, project: int, size: int) -> None:
    """Let a project hold ``size`` bytes on the file system of ``directory``, and no more.

    Raises OSError: ESRCH, EINVAL or ENOSYS where quotas of projects are not on, or the kernel is
    older than 5.14.
    """
    blocks = -(-size // _BLOCK)
    fields = [_VERSION, _IS_PROJECT, _BLOCK_LIMITS, project, blocks, blocks, *[0] * 15]
    _control(directory, _SET_LIMIT, project, bytearray(_LIMITS.pack(*fields)))


def used(directory: Path, project: int) -> int:
    """How many bytes a project holds. Raises OSError as :func:`limit`."""
    buffer = bytearray(_LIMITS.size)
    _control(directory, _GET_USE, project, buffer)
    return int(_LIMITS.unpack(buffer)[8]) * _BLOCK


def _control(directory: Path, command: int, project: int, buffer: bytearray) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        memory = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        done = _libc.syscall(
            _QUOTACTL_FD, ctypes.c_uint(fd), ctypes.c_uint(command), ctypes.c_uint(project), memory
        )
        if done < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"quotactl: {os.strerror(code)}", str(directory))
    finally:
        os.close(fd)


NOT_THERE = (
    errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.ESRCH, errno.EINVAL, errno.ENODEV,
    errno.ENOTBLK,
)  # fmt: skip
"""What says that a file system has no quotas of projects, or has them switched off."""
