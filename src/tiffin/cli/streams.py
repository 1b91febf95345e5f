"""The multiplexed stream of a container without a terminal: frames of stdout and stderr.

A frame is eight bytes (the stream's number, three zeros, the length, big-endian) and its content.
Frames arrive cut anywhere; contents go out without being put together first.
"""

from __future__ import annotations

import os

from tiffin.cli.connection import write_all
from tiffin.errors import Unreachable

_STDERR, _SYSTEM_ERROR = 2, 3
_VECTOR = 512
"""Contents that go out in one call: below the kernel's limit of 1024."""


class Demultiplexer:
    """Splits a multiplexed stream onto two file descriptors (None drops the stream)."""

    def __init__(self, stdout: int | None = 1, stderr: int | None = 2) -> None:
        self._outputs = (stdout, stdout, stderr, stderr)
        self._header = bytearray()
        self._left = 0
        self._output: int | None = None
        self.complaint = bytearray()
        """What the daemon itself had to say (frames of the fourth kind)."""
        self._system = False

    def feed(self, data: memoryview) -> None:
        """Writes out what is in ``data``; raises Unreachable for what is no such stream."""
        position, end = 0, len(data)
        pending: list[memoryview] = []
        while position < end:
            if self._left:
                size = min(self._left, end - position)
                part = data[position : position + size]
                if self._system:
                    self.complaint += part
                else:
                    pending.append(part)
                    if len(pending) == _VECTOR:
                        self._flush(pending)
                self._left -= size
                position += size
                continue
            if not self._header and end - position >= 8:
                header: memoryview | bytearray = data[position : position + 8]
                position += 8
            else:
                missing = 8 - len(self._header)
                self._header += data[position : position + missing]
                position += missing
                if len(self._header) < 8:
                    break
                header, self._header = self._header, bytearray()
            number = header[0]
            if number > _SYSTEM_ERROR:
                raise Unreachable(f"Unrecognized input header: {number}")
            self._left = int.from_bytes(header[4:8], "big")
            self._system = number == _SYSTEM_ERROR
            output = self._outputs[number]
            if output != self._output:
                self._flush(pending)
                self._output = output
        self._flush(pending)

    def _flush(self, pending: list[memoryview]) -> None:
        if not pending:
            return
        output = self._output
        if output is not None:
            if len(pending) == 1:
                write_all(output, pending[0])
            else:
                _write_vector(output, pending)
        pending.clear()


def _write_vector(fd: int, parts: list[memoryview]) -> None:
    total = sum(map(len, parts))
    try:
        written = os.writev(fd, parts)
    except BlockingIOError:
        written = 0
    if written == total:
        return
    for part in parts:
        if written >= len(part):
            written -= len(part)
            continue
        write_all(fd, part[written:])
        written = 0
