"""System calls that Python's ``os`` does not have, through ctypes.

Every function raises :class:`OSError` with the errno, and with the call's name and its main
argument in the message (``mount(overlay on /x): No such device``). Flags are named as in the
kernel's headers. Nothing here keeps state; what a test must be able to fake goes through
:class:`tiffin.linux.kernel.Kernel`, which calls these.

Source: the manual pages of section 2, and ``include/uapi/linux/*.h`` of Linux 6.18.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform

_libc = ctypes.CDLL(None, use_errno=True)
# The same library, called without giving up the GIL: for clone, whose child must own it.
_libc_holding_gil = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc_holding_gil.syscall.restype = ctypes.c_long

# System call numbers: the newer ones are the same on every architecture.
SYS_CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine(), 220)
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}.get(platform.machine(), 41)
SYS_PIDFD_SEND_SIGNAL = 424
SYS_PIDFD_OPEN = 434
SYS_OPEN_TREE = 428
SYS_OPENAT2 = 437
SYS_MOUNT_SETATTR = 442

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24

MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

CLONE_FS = 0x00000200
CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

AT_FDCWD = -100
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10


def _fail(call: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call}: {os.strerror(code)}")


def _bytes(value: str | bytes | None) -> bytes | None:
    return os.fsencode(value) if value is not None else None


def mount(
    source: str | bytes | None,
    target: str | bytes,
    fstype: str | None = None,
    flags: int = 0,
    data: str | bytes | None = None,
) -> None:
    """mount(2). ``data`` must fit in a page."""
    result = _libc.mount(
        _bytes(source), _bytes(target), _bytes(fstype), ctypes.c_ulong(flags), _bytes(data)
    )
    if result != 0:
        raise _fail(f"mount({fstype or os.fsdecode(source or b'')} on {os.fsdecode(target)})")


def umount(target: str | bytes, flags: int = 0) -> None:
    """umount2(2)."""
    if _libc.umount2(_bytes(target), flags) != 0:
        raise _fail(f"umount({os.fsdecode(target)})")


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    if _libc.syscall(SYS_PIVOT_ROOT, _bytes(new_root), _bytes(put_old)) != 0:
        raise _fail(f"pivot_root({new_root}, {put_old})")


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _libc.unshare(flags) != 0:
        raise _fail(f"unshare({flags:#x})")


def setns(fd: int, nstype: int = 0) -> None:
    """setns(2): ``fd`` is a namespace file, or a pidfd with several CLONE_NEW* flags."""
    if _libc.setns(fd, nstype) != 0:
        raise _fail(f"setns({fd}, {nstype:#x})")


def clone(flags: int) -> int:
    """clone(2) as fork with namespace flags: the child's pid in the parent, 0 in the child.

    Only for a single-threaded process: Python's and glibc's at-fork handlers are not run. The GIL
    is kept across the call, so that the child owns it.
    """
    import signal

    arguments = [ctypes.c_ulong(flags | signal.SIGCHLD), None, None, None, None]
    pid = int(_libc_holding_gil.syscall(SYS_CLONE, *arguments))
    if pid < 0:
        raise _fail(f"clone({flags:#x})")
    return pid


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def openat2(directory: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2): a new descriptor (close-on-exec). Retries the EAGAIN of a racing rename."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    encoded = _bytes(path)
    for _ in range(64):
        fd = int(
            _libc.syscall(SYS_OPENAT2, directory, encoded, ctypes.byref(how), ctypes.sizeof(how))
        )
        if fd >= 0:
            return fd
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    raise _fail(f"openat2({os.fsdecode(path)})")


def open_tree(directory: int, path: str | bytes, flags: int) -> int:
    """open_tree(2): a descriptor of a mount, or with OPEN_TREE_CLONE of a detached copy of it."""
    fd = int(_libc.syscall(SYS_OPEN_TREE, directory, _bytes(path), ctypes.c_uint(flags)))
    if fd < 0:
        raise _fail(f"open_tree({os.fsdecode(path)})")
    return fd


def sethostname(name: str) -> None:
    """sethostname(2)."""
    encoded = os.fsencode(name)
    if _libc.sethostname(encoded, ctypes.c_size_t(len(encoded))) != 0:
        raise _fail(f"sethostname({name})")


def setdomainname(name: str) -> None:
    """setdomainname(2)."""
    encoded = os.fsencode(name)
    if _libc.setdomainname(encoded, ctypes.c_size_t(len(encoded))) != 0:
        raise _fail(f"setdomainname({name})")


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2) with integer arguments."""
    longs = [ctypes.c_ulong(value) for value in (arg2, arg3, arg4, arg5)]
    result = int(_libc.prctl(option, *longs))
    if result < 0:
        raise _fail(f"prctl({option})")
    return result
