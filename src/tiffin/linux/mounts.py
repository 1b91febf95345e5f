"""Mount options as words and as the kernel's flags, and the table of mounts.

Source: mount(8), mount(2), proc_pid_mountinfo(5).
"""

from __future__ import annotations

from tiffin.linux import syscalls

_SET = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "sync": syscalls.MS_SYNCHRONOUS,
    "noatime": syscalls.MS_NOATIME,
    "nodiratime": syscalls.MS_NODIRATIME,
    "relatime": syscalls.MS_RELATIME,
    "strictatime": syscalls.MS_STRICTATIME,
    "remount": syscalls.MS_REMOUNT,
    "bind": syscalls.MS_BIND,
    "rbind": syscalls.MS_BIND | syscalls.MS_REC,
}
_CLEAR = {
    "rw": syscalls.MS_RDONLY,
    "suid": syscalls.MS_NOSUID,
    "dev": syscalls.MS_NODEV,
    "exec": syscalls.MS_NOEXEC,
    "async": syscalls.MS_SYNCHRONOUS,
    "atime": syscalls.MS_NOATIME,
    "diratime": syscalls.MS_NODIRATIME,
    "norelatime": syscalls.MS_RELATIME,
    "nostrictatime": syscalls.MS_STRICTATIME,
    "defaults": 0,
}
PROPAGATIONS = {
    "private": syscalls.MS_PRIVATE,
    "rprivate": syscalls.MS_PRIVATE | syscalls.MS_REC,
    "slave": syscalls.MS_SLAVE,
    "rslave": syscalls.MS_SLAVE | syscalls.MS_REC,
    "shared": syscalls.MS_SHARED,
    "rshared": syscalls.MS_SHARED | syscalls.MS_REC,
    "unbindable": syscalls.MS_UNBINDABLE,
    "runbindable": syscalls.MS_UNBINDABLE | syscalls.MS_REC,
}
ATTRIBUTES = {
    "ro": syscalls.MOUNT_ATTR_RDONLY,
    "nosuid": syscalls.MOUNT_ATTR_NOSUID,
    "nodev": syscalls.MOUNT_ATTR_NODEV,
    "noexec": syscalls.MOUNT_ATTR_NOEXEC,
    "idmap": syscalls.MOUNT_ATTR_IDMAP,
}


def known_options() -> list[str]:
    """The words that mean something for every mount."""
    return sorted({*_SET, *_CLEAR, *PROPAGATIONS, "rro"} - {"remount"})


class Options:
    """Mount options taken apart: ``flags`` for mount(2), ``propagation`` flags (0: untouched),
    and ``data`` for the file system."""

    __slots__ = ("data", "flags", "propagation")

    def __init__(self, flags: int, propagation: int, data: str) -> None:
        self.flags = flags
        self.propagation = propagation
        self.data = data


def parse_options(options: list[str] | tuple[str, ...], flags: int = 0) -> Options:
    """Take options apart, later ones winning; what is no flag is the file system's data."""
    propagation = 0
    data = []
    for option in options:
        if option in _SET:
            flags |= _SET[option]
        elif option in _CLEAR:
            flags &= ~_CLEAR[option]
        elif option in PROPAGATIONS:
            propagation = PROPAGATIONS[option]
        elif option:
            data.append(option)
    return Options(flags, propagation, ",".join(data))


def describe_flags(flags: int) -> str:
    """``ro,nosuid`` from the flags; ``rw`` if there are none."""
    words = []
    for word, bits in _SET.items():
        if word != "rbind" and flags & bits:
            words.append("rbind" if word == "bind" and flags & syscalls.MS_REC else word)
    return ",".join(words) or "rw"


class MountEntry:
    """One line of mountinfo."""

    __slots__ = (
        "fstype",
        "id",
        "mount_point",
        "options",
        "parent",
        "propagation",
        "root",
        "source",
        "super_options",
    )

    def __init__(self, line: str) -> None:
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        self.id = int(fields[0])
        self.parent = int(fields[1])
        self.root = _unescape(fields[3])
        self.mount_point = _unescape(fields[4])
        self.options = fields[5].split(",")
        self.propagation = fields[6:]
        kind = right.split(" ")
        self.fstype = kind[0]
        self.source = _unescape(kind[1])
        self.super_options = kind[2].split(",") if len(kind) > 2 else []


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def parse_mountinfo(text: str) -> list[MountEntry]:
    """The mounts that a mountinfo file lists, in its order."""
    return [MountEntry(line) for line in text.splitlines() if line]


def mountinfo(pid: int | str = "self") -> list[MountEntry]:
    """The mounts that a process sees."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return parse_mountinfo(file.read())


def read_only_executable(path: str) -> int:
    """A descriptor of a detached, read-only mount of the file ``path``, to be executed.

    A process started from it (``/proc/self/fd/N``) can't have its program overwritten through
    ``/proc/PID/exe``, also not by a container that it starts a process in (CVE-2019-5736).
    The caller closes it.
    """
    import os

    fd = syscalls.open_tree(syscalls.AT_FDCWD, os.path.realpath(path), syscalls.OPEN_TREE_CLONE)
    try:
        syscalls.mount_setattr(fd, syscalls.MOUNT_ATTR_RDONLY)
    except OSError:
        os.close(fd)
        raise
    return fd
