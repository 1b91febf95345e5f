"""An interpreter of seccomp's BPF, to look into a filter without a kernel."""

from __future__ import annotations

import struct
from collections.abc import Sequence


def run(program: bytes, architecture: int, number: int, arguments: Sequence[int] = ()) -> int:
    """What a program returns for a call."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *[*arguments, 0, 0, 0, 0, 0, 0][:6])
    code = list(struct.iter_unpack("=HBBI", program))
    position = accumulator = 0
    while True:
        kind, true, false, value = code[position]
        position += 1
        if kind == 0x06:
            return int(value)
        if kind == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif kind == 0x54:
            accumulator &= value
        elif kind == 0x05:
            position += value
        else:
            holds = {
                0x15: accumulator == value,
                0x25: accumulator > value,
                0x35: accumulator >= value,
            }[kind]
            position += true if holds else false
