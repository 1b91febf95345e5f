"""User namespaces: a container's root that is nobody outside.

A new user namespace, and those that belong to it, are made by a process that lives for that only.
The container's child builds its file systems as the host's root, with files owned by the
container's root, and enters the user namespace last, when the host is out of sight. Layers and
volumes are mounted ID-mapped, so that what is on disk has the IDs that the image knows.

``uids`` and ``gids`` of a plan are lists of [inside, outside, count].

This module is part of the keeper: it imports next to nothing.

Source: user_namespaces(7), mount_setattr(2).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal, without the enums
import os

from tiffin.linux import syscalls

TYPE_CHECKING = False  # typing itself would cost the keeper more than all the rest
if TYPE_CHECKING:
    from typing import Any

_NAMES = (
    (syscalls.CLONE_NEWNET, "net"),
    (syscalls.CLONE_NEWIPC, "ipc"),
    (syscalls.CLONE_NEWUTS, "uts"),
)


class UserNamespace:
    """A new user namespace (descriptor ``fd``) and others that are its own (``others``)."""

    __slots__ = ("fd", "others", "root")

    def __init__(self, wanted: dict[str, Any]) -> None:
        self.root = (_outside(wanted["uids"]), _outside(wanted["gids"]))
        self.fd = -1
        self.others: list[int] = []
        reader, writer = os.pipe()
        try:
            pid = syscalls.clone(syscalls.CLONE_NEWUSER | wanted["flags"])
            if pid == 0:
                _wait(reader, writer)
            try:
                _write(pid, "uid_map", wanted["uids"])
                _write(pid, "gid_map", wanted["gids"])
                self.fd = _open(pid, "user")
                for flag, name in _NAMES:
                    if wanted["flags"] & flag:
                        self.others.append(_open(pid, name))
            except BaseException:
                self.close()
                raise
            finally:
                # The descriptors hold the namespaces from here on.
                os.kill(pid, _signal.SIGKILL)
                _reap(pid)
        finally:
            os.close(reader)
            os.close(writer)

    def join_others(self) -> None:
        """Move the calling process into the namespaces beside the user namespace."""
        for fd in self.others:
            syscalls.setns(fd, 0)

    def close(self) -> None:
        """Let go of the descriptors."""
        for fd in (self.fd, *self.others):
            if fd >= 0:
                os.close(fd)
        self.fd, self.others = -1, []


def _wait(reader: int, writer: int) -> None:
    """The life of the process that the namespaces are made by: until it is killed."""
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, _signal.SIGKILL)
        os.close(writer)
        os.read(reader, 1)
    finally:
        os._exit(0)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        # The caller's own SIGCHLD handler was faster.
        pass


def _outside(mapping: list[list[int]]) -> int:
    for inside, outside, _ in mapping:
        if inside == 0:
            return outside
    raise OSError(22, "the user namespace has no root")


def _write(pid: int, name: str, mapping: list[list[int]]) -> None:
    fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, "".join(f"{a} {b} {c}\n" for a, b, c in mapping).encode())
    finally:
        os.close(fd)


def _open(pid: int, name: str) -> int:
    return os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)


def become_root() -> None:
    """Be the root of the user namespace that was just entered, in no other group."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
