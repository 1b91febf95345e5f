"""Other runtimes: OCI runtime commands (runc, crun) that make a container in our place.

The plan of such a container has a ``runtime``: its ``name``, the ``path`` of its command, the OCI
``config``, and the ``mountpoint``. A child leaves the mount namespace, mounts the root file system
as the native runtime does, where nobody else can see it, looks up the user in the container's own
files, writes the bundle, and becomes the runtime's ``create``; ``start`` follows. The container's
first process then belongs to the caller, which must be a subreaper: like one of the native runtime
it is waited for, signalled by its pidfd, and entered by setns. The runtime itself is not needed any
more, so that its state is removed at once.

What is the native runtime's own is refused by its name (:func:`check`).

This module is part of the keeper: it imports next to nothing.

Source: OCI runtime specification 1.2, ``runtime.md``; the common command line of runc and crun.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal, without the enums
import json
import os
import socket
import stat

from tiffin.errors import StartFailure, Unsupported
from tiffin.linux import accounts, syscalls
from tiffin.linux.cgroups import Hierarchy
from tiffin.linux.kernel import Kernel
from tiffin.linux.terminals import set_size
from tiffin.runtime.child import clone_quietly
from tiffin.runtime.launching import Begun, Ended, Launched, Readable, kill
from tiffin.runtime.operations import Isolate, MountRoot, load
from tiffin.runtime.process import reset_signals

TYPE_CHECKING = False  # typing itself would cost the keeper more than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from tiffin.runtime.launching import Launching, Stdio, Step
    from tiffin.runtime.settings import ContainerSettings

NAMES = ("runc", "crun", "lxc")
_COMMANDS = {"lxc": "lxc-start"}
STATE = "/run/tiffin/runtimes"
_LARGEST_ACCOUNTS_FILE = 4 << 20


def find(name: str) -> str | None:
    """Where a runtime's command is; None if the machine doesn't have it."""
    for folder in ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        path = f"{folder}/{_COMMANDS.get(name, name)}"
        if name in NAMES and os.access(path, os.X_OK):
            return path
    return None


def check(name: str, settings: ContainerSettings) -> None:
    """Raise Unsupported, naming it, for what only the native runtime does."""
    for wanted, what in (
        (settings.id_map, "a user namespace (--userns)"),
        (settings.init, "an init (--init)"),
        (settings.shm_from, "the IPC namespace of another container (--ipc container:)"),
    ):
        if wanted:
            raise Unsupported(f"{what} can't be used with the runtime {name}: use native")


def launching(plan: dict[str, Any], stdio: Stdio) -> Launching:
    """Make a container and start its first process; after a failure its cgroup may be left.

    Raises StartFailure with the runtime's own sentence.
    """
    runtime, name = plan["runtime"], plan["id"]
    bundle = f"{STATE}/{runtime['name']}/bundles/{name}"
    state = f"{STATE}/{runtime['name']}/state"
    remove(bundle)
    os.makedirs(bundle, mode=0o700)
    os.makedirs(state, mode=0o700, exist_ok=True)
    console = None
    arguments = [runtime["path"], "--root", state, "--log", f"{bundle}/log", "--log-format", "json"]
    create = [*arguments, "create", "--bundle", bundle, "--pid-file", f"{bundle}/pid"]
    try:
        if plan["process"]["terminal"]:
            console = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            folder = os.open(bundle, os.O_PATH | os.O_CLOEXEC)
            try:
                console.bind(f"/proc/self/fd/{folder}/console")
            finally:
                os.close(folder)
            console.listen()
            create += ["--console-socket", f"{bundle}/console"]
        fds = stdio.fds or nothing()
        try:
            code = yield from _run([*create, name], fds, lambda: _prepare(plan, bundle))
        finally:
            if stdio.fds is None:
                os.close(fds[0])
        if code != 0:
            raise _failure(bundle, plan, code)
        with open(f"{bundle}/pid") as file:
            pid = int(file.read())
        pidfd = _pidfd(pid, runtime["name"])
        terminal = None
        try:
            yield Begun(pid, own=True)
            if console is not None:
                terminal = yield from _receive(console, stdio.size)
            quiet = nothing()
            try:
                code = yield from _run([*arguments, "start", name], quiet, None)
            finally:
                os.close(quiet[0])
            if code != 0:
                raise _failure(bundle, plan, code)
        except BaseException:
            kill(pidfd)
            for fd in (pidfd, terminal):
                if fd is not None:
                    os.close(fd)
            raise
        return Launched(pid, pidfd, terminal, [])
    finally:
        if console is not None:
            console.close()
        remove(bundle)
        remove(f"{state}/{name}")


def nothing() -> tuple[int, int, int]:
    """Streams that lead nowhere; the one descriptor is the caller's."""
    fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    return fd, fd, fd


def _pidfd(pid: int, runtime: str) -> int:
    gone = StartFailure(f"{runtime}: the container ended before it was started")
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise gone from None
    try:
        # It may have been reaped already, and the number be another process's.
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        os.close(pidfd)
        raise gone from None
    return pidfd


def _run(
    arguments: list[str], fds: tuple[int, int, int], prepare: Callable[[], None] | None
) -> Generator[Step, Any, int]:
    """Run a command with these streams to its end; ``prepare`` is called in its process before.
    Its exit code."""
    pid, pidfd = clone_quietly(syscalls.CLONE_NEWNS if prepare is not None else 0)
    if pid == 0:
        code = 125
        try:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, _signal.SIGKILL)
            reset_signals()
            if prepare is not None:
                prepare()
            high = [os.dup(fd) for fd in fds]
            for number in range(3):
                os.dup2(high[number], number)
            syscalls.close_range(3)
            _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
            environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
            os.execve(arguments[0], arguments, environment)
        finally:
            os._exit(code)
    try:
        yield Begun(pid, own=False)
        answer = yield Ended(pid)
    except BaseException:
        kill(pidfd)
        raise
    finally:
        os.close(pidfd)
    return int(answer)


def _prepare(plan: dict[str, Any], bundle: str) -> None:
    """In the child: mount the root file system, and write the bundle's configuration."""
    config, mountpoint = plan["runtime"]["config"], plan["runtime"]["mountpoint"]
    try:
        kernel = Kernel()
        for item in plan["operations"]:
            operation = load(item)
            if isinstance(operation, (Isolate, MountRoot)):
                operation.execute(kernel)
        kernel.enter_root(mountpoint)
        if plan["runtime"]["name"] == "crun":
            _leave_unified(plan)
        root = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        process = plan["process"]
        passwd, group = _read(root, "/etc/passwd"), _read(root, "/etc/group")
        account = accounts.resolve(process["user"], passwd, group, process["groups"])
        kernel.make_directory(process["cwd"])
    except Exception as error:
        text = getattr(error, "message", None) or getattr(error, "strerror", None) or repr(error)
        with open(f"{bundle}/log", "w") as file:
            file.write(json.dumps({"msg": text}))
        raise
    user = {"uid": account.uid, "gid": account.gid, "additionalGids": list(account.groups)}
    config["process"]["user"] = user
    if account.uid:
        for kind in ("effective", "permitted"):
            config["process"]["capabilities"][kind] = []
    if not any(text.startswith("HOME=") for text in config["process"]["env"]):
        config["process"]["env"].append(f"HOME={account.home}")
    config["root"]["path"] = mountpoint
    for mount in config["mounts"]:
        if "rro" in mount["options"] and not os.path.isdir(mount["source"]):
            # The same for a file, and crun can't open one for the other.
            mount["options"] = [{"rro": "ro"}.get(word, word) for word in mount["options"]]
    config.pop("annotations", None)
    # Nothing here is newer, and crun before 1.9 knows no other.
    config["ociVersion"] = "1.0.2"
    with open(f"{bundle}/config.json", "w") as file:
        json.dump(config, file)


def _leave_unified(plan: dict[str, Any]) -> None:
    """Show crun a pure version 1 where both versions are mounted: it refuses the two together.

    The version 2 group is entered before, which the container inherits.
    """
    groups = Hierarchy.detect()
    if groups.version != "hybrid" or groups.unified is None:
        return
    if plan["cgroup"] is not None:
        directory = f"{groups.unified}/{plan['cgroup']['name']}"
        os.makedirs(directory, exist_ok=True)
        with open(f"{directory}/cgroup.procs", "w") as file:
            file.write("0")
    syscalls.umount(groups.unified, syscalls.MNT_DETACH)


def _read(root: int, path: str) -> bytes:
    """A file of the container, whatever links lead to it inside; empty if it is no plain file."""
    try:
        fd = syscalls.openat2(
            root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, 0, syscalls.RESOLVE_IN_ROOT
        )
    except OSError:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        return os.read(fd, _LARGEST_ACCOUNTS_FILE)
    finally:
        os.close(fd)


def _receive(console: socket.socket, size: tuple[int, int]) -> Generator[Step, Any, int]:
    """The terminal's master, which the runtime sends."""
    yield Readable(console.fileno())
    connection, _ = console.accept()
    with connection:
        yield Readable(connection.fileno())
        _, fds, _, _ = socket.recv_fds(connection, 4096, 1, socket.MSG_CMSG_CLOEXEC)
    if not fds:
        raise StartFailure("the runtime sent no terminal")
    set_size(fds[0], *size)
    return fds[0]


def _failure(bundle: str, plan: dict[str, Any], code: int) -> StartFailure:
    """What the runtime has said last, with the exit code that it means."""
    said = f"it ended with code {code}"
    try:
        with open(f"{bundle}/log") as file:
            for line in file:
                try:
                    said = json.loads(line).get("msg") or said
                except ValueError:
                    said = line.strip() or said
    except FileNotFoundError:
        pass
    # Clients know the exit code by these sentences, which begin small.
    for sentence in ("No such file or directory", "Permission denied"):
        said = said.replace(sentence, sentence[:1].lower() + sentence[1:])
    code = 125
    for sentence, meaning in (
        ("executable file not found", 127),
        ("no such file or directory", 127),
        ("permission denied", 126),
        ("is a directory", 126),
        ("not a directory", 126),
    ):
        if sentence in said:
            code = meaning
            break
    wanted = plan["process"]["args"][0]
    if code != 125 and wanted not in said:
        said = f'exec: "{wanted}": {said}'
    return StartFailure(f"{plan['runtime']['name']}: {said}", code)


def clear(id: str) -> None:
    """Remove the files that a container's start has left which was killed together with its
    keeper, or which failed."""
    for name in NAMES:
        remove(f"{STATE}/{name}/bundles/{id}")
        remove(f"{STATE}/{name}/state/{id}")


def monitor_group(name: str) -> str:
    """The cgroup of LXC's own process while it makes a container."""
    return f"{name}-lxc"


def remove(directory: str) -> None:
    """Remove a folder of plain files; no error if it is gone."""
    try:
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)
    except FileNotFoundError:
        pass
