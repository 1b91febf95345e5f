"""The multiplexed stream of a container without a terminal: frames of stdout and stderr.

A frame is eight bytes (the stream's number, three zeros, the length, big-endian) and its content.
Frames arrive cut anywhere. Small ones in a row (lines of a log) are put together and written at
once; large ones go out as they are, without being copied.
"""

from __future__ import annotations

from struct import Struct

from tiffin.client.connection import write_all
from tiffin.errors import Unreachable

_HEADER = Struct(">B3xI")
_SYSTEM_ERROR = 3
_SMALL = 8192
_WINDOW = 1 << 16


class Demultiplexer:
    """Splits a multiplexed stream onto two file descriptors (None drops the stream)."""

    def __init__(self, stdout: int | None = 1, stderr: int | None = 2) -> None:
        self._outputs = (stdout, stdout, stderr)
        self._header = b""
        self._number = 0
        self._left = 0
        self.complaint = bytearray()
        """What the daemon itself had to say (frames of the fourth kind)."""

    def feed(self, data: memoryview) -> None:
        """Writes out what is in ``data``; raises Unreachable for what is no such stream."""
        position, end = 0, len(data)
        while position < end:
            if self._left:
                size = min(self._left, end - position)
                self._put(self._number, data[position : position + size])
                self._left -= size
                position += size
                continue
            if not self._header:
                position = self._small_frames(data, position)
                if position == end:
                    return
            missing = 8 - len(self._header)
            self._header += data[position : position + missing]
            position = min(position + missing, end)
            if len(self._header) == 8:
                self._number, self._left = _HEADER.unpack(self._header)
                self._header = b""
                if self._number > _SYSTEM_ERROR:
                    raise Unreachable(f"Unrecognized input header: {self._number}")

    def _small_frames(self, data: memoryview, position: int) -> int:
        """Writes small whole frames that follow each other; returns where they end."""
        unpack = _HEADER.unpack_from
        while position + 8 <= len(data) and unpack(data, position)[1] <= _SMALL:
            # Slices of bytes cost less than slices of a view, once there are many.
            window = bytes(data[position : position + _WINDOW])
            last = len(window) - 8
            parts: list[bytes] = []
            current = start = 0
            while start <= last:
                number, size = unpack(window, start)
                stop = start + 8 + size
                if size > _SMALL or stop > last + 8 or number > _SYSTEM_ERROR:
                    break
                if number != current:
                    if parts:
                        self._put(current, b"".join(parts))
                        parts = []
                    current = number
                parts.append(window[start + 8 : stop])
                start = stop
            if parts:
                self._put(current, b"".join(parts))
            if not start:
                break
            position += start
        return position

    def _put(self, number: int, content: memoryview | bytes) -> None:
        if number == _SYSTEM_ERROR:
            self.complaint += content
            return
        output = self._outputs[number]
        if output is not None:
            write_all(output, content)
