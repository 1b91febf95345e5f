"""A child between clone and exec, and what its parent hears of it meanwhile.

:func:`begin` clones a child that does a piece of work, usually to become a program in the end. The
caller must be single-threaded: the child is made by clone(2), without a C library's or Python's
fork handlers. Should the caller die before the child's work is done, the child dies too.

The child speaks to its parent over a *channel*, a close-on-exec socket: JSON messages (``warning``;
``terminal``, with the terminal's master as descriptor; ``made`` and ``created``, where
:class:`Halts` are wanted; ``error``), and its end means that exec happened, or that the work is
done.

This module is part of the keeper: it imports next to nothing.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal, without the enums
import json
import os
import socket
import sys

from tiffin.errors import StartFailure
from tiffin.linux import syscalls
from tiffin.runtime import process as program
from tiffin.runtime.launching import Begun, Launched, Readable, kill

TYPE_CHECKING = False  # typing itself would cost the keeper more than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tiffin.runtime.launching import Launching

    Body = Callable[[socket.socket, Callable[[str], None]], None]

UNIFIED = "/cgroup.procs"
"""How the entrance of a version 2 group ends; clone takes its directory."""
_ALL_SIGNALS = _signal.valid_signals()


class Halts:
    """Where a start stops for its caller, as an OCI runtime command needs it.

    ``made`` is called in the parent, with the child's pid, once its namespaces are there and
    nothing is mounted; ``before_pivot`` in the child, with its pid as the parent knows it, when all
    is mounted; and before its exec the child tells the parent that it is ready, which returns, and
    calls ``wait``.
    """

    __slots__ = ("before_pivot", "made", "wait")

    def __init__(
        self,
        made: Callable[[int], None],
        before_pivot: Callable[[int], None],
        wait: Callable[[int], None],
    ) -> None:
        self.made = made
        self.before_pivot = before_pivot
        self.wait = wait


def begin(
    body: Body,
    flags: int,
    namespace: int | None,
    entrances: list[str] | tuple[str, ...],
    warnings: list[str],
    halts: Halts | None = None,
    *,
    own: bool = True,
) -> Launching:
    """Clone, run ``body(channel, warn)`` in the child, and take in what it says.

    ``namespace`` is a pidfd or a namespace file whose pid namespace the child shall be in;
    ``entrances`` are the files of its cgroups; ``warnings`` grows by the child's; ``own`` is
    :class:`~tiffin.runtime.launching.Begun`'s. Raises StartFailure.
    """
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise StartFailure(f"failed to create a process: {error.strerror}") from None
    with ours:
        with theirs:
            pid, pidfd = _clone(flags, namespace, entrances)
            if pid == 0:
                _run_child(body, theirs)
        terminal = None
        try:
            yield Begun(pid, own=own)
            ours.setblocking(False)
            while True:
                try:
                    data, fds, _, _ = socket.recv_fds(ours, 65536, 1, socket.MSG_CMSG_CLOEXEC)
                except BlockingIOError:
                    yield Readable(ours.fileno())
                    continue
                if fds:
                    terminal = fds[0]
                message: dict[str, Any] = json.loads(data) if data else {"created": True}
                if "created" in message:
                    return Launched(pid, pidfd, terminal, warnings)
                if "made" in message and halts is not None:
                    halts.made(pid)
                    ours.sendall(str(pid).encode())
                elif "warning" in message:
                    warnings.append(message["warning"])
                elif "error" in message:
                    raise StartFailure(message["error"], message["code"])
        except BaseException:
            kill(pidfd)
            os.close(pidfd)
            if terminal is not None:
                os.close(terminal)
            raise


def clone_quietly(flags: int, cgroup: int | None = None) -> tuple[int, int]:
    """As :func:`tiffin.linux.syscalls.clone_held`; in the child all signals are blocked.

    No handler of the caller's may run there, where it would act on the caller's files.
    """
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, _ALL_SIGNALS)
    pid = -1
    try:
        pid, pidfd = syscalls.clone_held(flags, cgroup)
    finally:
        if pid:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
    return pid, pidfd


def _clone(
    flags: int, namespace: int | None, entrances: list[str] | tuple[str, ...]
) -> tuple[int, int]:
    """Clone into the version 2 group, if any, and into the pid namespace of ``namespace``; as
    :func:`tiffin.linux.syscalls.clone_held`."""
    own = group = None
    try:
        for path in entrances:
            if path.endswith(UNIFIED):
                directory = path[: -len(UNIFIED)]
                group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if namespace is None:
            return clone_quietly(flags, group)
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(namespace, syscalls.CLONE_NEWPID)
        pid, pidfd = clone_quietly(flags, group)
        if pid:
            syscalls.setns(own, syscalls.CLONE_NEWPID)
        return pid, pidfd
    except ProcessLookupError:
        raise StartFailure("the container is not running") from None
    except OSError as error:
        if own is not None:
            syscalls.setns(own, syscalls.CLONE_NEWPID)
        raise StartFailure(f"failed to create a process: {error.strerror}") from None
    finally:
        for fd in (own, group):
            if fd is not None:
                os.close(fd)


def _run_child(
    body: Callable[[socket.socket, Callable[[str], None]], None], channel: socket.socket
) -> None:
    """The child's whole life; never returns."""
    code = 125
    fd = channel.fileno()

    def send(message: dict[str, Any]) -> None:
        # The channel's number changes when the streams are taken.
        os.write(program.CHANNEL if taken() else fd, json.dumps(message).encode())

    inode = os.fstat(fd).st_ino

    def taken() -> bool:
        try:
            return os.fstat(program.CHANNEL).st_ino == inode
        except OSError:
            return False

    def warn(text: str) -> None:
        send({"warning": text})

    try:
        # Whatever happens from here on, no code is loaded: soon it would be the container's.
        sys.meta_path.clear()
        sys.path_hooks.clear()
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, _signal.SIGKILL)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        program.reset_signals()
        os.umask(0)
        body(channel, warn)
    except program.Refusal as refusal:
        code = refusal.code
        send({"error": refusal.message, "code": code})
    except OSError as error:
        send({"error": f"failed to start the container: {error.strerror}", "code": code})
    except BaseException as error:
        send({"error": f"failed to start the container: {error!r}", "code": code})
    finally:
        os._exit(code)
