"""Device mapper by ioctl(2) on ``/dev/mapper/control``, without dmsetup or udev.

The words: a *device* has a name and a *table* of targets; here always a single one. The kernel
makes its node ``/dev/dm-MINOR`` by itself (devtmpfs).

Rules: a device with openers can't be removed; *deferred* removal takes it away at the last close.

Source: ``include/uapi/linux/dm-ioctl.h`` of Linux 6.12; Documentation/admin-guide/device-mapper.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass

_CONTROL = "/dev/mapper/control"
_HEADER = struct.Struct("=3IIIIiIIIQ128s129s7x")
_SPEC = struct.Struct("=QQiI16s")
_VERSION, _DEV_CREATE, _DEV_REMOVE, _DEV_SUSPEND = 0, 3, 4, 6
_DEV_STATUS, _TABLE_LOAD, _TABLE_STATUS, _TARGET_MESSAGE, _LIST_VERSIONS = 7, 9, 12, 14, 13
_LIST_DEVICES = 2
_READONLY, _SUSPEND, _NOFLUSH = 1 << 0, 1 << 1, 1 << 11
_DEFERRED_REMOVE = 1 << 17
_ROOM = 16384


@dataclass(frozen=True, slots=True)
class Device:
    """A device that exists: the name of its node, how many have it open, whether it is paused."""

    node: str
    open_count: int
    suspended: bool


def _ioctl(
    command: int, name: str, flags: int = 0, payload: bytes = b"", targets: int = 0
) -> bytes:
    """One command; the whole answer."""
    buffer = bytearray(_ROOM)
    _HEADER.pack_into(
        buffer, 0, 4, 0, 0, _ROOM, _HEADER.size, targets, 0, flags, 0, 0, 0, name.encode(), b""
    )
    buffer[_HEADER.size : _HEADER.size + len(payload)] = payload
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(control, 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | command, buffer, True)
    except OSError as error:
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)}", name) from None
    finally:
        os.close(control)
    return bytes(buffer)


def make_control() -> bool:
    """Whether there is a device mapper; its control node is made if the kernel has one and nobody
    made it."""
    if os.path.exists(_CONTROL):
        return True
    with open("/proc/misc") as misc:
        numbers = {line.split()[1]: int(line.split()[0]) for line in misc}
    if "device-mapper" not in numbers:
        return False
    os.makedirs("/dev/mapper", exist_ok=True)
    os.mknod(_CONTROL, 0o20600, os.makedev(10, numbers["device-mapper"]))
    return True


def targets() -> set[str]:
    """The kinds of targets that the kernel has now (``thin-pool``, ``thin``…)."""
    answer = _ioctl(_LIST_VERSIONS, "")
    start = _HEADER.unpack_from(answer)[4]
    found = set()
    while True:
        step = struct.unpack_from("=I", answer, start)[0]
        name = answer[start + 16 : answer.index(b"\0", start + 16)]
        found.add(name.decode())
        if not step:
            return found
        start += step


def _device(answer: bytes) -> Device:
    fields = _HEADER.unpack_from(answer)
    # The kernel packs a dev_t as new_encode_dev does: the minor's low byte, the major, the rest.
    minor = (fields[10] & 0xFF) | ((fields[10] >> 12) & 0xFFF00)
    return Device(f"/dev/dm-{minor}", fields[6], bool(fields[7] & _SUSPEND))


def find(name: str) -> Device | None:
    """The device of that name, or None."""
    try:
        return _device(_ioctl(_DEV_STATUS, name))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def names() -> set[str]:
    """The names of all devices."""
    answer = _ioctl(_LIST_DEVICES, "")
    start = _HEADER.unpack_from(answer)[4]
    found = set()
    while struct.unpack_from("=Q", answer, start)[0]:
        step = struct.unpack_from("=I", answer, start + 8)[0]
        found.add(answer[start + 12 : answer.index(b"\0", start + 12)].decode())
        if not step:
            break
        start += step
    return found


def create(name: str, kind: str, sectors: int, parameters: str) -> Device:
    """Make a device of one target and let it run. Raises OSError (EBUSY: the name is taken)."""
    _ioctl(_DEV_CREATE, name)
    try:
        load(name, kind, sectors, parameters)
        return resume(name)
    except OSError:
        remove(name)
        raise


def load(name: str, kind: str, sectors: int, parameters: str) -> None:
    """Give a device another table, in force from the next :func:`resume`."""
    text = parameters.encode() + b"\0"
    text += bytes(-len(text) % 8)
    payload = _SPEC.pack(0, sectors, 0, _SPEC.size + len(text), kind.encode()) + text
    _ioctl(_TABLE_LOAD, name, 0, payload, 1)


def resume(name: str) -> Device:
    """Let a device run, with the table that was loaded last."""
    return _device(_ioctl(_DEV_SUSPEND, name))


def suspend(name: str) -> None:
    """Pause a device: its file system is frozen, and what was written is in it."""
    _ioctl(_DEV_SUSPEND, name, _SUSPEND)


def message(name: str, text: str) -> None:
    """Tell the target something (``create_thin 5``)."""
    _ioctl(_TARGET_MESSAGE, name, 0, struct.pack("=Q", 0) + text.encode() + b"\0")


def status(name: str) -> str:
    """The target's own words about itself."""
    answer = _ioctl(_TABLE_STATUS, name, _NOFLUSH)
    start = _HEADER.unpack_from(answer)[4] + _SPEC.size
    return answer[start : answer.index(b"\0", start)].decode()


def remove(name: str, *, deferred: bool = False) -> bool:
    """Remove a device; False if it is in use (``deferred``: it goes with its last user)."""
    try:
        _ioctl(_DEV_REMOVE, name, _DEFERRED_REMOVE if deferred else 0)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return True
        if error.errno == errno.EBUSY:
            return False
        raise
    return True


def keep(name: str) -> None:
    """Take a deferred removal back."""
    try:
        message(name, "@cancel_deferred_remove")
    except OSError as error:
        # It was not asked to go.
        if error.errno not in (errno.EINVAL, errno.EBUSY):
            raise
