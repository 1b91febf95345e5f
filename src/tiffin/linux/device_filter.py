"""The devices that a version 2 cgroup may use: an eBPF program, built by hand and attached.

Version 1 has files for the rules (``c 1:3 rwm``: kind, numbers, and what is allowed); version 2
asks a program of type ``BPF_PROG_TYPE_CGROUP_DEVICE`` with the access that is wanted. Ours tries
the same rules in order, and denies what none of them allows.

Source: bpf(2); ``struct bpf_cgroup_dev_ctx`` in ``include/uapi/linux/bpf.h`` of Linux 6.18.
"""

from __future__ import annotations

import ctypes
import os
import struct

_MACHINE = os.uname().machine
_SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(_MACHINE, 280)
_PROG_LOAD = 5
_PROG_ATTACH = 8
_TYPE_CGROUP_DEVICE = 15
_ATTACH_CGROUP_DEVICE = 6
_ATTACH_MULTI = 2

_KINDS = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}

_LOAD_WORD = 0x61
_MOVE = 0xB7
_MOVE_REGISTER = 0xBF
_AND_32 = 0x54
_SHIFT_RIGHT_32 = 0x74
_NOT_EQUAL = 0x55
_EXIT = 0x95
_CONTEXT, _KIND, _WANTED, _MAJOR, _MINOR, _REST = 1, 2, 3, 4, 5, 6

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, to | source << 4, offset, value)


def _rule(text: str) -> bytes:
    """Leave with "allowed" if the rule covers the access, else go on behind."""
    kind, numbers, letters = text.split(" ")
    major, _, minor = numbers.partition(":")
    allowed = sum(_ACCESS[letter] for letter in set(letters))
    tests: list[tuple[int, int]] = []
    if kind != "a":
        tests.append((_KIND, _KINDS[kind]))
    if major != "*":
        tests.append((_MAJOR, int(major)))
    if minor != "*":
        tests.append((_MINOR, int(minor)))
    code = _instruction(_MOVE, 0, value=1) + _instruction(_EXIT)
    for register, value in reversed(tests):
        code = _instruction(_NOT_EQUAL, register, offset=len(code) // 8, value=value) + code
    # What is wanted beyond what is allowed must be nothing.
    return (
        _instruction(_MOVE_REGISTER, _REST, _WANTED)
        + _instruction(_AND_32, _REST, value=7 & ~allowed)
        + _instruction(_NOT_EQUAL, _REST, offset=len(code) // 8, value=0)
        + code
    )


def program(rules: list[str] | tuple[str, ...]) -> bytes:
    """The eBPF instructions for rules as version 1's ``devices.allow`` takes them."""
    code = (
        _instruction(_LOAD_WORD, _KIND, _CONTEXT, 0)
        + _instruction(_MOVE_REGISTER, _WANTED, _KIND)
        + _instruction(_AND_32, _KIND, value=0xFFFF)
        + _instruction(_SHIFT_RIGHT_32, _WANTED, value=16)
        + _instruction(_LOAD_WORD, _MAJOR, _CONTEXT, 4)
        + _instruction(_LOAD_WORD, _MINOR, _CONTEXT, 8)
    )
    for rule in rules:
        code += _rule(rule)
    return code + _instruction(_MOVE, 0, value=0) + _instruction(_EXIT)


def _bpf(command: int, attributes: bytes, what: str) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(_libc.syscall(_SYS_BPF, command, buffer, ctypes.c_uint(len(attributes))))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf({what}): {os.strerror(code)}")
    return result


def attach(directory: str, rules: list[str] | tuple[str, ...]) -> None:
    """Allow the processes of a version 2 group these devices, and no others.

    The program lives as long as the group. Raises OSError (EPERM without CAP_BPF or CAP_SYS_ADMIN).
    """
    code = program(rules)
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    attributes = struct.pack(
        "=IIQQIIQII16s",
        _TYPE_CGROUP_DEVICE,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
        0,
        0,
        0,
        0,
        0,
        b"tiffin_devices",
    )
    filter_fd = _bpf(_PROG_LOAD, attributes, "load a device filter")
    try:
        group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            wanted = struct.pack("=IIII", group, filter_fd, _ATTACH_CGROUP_DEVICE, _ATTACH_MULTI)
            _bpf(_PROG_ATTACH, wanted, f"attach a device filter to {directory}")
        finally:
            os.close(group)
    finally:
        os.close(filter_fd)
