"""The verbs on containers: what the API and the library call.

Larger ones live in modules of their own: creation, the list, copying of files, commits, execs.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any

from tiffin.engine import (
    configuration,
    inspection,
    limits,
    statistics,
    timestamps,
)
from tiffin.engine import filters as filtering
from tiffin.engine.commits import Commits
from tiffin.engine.container import Container
from tiffin.engine.creation import Creation
from tiffin.engine.events import Events
from tiffin.engine.execs import Execs
from tiffin.engine.lifecycle import Lifecycle
from tiffin.engine.listing import Listing
from tiffin.engine.logs import Wanted, read_logs, read_output
from tiffin.engine.names import check_name
from tiffin.engine.probes import HealthChecks
from tiffin.engine.root import Root
from tiffin.engine.roster import Roster
from tiffin.engine.signals import parse_signal
from tiffin.engine.timestamps import parse as parse_moment
from tiffin.engine.transfers import Transfers
from tiffin.engine.waiting import Waiter, check_condition
from tiffin.errors import Conflict, InvalidParameter, NotFound, NotModified, Unsupported
from tiffin.layer.store import LayerStore
from tiffin.linux.cgroups import Hierarchy
from tiffin.storage.driver import Mount
from tiffin.store.database import Database

JSON = dict[str, Any]
Rows = list[JSON]
Names = list[str]


_KILL_SECONDS = 10.0
_SHORT_COMMAND = 0.25


class Containers:
    """The containers of a root."""

    def __init__(
        self,
        database: Database,
        root: Root,
        roster: Roster,
        layers: LayerStore,
        lifecycle: Lifecycle,
        events: Events,
        creation: Creation,
        listing: Listing,
        transfers: Transfers,
        commits: Commits,
    ) -> None:
        self._database = database
        self._root = root
        self._roster = roster
        self._layers = layers
        self._lifecycle = lifecycle
        self._events = events
        self._execs = Execs(roster, lifecycle, events)
        lifecycle.removal.dropped = self._execs.forget
        self._health = HealthChecks(database, lifecycle, self._execs, events)
        self.close = self._health.close
        self.create = creation.create
        self._listing = listing
        self.list = listing.rows
        self.archive_stat = transfers.archive_stat
        self.archive_get = transfers.archive_get
        self.archive_put = transfers.archive_put
        self.export = transfers.export
        self.commit = commits.commit
        self.exec_create = self._execs.create
        self.exec_start = self._execs.start
        self.exec_inspect = self._execs.inspect
        self.exec_resize = self._execs.resize
        self.exec_output = self._execs.output

    def get(self, reference: str) -> Container:
        """The container that an ID, a name or a prefix of an ID names; raises NotFound."""
        return self._roster.get(reference)

    # -- looking ----------------------------------------------------------------------------

    def inspect(self, reference: str, size: bool = False) -> JSON:
        """Docker's whole view of a container."""
        container = self._roster.get(reference)
        return inspection.inspect(
            container,
            self._root.container(container.id),
            self._graph(container),
            self._listing.sizes(container) if size else None,
            self._lifecycle.sandboxes,
        )

    def _graph(self, container: Container) -> JSON:
        driver = self._layers.driver_of(container.base).name
        mounts: list[Mount] = []
        # Elsewhere asking for mounts may make something ready to be mounted. What is just being
        # removed has none any more.
        if driver == "overlay2":
            with suppress(NotFound, FileNotFoundError):
                mounts = self._layers.mounts(container.snapshot)
        return inspection.graph_view(driver, mounts, container.state.pid)

    def top(self, reference: str, arguments: str = "") -> JSON:
        """The processes of a running container, as ``ps`` of the host shows them."""
        container = self._running(reference)
        pids = Hierarchy.detect().processes(self._lifecycle.launches.cgroup(container))
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
        group = self._lifecycle.launches.cgroup(container)
        now = statistics.reading(container, Hierarchy.detect(), group)
        if container.running and (networks := self._lifecycle.sandboxes.statistics(container)):
            now["networks"] = networks
        return statistics.after(earlier, now)

    # -- life -------------------------------------------------------------------------------

    def start(self, reference: str, detach_keys: str | None = None) -> None:
        """Start; raises NotModified if it runs already, StartFailure if its program can't."""
        del detach_keys  # belongs to the attachment, which has been told
        self._lifecycle.start(self._roster.get(reference))

    def stop(self, reference: str, timeout: float | None = None, signal: str | None = None) -> None:
        """Stop by the stop signal, then by SIGKILL; raises NotModified if it doesn't run."""
        container = self._roster.get(reference)
        if not container.active:
            # As in Docker also where the signal is none.
            raise NotModified(f"container {container.id} is not running")
        self._lifecycle.stop(container, timeout, parse_signal(signal) if signal else None)

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
                # It does not run.
                pass
            with suppress(NotModified):
                # Somebody else was quicker.
                self._lifecycle.start(container)
        finally:
            container.spared = False
        self._events.publish("container", "restart", container.id, **container.attributes())

    def kill(self, reference: str, signal: str = "SIGKILL") -> None:
        """Send a signal to the first process; raises Conflict if the container doesn't run."""
        try:
            number = parse_signal(signal or "SIGKILL")
            container = self._roster.get(reference)
            waiter = Waiter(container, "not-running")
            self._lifecycle.kill(container, number)
            if number == SIGKILL:
                # As in Docker, it is over when the answer comes.
                waiter.result(_KILL_SECONDS)
        except (Conflict, NotFound, InvalidParameter) as error:
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
        """Remove it, its layer and, with ``volumes``, its anonymous volumes; with ``link`` only a
        link, ``NAME/ALIAS``."""
        if link:
            container = self._lifecycle.sandboxes.links.remove(reference)
            container.save_spec(self._database)
            return
        container = self._roster.get(reference)
        self._lifecycle.removal.remove(container, force=force, volumes=volumes)

    def wait_later(self, reference: str, condition: str = "not-running") -> Waiter:
        """A waiter, made now, so that what happens from now on is not missed."""
        check_condition(condition)
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
                    group = self._lifecycle.launches.cgroup(container)
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
            before = Wanted(stdout=stdout, stderr=stderr)
            for block in read_output(path, before, multiplexed=framed):
                connection.sendall(block)
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

    def logs(self, reference: str, **options: Any) -> tuple[bool, Iterator[tuple[str, bytes]]]:
        """Whether the container has a terminal, and its log as (stream, bytes). The options are
        those of :meth:`output`."""
        tty, path, wanted = self._log(reference, **options)
        return tty, read_logs(path, wanted)

    def output(self, reference: str, **options: Any) -> tuple[bool, Iterator[bytes]]:
        """The same in the form in which clients get it, many records at a time."""
        tty, path, wanted = self._log(reference, **options)
        return tty, read_output(path, wanted, multiplexed=not tty)

    @staticmethod
    def _let_speak(container: Container) -> None:
        """Who asks right after the start means what a short command has said. Nothing in the API
        tells when it has: clients that start ``ls`` and ask (as docker-py's tests do) get all of
        it from dockerd because its starts take longer than the command. Here they don't."""
        rest = _SHORT_COMMAND - (time.time_ns() - container.state.started) / 1e9
        if container.running and 0 < rest <= _SHORT_COMMAND:
            Waiter(container, "not-running").result(rest)

    def _log(
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
    ) -> tuple[bool, Path, Wanted]:
        """What to read where. A followed log ends when the container or the client does."""
        container = self._roster.get(reference)
        if not (stdout or stderr):
            raise InvalidParameter("Bad parameters: you must choose at least one stream")
        if not container.log_path:
            raise Unsupported("configured logging driver does not support reading")
        run = container.state.runs
        if not follow:
            self._let_speak(container)

        def ended() -> bool:
            over = not container.running or container.state.runs != run
            return over or (cancelled is not None and cancelled())

        wanted = Wanted(
            stdout=stdout,
            stderr=stderr,
            since=parse_moment(since) if since and since != "0" else None,
            until=parse_moment(until) if until and until != "0" else None,
            # Docker takes what is no number for "all".
            tail=int(tail) if tail is not None and str(tail).isdigit() else None,
            timestamps=timestamps,
            details=details,
            follow=follow,
            ended=ended,
        )
        return container.tty, self._root.container(container.id) / container.log_path, wanted
