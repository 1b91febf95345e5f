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

_MACHINE = os.uname().machine

_libc = ctypes.CDLL(None, use_errno=True)
# The same library, called without giving up the GIL: for clone, whose child must own it.
_libc_holding_gil = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc_holding_gil.syscall.restype = ctypes.c_long
_prctl = _libc["prctl"]
_prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)

# System call numbers: the newer ones are the same on every architecture.
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}.get(_MACHINE, 41)
SYS_CAPGET = {"x86_64": 125, "aarch64": 90}.get(_MACHINE, 90)
SYS_CAPSET = {"x86_64": 126, "aarch64": 91}.get(_MACHINE, 91)
SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}.get(_MACHINE, 277)
SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}.get(_MACHINE, 219)
SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
SYS_CLONE3 = 435
SYS_CLOSE_RANGE = 436
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
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_PIDFD = 0x00001000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000
_SIGCHLD = 17

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR_IDMAP = 0x00100000

PROC_SUPER_MAGIC = 0x9FA0

AT_FDCWD = -100
AT_RECURSIVE = 0x8000
AT_EMPTY_PATH = 0x1000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40

SECCOMP_SET_MODE_FILTER = 1

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

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


class _CloneArgs(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    )


def clone(flags: int) -> int:
    """clone3(2) as fork with namespace flags: the child's pid in the parent, 0 in the child.

    Only for a single-threaded process: Python's and glibc's at-fork handlers are not run. The GIL
    is kept across the call, so that the child owns it.
    """
    return _clone3(_CloneArgs(flags=flags, exit_signal=_SIGCHLD))


def clone_held(flags: int, cgroup: int | None = None) -> tuple[int, int]:
    """As :func:`clone`, and a pidfd of the child, which is the caller's; in the child (0, -1).

    There is no child where there is no descriptor for it, and nobody else is ever taken for it.
    With ``cgroup``, a descriptor of a version 2 group's directory, the child starts in it, which
    is much faster than moving it there.
    """
    pidfd = ctypes.c_int(-1)
    arguments = _CloneArgs(
        flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd), exit_signal=_SIGCHLD
    )
    if cgroup is not None:
        arguments.flags |= CLONE_INTO_CGROUP
        arguments.cgroup = cgroup
    pid = _clone3(arguments)
    return pid, pidfd.value if pid else -1


def _clone3(arguments: _CloneArgs) -> int:
    pid = int(
        _libc_holding_gil.syscall(SYS_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments))
    )
    if pid < 0:
        raise _fail(f"clone({arguments.flags:#x})")
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
    result = int(_prctl(option, arg2, arg3, arg4, arg5))
    if result < 0:
        raise _fail(f"prctl({option})")
    return result


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def open_tree(directory: int, path: str | bytes, flags: int) -> int:
    """open_tree(2): a new descriptor (close-on-exec) of a mount, or of a detached copy of it."""
    fd = int(_libc.syscall(SYS_OPEN_TREE, directory, _bytes(path), flags | os.O_CLOEXEC))
    if fd < 0:
        raise _fail(f"open_tree({os.fsdecode(path)})")
    return fd


def move_mount(tree: int, target: int) -> None:
    """move_mount(2): attach the mount ``tree`` on what ``target`` (an O_PATH descriptor) is."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    if _libc.syscall(SYS_MOVE_MOUNT, tree, b"", target, b"", flags) != 0:
        raise _fail("move_mount")


def mount_setattr(
    fd: int,
    set_: int = 0,
    clear: int = 0,
    propagation: int = 0,
    recursive: bool = False,
    user_namespace: int = 0,
) -> None:
    """mount_setattr(2) on the mount that ``fd`` is the root of (Linux 5.12).

    ``user_namespace`` is the descriptor that MOUNT_ATTR_IDMAP needs.
    """
    attributes = _MountAttr(set_, clear, propagation, user_namespace)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    result = _libc.syscall(
        SYS_MOUNT_SETATTR,
        fd,
        b"",
        flags,
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    if result != 0:
        raise _fail(f"mount_setattr({set_:#x})")


def file_system(fd: int) -> int:
    """The kind of file system that a descriptor's file is in (``f_type`` of fstatfs(2))."""
    buffer = (ctypes.c_long * 32)()
    if _libc.fstatfs(fd, ctypes.byref(buffer)) != 0:
        raise _fail("fstatfs")
    return int(buffer[0])


def set_file_ids(uid: int, gid: int) -> None:
    """setfsuid(2) and setfsgid(2): whose the files are that this process makes."""
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """close_range(2)."""
    if _libc.syscall(SYS_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), flags) != 0:
        raise _fail(f"close_range({first})")


def join_session_keyring() -> None:
    """keyctl(2), KEYCTL_JOIN_SESSION_KEYRING: a new, empty session keyring for this process."""
    if _libc.syscall(SYS_KEYCTL, 1, None, 0, 0, 0) < 0:
        raise _fail("keyctl(join session keyring)")


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_CAPABILITY_VERSION_3 = 0x20080522


def capget() -> tuple[int, int, int]:
    """capget(2): this process's effective, permitted and inheritable sets as bit masks."""
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapabilityData * 2)()
    if _libc.syscall(SYS_CAPGET, ctypes.byref(header), data) != 0:
        raise _fail("capget")
    low, high = data
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) for this process, the sets as bit masks."""
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    low = 0xFFFFFFFF
    data = (_CapabilityData * 2)(
        _CapabilityData(effective & low, permitted & low, inheritable & low),
        _CapabilityData(effective >> 32, permitted >> 32, inheritable >> 32),
    )
    if _libc.syscall(SYS_CAPSET, ctypes.byref(header), data) != 0:
        raise _fail("capset")


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def seccomp_filter(program: bytes, flags: int = 0) -> None:
    """seccomp(2), SECCOMP_SET_MODE_FILTER: ``program`` is an array of ``struct sock_filter``.

    Needs CAP_SYS_ADMIN in the user namespace, or no_new_privs.
    """
    argument = _FilterProgram(len(program) // 8, program)
    result = _libc.syscall(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(argument))
    if result != 0:
        raise _fail("seccomp(set filter)")


def prctl_name(name: bytes) -> None:
    """prctl(PR_SET_NAME): the process's short name (15 bytes)."""
    if _libc.prctl(PR_SET_NAME, ctypes.c_char_p(name[:15]), 0, 0, 0) != 0:
        raise _fail("prctl(PR_SET_NAME)")


def write_memory(address: int, content: bytes) -> None:
    """Overwrite this process's own memory: for the area that holds its arguments."""
    ctypes.memmove(address, content, len(content))
