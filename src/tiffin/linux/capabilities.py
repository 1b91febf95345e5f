"""Capabilities: their names and numbers, Docker's default set, and taking them on.

The sets a process has are bit masks here: bit *n* is capability number *n*. A container's process
gets its set as bounding, permitted and effective set when it is root; another user gets it as
bounding set alone, as execve(2) would leave it. The inheritable and the ambient set are empty.

Source: capabilities(7); ``include/uapi/linux/capability.h`` of Linux 6.18.
"""

from __future__ import annotations

from tiffin.linux import syscalls

NAMES = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
]
"""In the kernel's order: the index is the number."""

NUMBERS = {name: number for number, name in enumerate(NAMES)}

DEFAULT = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
)
"""The fourteen that a container has unless told otherwise."""


def canonical(name: str) -> str | None:
    """``cap_net_raw``, ``NET_RAW`` → ``NET_RAW``; None for what is no capability."""
    short = name.upper().removeprefix("CAP_")
    return short if short in NUMBERS else None


def mask(names: list[str] | tuple[str, ...]) -> int:
    """The bit mask of capabilities by name (with or without ``CAP_``). Raises KeyError."""
    result = 0
    for name in names:
        result |= 1 << NUMBERS[name.upper().removeprefix("CAP_")]
    return result


def names(bits: int) -> list[str]:
    """The names in a bit mask, in the kernel's order; numbers without a name are left out."""
    return [name for number, name in enumerate(NAMES) if bits >> number & 1]


def bounding() -> int:
    """This process's bounding set."""
    result = 0
    for number in range(64):
        try:
            if syscalls.prctl(syscalls.PR_CAPBSET_READ, number):
                result |= 1 << number
        except OSError:
            # The kernel knows no capability of that number.
            break
    return result


def held() -> int:
    """What this process could give to a child: the permitted set within the bounding set."""
    return syscalls.capget()[1] & bounding()


def permitted() -> int:
    """This process's permitted set."""
    return syscalls.capget()[1]


def drop_bounding(keep: int) -> None:
    """Take everything but ``keep`` out of the bounding set. Needs CAP_SETPCAP."""
    for number in range(64):
        if keep >> number & 1:
            continue
        try:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
        except OSError:
            if number < len(NAMES):
                raise
            break


def take(effective: int, permitted: int, inheritable: int = 0) -> None:
    """Take on these sets; the ambient one becomes empty."""
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    syscalls.capset(effective, permitted, inheritable)


def raise_ambient(bits: int) -> None:
    """Add to the ambient set what is permitted and inheritable."""
    for number in range(len(NAMES)):
        if bits >> number & 1:
            syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)
