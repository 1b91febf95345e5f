"""A container as the engine keeps it: what was asked (the spec) and what has happened (the state).

The row in the database is written at each change of state; the object in memory is the same thing
with a lock. ``container.lock`` is held by whoever changes the state; ``container.changed`` is its
condition, told at each change, for those who wait.
"""

from __future__ import annotations

import threading
from typing import Any

import msgspec

from tiffin.engine.mountpoints import MountPoint
from tiffin.store.database import Database, Row

JSON = dict[str, Any]

ACTIVE = ("running", "paused", "restarting")
"""The statuses of what runs, or will be started again by itself: what Docker calls running."""


class Spec(msgspec.Struct):
    """What was asked at creation, with the defaults filled in."""

    config: JSON
    """Docker's ``Config``, the image's configuration merged in."""
    host: JSON
    """Docker's ``HostConfig``."""
    networks: JSON
    """Docker's ``NetworkingConfig``."""
    mounts: list[MountPoint]
    image_name: str
    """The image as the user named it."""
    platform: str = "linux"


class Probe(msgspec.Struct):
    """One health check that was made."""

    start: int
    end: int
    exit_code: int
    output: str


class Health(msgspec.Struct):
    """What the health checks have said."""

    status: str = "starting"
    """starting, healthy, unhealthy."""
    streak: int = 0
    """Failures in a row."""
    log: list[Probe] = []


class State(msgspec.Struct):
    """What has happened to a container."""

    status: str = "created"
    """created, running, paused, restarting (it ended and will be started again), exited, dead."""
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started: int = 0
    """Nanoseconds since the epoch; 0 if never."""
    finished: int = 0
    id_base: int = 0
    """Where its user namespace's IDs begin outside; 0 if it has none of its own."""
    runs: int = 0
    """How often it was started: tells one run's end from another's."""
    restarts: int = 0
    """How often its restart policy has started it since somebody did."""
    stopped_by_hand: bool = False
    """Whether it was told to end: then its restart policy lets it rest."""
    boot: str = ""
    """The boot of the machine that it was last started in."""
    health: Health | None = None


class Container:
    """One container."""

    def __init__(
        self,
        container_id: str,
        name: str,
        image: str,
        base: str | None,
        snapshot: str,
        spec: Spec,
        state: State,
        created: int,
        frozen: str | None = None,
        size: int | None = None,
    ) -> None:
        self.id = container_id
        self.name = name
        self.image = image
        self.base = base
        self.frozen = frozen
        self.snapshot = snapshot
        self.spec = spec
        self.state = state
        self.created = created
        self.size = size
        self.removed = False
        self.removing = False
        self.execs: set[str] = set()
        self.backoff = 0.0
        """Seconds that the last restart waited."""
        self.spared = False
        """Whether ``--rm`` lets it be: it is being restarted by hand."""
        self.last_end = (0 if self.running else state.runs, state.exit_code)
        """The number of the last run that ended, and its exit code."""
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)

    @classmethod
    def from_row(cls, row: Row) -> Container:
        """The container of a row of table ``containers``."""
        return cls(
            row["id"],
            row["name"],
            row["image"],
            row["base"],
            row["snapshot"],
            msgspec.json.decode(row["spec"], type=Spec),
            msgspec.json.decode(row["state"], type=State),
            row["created"],
            row["frozen"],
            row["size"],
        )

    def insert(self, database: Database) -> None:
        """Write the row; the name must be free (sqlite3.IntegrityError otherwise)."""
        database.execute(
            "INSERT INTO containers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self.id,
                self.name,
                self.image,
                self.base,
                self.frozen,
                self.snapshot,
                msgspec.json.encode(self.spec),
                msgspec.json.encode(self.state),
                self.size,
                self.created,
            ),
        )

    def save_state(self, database: Database) -> None:
        """Write the state and the size, and tell those who wait. The lock must be held."""
        database.execute(
            "UPDATE containers SET state = ?, size = ? WHERE id = ?",
            (msgspec.json.encode(self.state), self.size, self.id),
        )
        self.changed.notify_all()

    def save_spec(self, database: Database) -> None:
        """Write the spec again (after ``update``)."""
        database.execute(
            "UPDATE containers SET spec = ? WHERE id = ?",
            (msgspec.json.encode(self.spec), self.id),
        )

    @property
    def running(self) -> bool:
        """Whether it has a process now, also a paused one."""
        return self.state.status in ("running", "paused")

    @property
    def active(self) -> bool:
        """Whether it runs, or will be started again by itself: what Docker calls running."""
        return self.state.status in ACTIVE

    @property
    def top(self) -> str | None:
        """The chain ID of the layers under the writable snapshot."""
        return self.frozen or self.base

    @property
    def tty(self) -> bool:
        """Whether its process has a terminal."""
        return bool(self.spec.config.get("Tty"))

    @property
    def auto_remove(self) -> bool:
        """Whether it is removed when it ends (``--rm``)."""
        return bool(self.spec.host.get("AutoRemove"))

    @property
    def log_path(self) -> str | None:
        """Where its log lies, relative to its folder; None if nothing is kept here."""
        log = self.spec.host["LogConfig"]
        kind = log["Type"]
        if kind == "json-file":
            return f"{self.id}-json.log"
        disabled = log["Config"].get("cache-disabled", "").lower() in ("true", "1", "t")
        if kind == "none" or (disabled and kind != "local"):
            return None
        return "local-logs/container.log"

    @property
    def labels(self) -> dict[str, str]:
        """Its labels, the image's included."""
        return self.spec.config.get("Labels") or {}

    @property
    def arguments(self) -> list[str]:
        """Entrypoint and command: what is run."""
        return [*(self.spec.config.get("Entrypoint") or []), *(self.spec.config.get("Cmd") or [])]

    def attributes(self) -> dict[str, str]:
        """What an event says of it."""
        return {**self.labels, "image": self.spec.image_name, "name": self.name}
