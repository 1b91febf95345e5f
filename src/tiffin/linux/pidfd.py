"""The exit status of a process, by its pidfd.

A pidfd is readable (poll) once its process has exited. With PIDFD_GET_INFO, Linux 6.15 and newer
give the exit status to anyone who holds the pidfd, once the parent has reaped the process.

Source: ``include/uapi/linux/pidfd.h`` of Linux 6.18.
"""

from __future__ import annotations

import errno
import fcntl
import struct

PIDFD_INFO_EXIT = 1 << 3
_INFO = struct.Struct("=QQ11Ii")
"""struct pidfd_info as first published, 64 bytes: mask, cgroupid, eleven ids, exit_code."""
_EXIT_CODE = 13
"""Where exit_code is among the unpacked fields."""
_IOC_READ_WRITE = 3
PIDFD_GET_INFO = _IOC_READ_WRITE << 30 | _INFO.size << 16 | 0xFF << 8 | 11


def exit_status(pidfd: int) -> int | None:
    """The wait status (as os.waitpid gives) of a process that has exited and was reaped.

    None if that can't be known: the process runs, is not reaped yet, or the kernel is too old.
    """
    request = _INFO.pack(PIDFD_INFO_EXIT, *([0] * 13))
    try:
        answer = _INFO.unpack(fcntl.ioctl(pidfd, PIDFD_GET_INFO, request))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.ESRCH, errno.ENODATA):
            return None
        raise
    if not answer[0] & PIDFD_INFO_EXIT:
        return None
    return int(answer[_EXIT_CODE])
