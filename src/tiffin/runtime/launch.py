"""Starting containers, and processes in them: what the keeper calls.

:func:`launch` executes a plan (the JSON form of :class:`tiffin.runtime.native.Plan`), :func:`enter`
starts one more process in a running container. Both return once the program has been executed, or
raise :class:`tiffin.errors.StartFailure`; after a failure nothing is left, neither process nor
cgroup.

The caller must be single-threaded: the child is made by clone(2), without a C library's or
Python's fork handlers. The new process is the caller's direct child; the caller reaps it.

Between clone and exec the child speaks to its parent over a *channel*, a close-on-exec socket:
JSON messages (``warning``; ``terminal``, with the terminal's master as descriptor; ``error``), and
its end means that exec happened. Should the caller die before that, the child dies too.

This module is part of the keeper: it imports next to nothing.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal, without the enums
import errno
import json
import os
import socket
import stat
import sys

from tiffin.errors import StartFailure
from tiffin.linux import syscalls
from tiffin.linux.cgroups import Hierarchy
from tiffin.linux.kernel import Kernel, set_size, unlock_terminal
from tiffin.runtime import process as program
from tiffin.runtime.operations import ChangeRoot, MakeDirectory, Operation, PivotRoot, load
from tiffin.runtime.user_namespace import UserNamespace, become_root

TYPE_CHECKING = False  # typing itself would cost the keeper more than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_PATIENCE = 120.0
"""Seconds that a child may take to exec: a hung network file system must not hang the keeper."""
_ALL_SIGNALS = _signal.valid_signals()
_TREE = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWCGROUP
)


_UNIFIED = "/cgroup.procs"
"""How the entrance of a version 2 group ends; clone takes its directory."""
_hierarchy: list[Hierarchy] = []


def hierarchy() -> Hierarchy:
    """The machine's cgroups, looked up once in the life of this process."""
    if not _hierarchy:
        _hierarchy.append(Hierarchy.detect())
    return _hierarchy[0]


class Stdio:
    """Where a process's streams lead: three descriptors, or None for a terminal of its own.

    The descriptors stay the caller's; the child gets copies. ``size`` is the terminal's (rows,
    columns), (0, 0) for none.
    """

    __slots__ = ("fds", "size")

    def __init__(
        self, fds: tuple[int, int, int] | None, size: tuple[int, int] | None = None
    ) -> None:
        self.fds = fds
        self.size = size or (0, 0)


class Launched:
    """A started process: ``pid``, ``pidfd``, ``terminal_fd`` (the master, or None), ``warnings``.
    The descriptors are the caller's, close-on-exec."""

    __slots__ = ("pid", "pidfd", "terminal_fd", "warnings")

    def __init__(self, pid: int, pidfd: int, terminal_fd: int | None, warnings: list[str]) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.terminal_fd = terminal_fd
        self.warnings = warnings


class Launching:
    """A child on its way to its program. Either :meth:`wait` for it, or call :meth:`proceed`
    whenever ``fileno`` can be read: a container that is frozen, or out of memory, may keep it."""

    __slots__ = ("_channel", "_halts", "_pidfd", "_terminal", "_warnings", "pid")

    def __init__(
        self, pid: int, channel: socket.socket, warnings: list[str], halts: Halts | None
    ) -> None:
        self.pid = pid
        self._channel = channel
        self._warnings = warnings
        self._halts = halts
        self._pidfd = os.pidfd_open(pid)
        self._terminal: int | None = None

    def fileno(self) -> int:
        """What can be read when it has something to say."""
        return self._channel.fileno()

    def wait(self) -> Launched:
        """The process, once it executes its program. Raises StartFailure."""
        self._channel.settimeout(_PATIENCE)
        try:
            while (launched := self._hear()) is None:
                pass
        except BaseException as error:
            self.abandon()
            _reap(self.pid)
            if isinstance(error, TimeoutError):
                raise StartFailure("the container did not start in time") from None
            raise
        self._channel.close()
        return launched

    def proceed(self) -> Launched | None:
        """The process if it executes its program by now. Raises StartFailure; then it is the
        caller's to be reaped."""
        self._channel.setblocking(False)
        try:
            while (launched := self._hear()) is None:
                pass
        except BlockingIOError:
            return None
        except BaseException:
            self.abandon()
            raise
        self._channel.close()
        return launched

    def abandon(self) -> None:
        """Kill it, and let go of it."""
        try:
            os.kill(self.pid, _signal.SIGKILL)
        except ProcessLookupError:
            # It has ended, and was reaped.
            pass
        self._channel.close()
        for fd in (self._pidfd, self._terminal):
            if fd is not None:
                os.close(fd)

    def _hear(self) -> Launched | None:
        """Take in one of its messages; the end of them is its exec, or its own end."""
        data, fds, _, _ = socket.recv_fds(self._channel, 65536, 1, socket.MSG_CMSG_CLOEXEC)
        if fds:
            self._terminal = fds[0]
        message: dict[str, Any] = json.loads(data) if data else {"created": True}
        if "made" in message and self._halts is not None:
            self._halts.made(self.pid)
            self._channel.sendall(str(self.pid).encode())
        elif "created" in message:
            return Launched(self.pid, self._pidfd, self._terminal, self._warnings)
        elif "warning" in message:
            self._warnings.append(message["warning"])
        elif "error" in message:
            raise StartFailure(message["error"], message["code"])
        return None


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


def launch(plan: dict[str, Any], stdio: Stdio, halts: Halts | None = None) -> Launched:
    """Make a container and start its first process.

    Raises StartFailure with Docker's sentence and exit code.
    """
    cgroup = plan["cgroup"]
    if plan.get("runtime") is not None:
        return _launch_foreign(plan, stdio)
    if cgroup is None:
        return _launch(plan, stdio, [], halts)
    groups = hierarchy()
    try:
        warnings = groups.create(cgroup["name"], cgroup["resources"], cgroup["devices"])
    except OSError as error:
        raise StartFailure(f"failed to create cgroup {cgroup['name']}: {error.strerror}") from None
    try:
        return _launch(plan, stdio, warnings, halts)
    except BaseException:
        groups.delete(cgroup["name"])
        raise


def _launch_foreign(plan: dict[str, Any], stdio: Stdio) -> Launched:
    try:
        if plan["runtime"]["name"] == "lxc":
            from tiffin.runtime import lxc

            return Launched(*lxc.launch(plan, stdio))
        from tiffin.runtime import foreign

        pid, pidfd, terminal = foreign.launch(plan, stdio)
    except BaseException:
        if plan["cgroup"] is not None:
            hierarchy().delete(plan["cgroup"]["name"])
        raise
    return Launched(pid, pidfd, terminal, [])


def _launch(
    plan: dict[str, Any], stdio: Stdio, warnings: list[str], halts: Halts | None
) -> Launched:
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
        return _begin(child, plan["flags"], namespace, entrances, warnings, halts).wait()
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
    """Start a process in the container whose first process ``pidfd`` is, and wait until it has
    executed its program; otherwise as :func:`enter_later`. Raises StartFailure."""
    return enter_later(pidfd, process, stdio, entrances).wait()


def enter_later(
    pidfd: int,
    process: dict[str, Any],
    stdio: Stdio,
    entrances: list[str] | tuple[str, ...] = (),
) -> Launching:
    """Start a process in the container whose first process ``pidfd`` is; it is on its way.

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

    return _begin(child, 0, pidfd, entrances, [])


def work_inside(pidfd: int, operations: list[Operation], uid: int = 0) -> int | None:
    """Execute operations inside the container whose first process ``pidfd`` is; the master of the
    terminal, which is ``uid``'s, if they open one. Raises StartFailure.
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

    worker = _begin(child, 0, pidfd, [], []).wait()
    os.close(worker.pidfd)
    os.waitpid(worker.pid, 0)
    return worker.terminal_fd


def _settle(
    entrances: list[str] | tuple[str, ...],
    process: dict[str, Any],
    warn: Callable[[str], None],
) -> None:
    """What the child does while it still sees the host."""
    oom_score_adj = process["oom_score_adj"]
    for path in entrances:
        if path.endswith(_UNIFIED):
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


def _begin(
    body: Callable[[socket.socket, Callable[[str], None]], None],
    flags: int,
    namespace: int | None,
    entrances: list[str] | tuple[str, ...],
    warnings: list[str],
    halts: Halts | None = None,
) -> Launching:
    """Clone, and run ``body`` in the child.

    ``namespace`` is a pidfd or a namespace file whose pid namespace the child shall be in.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # No handler of the caller's may run in the child, where it would act on the caller's files.
        mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, _ALL_SIGNALS)
        try:
            pid = _clone(flags, namespace, entrances)
            if pid == 0:
                _run_child(body, theirs)
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
        return Launching(pid, ours, warnings, halts)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()


def _clone(flags: int, namespace: int | None, entrances: list[str] | tuple[str, ...]) -> int:
    """Clone into the version 2 group, if any, and into the pid namespace of ``namespace``."""
    own = group = None
    try:
        for path in entrances:
            if path.endswith(_UNIFIED):
                directory = path[: -len(_UNIFIED)]
                group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if namespace is None:
            return syscalls.clone(flags, group)
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(namespace, syscalls.CLONE_NEWPID)
        pid = syscalls.clone(flags, group)
        if pid:
            syscalls.setns(own, syscalls.CLONE_NEWPID)
        return pid
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


def _reap(pid: int) -> None:
    try:
        os.kill(pid, _signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        # The caller's own SIGCHLD handler was faster.
        pass


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
