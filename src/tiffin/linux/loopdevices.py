"""Loop devices: a file as a block device.

Source: loop(4), ``include/uapi/linux/loop.h``.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

_SET_FD, _CLR_FD, _SET_CAPACITY = 0x4C00, 0x4C01, 0x4C07
_GET_FREE = 0x4C82
_ATTEMPTS = 64


def find(file: Path) -> str | None:
    """The loop device that has ``file``, or None."""
    wanted = os.fspath(file)
    for name in sorted(os.listdir("/sys/block")):
        try:
            with open(f"/sys/block/{name}/loop/backing_file") as stream:
                if stream.read().rstrip("\n") == wanted:
                    return f"/dev/{name}"
        except OSError:
            # It is no loop device, or one without a file.
            continue
    return None


def attach(file: Path) -> str:
    """The loop device of ``file``, made if there is none; it stays until its last user goes.

    The caller opens it (or has it used) before it closes what it got: see :func:`attach`'s users.
    """
    found = find(file)
    if found is not None:
        return found
    backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
            try:
                number = fcntl.ioctl(control, _GET_FREE)
            finally:
                os.close(control)
            device = f"/dev/loop{number}"
            if not os.path.exists(device):
                os.mknod(device, 0o60600, os.makedev(7, number))
            loop = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(loop, _SET_FD, backing)
                return device
            except OSError as error:
                # Somebody else was quicker.
                if error.errno != errno.EBUSY:
                    raise
            finally:
                os.close(loop)
    finally:
        os.close(backing)
    raise OSError(errno.EBUSY, "no loop device is free", str(file))


def detach(device: str) -> None:
    """Let go of the file; no error if there is none."""
    try:
        loop = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.ioctl(loop, _CLR_FD)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
    finally:
        os.close(loop)


def grow(device: str) -> None:
    """Notice that the file has grown."""
    loop = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(loop, _SET_CAPACITY)
    finally:
        os.close(loop)
