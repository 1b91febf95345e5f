"""The build cache: the results of steps by their keys, and why a step was not found.

What a step's parts are and how they make its key says :mod:`tiffin.build.parts`. They are kept
with the result, so that a miss can be explained: the first part that differs from the nearest
cached step is named.

A record holds the image configuration and the top layer after the step; the layers of records are
alive for the collection of layers (:meth:`BuildCache.layers`).

A folder of ``RUN --mount=type=cache`` has a row in the table too, without parts: see
:mod:`tiffin.build.folders`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tiffin.build.explanation import distance, explain, is_inherited
from tiffin.build.parts import Parts, pack, unpack
from tiffin.errors import CorruptArchive
from tiffin.store.database import Database, Row

_NEAREST_LOOKED_AT = 4
MOUNT = "mount:"
"""What the key of a cache folder's record begins with."""
DOWNLOAD = "http:"
"""What the key of a downloaded file's record begins with."""


@dataclass(frozen=True, slots=True)
class Record:
    """What the cache knows of one step."""

    key: str
    parent: str | None
    step: str
    config: bytes
    """The image configuration after the step."""
    top: str | None
    """The chain ID of the top layer after the step."""
    size: int
    """Bytes of the layer that the step made."""
    created: int
    used: int
    uses: int
    shared: bool = False
    """Whether an image or a container is made of its layer."""

    @property
    def type(self) -> str:
        """``exec.cachemount`` for a cache folder; as Docker calls it."""
        return "exec.cachemount" if self.key.startswith(MOUNT) else "regular"

    @property
    def mutable(self) -> bool:
        """Whether what it holds may change: that of a cache folder."""
        return self.key.startswith(MOUNT)

    @property
    def identifier(self) -> str:
        """Its name for people: 25 digits."""
        return identifier(self.key)


def identifier(key: str) -> str:
    """What a key is called in lists."""
    return key.removeprefix("sha256:").removeprefix(MOUNT).removeprefix(DOWNLOAD)[:25]


_AFTER_MOUNT = MOUNT[:-1] + chr(ord(MOUNT[-1]) + 1)
_COLUMNS = "key, parent, step, result, top, size, created, used, uses"

_IN_USE = """
    WITH RECURSIVE alive (chain) AS (
        SELECT top FROM images WHERE top IS NOT NULL
        UNION SELECT base FROM containers WHERE base IS NOT NULL
        UNION SELECT frozen FROM containers WHERE frozen IS NOT NULL
        UNION SELECT parent FROM layers JOIN alive ON chain_id = chain WHERE parent IS NOT NULL
    ) SELECT chain FROM alive
"""


@dataclass(frozen=True, slots=True)
class Stacks:
    """The layers of an engine."""

    layers: dict[str, tuple[str | None, int]]
    """Chain ID to the layer below and the layer's size."""
    pinned: set[str]
    """Those of images and containers."""


class BuildCache:
    """The records of one engine; safe to use from any thread."""

    def __init__(self, database: Database, clock: Callable[[], int] = time.time_ns) -> None:
        self._database = database
        self._clock = clock
        self._origins: dict[str, str] = {}
        """What :meth:`_origin` says of the steps that were stored: their parts may be many."""

    def find(self, key: str) -> Record | None:
        """The record of a step, noted as used now."""
        row = self._database.one(f"SELECT {_COLUMNS} FROM build_cache WHERE key = ?", (key,))
        return _record(row) if row is not None else None

    def finish(self, made: Collection[str], found: Collection[str], since: int) -> None:
        """Note that a build has used these records, and the cache folders used since then.

        All of them get the same time: that of one build, so that the last builds can be told.
        """
        now = self._clock()
        with self._database.transaction():
            for uses, keys in ((0, made), (1, found)):
                for key in dict.fromkeys(keys):
                    self._database.execute(
                        "UPDATE build_cache SET used = ?, uses = uses + ? WHERE key = ?",
                        (now, uses, key),
                    )
            self._database.execute(
                "UPDATE build_cache SET used = ? WHERE key >= ? AND key < ? AND used >= ?",
                (now, MOUNT, _AFTER_MOUNT, since),
            )

    def may_have(self, parent: str, instruction: str) -> bool:
        """Whether any step of this kind has followed ``parent``; if not, no key will be found."""
        row = self._database.one(
            "SELECT 1 FROM build_cache WHERE parent = ? AND step LIKE ? ESCAPE '\\' LIMIT 1",
            (parent, f"{instruction} %"),
        )
        return row is not None

    def store(
        self,
        parts: Parts,
        config: bytes,
        top: str | None,
        size: int,
        *,
        replace: bool = False,
        why: str = "",
    ) -> Record:
        """Keep a step's result, and why it was made; gives back the record that is in the cache
        afterwards.

        Where another build has stored the same step meanwhile, that one stays (unless
        ``replace``), so that both builds end in the same image.
        """
        now = self._clock()
        inherited = is_inherited(why)
        self._origins[parts.key] = self._origin(parts.parent) if inherited else parts.step
        packed = pack(parts.named, parts.files, why)
        verb = "INSERT OR REPLACE" if replace else "INSERT OR IGNORE"
        with self._database.transaction():
            self._database.execute(
                f"{verb} INTO build_cache (key, parent, step, parts, result, top, size, created,"
                " used, uses) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 1)",
                (parts.key, parts.parent, parts.step, packed, config, top, size, now, now),
            )
            record = self.find(parts.key)
        assert record is not None
        return record

    def why(
        self,
        parts: Parts,
        *,
        most: int = 1,
        excluded: Callable[[str], bool] = lambda path: False,
    ) -> str:
        """One line on why a step was not found: the first part that differs from the nearest
        cached step; empty if nothing like it is cached. At ``most`` so many files are named.
        ``excluded`` says of a file of the context whether ``.dockerignore`` keeps it out."""
        nearest = self._nearest(parts)
        if nearest is None:
            return ""
        return explain(parts, nearest, most=most, origin=self._origin, excluded=excluded)

    def _origin(self, key: str) -> str:
        """The text of the step that made the step of this key, and those after it, other ones;
        empty for a key that is no step's."""
        found = ""
        seen: set[str] = set()
        while key not in seen:
            if key in self._origins:
                return self._origins[key]
            seen.add(key)
            row = self._database.one(
                "SELECT parent, step, parts FROM build_cache WHERE key = ?", (key,)
            )
            if row is None or not row["parts"]:
                break
            found = row["step"]
            if not is_inherited(unpack(row["parts"]).why):
                break
            key = row["parent"] or ""
        return found

    def _nearest(self, parts: Parts) -> Parts | None:
        instruction = parts.step.partition(" ")[0]
        queries = (
            ("parent = ? AND step = ?", (parts.parent, parts.step)),
            ("step = ?", (parts.step,)),
            ("parent = ? AND step LIKE ?", (parts.parent, f"{instruction} %")),
        )
        for condition, arguments in queries:
            rows = self._database.all(
                f"SELECT step, parts FROM build_cache WHERE {condition} ORDER BY used DESC LIMIT ?",
                (*arguments, _NEAREST_LOOKED_AT),
            )
            if rows:
                return _nearest_of(parts, rows)
        return None

    def same_but_parent(self, parts: Parts) -> list[str]:
        """The top layers of cached steps that differ in nothing but what they stand on."""
        rows = self._database.all(
            "SELECT step, parts, top FROM build_cache WHERE step = ? AND top IS NOT NULL"
            " ORDER BY used DESC LIMIT ?",
            (parts.step, 2 * _NEAREST_LOOKED_AT),
        )
        wanted = [part for part in parts.named if part[0] not in ("parent", "base")]
        found: list[str] = []
        for row in rows:
            other = _parts(row)
            named = [part for part in other.named if part[0] not in ("parent", "base")]
            if named == wanted and other.files == parts.files:
                found.append(row["top"])
        return found

    def latest_layer(self, step: str) -> str | None:
        """The top layer after the step of that text that was used last."""
        row = self._database.one(
            "SELECT top FROM build_cache WHERE step = ? AND top IS NOT NULL"
            " ORDER BY used DESC LIMIT 1",
            (step,),
        )
        return None if row is None else row["top"]

    def reason(self, key: str) -> str | None:
        """Why the step of that key was made, when it was made; None if there is no such record."""
        row = self._database.one("SELECT parts FROM build_cache WHERE key = ?", (key,))
        return None if row is None else unpack(row["parts"]).why

    def steps(self, step: str) -> list[Record]:
        """The records of a step, the last used first."""
        rows = self._database.all(
            f"SELECT {_COLUMNS} FROM build_cache WHERE step = ? ORDER BY used DESC", (step,)
        )
        return [_record(row) for row in rows]

    # -- to and from elsewhere

    def line(self, key: str) -> list[str]:
        """The keys of a step and of those before it, the first one first."""
        found: list[str] = []
        while (record := self.find(key)) is not None and key not in found:
            found.append(key)
            key = record.parent or ""
        return found[::-1]

    def with_parts(self, key: str) -> tuple[Record, bytes] | None:
        """A record with its parts, packed as they are kept, but for why it was made."""
        row = self._database.one(f"SELECT {_COLUMNS}, parts FROM build_cache WHERE key = ?", (key,))
        if row is None or not row["parts"]:
            return None
        stored = unpack(row["parts"])
        return _record(row), pack(stored.named, stored.files, "")

    def bring(
        self,
        key: str,
        parent: str | None,
        step: str,
        parts: bytes,
        config: bytes,
        top: str | None,
        size: int,
    ) -> Record:
        """Keep a record that another engine has made. Raises CorruptArchive if it lies about its
        key."""
        try:
            stored = unpack(parts)
        except CorruptArchive as error:
            raise CorruptArchive(f"the cache's step {step!r} is damaged: {error}") from error
        if Parts(step, stored.named, stored.files).key != key:
            raise CorruptArchive(f"the cache's step {step!r} is damaged: it has another key")
        now = self._clock()
        with self._database.transaction():
            self._database.execute(
                "INSERT OR IGNORE INTO build_cache (key, parent, step, parts, result, top, size,"
                " created, used, uses) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
                (key, parent, step, parts, config, top, size, now, now),
            )
            record = self.find(key)
        assert record is not None
        return record

    def together(self) -> AbstractContextManager[None]:
        """Inside the block nothing is removed meanwhile."""
        return self._database.transaction()

    def keep_download(self, key: str, step: str, known: bytes, top: str, size: int) -> None:
        """Keep what is known of a file behind a URL, and the layer that holds it."""
        now = self._clock()
        self._database.execute(
            "INSERT OR REPLACE INTO build_cache (key, parent, step, parts, result, top, size,"
            " created, used, uses) VALUES (?, NULL, ?, x'', ?, ?, ?, ?, ?, 1)",
            (key, step, known, top, size, now, now),
        )

    # -- folders of cache mounts

    def use_mount(self, key: str, name: str) -> None:
        """Note that a cache folder is used now; its size is not known any more."""
        now = self._clock()
        with self._database.transaction():
            self._database.execute(
                "INSERT INTO build_cache (key, parent, step, parts, result, top, size, created,"
                " used, uses) VALUES (?, NULL, ?, x'', x'', NULL, -1, ?, ?, 1)"
                " ON CONFLICT (key) DO UPDATE SET used = ?, uses = uses + 1, size = -1",
                (key, f"mount / from exec {name}", now, now, now),
            )

    def measured(self, key: str, size: int) -> None:
        """Write down a cache folder's size."""
        self._database.execute("UPDATE build_cache SET size = ? WHERE key = ?", (size, key))

    def mounts(self) -> list[Record]:
        """The records of cache folders."""
        rows = self._database.all(
            f"SELECT {_COLUMNS} FROM build_cache WHERE key LIKE '{MOUNT}%' ORDER BY created"
        )
        return [_record(row) for row in rows]

    # -- what there is, and getting rid of it

    def layers(self) -> set[str]:
        """The chain IDs that records hold: roots for the collection of layers."""
        rows = self._database.all("SELECT DISTINCT top FROM build_cache WHERE top IS NOT NULL")
        return {row["top"] for row in rows}

    def records(self) -> list[Record]:
        """Every record, the one longest unused first."""
        alive = {row["chain"] for row in self._database.all(_IN_USE)}
        rows = self._database.all(f"SELECT {_COLUMNS} FROM build_cache ORDER BY used, created")
        return [_record(row, alive) for row in rows]

    def stacks(self) -> Stacks:
        """All layers, and which of them images and containers are made of."""
        return Stacks(
            {
                row["chain_id"]: (row["parent"], row["size"])
                for row in self._database.all("SELECT chain_id, parent, size FROM layers")
            },
            {row["chain"] for row in self._database.all(_IN_USE)},
        )

    def last_builds(self, count: int) -> int:
        """When the earliest of the last builds, so many, ended; 0 if there were fewer."""
        if count <= 0:
            return sys.maxsize
        rows = self._database.all(
            "SELECT DISTINCT used FROM build_cache ORDER BY used DESC LIMIT ?", (count,)
        )
        return rows[-1]["used"] if len(rows) == count else 0

    def remove(self, keys: Iterable[str]) -> None:
        """Remove records; their layers are then the layer store's to collect."""
        with self._database.transaction():
            for key in keys:
                self._database.execute("DELETE FROM build_cache WHERE key = ?", (key,))


def _record(row: Row, alive: Collection[str] = ()) -> Record:
    return Record(
        row["key"],
        row["parent"],
        row["step"],
        row["result"],
        row["top"],
        row["size"],
        row["created"],
        row["used"],
        row["uses"],
        row["top"] is not None and row["top"] in alive,
    )


def _parts(row: Row) -> Parts:
    stored = unpack(row["parts"])
    return Parts(row["step"], stored.named, stored.files)


def _nearest_of(parts: Parts, rows: Iterable[Row]) -> Parts | None:
    best: tuple[tuple[int, int], Parts] | None = None
    for row in rows:
        candidate = _parts(row)
        found = distance(parts, candidate)
        if best is None or found < best[0]:
            best = found, candidate
        if found <= (0, 1):
            break  # nothing can be nearer: with tens of thousands of files it pays not to look
    return best[1] if best is not None else None
