"""inotify: hear of changes to files.

Source: inotify(7).
"""

from __future__ import annotations

import ctypes
import os
import select
import struct

_libc = ctypes.CDLL(None, use_errno=True)

IN_MODIFY = 0x2
IN_CLOSE_WRITE = 0x8
IN_MOVED_TO = 0x80
IN_CREATE = 0x100

_EVENT = struct.Struct("iIII")


class Inotify:
    """An inotify instance. Close it, or use it in a ``with``."""

    def __init__(self) -> None:
        self._fd = int(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        if self._fd < 0:
            raise _fail("inotify_init1")
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def watch(self, path: str | os.PathLike[str], mask: int) -> int:
        """Hear of ``mask`` at ``path``; the watch's number. Raises OSError."""
        number = int(_libc.inotify_add_watch(self._fd, os.fsencode(path), mask))
        if number < 0:
            raise _fail(f"inotify_add_watch({os.fspath(path)})")
        return number

    def wait(self, seconds: float) -> list[tuple[int, int, bytes]]:
        """The events (watch, mask, name in a directory) that come until the time is over.

        Returns as soon as there is one.
        """
        if not self._poll.poll(seconds * 1000):
            return []
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return []
        events = []
        position = 0
        while position < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, position)
            position += _EVENT.size
            events.append((number, mask, data[position : position + length].rstrip(b"\0")))
            position += length
        return events

    def close(self) -> None:
        """Close the instance and with it all watches."""
        os.close(self._fd)

    def __enter__(self) -> Inotify:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def watch_file(path: str, mask: int) -> int:
    """A descriptor that can be read when ``mask`` happens to one file. Raises OSError."""
    fd = int(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    if fd < 0:
        raise _fail("inotify_init1")
    if int(_libc.inotify_add_watch(fd, os.fsencode(path), mask)) < 0:
        error = _fail(f"inotify_add_watch({path})")
        os.close(fd)
        raise error
    return fd


def _fail(call: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call}: {os.strerror(code)}")
