"""Network namespaces: made, visited.

A container's namespace is made before the container: its links, addresses and routes are ready
before its first instruction. Nothing is mounted for it. While the container starts, the engine
holds the namespace by a descriptor, which the keeper joins through ``/proc/PID/fd``; from then on
the container's processes hold it, and with the last of them the kernel takes it away with all
that is in it. So a container that ends while no engine runs leaves nothing behind.

A thread that visits a namespace is the only one there: setns(2) is a thread's own.

Source: network_namespaces(7), setns(2).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tiffin.linux import syscalls

_OWN = "/proc/thread-self/ns/net"


class Namespace:
    """A network namespace, held by a descriptor until :meth:`close`."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def new(cls) -> Namespace:
        """An empty one."""
        own = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            try:
                return cls(os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC))
            finally:
                syscalls.setns(own, syscalls.CLONE_NEWNET)
        finally:
            os.close(own)

    @classmethod
    def of_process(cls, pid: int) -> Namespace:
        """That of a process; raises ProcessLookupError or FileNotFoundError if it is gone."""
        return cls(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    def copy(self) -> Namespace:
        """The same, held once more."""
        return Namespace(os.dup(self.fd))

    @property
    def path(self) -> str:
        """A path by which another process can join it while this one holds it."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @contextmanager
    def visit(self) -> Iterator[None]:
        """Inside the block, the calling thread is in the namespace."""
        own = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(self.fd, syscalls.CLONE_NEWNET)
            try:
                yield
            finally:
                syscalls.setns(own, syscalls.CLONE_NEWNET)
        finally:
            os.close(own)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_sysctls(settings: Sequence[tuple[str, str]]) -> None:
    """Write ``net.…`` parameters of the calling thread's namespace; a missing one is left out."""
    for name, value in settings:
        # Interfaces may have a dot in their name, so slashes separate here.
        try:
            fd = os.open(f"/proc/sys/net/{name}", os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)


_ROOM = {"gc_thresh1": 2048, "gc_thresh2": 8192, "gc_thresh3": 16384}


def make_room_for_neighbours() -> None:
    """Let the kernel remember who has which address, for thousands of containers.

    Its tables are one for the whole machine, with room for a thousand; once they are full, nobody
    reaches anybody. They are made larger, never smaller.
    """
    for family in ("ipv4", "ipv6"):
        for name, least in _ROOM.items():
            try:
                with open(f"/proc/sys/net/{family}/neigh/default/{name}") as file:
                    present = int(file.read())
            except FileNotFoundError:
                # Only the machine's first namespace has them.
                return
            if present < least:
                write_sysctls([(f"{family}/neigh/default/{name}", str(least))])
