"""The verbs on containers.

Creation prepares everything that a start needs, in an order that survives kill -9: the layer's
snapshot and the folder first, the row last; what has no row is removed at the next start-up.
"""

from __future__ import annotations

import os
import posixpath
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from signal import SIGKILL
from typing import Any, BinaryIO

from tiffin.engine import (
    configuration,
    files,
    health,
    inspection,
    limits,
    logs,
    mountpoints,
    security,
    statistics,
    timestamps,
)
from tiffin.engine import filters as filtering
from tiffin.engine.commits import Commits
from tiffin.engine.container import Container, Spec, State
from tiffin.engine.events import Events
from tiffin.engine.execs import Execs
from tiffin.engine.images import Images
from tiffin.engine.lifecycle import ANONYMOUS, Lifecycle
from tiffin.engine.mountpoints import MountPoint
from tiffin.engine.names import check_name, numbered_name, random_name
from tiffin.engine.probes import HealthChecks
from tiffin.engine.root import Root
from tiffin.engine.roster import Roster
from tiffin.engine.signals import parse_signal
from tiffin.engine.streams import frame
from tiffin.engine.trees import Trees, open_in, read_file
from tiffin.engine.volumes import Volumes
from tiffin.engine.waiting import Waiter
from tiffin.errors import Conflict, InvalidParameter, NotFound, NotModified, Unsupported
from tiffin.layer.compression import decompressed
from tiffin.layer.space import space_needed
from tiffin.layer.store import LayerStore
from tiffin.linux import accounts
from tiffin.linux.cgroups import Hierarchy
from tiffin.storage import tree
from tiffin.store.database import Database

JSON = dict[str, Any]
Rows = list[JSON]
Names = list[str]

_FILTERS = {
    "ancestor", "before", "exited", "health", "id", "is-task", "label", "name", "network",
    "publish", "expose", "since", "status", "volume",
}  # fmt: skip
_STATUSES = {"created", "running", "paused", "restarting", "removing", "exited", "dead"}


_KILL_SECONDS = 10.0


class Containers:
    """The containers of a root."""

    def __init__(
        self,
        database: Database,
        root: Root,
        roster: Roster,
        images: Images,
        layers: LayerStore,
        lifecycle: Lifecycle,
        volumes: Volumes,
        trees: Trees,
        events: Events,
    ) -> None:
        self._database = database
        self._root = root
        self._roster = roster
        self._images = images
        self._layers = layers
        self._lifecycle = lifecycle
        self._volumes = volumes
        self._trees = trees
        self._events = events
        self._execs = Execs(roster, lifecycle, events)
        lifecycle.dropped = self._execs.forget
        self._health = HealthChecks(database, lifecycle, self._execs, events)
        self.close = self._health.close
        self.commit = Commits(database, roster, images, layers, lifecycle, events).commit
        self.exec_create = self._execs.create
        self.exec_start = self._execs.start
        self.exec_inspect = self._execs.inspect
        self.exec_resize = self._execs.resize
        self.exec_output = self._execs.output

    def get(self, reference: str) -> Container:
        """The container that an ID, a name or a prefix of an ID names; raises NotFound."""
        return self._roster.get(reference)

    # -- making -----------------------------------------------------------------------------

    def create(self, body: JSON, name: str | None = None) -> JSON:
        """Make a container out of the body of ``POST /containers/create``.

        Gives ``{"Id", "Warnings"}``. Raises NotFound (no such image), Conflict (name taken),
        InvalidParameter, Unsupported.
        """
        config, host, networks = configuration.normalise(body)
        self._check_storage(host)
        warnings = limits.check(host)
        if name:
            name = check_name(name)
        if config.get("StopSignal"):
            parse_signal(config["StopSignal"])
        with self._layers.lease():
            image = self._images.find(config.get("Image") or "")
            self._images.check_platform(image)
            merged = configuration.merge(config, image.config.config)
            inherited = self._inherited(host.get("VolumesFrom") or [])
            points = mountpoints.mount_points(merged, host, inherited)
            mountpoints.check_sources(points)
            container_id = secrets.token_hex(32)
            if not merged["Hostname"]:
                merged["Hostname"] = (
                    os.uname().nodename if host["NetworkMode"] == "host" else container_id[:12]
                )
            spec = Spec(merged, host, networks, points, config.get("Image") or "")
            self._lifecycle.sandboxes.settle(spec)
            container = Container(
                container_id,
                name or random_name(),
                image.id,
                image.top,
                f"c{container_id[:40]}",
                spec,
                State(),
                time.time_ns(),
                size=0,
            )
            # Checked again when the row is written; here so that nothing is made in vain.
            if name and self._roster.name_taken(name):
                self._roster.add(container)
            with space_needed(self._root.path, "the container's files"):
                self._prepare(container, None if name else numbered_name)
        self._events.publish("container", "create", container.id, **container.attributes())
        return {"Id": container.id, "Warnings": [*warnings, *security.warnings(host)]}

    def _check_storage(self, host: JSON) -> None:
        if host.get("StorageOpt"):
            options = ", ".join(f"{key}={value}" for key, value in host["StorageOpt"].items())
            raise Unsupported(
                f"--storage-opt {options} is not supported by the storage driver "
                f"'{self._layers.driver.name}': leave it out"
            )

    def _inherited(self, sources: Sequence[str]) -> list[MountPoint]:
        points = []
        for source in sources:
            reference, mode = mountpoints.parse_source(source)
            try:
                container = self._roster.get(reference)
            except NotFound as error:
                # Not found is the image to clients, which would pull it.
                raise InvalidParameter(error.message) from error
            for point in container.spec.mounts:
                copy = MountPoint(**{field: getattr(point, field) for field in _POINT_FIELDS})
                copy.writable = point.writable and not mode.startswith("ro")
                copy.mode = mode if point.mode == ANONYMOUS else point.mode
                points.append(copy)
        return points

    def _prepare(self, container: Container, another_name: Callable[[], str] | None) -> None:
        folder = self._root.container(container.id)
        made: Names = []
        try:
            self._layers.prepare(
                container.snapshot, container.base, mountpoints=True, purpose="container"
            )
            folder.mkdir(mode=0o710)
            self._lifecycle.sandboxes.write_files(container)
            for point in container.spec.mounts:
                if point.kind == "volume":
                    self._use_volume(container, point, made)
                elif point.kind == "image":
                    image = self._images.find(point.source)
                    self._images.check_platform(image)
                    if image.top is None:
                        raise InvalidParameter(f"image {point.source} has no files to mount")
                    point.chain = image.top
                elif point.kind == "bind" and point.create_source:
                    os.makedirs(point.source, exist_ok=True) if not os.path.lexists(
                        point.source
                    ) else None
            self._roster.add(container, another_name)
        except BaseException:
            self._layers.remove_snapshot(container.snapshot)
            if folder.exists():
                self._lifecycle.discard(container)
            for name in made:
                self._volumes.remove(name, force=True)
            raise

    def _use_volume(self, container: Container, point: MountPoint, made: Names) -> None:
        if not point.name:
            point.mode = ANONYMOUS
        fresh = not point.name or not self._volumes.exists(point.name)
        volume = self._volumes.create(point.name, point.driver, point.options, point.labels)
        point.name, point.source = volume["Name"], volume["Mountpoint"]
        if fresh:
            made.append(point.name)
        if point.copy and not point.subpath:
            with self._volumes.mounted(point.name):
                if not os.listdir(point.source):
                    self._fill_volume(container, point)

    def _fill_volume(self, container: Container, point: MountPoint) -> None:
        """A new volume starts with what the image has at its place, owners and modes included."""
        if container.base is None:
            return
        entry = self._layers.lookup(container.base, os.fsencode(point.target), follow=True)
        if entry is None or entry.kind != "d":
            return
        with self._trees.image(container.base) as root:
            source = open_in(root, os.fsencode(point.target), os.O_RDONLY | os.O_DIRECTORY)
            target = os.open(point.source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                tree.copy_open(source, target)
            finally:
                os.close(source)
                os.close(target)

    # -- looking ----------------------------------------------------------------------------

    def _sizes(self, container: Container) -> tuple[int, int]:
        own = self._lifecycle.measure(container)
        return own, own + (self._layers.size(container.base) if container.base else 0)

    def list(
        self,
        all: bool = False,
        limit: int = 0,
        size: bool = False,
        filters: filtering.Filters | None = None,
    ) -> Rows:
        """The rows of ``ps``, the newest first."""
        filters = filters or {}
        filtering.check(filters, _FILTERS)
        for value in filters.get("exited", ()):
            if not value.removeprefix("-").isdigit():
                raise InvalidParameter(f'strconv.Atoi: parsing "{value}": invalid syntax')
        wanted = set(filters.get("status", ()))
        if wanted - _STATUSES:
            raise InvalidParameter(f"invalid filter 'status={', '.join(wanted - _STATUSES)}'")
        for value in set(filters.get("health", ())) - set(health.STATUSES):
            raise InvalidParameter(f"Unrecognised filter value for health: {value}")
        everything = all or limit > 0 or bool(wanted) or "exited" in filters
        bounds = {
            key: self._roster.get(filters[key][0]).created
            for key in ("before", "since")
            if filters.get(key)
        }
        ancestors = self._ancestors(filters.get("ancestor", ()))
        rows: Rows = []
        names: dict[str, str | None] = {}
        for container in reversed(self._roster.all()):
            if (
                (everything or container.active)
                and (not wanted or container.state.status in wanted)
                and ("before" not in bounds or container.created < bounds["before"])
                and ("since" not in bounds or container.created > bounds["since"])
                and (ancestors is None or container.image in ancestors)
                and self._matches(container, filters)
            ):
                sizes = self._sizes(container) if size else None
                shown = self._shown(container, names)
                rows.append(inspection.summary(container, sizes, shown, self._lifecycle.sandboxes))
                if 0 < limit <= len(rows):
                    break
        return rows

    def _shown(self, container: Container, names: dict[str, str | None]) -> str:
        """What ``ps`` calls the container's image: the name that it was created from, unless that
        has gone to another image since, or altogether. ``names`` are those looked up already."""
        name = container.spec.image_name
        if name not in names:
            try:
                names[name] = self._images.find(name).id
            except (NotFound, InvalidParameter):
                names[name] = None
        return name if names[name] == container.image else container.image

    def _ancestors(self, names: Any) -> set[str] | None:
        if not names:
            return None
        found: set[str] = set()
        for name in names:
            try:
                found |= self._images.descendants(self._images.find(name))
            except NotFound:
                continue
        return found

    def _matches(self, container: Container, filters: filtering.Filters) -> bool:
        exited = filters.get("exited")
        volumes = filters.get("volume")
        targets = {value for p in container.spec.mounts for value in (p.name, p.source, p.target)}
        ids = filters.get("id")
        names = filters.get("name")
        return (
            filtering.labels(filters, container.labels)
            and (
                not names
                or filtering.pattern(filters, "name", [container.name, f"/{container.name}"])
            )
            and (not ids or any(container.id.startswith(value) for value in ids))
            and (
                not exited
                or (container.state.status == "exited" and str(container.state.exit_code) in exited)
            )
            and (not filters.get("health") or health.status(container) in filters["health"])
            and (not volumes or bool(targets & set(volumes)))
            and (
                not filters.get("network")
                or self._lifecycle.sandboxes.uses(container, filters["network"])
            )
        )

    def inspect(self, reference: str, size: bool = False) -> JSON:
        """Docker's whole view of a container."""
        container = self._roster.get(reference)
        return inspection.inspect(
            container,
            self._root.container(container.id),
            self._layers.driver.name,
            self._sizes(container) if size else None,
            self._lifecycle.sandboxes,
        )

    def top(self, reference: str, arguments: str = "") -> JSON:
        """The processes of a running container, as ``ps`` of the host shows them."""
        container = self._running(reference)
        pids = Hierarchy.detect().processes(self._lifecycle.cgroup(container))
        output = subprocess.run(
            ["ps", *(arguments or "-ef").split()], capture_output=True, text=True, check=False
        )
        if output.returncode:
            raise InvalidParameter(f"ps: {output.stderr.strip()}")
        lines = output.stdout.splitlines()
        titles = lines[0].split()
        if "PID" not in titles:
            raise InvalidParameter("Couldn't find PID field in ps output")
        column = titles.index("PID")
        rows = [line.split(None, len(titles) - 1) for line in lines[1:]]
        wanted = {str(pid) for pid in pids}
        return {
            "Titles": titles,
            "Processes": [row for row in rows if len(row) > column and row[column] in wanted],
        }

    def _running(self, reference: str) -> Container:
        container = self._roster.get(reference)
        if container.state.status == "restarting":
            raise Conflict(
                f"Container {container.id} is restarting, wait until the container is running"
            )
        if not container.running:
            raise Conflict(f"container {container.id} is not running")
        return container

    def changes(self, reference: str) -> Rows:
        """``docker diff``: ``[{"Path", "Kind"}]`` with 0 changed, 1 added, 2 deleted."""
        container = self._roster.get(reference)
        kinds = {"C": 0, "A": 1, "D": 2}
        return [
            {"Path": "/" + os.fsdecode(change.path), "Kind": kinds[change.kind]}
            for change in self._layers.changes(container.snapshot, container.base, container.frozen)
        ]

    def stats(self, reference: str, earlier: JSON | None = None) -> JSON:
        """A reading of what a container uses of the machine, after an ``earlier`` one if given."""
        container = self._roster.get(reference)
        group = self._lifecycle.cgroup(container)
        return statistics.after(earlier, statistics.reading(container, Hierarchy.detect(), group))

    # -- life -------------------------------------------------------------------------------

    def start(self, reference: str, detach_keys: str | None = None) -> None:
        """Start; raises NotModified if it runs already, StartFailure if its program can't."""
        del detach_keys  # belongs to the attachment, which has been told
        self._lifecycle.start(self._roster.get(reference))

    def stop(self, reference: str, timeout: float | None = None, signal: str | None = None) -> None:
        """Stop by the stop signal, then by SIGKILL; raises NotModified if it doesn't run."""
        self._lifecycle.stop(
            self._roster.get(reference), timeout, parse_signal(signal) if signal else None
        )

    def restart(
        self, reference: str, timeout: float | None = None, signal: str | None = None
    ) -> None:
        """Stop if it runs, then start."""
        container = self._roster.get(reference)
        container.spared = True
        try:
            try:
                self.stop(container.id, timeout, signal)
            except NotModified:
                pass
            self._lifecycle.start(container)
        finally:
            container.spared = False
        self._events.publish("container", "restart", container.id, **container.attributes())

    def kill(self, reference: str, signal: str = "SIGKILL") -> None:
        """Send a signal to the first process; raises Conflict if the container doesn't run."""
        number = parse_signal(signal or "SIGKILL")
        try:
            container = self._roster.get(reference)
            waiter = Waiter(container, "not-running")
            self._lifecycle.kill(container, number)
            if number == SIGKILL:
                # As in Docker, it is over when the answer comes.
                waiter.result(_KILL_SECONDS)
        except (Conflict, NotFound) as error:
            raise type(error)(f"cannot kill container: {reference}: {error.message}") from error

    def pause(self, reference: str) -> None:
        """Freeze all its processes."""
        self._lifecycle.pause(self._roster.get(reference))

    def unpause(self, reference: str) -> None:
        """Let them go on."""
        self._lifecycle.unpause(self._roster.get(reference))

    def rename(self, reference: str, name: str) -> None:
        """Give it another name; raises Conflict if that is taken."""
        container = self._roster.get(reference)
        if not name:
            raise InvalidParameter("Neither old nor new names may be empty")
        bare = check_name(name)
        if bare == container.name:
            raise InvalidParameter("Renaming a container with the same name as its current name")
        old = container.name
        self._roster.rename(container, bare)
        self._lifecycle.sandboxes.renamed(container)
        attributes = {**container.attributes(), "oldName": f"/{old}"}
        self._events.publish("container", "rename", container.id, **attributes)

    def remove(
        self, reference: str, force: bool = False, volumes: bool = False, link: bool = False
    ) -> None:
        """Remove it, its layer and, with ``volumes``, its anonymous volumes."""
        if link:
            raise Unsupported("links can't be used yet: --link")
        container = self._roster.get(reference)
        self._lifecycle.remove(container, force=force, volumes=volumes)

    def wait_later(self, reference: str, condition: str = "not-running") -> Waiter:
        """A waiter, made now, so that what happens from now on is not missed."""
        return Waiter(self._roster.get(reference), condition or "not-running")

    def wait(
        self,
        reference: str,
        condition: str = "not-running",
        cancelled: Callable[[], bool] | None = None,
    ) -> JSON | None:
        """Block until the condition holds: ``{"StatusCode", "Error"}``; None if cancelled."""
        waiter = self.wait_later(reference, condition)
        while True:
            answer = waiter.result(None if cancelled is None else 1.0)
            if answer is not None:
                return answer
            if cancelled is not None and cancelled():
                return None

    def update(self, reference: str, body: JSON) -> JSON:
        """Change limits and the restart policy; ``{"Warnings"}``.

        Raises InvalidParameter, Conflict (the kernel refuses, or it makes no sense together).
        """
        container = self._roster.get(reference)
        policy = configuration.restart_policy(body.get("RestartPolicy"))
        with container.lock:
            if container.removed or container.removing:
                raise Conflict(
                    f"Cannot update container {container.id}: Container is marked for removal and "
                    'cannot be "update".'
                )
            before = container.spec.host
            try:
                after, warnings = limits.updated(before, body)
                if (body.get("RestartPolicy") or {}).get("Name"):
                    if container.auto_remove and policy["Name"] != "no":
                        raise InvalidParameter(
                            "Restart policy cannot be updated because AutoRemove is enabled for "
                            "the container"
                        )
                    after["RestartPolicy"] = policy
                if container.running:
                    group = self._lifecycle.cgroup(container)
                    limits.apply(Hierarchy.detect(), group, before, after)
            except (InvalidParameter, Conflict) as error:
                raise type(error)(
                    f"Cannot update container {container.id}: {error.message}"
                ) from None
            container.spec.host = after
            container.save_spec(self._database)
        self._events.publish("container", "update", container.id, **container.attributes())
        return {"Warnings": warnings}

    def prune(self, filters: filtering.Filters | None = None) -> JSON:
        """Remove every container that doesn't run."""
        filters = filters or {}
        filtering.check(filters, {"until", "label", "label!"})
        until = timestamps.parse(filters["until"][0]) if filters.get("until") else None
        removed, space = [], 0
        for container in self._roster.all():
            if (
                container.active
                or (until is not None and container.created > until)
                or not filtering.labels(filters, container.labels)
                or (filters.get("label!") and filtering.labels(filters, container.labels, "label!"))
            ):
                continue
            try:
                size = self._lifecycle.measure(container)
                self.remove(container.id)
            except (Conflict, NotFound):
                # It was started or removed meanwhile.
                continue
            space += size
            removed.append(container.id)
        self._events.publish("container", "prune", "", reclaimed=str(space))
        return {"ContainersDeleted": removed, "SpaceReclaimed": space}

    # -- streams ----------------------------------------------------------------------------

    def attach(
        self,
        reference: str,
        connection: socket.socket,
        *,
        stream: bool = True,
        logs: bool = False,
        stdin: bool = False,
        stdout: bool = False,
        stderr: bool = False,
        detach_keys: str | None = None,
        multiplexed: bool | None = None,
        initial: bytes = b"",
    ) -> None:
        """Give a client's connection to the keeper, which speaks on a duplicate from here on.

        A container that doesn't run yet is attached to when it starts, from its first byte.
        """
        container = self._roster.get(reference)
        if container.state.status == "paused":
            raise Conflict(
                f"Container {container.id} is paused, unpause the container before attach"
            )
        framed = not container.tty if multiplexed is None else multiplexed
        if logs and container.log_path:
            path = str(self._root.container(container.id) / container.log_path)
            for name, data in logs_of(path, stdout=stdout, stderr=stderr):
                number = 1 if name == "stdout" else 2
                connection.sendall(frame(number, data) if framed else data)
        if stream:
            self._lifecycle.keeper.attach(
                container.id,
                connection.fileno(),
                stdin=stdin and bool(container.spec.config.get("OpenStdin")),
                stdout=stdout,
                stderr=stderr,
                multiplexed=framed,
                detach_keys=detach_keys,
                initial=initial,
            )
            self._events.publish("container", "attach", container.id, **container.attributes())

    def resize(self, reference: str, height: int, width: int) -> None:
        """Tell the container's terminal its size in rows and columns."""
        container = self._running(reference)
        self._lifecycle.keeper.resize(container.id, height, width)

    def logs(
        self,
        reference: str,
        *,
        stdout: bool = True,
        stderr: bool = True,
        since: str | None = None,
        until: str | None = None,
        tail: str | int | None = None,
        timestamps: bool = False,
        details: bool = False,
        follow: bool = False,
        cancelled: Callable[[], bool] | None = None,
    ) -> tuple[bool, Iterator[tuple[str, bytes]]]:
        """Whether the container has a terminal, and its log as (stream, bytes)."""
        container = self._roster.get(reference)
        if not (stdout or stderr):
            raise InvalidParameter("Bad parameters: you must choose at least one stream")
        if not container.log_path:
            raise Unsupported("configured logging driver does not support reading")
        path = self._root.container(container.id) / container.log_path
        return container.tty, logs_reader(
            container,
            str(path),
            stdout,
            stderr,
            since,
            until,
            tail,
            timestamps,
            details,
            follow,
            cancelled,
        )

    # -- files ------------------------------------------------------------------------------

    def archive_stat(self, reference: str, path: str) -> JSON:
        """What a path in a container is."""
        with self._tree(reference, path) as (_, root):
            return files.path_stat(root, path)

    def archive_get(self, reference: str, path: str, output: BinaryIO) -> None:
        """A path of a container, with all inside, as a tar."""
        with self._tree(reference, path) as (container, root):
            files.get(root, path, output)
        self._events.publish("container", "archive-path", container.id, **container.attributes())

    def archive_put(
        self,
        reference: str,
        path: str,
        tar: BinaryIO,
        no_overwrite: bool = False,
        copy_uid_gid: bool = False,
    ) -> None:
        """Unpack a tar into a folder of a container."""
        written = space_needed(self._root.path, f"all that goes to {path}", "a part of it is there")
        with written, self._tree(reference, path) as (container, root):
            if container.spec.host.get("ReadonlyRootfs") and not _on_a_mount(container, path):
                raise InvalidParameter("container rootfs is marked read-only")
            with container.lock:
                container.size = None

            def owner() -> tuple[int, int]:
                account = accounts.resolve(
                    container.spec.config.get("User") or "",
                    read_file(root, b"/etc/passwd"),
                    read_file(root, b"/etc/group"),
                )
                return account.uid, account.gid

            files.put(
                root,
                path,
                decompressed(tar),
                no_overwrite=no_overwrite,
                owner=owner if copy_uid_gid and container.spec.config.get("User") else None,
            )
        self._events.publish("container", "extract-to-dir", container.id, **container.attributes())

    @contextmanager
    def _tree(self, reference: str, path: str) -> Iterator[tuple[Container, int]]:
        container = self._roster.get(reference)
        try:
            with self._trees.container(container) as root:
                yield container, root
        except NotFound as error:
            raise NotFound(f"Could not find the file {path} in container {reference}") from error

    def export(self, reference: str, output: BinaryIO) -> None:
        """The container's whole tree, volumes aside, as a tar."""
        container = self._roster.get(reference)
        with self._trees.container(container, volumes=False) as root:
            files.export(root, output)
        self._events.publish("container", "export", container.id, **container.attributes())


def _on_a_mount(container: Container, path: str) -> bool:
    """Whether a path lies on a writable mount of the container."""
    place = posixpath.normpath("/" + path)
    return any(
        point.writable and (place + "/").startswith(point.target + "/")
        for point in container.spec.mounts
    )


_POINT_FIELDS = MountPoint.__struct_fields__


def logs_of(path: str, *, stdout: bool, stderr: bool) -> Iterator[tuple[str, bytes]]:
    """A log from its beginning to its present end."""
    return logs.read_logs(path, stdout=stdout, stderr=stderr, ended=lambda: True)


def logs_reader(
    container: Container,
    path: str,
    stdout: bool,
    stderr: bool,
    since: str | None,
    until: str | None,
    tail: str | int | None,
    with_timestamps: bool,
    details: bool,
    follow: bool,
    cancelled: Callable[[], bool] | None,
) -> Iterator[tuple[str, bytes]]:
    """Read a log as asked; a followed one ends when the container or the client does."""
    # Docker takes what is no number for "all".
    lines = int(tail) if tail is not None and str(tail).isdigit() else None

    run = container.state.runs

    def ended() -> bool:
        over = not container.running or container.state.runs != run
        return over or (cancelled is not None and cancelled())

    return logs.read_logs(
        path,
        stdout=stdout,
        stderr=stderr,
        since=timestamps.parse(since) if since and since != "0" else None,
        until=timestamps.parse(until) if until and until != "0" else None,
        tail=lines,
        timestamps=with_timestamps,
        details=details,
        follow=follow,
        ended=ended,
    )
