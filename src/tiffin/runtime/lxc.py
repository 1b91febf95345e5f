"""LXC, the isolation that the first Docker used, as a runtime.

``lxc-start`` makes the container of a configuration (:mod:`tiffin.runtime.lxc_config`). It would
stay as the container's parent, and take its exit status for itself. So it doesn't execute the
container's program but the *starter* (:mod:`tiffin.runtime.starter`), which waits; then LXC's
process is killed, the container's first process belongs to the caller (which must be a subreaper),
and the starter is told to go on. From then on the container is like one of the native runtime.

A child of the caller leaves the mount namespace, prepares the root file system there, looks up the
user, the working directory and the program in the container's own files, and becomes
``lxc-start``. Kernel parameters, masks and read-only places are the work of another child, in the
container, before the starter goes on.

This module is part of the keeper: it imports next to nothing.

Source: lxc-start(1), lxc.container.conf(5) of LXC 5.0.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal, without the enums
import json
import os
import resource
import socket
import struct

from tiffin.errors import StartFailure, TiffinError
from tiffin.linux import syscalls
from tiffin.linux.kernel import Kernel
from tiffin.linux.terminals import set_size
from tiffin.runtime import process as program
from tiffin.runtime import starter
from tiffin.runtime.child import clone_quietly
from tiffin.runtime.foreign import STATE, monitor_group, nothing, remove
from tiffin.runtime.launch import hierarchy, working_inside
from tiffin.runtime.launching import Begun, Ended, Launched, Readable, kill
from tiffin.runtime.lxc_config import Parts, configuration, divide, seccomp_policy
from tiffin.runtime.operations import EnterRoot

TYPE_CHECKING = False  # typing itself would cost the keeper more than all the rest
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from tiffin.runtime.launching import Launching, Stdio, Step

    JSON = dict[str, Any]

_SCRATCH = "/run/lxc"
"""Where LXC keeps locks; a container's maker sees one of its own."""


def launching(plan: JSON, stdio: Stdio) -> Launching:
    """Make a container and start its first process; after a failure its cgroup may be left.

    Raises StartFailure."""
    name = plan["id"]
    bundle = f"{STATE}/lxc/bundles/{name}"
    remove(bundle)
    os.makedirs(bundle, mode=0o700)
    os.makedirs(_SCRATCH, mode=0o755, exist_ok=True)
    cgroup = plan["cgroup"]
    if cgroup is not None:
        # LXC makes it, and wants it to be new.
        hierarchy().delete(cgroup["name"])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.setblocking(False)
        parts = divide(plan["operations"])
        monitor, held = _begin(plan, parts, bundle, stdio, theirs)
        theirs.close()
        return (yield from _Start(plan, parts, bundle, monitor, held, ours).steps(stdio))
    finally:
        ours.close()
        theirs.close()
        if cgroup is not None:
            hierarchy().delete(monitor_group(cgroup["name"]))
        remove(bundle)


class _Start:
    """A start under way, from when ``lxc-start`` was begun."""

    def __init__(
        self,
        plan: JSON,
        parts: Parts,
        bundle: str,
        monitor: int,
        held: int,
        channel: socket.socket,
    ) -> None:
        self.plan = plan
        self.parts = parts
        self.bundle = bundle
        self.monitor = monitor
        self.held = held
        self.channel = channel
        self.terminal: int | None = None
        self.pidfd = -1
        self.pid = 0
        self.uid = 0
        self.warnings: list[str] = []

    def steps(self, stdio: Stdio) -> Launching:
        """Wait for the starter, complete the container, and let the program run."""
        try:
            yield Begun(self.monitor, own=False)
            self.pid = yield from self._wait_for_starter()
            self.pidfd = os.pidfd_open(self.pid)
            cgroup = self.plan["cgroup"]
            if cgroup is not None and cgroup["resources"]:
                self.warnings += hierarchy().limit(cgroup["name"], cgroup["resources"])
            self.terminal = yield from working_inside(self.pidfd, self.parts.after, self.uid)
            yield Begun(self.pid, own=True)
            # Which makes it ours.
            kill(self.held)
            yield Ended(self.monitor)
            self.channel.send(b"g")
            if said := (yield from self._receive())[0]:
                text = os.strerror(said[0])
                path = self.plan["process"]["args"][0]
                code = 127 if said[0] == 2 else 126
                raise StartFailure(f"exec {path}: {text[:1].lower()}{text[1:]}", code)
            if self.terminal is not None:
                set_size(self.terminal, *stdio.size)
            return Launched(self.pid, self.pidfd, self.terminal, self.warnings)
        except BaseException as error:
            self._give_up()
            if isinstance(error, OSError):
                raise StartFailure(f"failed to start the container: {error.strerror}") from None
            raise
        finally:
            os.close(self.held)

    def _wait_for_starter(self) -> Generator[Step, Any, int]:
        while True:
            data, pid = yield from self._receive()
            if not data:
                raise _failure(self.bundle)
            if data[:1] != b"{":
                return pid
            message = json.loads(data)
            if "error" in message:
                raise StartFailure(message["error"], message["code"])
            if "warning" in message:
                self.warnings.append(message["warning"])
            self.uid = message.get("uid", self.uid)

    def _receive(self) -> Generator[Step, Any, tuple[bytes, int]]:
        """One message, empty at the end, and the process ID of its sender."""
        while True:
            try:
                data, extra, _, _ = self.channel.recvmsg(65536, 1024)
            except BlockingIOError:
                yield Readable(self.channel.fileno())
                continue
            pid = 0
            for level, kind, content in extra:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    pid = struct.unpack("iII", content)[0]
            return data, pid

    def _give_up(self) -> None:
        kill(self.held)
        if self.pidfd >= 0:
            kill(self.pidfd)
            os.close(self.pidfd)
        if self.terminal is not None:
            os.close(self.terminal)


def _begin(
    plan: JSON, parts: Parts, bundle: str, stdio: Stdio, channel: socket.socket
) -> tuple[int, int]:
    """Begin ``lxc-start``: its pid and its pidfd."""
    pid, held = clone_quietly(syscalls.CLONE_NEWNS)
    if pid:
        return pid, held
    try:
        try:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, _signal.SIGKILL)
            program.reset_signals()
            _become(plan, parts, bundle, stdio, channel)
        except program.Refusal as refusal:
            _tell(channel, refusal.message, refusal.code)
        except TiffinError as error:
            _tell(channel, error.message, 125)
        except OSError as error:
            _tell(channel, f"failed to start the container: {error.strerror}", 125)
    finally:
        os._exit(125)


def _tell(channel: socket.socket, text: str, code: int) -> None:
    channel.send(json.dumps({"error": text, "code": code}).encode())


def _become(plan: JSON, parts: Parts, bundle: str, stdio: Stdio, channel: socket.socket) -> None:
    """In the child: prepare everything, and become ``lxc-start``."""
    process, mountpoint = plan["process"], plan["runtime"]["mountpoint"]
    kernel = Kernel()
    os.umask(0)
    for operation in parts.before:
        operation.execute(kernel)
        if isinstance(operation, EnterRoot):
            syscalls.mount("tmpfs", _SCRATCH, "tmpfs", 0, "mode=755")
            _count_from_the_root()
    fds = stdio.fds or nothing()
    found = _look_up(mountpoint, process)
    if "error" in found:
        raise program.Refusal(found["error"], found["code"])
    channel.send(json.dumps({"uid": found["uid"]}).encode())
    _lower_limits(process, channel)
    _adjust_score(process["oom_score_adj"], channel)
    profile = None
    if plan["runtime"]["config"]["linux"].get("seccomp") is not None:
        profile = f"{bundle}/seccomp"
        with open(profile, "w") as file:
            file.write(seccomp_policy(plan["runtime"]["config"]["linux"]["seccomp"]))
    groups = hierarchy()
    prefix = "cgroup.devices" if "devices" in groups.by_name else "cgroup2.devices"
    if not groups.controllers:
        prefix = ""
    with open(f"{bundle}/config", "w") as file:
        file.write(configuration(plan, found, parts.entries, prefix, profile))
    environment = dict(text.partition("=")[::2] for text in process["env"] if "=" in text)
    environment.setdefault("HOME", found["home"])
    first = starter.arguments(
        [f"{name}={value}" for name, value in environment.items() if name],
        found["path"],
        process["args"],
        "/dev/pts/0" if process["terminal"] else "",
    )
    command = [plan["runtime"]["path"], "-n", plan["id"], "-P", os.path.dirname(bundle)]
    command += ["-f", f"{bundle}/config", "-F", "-q", "-o", f"{bundle}/log", "-l", "ERROR", "--"]
    high = [os.dup(fd) for fd in (*fds, channel.fileno(), starter.open_program())]
    for number, fd in zip((0, 1, 2, starter.CHANNEL, starter.PROGRAM), high, strict=True):
        os.dup2(fd, number)
    for number in range(3, starter.PROGRAM):
        syscalls.close_range(number, number)
    syscalls.close_range(starter.CHANNEL + 1)
    os.umask(process.get("umask", 0o022))
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    os.execve(command[0], [*command, *first], {"PATH": path})


def _count_from_the_root() -> None:
    """Have LXC find its groups where ours are: it looks for them below the group of the machine's
    first process, which in a machine that is itself a container is not the root."""
    with open("/proc/1/cgroup") as file:
        lines = file.read().splitlines()
    rows = [line.split(":", 2) for line in lines]
    if all(path in ("/", "/init.scope") for _, _, path in rows):
        return
    place = f"{_SCRATCH}/first-process"
    with open(place, "w") as file:
        file.write("".join(f"{number}:{names}:/\n" for number, names, _ in rows))
    syscalls.mount(place, "/proc/1/cgroup", None, syscalls.MS_BIND)


def _look_up(mountpoint: str, process: JSON) -> JSON:
    """The account, and the path of the program, as the container's own files have them."""
    reader, writer = os.pipe()
    pid = syscalls.clone(0)
    if pid == 0:
        try:
            os.close(reader)
            try:
                answer = _look_up_inside(mountpoint, process)
            except program.Refusal as refusal:
                answer = {"error": refusal.message, "code": refusal.code}
            os.write(writer, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        with open(reader, "rb") as file:
            text = file.read()
    finally:
        os.waitpid(pid, 0)
    if not text:
        raise program.Refusal("the container's program can't be looked up", 125)
    answer = json.loads(text)
    return dict(answer)


def _look_up_inside(mountpoint: str, process: JSON) -> JSON:
    os.chroot(mountpoint)
    os.chdir("/")
    account = program.resolve_account(process["user"], process["groups"])
    cwd, args = process["cwd"], process["args"]
    try:
        os.chdir(cwd)
    except OSError as error:
        text = os.strerror(error.errno or 0)
        message = f'chdir to cwd ("{cwd}") failed: {text[:1].lower()}{text[1:]}'
        raise program.Refusal(message, 127 if error.errno == 2 else 126) from None
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    environment = dict(text.partition("=")[::2] for text in process["env"])
    path = program.find_program(args[0], environment.get("PATH", program.DEFAULT_PATH))
    return {
        "uid": account.uid,
        "gid": account.gid,
        "groups": list(account.groups),
        "home": account.home,
        "path": path,
    }


def _lower_limits(process: JSON, channel: socket.socket) -> None:
    """Limits that this host can't raise are lowered, as by the native runtime."""
    can_raise = bool(syscalls.capget()[1] >> 24 & 1)
    for row in process["rlimits"]:
        number, soft, hard, name = row
        highest = resource.getrlimit(number)[1]
        if can_raise or highest < 0 or 0 <= hard <= highest:
            continue
        row[2] = highest
        row[1] = highest if soft < 0 else min(soft, highest)
        text = (
            f"ulimit {name}={soft}:{hard} is more than this host allows to raise; "
            f"it is {row[1]}:{row[2]}"
        )
        channel.send(json.dumps({"warning": text}).encode())


def _adjust_score(value: int | None, channel: socket.socket) -> None:
    if value is None:
        return
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(value))
    except PermissionError:
        text = f"oom_score_adj {value} is less than this host allows; it is unchanged"
        channel.send(json.dumps({"warning": text}).encode())


def _failure(bundle: str) -> StartFailure:
    """What LXC said first."""
    try:
        with open(f"{bundle}/log") as file:
            for line in file:
                before, found, text = line.partition(" - ")
                if found and " ERROR " in before:
                    return StartFailure(f"lxc: {text.rpartition(' - ')[2].strip()}")
    except FileNotFoundError:
        pass
    return StartFailure("lxc: it ended without a word")
