"""Mounts that are attached nowhere: made, looked into through a descriptor, gone when it closes.

Nobody else can see such a mount, and a killed process leaves none behind, which makes it the way to
ask the kernel whether it can mount something.

Source: fsopen(2), fsconfig(2), fsmount(2); Linux 5.2.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_CLOEXEC = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(name: str, number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def mount_detached(fstype: str, options: Iterable[tuple[str, str | None]]) -> int:
    """Mount without attaching; a descriptor of the root, to be closed by the caller.

    ``options`` are pairs of name and value, None for a flag. Raises OSError, with the kernel's own
    words for it where it has some.
    """
    context = _call(f"fsopen({fstype})", _SYS_FSOPEN, os.fsencode(fstype), _CLOEXEC)
    try:
        try:
            for name, value in options:
                command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
                encoded = None if value is None else os.fsencode(value)
                label = f"fsconfig({fstype}, {name})"
                _call(label, _SYS_FSCONFIG, context, command, os.fsencode(name), encoded, 0)
            label = f"fsconfig({fstype}, create)"
            _call(label, _SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        except OSError as error:
            raise OSError(error.errno, _kernel_says(context) or error.strerror) from error
        return _call(f"fsmount({fstype})", _SYS_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)


def _kernel_says(context: int) -> str:
    """The last message that the kernel left for this context ("e overlay: …"), or nothing."""
    said = ""
    while True:
        try:
            line = os.read(context, 4096)
        except OSError:
            # ENODATA: that was the last one.
            return said
        said = line.decode(errors="replace").strip().removeprefix("e ")
