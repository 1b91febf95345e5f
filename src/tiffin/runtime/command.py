"""``tiffin-runtime``: the native runtime as an OCI runtime command, for other engines.

A container is made in two steps. ``create`` makes everything and leaves the container's first
process waiting, with all signals blocked, right before its exec; ``start`` sends it a signal that
means "go". What is known of a container is ``ROOT/ID/state.json``; whether it lives is asked of the
kernel, by the process's pid and start time.

Source: OCI runtime specification 1.2, ``runtime.md``; the command line is runc's, as engines use
it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tiffin.errors import (
    Conflict,
    InvalidParameter,
    NotFound,
    StartFailure,
    TiffinError,
    Unsupported,
)
from tiffin.linux import mounts, syscalls
from tiffin.linux.cgroups import Hierarchy
from tiffin.linux.kernel import Kernel
from tiffin.runtime import bundle as bundles
from tiffin.runtime import hooks
from tiffin.runtime.arguments import Arguments, signal_number
from tiffin.runtime.child import Halts
from tiffin.runtime.launch import enter, launch
from tiffin.runtime.launching import Launched, Stdio
from tiffin.runtime.record import SPECIFICATION, Record, started
from tiffin.version import __version__

JSON = dict[str, Any]
DEFAULT_ROOT = "/run/tiffin-runtime"
_GO = 40
"""The signal (a real-time one) that means: execute the program now."""


class Runtime:
    """The commands."""

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self.root = arguments.get("root", DEFAULT_ROOT)
        self.hierarchy = Hierarchy.detect()

    def _record(self) -> Record:
        return Record.load(self.root, self.arguments.id)

    # -- making -------------------------------------------------------------------------------

    def create(self) -> None:
        """Make a container, whose program waits."""
        self._create()

    def _create(self) -> Record:
        arguments = self.arguments
        name = arguments.id
        folder = os.path.realpath(arguments.get("bundle", "."))
        try:
            with open(f"{folder}/config.json") as file:
                config = json.load(file)
        except FileNotFoundError:
            raise NotFound(f"JSON specification file {folder}/config.json not found") from None
        except ValueError as error:
            raise InvalidParameter(f"{folder}/config.json is no JSON: {error}") from None
        plan = bundles.plan(config, folder, name, self.hierarchy)
        terminal = plan["process"]["terminal"]
        if terminal and not arguments.has("console-socket"):
            raise InvalidParameter("cannot allocate a terminal without --console-socket")
        record = Record(self.root, name)
        os.makedirs(self.root, mode=0o711, exist_ok=True)
        try:
            os.mkdir(record.folder, 0o711)
        except FileExistsError:
            raise Conflict("container with given ID already exists") from None
        record.content = {
            "id": name,
            "bundle": folder,
            "annotations": config.get("annotations") or {},
            "cgroup": plan["cgroup"]["name"],
            "entrances": plan["cgroup"]["entrances"],
            "remapped": plan["process"]["remapped"],
            "created": time.time_ns(),
            "status": "creating",
        }
        try:
            with open(f"{record.folder}/config.json", "w") as file:
                json.dump(config, file)
            record.save()
            launched = launch(plan, self._stdio(terminal, plan), self._halts(record, config))
        except BaseException:
            _unmount(record)
            record.remove()
            raise
        try:
            for warning in launched.warnings:
                _say(warning)
            self._hand_over(launched)
            record.content.update(pid=launched.pid, started=started(launched.pid), status="created")
            record.save()
            self._write_pid(launched.pid)
        except BaseException:
            _end(launched)
            self.hierarchy.delete(record.content["cgroup"])
            _unmount(record)
            record.remove()
            raise
        return record

    @staticmethod
    def _stdio(terminal: bool, plan: JSON) -> Stdio:
        rows, columns = plan["process"]["size"]
        return Stdio(None if terminal else (0, 1, 2), (rows, columns))

    def _halts(self, record: Record, config: JSON) -> Halts:
        def made(pid: int) -> None:
            state = record.state("creating", pid)
            hooks.run(config, "prestart", {**state, "status": "created"})
            hooks.run(config, "createRuntime", state)

        def before_pivot(pid: int) -> None:
            hooks.run(config, "createContainer", record.state("creating", pid))

        def wait(pid: int) -> None:
            number = signal.sigwaitinfo(signal.valid_signals()).si_signo
            while number in (signal.SIGCHLD, signal.SIGCONT, signal.SIGWINCH, signal.SIGURG):
                number = signal.sigwaitinfo(signal.valid_signals()).si_signo
            if number != _GO:
                os._exit(128 + number)
            hooks.run(config, "startContainer", record.state("created", pid))

        return Halts(made, before_pivot, wait)

    def _hand_over(self, launched: Launched) -> None:
        """Send the terminal's master to whoever asked for it."""
        if launched.terminal_fd is None:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as console:
            console.connect(self.arguments.get("console-socket"))
            socket.send_fds(console, [b"/dev/pts/0"], [launched.terminal_fd])
        os.close(launched.terminal_fd)

    def _write_pid(self, pid: int) -> None:
        path = self.arguments.get("pid-file")
        if path:
            temporary = f"{os.path.dirname(path) or '.'}/.{os.path.basename(path)}"
            with open(temporary, "w") as file:
                file.write(str(pid))
            os.rename(temporary, path)

    def start(self) -> None:
        """Let the program of a created container run."""
        self._start(self._record())

    def _start(self, record: Record) -> None:
        status = record.status(self.hierarchy)
        if status == "stopped":
            raise Conflict("cannot start a container that has stopped")
        if status != "created":
            raise Conflict(f"cannot start an already {status} container")
        record.content["status"] = "running"
        record.save()
        record.signal(_GO)
        hooks.run(record.config, "poststart", record.state("running"), _say)

    def run(self) -> int:
        """Make a container and run its program, to its end unless detached."""
        record = self._create()
        self._start(record)
        if self.arguments.has("detach"):
            return 0
        pid = record.content["pid"]
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if not self.arguments.has("keep"):
            self._delete(record)
        return code if code >= 0 else 128 - code

    def exec(self) -> int:
        """Run one more process in a container."""
        arguments, record = self.arguments, self._record()
        status = record.status(self.hierarchy)
        if status not in ("created", "running"):
            raise Conflict(f"cannot exec in a {status} container")
        config = record.config
        if bundles.mount_namespace(config) is not None:
            raise Unsupported(
                "a process can't be added to a container that shares its mount namespace"
            )
        if arguments.has("process"):
            with open(arguments.get("process")) as file:
                process = json.load(file)
        else:
            process = {**config["process"], "args": arguments.rest[1:], "terminal": False}
            process["cwd"] = arguments.get("cwd") or process["cwd"]
            process["env"] = [*process.get("env", []), *arguments.get("env").split("\n")]
            if arguments.has("user"):
                uid, _, gid = arguments.get("user").partition(":")
                process["user"] = {"uid": int(uid), "gid": int(gid or 0)}
            if arguments.has("additional-gids"):
                more = [int(text) for text in arguments.get("additional-gids").split("\n")]
                process["user"] = {**process.get("user", {}), "additionalGids": more}
            if arguments.has("tty"):
                process["terminal"] = True
            if arguments.has("no-new-privs"):
                process["noNewPrivileges"] = True
            if arguments.has("cap"):
                names = arguments.get("cap").split("\n")
                process["capabilities"] = bundles.with_capabilities(process, names)
        if not process.get("args"):
            raise InvalidParameter("process args cannot be empty")
        if "capabilities" not in process and config["process"].get("capabilities"):
            process["capabilities"] = config["process"]["capabilities"]
        if process.get("terminal") and not arguments.has("console-socket"):
            raise InvalidParameter("an exec with a terminal needs --console-socket")
        filters = (config.get("linux") or {}).get("seccomp")
        plan = bundles.process_plan(process, filters, record.content["remapped"])
        stdio = self._stdio(plan["terminal"], {"process": plan})
        try:
            with record.process() as pidfd:
                launched = enter(pidfd, plan, stdio, record.content["entrances"])
        except ProcessLookupError:
            raise Conflict("cannot exec in a stopped container") from None
        try:
            self._hand_over(launched)
            self._write_pid(launched.pid)
        except BaseException:
            # Nobody would know that it runs.
            _end(launched)
            raise
        if arguments.has("detach"):
            return 0
        code = os.waitstatus_to_exitcode(os.waitpid(launched.pid, 0)[1])
        return code if code >= 0 else 128 - code

    # -- looking and changing -----------------------------------------------------------------

    def state(self) -> None:
        """Print a container's state."""
        record = self._record()
        state = record.state(record.status(self.hierarchy))
        state.setdefault("pid", 0)
        root = record.config["root"]["path"]
        state["rootfs"] = os.path.join(record.content["bundle"], root)
        state["created"] = _timestamp(record.content["created"])
        _print(state)

    def list(self) -> None:
        """Print all containers."""
        rows = []
        for name in sorted(os.listdir(self.root)) if os.path.isdir(self.root) else []:
            try:
                record = Record.load(self.root, name)
            except NotFound:
                continue
            state = record.state(record.status(self.hierarchy))
            created = _timestamp(record.content["created"])
            rows.append({**state, "pid": state.get("pid", 0), "created": created})
        if self.arguments.has("quiet"):
            print("".join(f"{row['id']}\n" for row in rows), end="")
        elif self.arguments.get("format") == "json":
            _print(rows)
        else:
            print(f"{'ID':<20} {'PID':<10} {'STATUS':<10} {'BUNDLE':<30} CREATED")
            for row in rows:
                print(
                    f"{row['id']:<20} {row['pid']:<10} {row['status']:<10} {row['bundle']:<30} "
                    f"{row['created']}"
                )

    def kill(self) -> None:
        """Send a signal to a container's first process, or to all."""
        record = self._record()
        number = signal_number(self.arguments.rest[1] if len(self.arguments.rest) > 1 else "TERM")
        if self.arguments.has("all") or "--all" in self.arguments.rest:
            for pid in self.hierarchy.processes(record.content["cgroup"]):
                with suppress(ProcessLookupError):
                    # It has ended in between.
                    os.kill(pid, number)
            return
        if record.status(self.hierarchy) == "stopped":
            raise Conflict("container not running")
        record.signal(number)

    def delete(self) -> None:
        """Remove a container that has stopped; with ``--force``, also one that hasn't."""
        try:
            record = self._record()
        except NotFound:
            left = Record(self.root, self.arguments.id)
            if os.path.isdir(left.folder):
                # Of a create, or a delete, that was killed.
                left.remove()
            if self.arguments.has("force"):
                return
            raise
        status = record.status(self.hierarchy)
        if status not in ("stopped", "creating"):
            if not self.arguments.has("force"):
                raise Conflict(
                    f"cannot delete container {record.content['id']} that is not stopped: {status}"
                )
            record.signal(signal.SIGKILL)
            while record.alive:
                time.sleep(0.002)
        self._delete(record)

    def _delete(self, record: Record) -> None:
        group = record.content["cgroup"]
        for _ in range(500):
            self.hierarchy.kill(group)
            if self.hierarchy.delete(group):
                break
            time.sleep(0.01)
        else:
            _say(f"the cgroup {group} is left: a process in it does not end")
        config = record.config
        _unmount(record)
        record.remove()
        hooks.run(config, "poststop", record.state("stopped"), _say)

    def ps(self) -> None:
        """Print a container's processes."""
        pids = self.hierarchy.processes(self._record().content["cgroup"])
        if self.arguments.get("format", "table") == "json":
            _print(pids)
            return
        import subprocess

        options = self.arguments.rest[1:] or ["-ef"]
        listing = subprocess.run(["ps", *options], capture_output=True, text=True, check=False)
        if listing.returncode:
            raise InvalidParameter(f"ps {' '.join(options)}: {listing.stderr.strip()}")
        head, *rows = listing.stdout.splitlines()
        column = head.split().index("PID") if "PID" in head.split() else -1
        if column < 0:
            raise InvalidParameter("Couldn't find PID field in ps output")
        print(head)
        for row in rows:
            if int(row.split()[column]) in pids:
                print(row)

    def pause(self) -> None:
        """Stop all of a container's processes for a while."""
        self._freeze("running", self.hierarchy.freeze)

    def resume(self) -> None:
        """Let a paused container go on."""
        self._freeze("paused", self.hierarchy.thaw)

    def _freeze(self, wanted: str, change: Callable[[str], None]) -> None:
        record = self._record()
        status = record.status(self.hierarchy)
        if status not in (wanted, "created") or (wanted == "paused" and status != "paused"):
            raise Conflict(f"container not {wanted}: it is {status}")
        change(record.content["cgroup"])

    def update(self) -> None:
        """Change limits: ``--resources FILE`` (``-``: standard input), or one flag a limit."""
        arguments, record = self.arguments, self._record()
        source = arguments.get("resources")
        limits: dict[str, int | str] = {}
        if source:
            if source == "-":
                resources = json.load(sys.stdin)
            else:
                with open(source) as file:
                    resources = json.load(file)
            limits = bundles.limits(resources)
        for flag, field in (
            ("memory", "memory"),
            ("memory-swap", "memory_swap"),
            ("memory-reservation", "memory_reservation"),
            ("cpu-share", "cpu_shares"),
            ("cpu-quota", "cpu_quota"),
            ("cpu-period", "cpu_period"),
            ("pids-limit", "pids_limit"),
        ):
            if arguments.has(flag):
                limits[field] = int(arguments.get(flag))
        for flag in ("cpuset-cpus", "cpuset-mems"):
            if arguments.has(flag):
                limits[flag.replace("-", "_")] = arguments.get(flag)
        for warning in self.hierarchy.limit(record.content["cgroup"], limits):
            _say(warning)

    def events(self) -> None:
        """Print statistics: once with ``--stats``, else each five seconds."""
        record = self._record()
        interval = float(self.arguments.get("interval", "5s").rstrip("s"))
        while True:
            if record.status(self.hierarchy) == "stopped":
                raise Conflict("container is not running")
            data = self.hierarchy.statistics(record.content["cgroup"])
            _print({"type": "stats", "id": record.content["id"], "data": data})
            if self.arguments.has("stats"):
                return
            sys.stdout.flush()
            time.sleep(interval)

    def features(self) -> None:
        """Print what this runtime can do."""
        from tiffin.runtime.features import features

        _print(features())

    def spec(self) -> None:
        """Write a configuration to start from."""
        from tiffin.runtime.oci import oci_config
        from tiffin.runtime.settings import ContainerSettings, ProcessSettings

        process = ProcessSettings(["sh"], env=["PATH=/usr/sbin:/usr/bin:/sbin:/bin"])
        settings = ContainerSettings("tiffin", process, [], hostname="tiffin")
        path = f"{self.arguments.get('bundle', '.')}/config.json"
        config = oci_config(settings)
        del config["linux"]["cgroupsPath"]
        with open(path, "x") as file:
            json.dump(config, file, indent=2)


def _unmount(record: Record) -> None:
    """Take away the mounts of a container that has no mount namespace of its own."""
    path = bundles.mount_namespace(record.config)
    if path is None:
        return
    root = bundles.root_path(record.config, record.content["bundle"])
    pid = syscalls.clone(0)
    if pid == 0:
        code = 1
        try:
            kernel = Kernel()
            kernel.join_namespace(path, syscalls.CLONE_NEWNS)
            for entry in reversed(mounts.mountinfo()):
                if entry.mount_point == root or entry.mount_point.startswith(f"{root}/"):
                    syscalls.umount(entry.mount_point, syscalls.MNT_DETACH)
            code = 0
        except FileNotFoundError:
            # The namespace is gone, and its mounts with it.
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        _say(f"mounts below {root} are left")


def _end(launched: Launched) -> None:
    """Kill a process of this command's own."""
    os.kill(launched.pid, signal.SIGKILL)
    os.waitpid(launched.pid, 0)


def _timestamp(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09}Z"


def _print(value: object) -> None:
    print(json.dumps(value))


def _say(text: str) -> None:
    print(f"tiffin-runtime: {text}", file=sys.stderr)


_COMMANDS = (
    "create", "delete", "events", "exec", "features", "kill", "list", "pause", "ps", "resume",
    "run", "spec", "start", "state", "update",
)  # fmt: skip


def main(words: list[str]) -> int:
    """Run a command; the exit code."""
    arguments = Arguments(words)
    if arguments.has("version") or arguments.command == "version":
        print(f"tiffin-runtime version {__version__}\nspec: {SPECIFICATION}")
        return 0
    if arguments.command not in _COMMANDS:
        print(f"usage: tiffin-runtime [--root DIR] [--log FILE] {'|'.join(_COMMANDS)} …")
        return 0 if arguments.has("help") or arguments.command == "help" else 1
    log = arguments.get("log")
    try:
        result = getattr(Runtime(arguments), arguments.command)()
        return result if isinstance(result, int) else 0
    except (TiffinError, OSError) as error:
        text = getattr(error, "message", None) or str(error)
        if log and not stat.S_ISFIFO(os.stat(log).st_mode if os.path.exists(log) else 0):
            row: JSON = {"level": "error", "msg": text, "time": _timestamp(time.time_ns())}
            line = json.dumps(row) if arguments.get("log-format") == "json" else f'msg="{text}"'
            with open(log, "a") as file:
                file.write(line + "\n")
        _say(text)
        if arguments.command in ("exec", "run") and isinstance(error, StartFailure):
            return error.exit_code
        return 1
