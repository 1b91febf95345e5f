"""Snapshots to write into: containers' and those of layers in the making.

*Mount points* are the empty files and directories that a container needs where its image has none.
They lie in a snapshot of their own between the image and its containers (``init``), made by the
first container and shared by the others.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tiffin.errors import Conflict, NotFound
from tiffin.layer.capture import own_entries
from tiffin.layer.changes import Change, changes
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.index import Index
from tiffin.layer.locks import KeyedLocks
from tiffin.layer.mountpoints import remove_mountpoints, write_mountpoints
from tiffin.layer.space import space_needed
from tiffin.layer.stacks import Stacks
from tiffin.storage import tree
from tiffin.storage.driver import Mount, StorageDriver, Usage
from tiffin.store.database import Database, Row


@dataclass(frozen=True, slots=True)
class Draft:
    """A layer in the making: a writable snapshot, and a folder for what comes beside it."""

    key: str
    folder: Path
    driver: StorageDriver


class Snapshots(Stacks):
    """What is written into, on top of :class:`Stacks`; any number of threads may use it."""

    def __init__(self, database: Database, driver: StorageDriver, root: Path) -> None:
        super().__init__(database, driver, root)
        self.root = root
        self.work_folder = root / "work"
        for folder in (self.layers_folder, self.work_folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # By key: held by who makes a snapshot of mount points, or removes it.
        self.making_mountpoints = KeyedLocks()

    def prepare(
        self,
        key: str,
        chain: str | None,
        mountpoints: bool = False,
        purpose: str = "work",
    ) -> None:
        """Make a writable snapshot on a stack, with the mount points of a container in between.

        ``purpose`` is ``container`` (kept as long as a container's row names it) or ``work`` (gone
        at the next start). Raises Conflict if the key exists, NotFound for the stack. One whose
        files a commit has moved away is made again.
        """
        with self._pinned(chain):
            with self.database.transaction():
                driver = self.driver_of(chain)
                row = self.database.one("SELECT moved FROM snapshots WHERE key = ?", (key,))
                if row is not None:
                    if not row["moved"]:
                        raise Conflict(f"snapshot {key} exists already")
                    self._delete_snapshot_row(key)
                self.database.execute(
                    "INSERT INTO snapshots (key, driver, purpose, chain, mountpoints)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (key, driver.name, purpose, chain, int(mountpoints)),
                )
            try:
                with space_needed(self.root, "the container's layer"):
                    self._prepare(driver, key, chain, mountpoints)
            except BaseException:
                self._delete_snapshot_row(key)
                raise

    def _prepare(
        self, driver: StorageDriver, key: str, chain: str | None, mountpoints: bool
    ) -> None:
        keys = self.keys(chain)
        if mountpoints:
            keys = (*keys, self.mountpoints(driver, chain, keys))
        driver.prepare(key, driver_parent(driver, keys))
        if not mountpoints and chain is not None and driver.layered:
            self._set_root(driver, key, chain)

    def limit(self, key: str, size: int) -> None:
        """Let a writable snapshot's own files take ``size`` bytes, and no more.

        Raises Unsupported where the driver can't, NotFound.
        """
        self.holder(key).limit(key, size)

    def remove_snapshot(self, key: str) -> None:
        """Remove a writable snapshot; no error if there is none."""
        self._delete_snapshot_row(key)
        for driver in self.drivers.all():
            driver.remove(key)

    def holder(self, key: str) -> StorageDriver:
        """The storage driver that holds a snapshot; raises NotFound."""
        row = self.database.one("SELECT driver FROM snapshots WHERE key = ?", (key,))
        if row is None:
            raise NotFound(f"no such snapshot: {key}")
        return self.drivers.get(row["driver"])

    def mounts(self, key: str) -> list[Mount]:
        """What to mount to see the snapshot's tree; raises NotFound."""
        return self.holder(key).mounts(key)

    def release(self, key: str) -> None:
        """Nobody will use any more what :meth:`mounts` has given for it."""
        self.holder(key).release(key)

    def view(self, chain: str) -> list[Mount]:
        """What to mount to see a stack read-only; raises NotFound."""
        return self.driver_of(chain).view(self.keys(chain))

    @contextmanager
    def own_directory(self, key: str) -> Iterator[Path]:
        """The directory with the snapshot's own files, inside the block."""
        with self.holder(key).own_directory(key) as directory:
            yield directory

    def usage(self, key: str) -> Usage:
        """Measure what a writable snapshot adds to what it lies on."""
        driver = self.holder(key)
        if driver.layered:
            return driver.usage(key)
        size = inodes = 0
        for entry in self._own_entries(key):
            if entry.kind in (Kind.WHITEOUT, Kind.OPAQUE, Kind.HARDLINK):
                continue
            inodes += 1
            size += len(entry.target) if entry.kind is Kind.SYMLINK else entry.size
        return Usage(size, inodes)

    def changes(self, key: str, base: str | None, frozen: str | None = None) -> list[Change]:
        """What a container changed against ``base``, as ``docker diff``; ``frozen`` is the stack
        that earlier commits have moved its own files into."""
        layers: list[Iterable[Entry]] = []
        if frozen is not None and frozen != base:
            depth = len(self.chain(base))
            layers = [self.index(layer).effective() for layer in self.chain(frozen)[depth:]]
        return changes([*layers, self._own_entries(key)], self.lower(base) if base else None)

    def _own_entries(self, key: str) -> list[Entry]:
        driver = self.holder(key)
        with driver.own_directory(key) as directory:
            if driver.layered:
                return list(own_entries(directory, driver.whiteouts))
            with self.base_tree(key) as base:
                return list(own_entries(directory, driver.whiteouts, lower_tree=base))

    @contextmanager
    def base_tree(self, key: str) -> Iterator[Path | None]:
        """For a driver of whole trees: the tree that the snapshot was copied from."""
        row = self._row(key)
        if row["mountpoints"]:
            below = init_key(row["chain"])
        elif row["chain"] is not None:
            below = self.get(row["chain"]).snapshot
        else:
            yield None
            return
        with self.drivers.get(row["driver"]).own_directory(below) as directory:
            yield directory

    def take_mountpoints_out(self, key: str, original: str, index: Index) -> None:
        """For a driver of whole trees: what ``original`` was prepared with is no part of the layer
        ``index`` that was made of its tree, or of a copy of it, under ``key``."""
        row = self._row(original)
        driver = self.drivers.get(row["driver"])
        if driver.layered or not row["mountpoints"]:
            return
        with ExitStack() as directories:
            tree, ready = (
                directories.enter_context(driver.own_directory(name))
                for name in (key, init_key(row["chain"]))
            )
            image = None
            if row["chain"] is not None:
                below = self.get(row["chain"]).snapshot
                image = directories.enter_context(driver.own_directory(below))
            remove_mountpoints(tree, ready, image, index)

    def _row(self, key: str) -> Row:
        row = self.database.one(
            "SELECT driver, chain, mountpoints FROM snapshots WHERE key = ?", (key,)
        )
        if row is None:
            raise NotFound(f"no such snapshot: {key}")
        return row

    def _delete_snapshot_row(self, key: str) -> None:
        self.database.execute(
            "DELETE FROM snapshots WHERE key = ? AND purpose IN ('container', 'work')", (key,)
        )

    def _set_root(self, driver: StorageDriver, key: str, chain: str) -> None:
        """A layered snapshot's root directory is the one seen, whatever the layers below say."""
        entry = self.lower(chain).entry(b"")
        if entry is None:
            return
        with driver.own_directory(key) as directory:
            os.chown(directory, entry.uid, entry.gid)
            os.chmod(directory, entry.mode)
            if entry.mtime_ns:
                os.utime(directory, ns=(entry.mtime_ns, entry.mtime_ns))

    def mountpoints(self, driver: StorageDriver, chain: str | None, keys: tuple[str, ...]) -> str:
        """The snapshot of mount points for a stack (of these keys) in a driver, made by the first
        who needs it."""
        key = init_key(chain)
        with self.making_mountpoints.held(key):
            known = "SELECT key FROM snapshots WHERE driver = ? AND key = ? AND purpose = 'init'"
            if self.database.one(known, (driver.name, key)) is not None:
                return key
            with self.draft_on(driver, keys) as draft:
                if chain is not None and driver.layered:
                    self._set_root(driver, draft.key, chain)
                with driver.own_directory(draft.key) as directory:
                    write_mountpoints(directory, driver.whiteouts, self.lower(chain))
                # As in _place_index.
                driver.remove(key)
                driver.commit(draft.key, key)
            self.database.execute(
                "INSERT INTO snapshots (key, driver, purpose, chain) VALUES (?, ?, 'init', ?)",
                (key, driver.name, chain),
            )
        return key

    @contextmanager
    def _pinned(self, chain: str | None) -> Iterator[None]:
        """Keep the stack from being collected inside the block; raises NotFound."""
        with self.pins.held(chain):
            if chain is not None:
                self.get(chain)
            yield

    @contextmanager
    def _draft(self, parent: str | None) -> Iterator[Draft]:
        """As :meth:`draft_on`, on a stack and in the driver that it lies in."""
        with self.draft_on(self.driver_of(parent), self.keys(parent)) as draft:
            yield draft

    @contextmanager
    def draft_on(self, driver: StorageDriver, keys: tuple[str, ...]) -> Iterator[Draft]:
        """A writable snapshot and a folder, which end with the block unless they have become a
        layer's; a full disk is told as StorageFull."""
        folder = self.work_folder / f"w{secrets.token_hex(8)}"
        draft = Draft(folder.name, folder, driver)
        try:
            with space_needed(self.root, "the layer"):
                folder.mkdir(mode=0o700, parents=True)
                driver.prepare(draft.key, driver_parent(driver, keys))
                yield draft
        finally:
            driver.remove(draft.key)
            tree.delete(folder)


def driver_parent(driver: StorageDriver, keys: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """What a driver is told that a snapshot lies on, of the keys of a stack."""
    if driver.layered:
        return keys
    return keys[-1] if keys else None


def init_key(chain: str | None) -> str:
    """The key of the snapshot of mount points for a stack."""
    return f"i{chain[7:39]}" if chain else "i-scratch"
