"""Terminals: the other end of a master, and the size."""

from __future__ import annotations

import fcntl
import os
import struct

_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
_TIOCSWINSZ = 0x5414


def unlock_terminal(master: int) -> int:
    """The slave of a pseudoterminal's master, opened without going through a path."""
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    return int(fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))


def set_size(master: int, rows: int, columns: int) -> None:
    """Tell a terminal its size."""
    if rows or columns:
        fcntl.ioctl(master, _TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
