"""Volumes: data that outlives containers, each a folder ``ROOT/volumes/NAME/_data``."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

from tiffin.engine import filters as filtering
from tiffin.engine import timestamps
from tiffin.engine.events import Events
from tiffin.engine.names import check_volume_name
from tiffin.engine.root import Root
from tiffin.engine.roster import Roster
from tiffin.errors import Conflict, NotFound, Unsupported
from tiffin.store.database import Database, Row

JSON = dict[str, Any]


class Volumes:
    """The volumes of a root."""

    def __init__(self, database: Database, root: Root, roster: Roster, events: Events) -> None:
        self._database = database
        self._root = root
        self._roster = roster
        self._events = events

    def path(self, name: str) -> Path:
        """The folder that holds a volume's data."""
        return self._root.volumes / name / "_data"

    def exists(self, name: str) -> bool:
        """Whether there is a volume of that name."""
        return self._database.one("SELECT 1 FROM volumes WHERE name = ?", (name,)) is not None

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
        if options:
            raise Unsupported(
                f"volume options ({', '.join(options)}) can't be used yet: leave them out"
            )
        anonymous = not name
        name = check_volume_name(name) if name else secrets.token_hex(32)
        if not self.exists(name):
            self.path(name).mkdir(parents=True, exist_ok=True)
            self.path(name).chmod(0o755)
            try:
                self._database.execute(
                    "INSERT INTO volumes VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        name,
                        anonymous,
                        driver,
                        b"{}",
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
        trash = self._root.work / f"volume-{secrets.token_hex(8)}"
        try:
            os.rename(self._root.volumes / name, trash)
        except FileNotFoundError:
            return
        shutil.rmtree(trash)

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
