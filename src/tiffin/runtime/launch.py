"""Starting containers, and processes in them: what the keeper calls.

:func:`launching` executes a plan (the JSON form of :class:`tiffin.runtime.native.Plan`),
:func:`entering` starts one more process in a running container. Both are starts under way
(:mod:`tiffin.runtime.launching`), for a caller with other things to do; :func:`launch` and
:func:`enter` wait until the program has been executed. The caller must be single-threaded. The new
process is its direct child, and it reaps it.

This module is part of the keeper: it imports next to nothing.
"""

from __future__ import annotations

import errno
import os
import socket
import stat

from tiffin.errors import StartFailure
from tiffin.linux import syscalls
from tiffin.linux.cgroups import Hierarchy
from tiffin.linux.kernel import Kernel
from tiffin.linux.terminals import set_size, unlock_terminal
from tiffin.runtime import process as program
from tiffin.runtime.child import UNIFIED, begin
from tiffin.runtime.launching import Ended, finish
from tiffin.runtime.operations import ChangeRoot, MakeDirectory, Operation, PivotRoot, load
from tiffin.runtime.user_namespace import UserNamespace, become_root

TYPE_CHECKING = False  # typing itself would cost the keeper more than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from tiffin.runtime.child import Halts
    from tiffin.runtime.launching import Launched, Launching, Stdio, Step

_TREE = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWCGROUP
)
_hierarchy: list[Hierarchy] = []


def hierarchy() -> Hierarchy:
    """The machine's cgroups, looked up once in the life of this process."""
    if not _hierarchy:
        _hierarchy.append(Hierarchy.detect())
    return _hierarchy[0]


def launch(plan: dict[str, Any], stdio: Stdio, halts: Halts | None = None) -> Launched:
    """Make a container, start its first process, and wait until it executes its program.

    Raises StartFailure with Docker's sentence and exit code; then nothing is left, neither process
    nor cgroup.
    """
    try:
        return finish(launching(plan, stdio, halts))
    except BaseException:
        if plan["cgroup"] is not None:
            hierarchy().delete(plan["cgroup"]["name"])
        raise


def launching(plan: dict[str, Any], stdio: Stdio, halts: Halts | None = None) -> Launching:
    """Make a container and start its first process; after a failure its cgroup may be left.

    Raises StartFailure with Docker's sentence and exit code.
    """
    runtime, cgroup = plan.get("runtime"), plan["cgroup"]
    if runtime is not None and runtime["name"] == "lxc":
        from tiffin.runtime import lxc

        return (yield from lxc.launching(plan, stdio))
    if runtime is not None:
        from tiffin.runtime import foreign

        return (yield from foreign.launching(plan, stdio))
    warnings: list[str] = []
    if cgroup is not None:
        try:
            warnings = hierarchy().create(cgroup["name"], cgroup["resources"], cgroup["devices"])
        except OSError as error:
            text = f"failed to create cgroup {cgroup['name']}: {error.strerror}"
            raise StartFailure(text) from None
    return (yield from _launching(plan, stdio, warnings, halts))


def _launching(
    plan: dict[str, Any], stdio: Stdio, warnings: list[str], halts: Halts | None
) -> Launching:
    process = plan["process"]
    wanted = plan["user_namespace"]
    try:
        users = None if wanted is None else UserNamespace(wanted)
    except OSError as error:
        raise StartFailure(f"failed to create a user namespace: {error.strerror}") from None
    entrances = plan["cgroup"]["entrances"] if plan["cgroup"] is not None else ()

    def child(channel: socket.socket, warn: Callable[[str], None]) -> None:
        _settle(entrances, process, warn)
        if users is None:
            kernel = Kernel()
        else:
            _give_away(stdio, users.root)
            users.join_others()
            kernel = Kernel(users.fd)
        gate = pid = None
        if halts is not None:
            os.write(channel.fileno(), b'{"made":true}')
            pid = int(channel.recv(100))

            def gate() -> None:
                os.write(program.CHANNEL, b'{"created":true}')
                os.close(program.CHANNEL)
                halts.wait(pid)

        for item in plan["operations"]:
            operation = load(item)
            try:
                last = isinstance(operation, (PivotRoot, ChangeRoot))
                if halts is not None and pid is not None and last:
                    halts.before_pivot(pid)
                operation.execute(kernel)
            except OSError as error:
                raise _refusal(operation, error) from None
        if users is not None:
            become_root()
        _become(process, plan["init"], stdio, kernel.terminal, channel, warn, gate)

    namespace = None
    if plan["pid_namespace"] is not None:
        try:
            namespace = os.open(plan["pid_namespace"], os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StartFailure(
                f"failed to join pid namespace {plan['pid_namespace']}: {error.strerror}"
            ) from None
    try:
        return (yield from begin(child, plan["flags"], namespace, entrances, warnings, halts))
    finally:
        if namespace is not None:
            os.close(namespace)
        if users is not None:
            users.close()


def _give_away(stdio: Stdio, root: tuple[int, int]) -> None:
    """Let the container's root reopen its streams: it has no right to take them itself."""
    for fd in stdio.fds or ():
        if not stat.S_ISCHR(os.fstat(fd).st_mode):
            os.fchown(fd, *root)


def _refusal(operation: Operation, error: OSError) -> program.Refusal:
    if isinstance(operation, MakeDirectory) and error.errno in (errno.ENOTDIR, errno.EEXIST):
        return program.Refusal(f"Cannot mkdir: {operation.path} is not a directory", 126)
    return program.Refusal(
        f"failed to start the container: {operation.describe()}: {error.strerror}", 125
    )


def enter(
    pidfd: int,
    process: dict[str, Any],
    stdio: Stdio,
    entrances: list[str] | tuple[str, ...] = (),
) -> Launched:
    """Start a process in a container as :func:`entering` does, and wait until it executes its
    program. Raises StartFailure."""
    return finish(entering(pidfd, process, stdio, entrances))


def entering(
    pidfd: int,
    process: dict[str, Any],
    stdio: Stdio,
    entrances: list[str] | tuple[str, ...] = (),
) -> Launching:
    """Start a process in the container whose first process ``pidfd`` is.

    ``process`` is as :func:`tiffin.runtime.native.process_plan` makes it, and ``entrances`` are
    the container's cgroup's, as in its plan.

    Raises StartFailure.
    """

    def child(channel: socket.socket, warn: Callable[[str], None]) -> None:
        _settle(entrances, process, warn)
        remapped = process["remapped"]
        if remapped is None:
            syscalls.setns(pidfd, _TREE)
        else:
            _give_away(stdio, (remapped[0], remapped[1]))
            syscalls.setns(pidfd, _TREE | syscalls.CLONE_NEWUSER)
            become_root()
        os.chdir("/")
        terminal = _open_terminal() if process["terminal"] else None
        _become(process, False, stdio, terminal, channel, warn)

    return begin(child, 0, pidfd, entrances, [])


def working_inside(
    pidfd: int, operations: list[Operation], uid: int = 0
) -> Generator[Step, Any, int | None]:
    """A step of a start: execute operations inside the container whose first process ``pidfd`` is;
    the master of the terminal, which is ``uid``'s, if they open one. Raises StartFailure.
    """

    def child(channel: socket.socket, warn: Callable[[str], None]) -> None:
        syscalls.setns(pidfd, _TREE)
        os.chdir("/")
        kernel = Kernel()
        kernel.enter_root("/")
        for operation in operations:
            try:
                operation.execute(kernel)
            except OSError as error:
                raise _refusal(operation, error) from None
        if kernel.terminal is not None:
            master, slave = kernel.terminal
            os.fchown(slave, uid, -1)
            socket.send_fds(channel, [b'{"terminal":true}'], [master])

    worker = yield from begin(child, 0, pidfd, [], [], own=False)
    os.close(worker.pidfd)
    try:
        yield Ended(worker.pid)
    except BaseException:
        if worker.terminal_fd is not None:
            os.close(worker.terminal_fd)
        raise
    return worker.terminal_fd


def _settle(
    entrances: list[str] | tuple[str, ...],
    process: dict[str, Any],
    warn: Callable[[str], None],
) -> None:
    """What the child does while it still sees the host."""
    oom_score_adj = process["oom_score_adj"]
    for path in entrances:
        if path.endswith(UNIFIED):
            continue  # born there
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"0")
        except OSError as error:
            raise OSError(error.errno, f"joining cgroup {path}: {error.strerror}") from None
        finally:
            os.close(fd)
    if process.get("selinux"):
        program.set_attribute("selinux", "keycreate", process["selinux"])
    try:
        syscalls.join_session_keyring()
    except OSError as error:
        if error.errno != errno.ENOSYS:
            warn(f"no session keyring of its own: {error.strerror}")
    if oom_score_adj is not None:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(oom_score_adj).encode())
        except PermissionError:
            warn(f"oom_score_adj {oom_score_adj} is less than this host allows; it is unchanged")
        finally:
            os.close(fd)
    if process["apparmor"] is not None:
        # Of the host's /proc: what is mounted there in the container need not be one.
        program.set_attribute("apparmor", "exec", f"exec {process['apparmor']}")
    if process.get("selinux"):
        program.set_attribute("selinux", "exec", process["selinux"])


def _open_terminal() -> tuple[int, int]:
    """A new terminal in the running container's devpts."""
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC)
    info = os.fstat(master)
    if not stat.S_ISCHR(info.st_mode) or info.st_rdev != os.makedev(5, 2):
        raise OSError(errno.ENOTTY, "/dev/pts/ptmx is not a terminal multiplexer")
    return master, unlock_terminal(master)


def _become(
    process: dict[str, Any],
    init: bool,
    stdio: Stdio,
    terminal: tuple[int, int] | None,
    channel: socket.socket,
    warn: Callable[[str], None],
    gate: Callable[[], None] | None = None,
) -> None:
    if terminal is not None:
        master, slave = terminal
        set_size(master, *stdio.size)
        socket.send_fds(channel, [b'{"terminal":true}'], [master])
        fds = (slave, slave, slave)
    elif stdio.fds is not None:
        fds = stdio.fds
    else:
        raise program.Refusal("a process without a terminal needs three streams", 125)
    program.take_streams(fds, channel.fileno())
    program.become(process, init, terminal is not None, warn, gate)
