"""Mounts that are attached nowhere: made, looked into through a descriptor, gone when it closes.

Nobody else can see such a mount, and a killed process leaves none behind, which makes it the way to
ask the kernel whether it can mount something.

Source: fsopen(2), fsconfig(2), fsmount(2); Linux 5.2.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False  # what the keeper loads is kept small
if TYPE_CHECKING:
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


def open_context(fstype: str) -> int:
    """fsopen(2): the descriptor of a mount that is being described."""
    return _call(f"fsopen({fstype})", _SYS_FSOPEN, os.fsencode(fstype), _CLOEXEC)


def configure(context: int, fstype: str, name: str, value: str | None) -> None:
    """fsconfig(2): one option, None for a flag. Raises OSError, in the kernel's own words."""
    command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
    encoded = None if value is None else os.fsencode(value)
    label = f"fsconfig({fstype}, {name})"
    _told(label, context, command, os.fsencode(name), encoded)


def create(context: int, fstype: str, attributes: int = 0) -> int:
    """The described mount, attached nowhere: a descriptor of its root. Raises OSError, in the
    kernel's own words."""
    _told(f"fsconfig({fstype}, create)", context, _FSCONFIG_CMD_CREATE, None, None)
    return _call(f"fsmount({fstype})", _SYS_FSMOUNT, context, _CLOEXEC, attributes)


def mount_detached(fstype: str, options: Iterable[tuple[str, str | None]]) -> int:
    """Mount without attaching; a descriptor of the root, to be closed by the caller.

    ``options`` are pairs of name and value, None for a flag. Raises OSError, with the kernel's own
    words for it where it has some.
    """
    context = open_context(fstype)
    try:
        for name, value in options:
            configure(context, fstype, name, value)
        return create(context, fstype)
    finally:
        os.close(context)


def _told(label: str, context: int, command: int, name: bytes | None, value: bytes | None) -> None:
    try:
        _call(label, _SYS_FSCONFIG, context, command, name, value, 0)
    except OSError as error:
        raise OSError(error.errno, _kernel_says(context) or error.strerror) from error


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
