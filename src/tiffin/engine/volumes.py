"""Volumes: data that outlives containers, each a folder ``ROOT/volumes/NAME/_data``.

A volume with options (``type``, ``device``, ``o``: as mount(8) has them) is a file system that is
mounted on that folder while a container that uses it runs, as in Docker: several containers share
one, also where each mount of its kind is another file system (tmpfs). These are the only mounts
that the host sees; those that a killed engine has left are taken away at start-up.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tiffin.engine import filters as filtering
from tiffin.engine import timestamps
from tiffin.engine.container import Container
from tiffin.engine.events import Events
from tiffin.engine.names import check_volume_name
from tiffin.engine.root import Root
from tiffin.engine.roster import Roster
from tiffin.errors import Conflict, InvalidParameter, NotFound, Unsupported
from tiffin.linux import mounts as mounting
from tiffin.linux import quota, syscalls
from tiffin.store.database import Database, Row
from tiffin.units import parse_size

JSON = dict[str, Any]

_ANONYMOUS = "com.docker.volume.anonymous"
"""Docker's label of a volume that nobody named."""


class Volumes:
    """The volumes of a root."""

    def __init__(self, database: Database, root: Root, roster: Roster, events: Events) -> None:
        self._database = database
        self._root = root
        self._roster = roster
        self._events = events
        self._lock = threading.Lock()
        self._mounted: dict[str, set[str]] = {}
        """Of each volume with options that is mounted, who uses it."""

    def path(self, name: str) -> Path:
        """The folder that holds a volume's data."""
        return self._root.volumes / name / "_data"

    def exists(self, name: str) -> bool:
        """Whether there is a volume of that name."""
        return self._database.one("SELECT 1 FROM volumes WHERE name = ?", (name,)) is not None

    def resume(self) -> None:
        """At start-up: the containers know where the volumes are now (the root may have been
        moved), and what no running container uses is not mounted."""
        used: dict[str, set[str]] = {}
        for container in self._roster.all():
            for point in container.spec.mounts:
                if point.kind == "volume":
                    point.source = str(self.path(point.name))
                    if container.running:
                        used.setdefault(point.name, set()).add(container.id)
        for row in self._database.all("SELECT name FROM volumes WHERE options != ?", (b"{}",)):
            if row["name"] in used:
                self._mounted[row["name"]] = used[row["name"]]
            else:
                self._unmount(row["name"])

    def create(
        self,
        name: str = "",
        driver: str = "local",
        options: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
    ) -> JSON:
        """Make a volume, or return the one that has the name. A missing name makes it anonymous.

        Raises InvalidParameter for a bad name, Unsupported for another driver or for options.
        """
        if driver != "local":
            raise NotFound(
                f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not '
                "found: the one driver is local"
            )
        options = {key: value for key, value in (options or {}).items() if value}
        try:
            _check_options(options)
        except InvalidParameter as error:
            raise InvalidParameter(f"create {name}: {error.message}") from error
        anonymous = not name
        if anonymous:
            labels = {_ANONYMOUS: "", **(labels or {})}
        name = check_volume_name(name) if name else secrets.token_hex(32)
        if not self.exists(name):
            self.path(name).mkdir(parents=True, exist_ok=True)
            self.path(name).chmod(0o755)
            if "size" in options:
                try:
                    _limit(self.path(name), parse_size(options["size"]))
                except BaseException:
                    self.discard(name)
                    raise
            try:
                self._database.execute(
                    "INSERT INTO volumes VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        name,
                        anonymous,
                        driver,
                        json.dumps(options).encode(),
                        json.dumps(labels or {}).encode(),
                        time.time_ns(),
                    ),
                )
            except sqlite3.IntegrityError:
                # Another request made it in between: it is the same volume.
                return self.inspect(name)
            self._events.publish("volume", "create", name, driver=driver)
        return self.inspect(name)

    def _row(self, name: str) -> Row:
        row = self._database.one("SELECT * FROM volumes WHERE name = ?", (name,))
        if row is None:
            raise NotFound(f"get {name}: no such volume")
        return row

    def _view(self, row: Row) -> JSON:
        return {
            "CreatedAt": timestamps.rfc3339(row["created"] // 10**9 * 10**9),
            "Driver": row["driver"],
            "Labels": json.loads(row["labels"]) or None,
            "Mountpoint": str(self.path(row["name"])),
            "Name": row["name"],
            "Options": json.loads(row["options"]) or None,
            "Scope": "local",
        }

    def inspect(self, name: str) -> JSON:
        """Docker's view of one volume; raises NotFound."""
        return self._view(self._row(name))

    # -- mounts -----------------------------------------------------------------------------

    def _mount(self, name: str, user: str) -> None:
        """Mount a volume that has options, for one more user. Raises InvalidParameter."""
        options = json.loads(self._row(name)["options"])
        options.pop("size", None)
        if not options:
            return
        with self._lock:
            users = self._mounted.setdefault(name, set())
            if not users:
                try:
                    _mount_options(options, str(self.path(name)))
                except OSError as error:
                    del self._mounted[name]
                    raise InvalidParameter(
                        f"failed to mount local storage: mount {options['device']}:"
                        f"{self.path(name)}, {options.get('o', '')}: "
                        f"{os.strerror(error.errno or 0).lower()}"
                    ) from error
            users.add(user)

    def _release(self, name: str, user: str) -> None:
        with self._lock:
            users = self._mounted.get(name)
            if users is None or user not in users:
                return
            users.discard(user)
            if not users:
                del self._mounted[name]
                self._unmount(name)

    def _unmount(self, name: str) -> None:
        """Take away whatever is mounted on a volume's folder."""
        while True:
            try:
                syscalls.umount(
                    str(self.path(name)), syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW
                )
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOENT):
                    # Nothing is mounted there (any more).
                    return
                raise

    @contextmanager
    def mounted(self, name: str) -> Iterator[None]:
        """Inside the block, the volume's files are in its folder, whatever kind it is of."""
        user = f"engine {secrets.token_hex(4)}"
        self._mount(name, user)
        try:
            yield
        finally:
            self._release(name, user)

    def use(self, container: Container) -> None:
        """A container is about to start: its volumes are mounted until :meth:`release`.

        A subpath is looked up again by the start itself; here, for a sentence that says what is
        wrong. Raises InvalidParameter, NotFound.
        """
        for point in container.spec.mounts:
            if point.kind == "volume":
                self._mount(point.name, container.id)
                if point.subpath:
                    _check_subpath(point.source, point.subpath)

    def release(self, container: Container) -> None:
        """A container has ended, or did not start."""
        for point in container.spec.mounts:
            if point.kind == "volume":
                self._release(point.name, container.id)

    def users(self, name: str) -> list[str]:
        """The IDs of the containers that mount a volume."""
        return [
            container.id
            for container in self._roster.all()
            if any(point.kind == "volume" and point.name == name for point in container.spec.mounts)
        ]

    def list(self, filters: filtering.Filters) -> list[JSON]:
        """Docker's view of the volumes that the filters let through."""
        filtering.check(filters, {"name", "label", "dangling", "driver"})
        dangling = filtering.boolean(filters, "dangling")
        return [
            view
            for view in map(self._view, self._database.all("SELECT * FROM volumes ORDER BY name"))
            if filtering.pattern(filters, "name", [view["Name"]])
            and filtering.labels(filters, view["Labels"])
            and filtering.any_of(filters, "driver", view["Driver"])
            and (dangling is None or dangling == (not self.users(view["Name"])))
        ]

    def remove(self, name: str, force: bool = False) -> None:
        """Remove a volume and its data; raises NotFound, or Conflict where containers use it."""
        try:
            self._row(name)
        except NotFound:
            if force:
                return
            raise
        users = self.users(name)
        if users:
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
        self._database.execute("DELETE FROM volumes WHERE name = ?", (name,))
        self.discard(name)
        self._events.publish("volume", "destroy", name, driver="local")

    def discard(self, name: str) -> None:
        """Delete the folder of a volume that has no row any more."""
        # First of all: what is mounted there is not ours to delete.
        self._unmount(name)
        trash = self._root.work / f"volume-{secrets.token_hex(8)}"
        try:
            os.rename(self._root.volumes / name, trash)
        except FileNotFoundError:
            return
        project = 0
        with suppress(OSError):
            # A file system without projects has none.
            project = quota.project_of(trash / "_data")
        shutil.rmtree(trash)
        if project >= quota.FIRST:
            with suppress(OSError):
                # A limit that stays is nobody's: no other project gets the number.
                quota.limit(self._root.volumes, project, 0)

    def sweep(self) -> None:
        """At start-up: delete folders that a killed process left without a row."""
        known = {row["name"] for row in self._database.all("SELECT name FROM volumes")}
        for entry in os.scandir(self._root.volumes):
            if entry.name not in known:
                self.discard(entry.name)

    def size(self, name: str) -> int:
        """Bytes of a volume's files, by walking it."""
        total, seen = 0, set()
        for folder, _, files in os.walk(self.path(name)):
            for file in files:
                status = os.lstat(os.path.join(folder, file))
                if status.st_ino not in seen:
                    seen.add(status.st_ino)
                    total += status.st_size
        return total

    def prune(self, filters: filtering.Filters) -> JSON:
        """Remove the volumes that no container uses: anonymous ones, or with ``all`` every one."""
        filtering.check(filters, {"label", "label!", "all"})
        everything = bool(filtering.boolean(filters, "all"))
        removed, space = [], 0
        for row in self._database.all("SELECT * FROM volumes"):
            labels = json.loads(row["labels"])
            if (
                (everything or row["anonymous"])
                and filtering.labels(filters, labels)
                and not (filters.get("label!") and filtering.labels(filters, labels, "label!"))
                and not self.users(row["name"])
            ):
                space += self.size(row["name"])
                self.remove(row["name"])
                removed.append(row["name"])
        self._events.publish("volume", "prune", "", reclaimed=str(space))
        return {"VolumesDeleted": removed, "SpaceReclaimed": space}


_OPTIONS = ("type", "device", "o", "size")
_NETWORK_TYPES = ("nfs", "nfs4", "cifs", "smb3")


def _check_options(options: dict[str, str]) -> None:
    for option in options:
        if option not in _OPTIONS:
            raise InvalidParameter(f'invalid option: "{option}"')
    if options.keys() - {"size"}:
        for option in ("type", "device"):
            if option not in options and not (option == "type" and _binds(options)):
                raise InvalidParameter(f'missing required option: "{option}"')


def _limit(directory: Path, size: int) -> None:
    """Let a volume hold so many bytes; raises Unsupported, in Docker's words, without quotas."""
    project = quota.any_project()
    try:
        quota.assign(directory, project)
        quota.limit(directory, project, size)
    except OSError as error:
        if error.errno not in quota.NOT_THERE:
            raise
        raise Unsupported(
            "quota size requested but no quota support: the engine's root must be on xfs with "
            "'pquota', or ext4 with 'prjquota'; type=tmpfs with o=size=… has a size anywhere"
        ) from error


def _binds(options: dict[str, str]) -> bool:
    return bool({"bind", "rbind"} & set(options.get("o", "").split(",")))


def _mount_options(options: dict[str, str], target: str) -> None:
    kind = options.get("type", "none")
    words = options.get("o", "").split(",")
    if kind in _NETWORK_TYPES:
        # The kernel takes addresses only.
        words = [
            f"addr={socket.gethostbyname(word.removeprefix('addr='))}"
            if word.startswith("addr=")
            else word
            for word in words
        ]
    parsed = mounting.parse_options(words)
    syscalls.mount(options["device"], target, kind, parsed.flags, parsed.data)
    extra = parsed.flags & (
        syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    )
    if parsed.flags & syscalls.MS_BIND and extra:
        # A bind mount takes its flags only when it is mounted again.
        again = extra | syscalls.MS_BIND | syscalls.MS_REMOUNT
        syscalls.mount(None, target, None, again)
    if parsed.propagation:
        syscalls.mount(None, target, None, parsed.propagation)


def _check_subpath(source: str, subpath: str) -> None:
    directory = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS
        os.close(syscalls.openat2(directory, subpath, os.O_PATH, 0, resolve))
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise InvalidParameter(
                f"path concatenation escapes the base directory, base: {source}, subpath: {subpath}"
            ) from error
        raise NotFound(
            f"cannot access path {source}/{subpath}: lstat {source}/{subpath}: "
            f"{os.strerror(error.errno or 0).lower()}"
        ) from error
    finally:
        os.close(directory)
