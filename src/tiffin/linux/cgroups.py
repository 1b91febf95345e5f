"""Control groups: version 1, version 2, and both at once ("hybrid").

A container has one group of the same name (``tiffin/ID``) below the root of every hierarchy: each
version 1 controller that is mounted, and the version 2 tree if there is one. In a hybrid setup the
limits are version 1's, and the version 2 tree serves to freeze and to kill.

A process moves itself in by writing ``0``: on version 1 into ``tasks`` rather than
``cgroup.procs``, since moving the calling thread alone spares the kernel a lock that waits for a
grace period of RCU.

Nothing is cached but the hierarchy's mount points; the file system is the truth.

Source: ``Documentation/admin-guide/cgroup-v1/*.rst`` and ``cgroup-v2.rst`` of Linux 6.18; the
fields of the statistics are the Docker Engine API's.
"""

from __future__ import annotations

import errno
import os
import signal
import time

from tiffin.linux.cgroup_limits import Row, writes

_V2_CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")

DEFAULT_DEVICES = (
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",  # null
    "c 1:5 rwm",  # zero
    "c 1:7 rwm",  # full
    "c 1:8 rwm",  # random
    "c 1:9 rwm",  # urandom
    "c 5:0 rwm",  # tty
    "c 5:1 rwm",  # console
    "c 5:2 rwm",  # ptmx
    "c 136:* rwm",  # pts
)
"""What a container may do with devices unless told otherwise; anything else is denied."""

PARENT = "tiffin"
"""The group in which the engines' groups are."""

_CREATE = os.O_WRONLY | os.O_CLOEXEC


class Controller:
    """One mounted hierarchy: its ``path``, and its controllers' ``names`` (empty for v2)."""

    __slots__ = ("names", "path", "version")

    def __init__(self, version: int, path: str, names: tuple[str, ...]) -> None:
        self.version = version
        self.path = path
        self.names = names


def _write(path: str, value: str) -> None:
    fd = os.open(path, _CREATE)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(
            error.errno, f"{os.strerror(error.errno or 0)} (writing {value!r} to {path})"
        ) from None
    finally:
        os.close(fd)


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(fd, 65536):
            chunks.append(chunk)
        return b"".join(chunks).decode()
    finally:
        os.close(fd)


def _read_or_none(path: str) -> str | None:
    try:
        return _read(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return None
        raise


def _table(text: str) -> dict[str, int]:
    rows = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.lstrip("-").isdigit():
            rows[key] = int(value)
    return rows


def _limit(text: str) -> int:
    """A limit as number; the kernel's "max" and version 1's page-rounded maximum become 2^63-1."""
    return (1 << 63) - 1 if text.startswith("max") else int(text)


class Hierarchy:
    """The machine's control groups: what is mounted where."""

    def __init__(self, controllers: list[Controller]) -> None:
        self.controllers = controllers
        self.unified = next((item.path for item in controllers if item.version == 2), None)
        self.by_name = {
            name: item.path for item in controllers if item.version == 1 for name in item.names
        }

    @classmethod
    def detect(cls) -> Hierarchy:
        """Read from this process's mounts what there is."""
        controllers: dict[str, Controller] = {}
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                left, _, right = line.partition(" - cgroup")
                if not right:
                    continue
                path = left.split(" ")[4]
                if right.startswith("2 "):
                    if not any(item.version == 2 for item in controllers.values()):
                        controllers[path] = Controller(2, path, ())
                else:
                    options = right.split(" ")[2].rstrip("\n").split(",")
                    names = tuple(
                        option
                        for option in options
                        if option not in ("rw", "ro", "xattr", "clone_children", "none")
                        and not option.startswith(("release_agent=",))
                    )
                    controllers[path] = Controller(1, path, names)
        return cls(list(controllers.values()))

    @property
    def version(self) -> str:
        """``1``, ``2``, ``hybrid``, or the empty string where nothing is mounted."""
        if self.by_name:
            return "hybrid" if self.unified else "1"
        return "2" if self.unified else ""

    @property
    def available(self) -> set[str]:
        """The names of the controllers that there are (``memory``, ``pids``, …)."""
        found = set(self.by_name)
        if self.unified:
            found.update(_read(f"{self.unified}/cgroup.controllers").split())
        return found

    def directories(self, name: str) -> list[str]:
        """The group's directory in every hierarchy."""
        return [f"{item.path}/{name}" for item in self.controllers]

    def entrances(self, name: str) -> list[str]:
        """The files that a process writes ``0`` to, to move itself into the group."""
        return [
            f"{item.path}/{name}/{'tasks' if item.version == 1 else 'cgroup.procs'}"
            for item in self.controllers
        ]

    def create(
        self,
        name: str,
        resources: dict[str, int | str] | None = None,
        devices: list[str] | tuple[str, ...] | None = None,
    ) -> list[str]:
        """Make the group in every hierarchy, set its limits, and return warnings.

        ``devices`` is the list of what is allowed, as version 1 writes it (None: everything). A
        group that exists is taken over. A limit that the kernel refuses raises OSError, and
        nothing is left; a controller that is missing gives a warning in Docker's words.
        """
        made: list[str] = []
        try:
            for item in self.controllers:
                path = f"{item.path}/{name}"
                try:
                    os.mkdir(path, 0o755)
                except FileExistsError:
                    continue
                except FileNotFoundError:
                    self._make_parents(item, name)
                    os.mkdir(path, 0o755)
                made.append(path)
                if "cpuset" in item.names:
                    _inherit_cpuset(path)
            if devices is not None and "devices" in self.by_name:
                path = f"{self.by_name['devices']}/{name}"
                _write(f"{path}/devices.deny", "a")
                fd = os.open(f"{path}/devices.allow", _CREATE)
                try:
                    for rule in devices:
                        os.write(fd, rule.encode())
                finally:
                    os.close(fd)
            elif devices is not None and self.unified and "devices" not in self.by_name:
                # Not in a hybrid setup: there it costs a program where files do.
                from tiffin.linux import device_filter

                device_filter.attach(f"{self.unified}/{name}", devices)
            return self.limit(name, resources) if resources else []
        except OSError:
            for path in reversed(made):
                os.rmdir(path)
            raise

    def _make_parents(self, item: Controller, name: str) -> None:
        path = item.path
        for part in name.split("/")[:-1]:
            if item.version == 2:
                _enable_controllers(path)
            path = f"{path}/{part}"
            try:
                os.mkdir(path, 0o755)
            except FileExistsError:
                continue
            if "cpuset" in item.names:
                _inherit_cpuset(path)
                # Groups made inside start with the same CPUs: to write these into each one would
                # have the kernel arrange its scheduling anew each time.
                _write(f"{path}/cgroup.clone_children", "1")
        if item.version == 2:
            _enable_controllers(path)

    def limit(self, name: str, resources: dict[str, int | str]) -> list[str]:
        """Set limits (the fields of ContainerSettings.resources that are not 0 or empty).

        Returns warnings about controllers that are missing. Raises OSError when refused.
        """
        warnings: list[str] = []
        for row in writes(resources, self._limits_are_v2):
            path = self._limit_file(name, row)
            if path is None:
                warnings.append(f"Your kernel does not support {row.warning}")
                continue
            value = row.values[os.path.basename(path)]
            try:
                _write(path, value)
            except OSError as error:
                # The memory limit and the memory+swap limit must never cross: raised in the other
                # order, both fit.
                if path.endswith("memory.limit_in_bytes") and error.errno == errno.EINVAL:
                    swap = int(resources.get("memory_swap", 0))
                    _write(path.replace("limit_in", "memsw.limit_in"), str(swap or -1))
                    _write(path, value)
                else:
                    raise
        return warnings

    def unsupported(self, resources: dict[str, int | str]) -> dict[str, str]:
        """The limits that this machine can't set, each with a warning in Docker's words.

        What a group can do is looked up in :data:`PARENT`, which is made if need be: the root
        lacks some files, and a group of somebody else's may have others.
        """
        for item in self.controllers:
            self._make_parents(item, f"{PARENT}/any")
        found: dict[str, str] = {}
        for field, value in resources.items():
            for row in writes({field: value}, self._limits_are_v2):
                if self._limit_file(PARENT, row) is None:
                    found[field] = f"Your kernel does not support {row.warning}"
        return found

    def _limit_file(self, name: str, row: Row) -> str | None:
        """The file that takes a limit, or None if there is none."""
        directory = self.unified if self._limits_are_v2 else self.by_name.get(row.controller)
        if directory is None:
            return None
        for file in row.values:
            path = f"{directory}/{name}/{file}"
            if os.path.exists(path):
                return path
        return None

    @property
    def _limits_are_v2(self) -> bool:
        return not self.by_name

    def place(self, name: str, pid: int) -> None:
        """Move another process into the group. Raises ProcessLookupError."""
        for directory in self.directories(name):
            _write(f"{directory}/cgroup.procs", str(pid))

    def processes(self, name: str) -> list[int]:
        """The process IDs in the group and the groups below it."""
        root = self._anchor(name)
        found: set[int] = set()
        for directory, _, _ in os.walk(root) if root else ():
            text = _read_or_none(f"{directory}/cgroup.procs")
            found.update(int(line) for line in (text or "").split())
        return sorted(found)

    def _anchor(self, name: str) -> str | None:
        """The group's directory in the hierarchy that best tells who is in it."""
        base = self.unified or self.by_name.get("pids") or self.by_name.get("freezer")
        if base is None and self.controllers:
            base = self.controllers[0].path
        return f"{base}/{name}" if base else None

    def exists(self, name: str) -> bool:
        """Whether the group is there in some hierarchy."""
        return any(os.path.isdir(path) for path in self.directories(name))

    def freeze(self, name: str, timeout: float = 10.0) -> None:
        """Stop every process of the group, and return when they have stopped.

        Raises FileNotFoundError if the group is gone, or goes meanwhile.
        """
        self._freeze(name, True, timeout)

    def thaw(self, name: str, timeout: float = 10.0) -> None:
        """Let a frozen group go on."""
        self._freeze(name, False, timeout)

    def frozen(self, name: str) -> bool:
        """Whether the group is frozen."""
        if self.unified:
            events = _read_or_none(f"{self.unified}/{name}/cgroup.events") or ""
            return _table(events).get("frozen") == 1
        path = f"{self.by_name.get('freezer')}/{name}/freezer.state"
        return (_read_or_none(path) or "").strip() == "FROZEN"

    def _freeze(self, name: str, wanted: bool, timeout: float) -> None:
        if self.unified:
            _write(f"{self.unified}/{name}/cgroup.freeze", "1" if wanted else "0")
        elif "freezer" in self.by_name:
            path = f"{self.by_name['freezer']}/{name}/freezer.state"
            _write(path, "FROZEN" if wanted else "THAWED")
        else:
            raise OSError(errno.ENOSYS, "no cgroup freezer is mounted")
        deadline = time.monotonic() + timeout
        while self.frozen(name) is not wanted:
            if not self.exists(name):
                raise FileNotFoundError(errno.ENOENT, "the cgroup is gone", name)
            if time.monotonic() > deadline:
                raise OSError(errno.ETIMEDOUT, f"cgroup {name} does not change its freezer state")
            time.sleep(0.001)

    def kill(self, name: str) -> None:
        """SIGKILL every process of the group and the groups below; no error if it is gone."""
        if self.unified:
            try:
                _write(f"{self.unified}/{name}/cgroup.kill", "1")
                return
            except FileNotFoundError:
                # The group is gone, or the kernel is older than 5.14.
                pass
        # A process may fork while the list is read, so until a round finds nobody new.
        killed: set[int] = set()
        while fresh := set(self.processes(name)) - killed:
            for pid in fresh:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    # It has ended since the list was read.
                    pass
            killed |= fresh

    def delete(self, name: str) -> bool:
        """Remove the group everywhere, with groups below it; False while a process is in it."""
        done = True
        for directory in self.directories(name):
            done = _remove(directory) and done
        return done

    def oom_kills(self, name: str) -> int:
        """How many processes of the group the kernel has killed for want of memory."""
        if "memory" in self.by_name:
            text = _read_or_none(f"{self.by_name['memory']}/{name}/memory.oom_control")
        else:
            text = _read_or_none(f"{self.unified}/{name}/memory.events")
        return _table(text or "").get("oom_kill", 0)

    def oom_watch(self, name: str) -> int:
        """A descriptor, which is the caller's, that can be read whenever the group runs out of
        memory (version 1) or its counts of that change (version 2); -1 where that can't be had.

        On version 1 it can also be read when the group is removed.
        """
        if "memory" not in self.by_name:
            from tiffin.linux.inotify import IN_MODIFY, watch_file

            try:
                return watch_file(f"{self.unified}/{name}/memory.events", IN_MODIFY)
            except OSError:
                return -1
        directory = f"{self.by_name['memory']}/{name}"
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _write(f"{directory}/cgroup.event_control", f"{event} {control}")
            finally:
                os.close(control)
        except OSError:
            # A kernel without these, or a container that is gone already.
            os.close(event)
            return -1
        return event

    def statistics(self, name: str) -> dict[str, object]:
        """``cpu_stats`` (without ``system_cpu_usage``), ``memory_stats``, ``pids_stats`` and
        ``blkio_stats`` as in the Docker Engine API. Raises FileNotFoundError if it is gone."""
        from tiffin.linux import cgroup_statistics

        return cgroup_statistics.read(self, name)


def _inherit_cpuset(path: str) -> None:
    """A new version 1 cpuset is empty, and an empty one takes no processes: copy the parent's,
    unless the parent is one that has its own inherited.

    The parent's may be empty too, if whoever made it was killed in between.
    """
    parent = os.path.dirname(path)
    for file in ("cpuset.cpus", "cpuset.mems"):
        if _read(f"{path}/{file}").strip():
            continue
        value = _read(f"{parent}/{file}").strip()
        if not value:
            _inherit_cpuset(parent)
            value = _read(f"{parent}/{file}").strip()
        _write(f"{path}/{file}", value)


def _enable_controllers(path: str) -> None:
    available = _read(f"{path}/cgroup.controllers").split()
    enabled = _read(f"{path}/cgroup.subtree_control").split()
    for name in _V2_CONTROLLERS:
        if name in available and name not in enabled:
            try:
                _write(f"{path}/cgroup.subtree_control", f"+{name}")
            except OSError as error:
                # A group that holds processes itself can't share out some controllers; limits of
                # such a controller are then reported as missing where they are asked for.
                if error.errno not in (errno.EBUSY, errno.EOPNOTSUPP):
                    raise


def _remove(directory: str) -> bool:
    """Remove one directory of a group; children first if need be."""
    try:
        os.rmdir(directory)
        return True
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir() and not _remove(entry.path):
                    return False
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True
