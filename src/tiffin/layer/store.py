"""The layer store: layers by chain ID, and the snapshots that containers write into.

The words: *diff ID*, the sha256 of a layer's uncompressed tar; *chain ID*, that of a layer and all
below it (OCI image specification, ``config.md``); *snapshot*, what the storage driver holds under
a key; *mount points*, the empty files and directories that a container needs where its image has
none, which lie in a snapshot of their own between image and container (``init``), so that no
diff, size or commit ever shows them.

On disk::

    ROOT/storage/DRIVER/       the snapshots
    ROOT/layers/SNAPSHOT/      index    the file index of the layers that lie in this snapshot
                               stash    contents that the layer's own tar replaces, if any
    ROOT/work/wHEX/            the same while the layer is being made

A layer's snapshot is called ``l`` and the beginning of its diff ID where the driver is layered and
the layer says all of itself: then equal layers on different stacks share it. Otherwise ``c`` and
the beginning of the chain ID.

The order of writes. *A layer arrives*: into a snapshot ``wHEX`` and the folder ``work/wHEX``; the
folder is renamed to ``layers/SNAPSHOT``; the driver commits the snapshot by a rename; the rows are
written in one transaction. Before that last step nothing of it is known, and :meth:`sweep` removes
it. *A container's snapshot becomes a layer*: its files must not be lost between two steps, so the
rows go first, with one in ``moves`` that tells the next start to finish the rename. *Removal*: the
rows go first, in one transaction, then the files.

Rules: one process owns an engine root, so leases, pins and locks are in memory. A layer is made by
one thread at a time, by diff ID. Locks are taken in the order: diff ID, mount points, database.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tiffin.errors import Conflict, InvalidParameter, NotFound
from tiffin.layer import collection
from tiffin.layer.assemble import write_tar
from tiffin.layer.capture import capture, own_entries
from tiffin.layer.changes import Change, changes
from tiffin.layer.compression import decompressed
from tiffin.layer.digest import chain_id
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.index import Index
from tiffin.layer.layer import Layer
from tiffin.layer.locks import KeyedLocks
from tiffin.layer.mountpoints import write_mountpoints
from tiffin.layer.space import space_needed
from tiffin.layer.stacks import Stacks
from tiffin.layer.unpack import unpack
from tiffin.layer.writer import LayerWriter
from tiffin.storage import tree
from tiffin.storage.driver import Mount, StorageDriver, Usage
from tiffin.store.database import Database

__all__ = ["Layer", "LayerStore"]


@dataclass(frozen=True, slots=True)
class _Draft:
    """A layer in the making: a writable snapshot, and a folder for what comes beside it."""

    key: str
    folder: Path


class LayerStore(Stacks):
    """See the module's text. Any number of threads may use one store."""

    def __init__(self, database: Database, driver: StorageDriver, root: Path) -> None:
        """Open the store of an engine root; call :meth:`sweep` before the first use.

        Raises InvalidParameter if the root's layers were made with another driver.
        """
        super().__init__(database, driver, root)
        self.root = root
        self.work_folder = root / "work"
        for folder in (self.layers_folder, self.work_folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        other = database.one("SELECT driver FROM layers WHERE driver != ?", (driver.name,))
        if other is not None:
            raise InvalidParameter(
                f"the layers under {root} were made with the storage driver {other['driver']}: "
                f"use --storage-driver {other['driver']}, or another --root for {driver.name}"
            )
        # By diff ID: held by who makes a layer's snapshot, or removes it.
        self.making = KeyedLocks()
        # By key: the same for snapshots of mount points.
        self.making_mountpoints = KeyedLocks()

    # Layers arrive.

    def ingest(self, tar: BinaryIO, parent: str | None, *, diff_id: str | None = None) -> Layer:
        """Store the layer that ``tar`` (compressed or not) holds, on the stack ``parent``.

        A layer that is there already is given back without reading ``tar``, if ``diff_id`` says
        so. Raises NotFound for ``parent``, CorruptArchive, DigestMismatch, StorageFull; nothing
        remains then.
        """
        with self._pinned(parent):
            if diff_id is None:
                return self._ingest(tar, parent, None)
            with self.making.held(diff_id):
                return self._known(parent, diff_id) or self._ingest(tar, parent, diff_id)

    def keep(self, chain_id: str) -> None:
        """Tell the leases of a layer that was found, so that they keep it too."""
        self.pins.made(chain_id)

    def known(self, parent: str | None, diff_id: str) -> Layer | None:
        """The layer, if it can be had without reading its tar."""
        with self._pinned(parent), self.making.held(diff_id):
            return self._known(parent, diff_id)

    def _ingest(self, tar: BinaryIO, parent: str | None, diff_id: str | None) -> Layer:
        with self._draft(parent) as draft:
            with self.driver.own_directory(draft.key) as directory:
                unpacked = unpack(
                    decompressed(tar),
                    directory,
                    self.driver.whiteouts,
                    lower=self.lower(parent) if parent else None,
                    expect_diff_id=diff_id,
                    stash=draft.folder / "stash",
                )
            index = unpacked.index
            return self._settle(draft, parent, index, unpacked.needs_lower or bool(index.implied))

    def write(self, parent: str | None, fill: Callable[[LayerWriter], None]) -> Layer:
        """Store a layer made of the entries that ``fill`` gives to a writer."""
        with self._pinned(parent), self._draft(parent) as draft:
            with self.driver.own_directory(draft.key) as directory:
                lower = self.lower(parent) if parent else None
                writer = LayerWriter(directory, self.driver.whiteouts, lower)
                try:
                    fill(writer)
                    index = writer.finish()
                finally:
                    writer.close()
            return self._settle(draft, parent, index, bool(index.implied))

    def commit(self, snapshot_key: str, parent: str | None) -> Layer:
        """Make a layer on ``parent`` of a writable snapshot by moving it.

        Nothing may be running on the snapshot. It is gone afterwards: a container that lives on
        wants a new one on the new layer (``prepare`` with the same key), and its row says so
        (``frozen``) as soon as the move is recorded; :meth:`sweep` makes it if nobody else did.
        Raises NotFound, StorageFull; the snapshot is then as it was.
        """
        folder = self.work_folder / f"w{secrets.token_hex(8)}"
        try:
            with self._pinned(parent), space_needed(self.root, "the layer"):
                folder.mkdir(mode=0o700, parents=True)
                index = self._capture(snapshot_key, snapshot_key)
                with self.making.held(index.diff_id):
                    return self._move(_Draft(snapshot_key, folder), parent, index)
        finally:
            tree.delete(folder)

    def commit_copy(self, snapshot_key: str, parent: str | None) -> Layer:
        """Make a layer on ``parent`` of a copy of a writable snapshot, which goes on as it is."""
        below = parent if self.driver.layered else None
        with self._pinned(parent), self._draft(below) as draft:
            with (
                self.driver.own_directory(snapshot_key) as source,
                self.driver.own_directory(draft.key) as target,
            ):
                tree.copy(source, target)
            index = self._capture(draft.key, snapshot_key)
            return self._settle(draft, parent, index, False)

    def _capture(self, key: str, original: str) -> Index:
        """The index of what ``key`` holds: ``original``, or a copy of it."""
        with self.driver.own_directory(key) as directory:
            if self.driver.layered:
                return capture(directory, self.driver.whiteouts)
            with self._base_tree(original) as base:
                return capture(directory, self.driver.whiteouts, lower_tree=base)

    # The steps of a layer's making.

    @contextmanager
    def _pinned(self, chain: str | None) -> Iterator[None]:
        """Keep the stack from being collected inside the block; raises NotFound."""
        with self.pins.held(chain):
            if chain is not None:
                self.get(chain)
            yield

    @contextmanager
    def _draft(self, parent: str | None) -> Iterator[_Draft]:
        """A writable snapshot and a folder, which end with the block unless they have become a
        layer's; a full disk is told as StorageFull."""
        folder = self.work_folder / f"w{secrets.token_hex(8)}"
        draft = _Draft(folder.name, folder)
        try:
            with space_needed(self.root, "the layer"):
                folder.mkdir(mode=0o700, parents=True)
                self.driver.prepare(draft.key, self._driver_parent(self.keys(parent)))
                yield draft
        finally:
            self.driver.remove(draft.key)
            tree.delete(folder)

    def _known(self, parent: str | None, diff_id: str) -> Layer | None:
        """The layer, if it is there, or if an equal one on another stack can be shared."""
        chain = chain_id(parent, diff_id)
        with self.database.transaction():
            row = self.database.one("SELECT * FROM layers WHERE chain_id = ?", (chain,))
            if row is None and self.driver.layered:
                shared = self.database.one(
                    "SELECT * FROM layers WHERE snapshot = ?", (_shared_key(diff_id),)
                )
                if shared is not None:
                    layer = Layer(
                        chain,
                        diff_id,
                        parent,
                        shared["snapshot"],
                        shared["tar_size"],
                        shared["size"],
                    )
                    self._insert(layer)
                    return layer
            if row is None:
                return None
            self.pins.made(chain)
            return Layer.of(row)

    def _settle(self, draft: _Draft, parent: str | None, index: Index, needs_lower: bool) -> Layer:
        """Turn the draft into a layer, or find the one that is there already."""
        with self.making.held(index.diff_id):
            if (known := self._known(parent, index.diff_id)) is not None:
                return known
            layer = self._planned(parent, index, needs_lower)
            self._place_index(draft, layer, index)
            try:
                self.driver.commit(draft.key, layer.snapshot)
                with self.database.transaction():
                    self._insert(layer)
            except BaseException:
                self.driver.remove(layer.snapshot)
                tree.delete(self.layers_folder / layer.snapshot)
                raise
            return layer

    def _move(self, draft: _Draft, parent: str | None, index: Index) -> Layer:
        """As ``_settle`` for a snapshot that must not be lost: see the module's text."""
        key = draft.key
        if (known := self._known(parent, index.diff_id)) is not None:
            with self.database.transaction():
                self._insert_move(key, known)
            collection.finish_move(self, key, known.snapshot, known.chain_id)
            return known
        layer = self._planned(parent, index, False)
        self._place_index(draft, layer, index)
        try:
            with self.database.transaction():
                self._insert(layer)
                self._insert_move(key, layer)
        except BaseException:
            tree.delete(self.layers_folder / layer.snapshot)
            raise
        try:
            self.driver.commit(key, layer.snapshot)
        except BaseException:
            with self.database.transaction():
                self.database.execute("DELETE FROM moves WHERE key = ?", (key,))
                self._delete_rows(layer)
            tree.delete(self.layers_folder / layer.snapshot)
            raise
        collection.finish_move(self, key, layer.snapshot, layer.chain_id)
        return layer

    def _planned(self, parent: str | None, index: Index, needs_lower: bool) -> Layer:
        chain = chain_id(parent, index.diff_id)
        shared = self.driver.layered and not needs_lower
        snapshot = _shared_key(index.diff_id) if shared else f"c{chain[7:39]}"
        return Layer(chain, index.diff_id, parent, snapshot, index.tar_size, index.size)

    def _place_index(self, draft: _Draft, layer: Layer, index: Index) -> None:
        # No row names this snapshot: what there is under its name was left by a kill.
        self.driver.remove(layer.snapshot)
        place = self.layers_folder / layer.snapshot
        tree.delete(place)
        index.save(draft.folder / "index")
        os.rename(draft.folder, place)
        self.remember(layer.snapshot, index)

    def _insert(self, layer: Layer) -> None:
        """Inside a transaction: the layer's rows."""
        self.pins.made(layer.chain_id)
        self.database.execute(
            "INSERT INTO layers (chain_id, diff_id, parent, snapshot, driver, tar_size, size,"
            " created) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                layer.chain_id,
                layer.diff_id,
                layer.parent,
                layer.snapshot,
                self.driver.name,
                layer.tar_size,
                layer.size,
                time.time_ns(),
            ),
        )
        self.database.execute(
            "INSERT OR IGNORE INTO snapshots (key, driver, purpose) VALUES (?, ?, 'layer')",
            (layer.snapshot, self.driver.name),
        )

    def _insert_move(self, key: str, layer: Layer) -> None:
        self.database.execute(
            "INSERT INTO moves (driver, key, name, chain) VALUES (?, ?, ?, ?)",
            (self.driver.name, key, layer.snapshot, layer.chain_id),
        )

    def _delete_rows(self, layer: Layer) -> None:
        self.database.execute("DELETE FROM layers WHERE chain_id = ?", (layer.chain_id,))
        self.database.execute("DELETE FROM snapshots WHERE key = ?", (layer.snapshot,))

    def write_tar(self, layer: Layer, output: int | BinaryIO) -> None:
        """Write the layer's tar, byte for byte as it came."""
        stash = self.layers_folder / layer.snapshot / "stash"
        with self._pinned(layer.chain_id), self.driver.own_directory(layer.snapshot) as directory:
            write_tar(self.index(layer), directory, self.driver.whiteouts, stash, output)

    # Snapshots to write into.

    def prepare(
        self, key: str, chain: str | None, mountpoints: bool = False, purpose: str = "work"
    ) -> None:
        """Make a writable snapshot on a stack, with the mount points of a container in between.

        ``purpose`` is ``container`` (kept as long as a container's row names it) or ``work`` (gone
        at the next start). Raises Conflict if the key exists, NotFound for the stack.
        """
        with self._pinned(chain):
            with self.database.transaction():
                if self.database.one(
                    "SELECT key FROM snapshots WHERE driver = ? AND key = ?",
                    (self.driver.name, key),
                ):
                    raise Conflict(f"snapshot {key} exists already")
                self.database.execute(
                    "INSERT INTO snapshots (key, driver, purpose, chain, mountpoints)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (key, self.driver.name, purpose, chain, int(mountpoints)),
                )
            try:
                with space_needed(self.root, "the container's layer"):
                    self._prepare(key, chain, mountpoints)
            except BaseException:
                self._delete_snapshot_row(key)
                raise

    def _prepare(self, key: str, chain: str | None, mountpoints: bool) -> None:
        keys = self.keys(chain)
        if mountpoints:
            keys = (*keys, self._mountpoints(chain))
        self.driver.prepare(key, self._driver_parent(keys))
        if not mountpoints and chain is not None and self.driver.layered:
            self._set_root(key, chain)

    def remove_snapshot(self, key: str) -> None:
        """Remove a writable snapshot; no error if there is none."""
        self._delete_snapshot_row(key)
        self.driver.remove(key)

    def mounts(self, key: str) -> list[Mount]:
        """What to mount to see the snapshot's tree; raises NotFound."""
        return self.driver.mounts(key)

    def view(self, chain: str) -> list[Mount]:
        """What to mount to see a stack read-only; raises NotFound."""
        return self.driver.view(self.keys(chain))

    @contextmanager
    def own_directory(self, key: str) -> Iterator[Path]:
        """The directory with the snapshot's own files, inside the block."""
        with self.driver.own_directory(key) as directory:
            yield directory

    def usage(self, key: str) -> Usage:
        """Measure what a writable snapshot adds to what it lies on."""
        if self.driver.layered:
            return self.driver.usage(key)
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
        with self.driver.own_directory(key) as directory:
            if self.driver.layered:
                return list(own_entries(directory, self.driver.whiteouts))
            with self._base_tree(key) as base:
                return list(own_entries(directory, self.driver.whiteouts, lower_tree=base))

    @contextmanager
    def _base_tree(self, key: str) -> Iterator[Path | None]:
        """For a driver of whole trees: the tree that the snapshot was copied from."""
        row = self.database.one(
            "SELECT chain, mountpoints FROM snapshots WHERE driver = ? AND key = ?",
            (self.driver.name, key),
        )
        if row is None:
            raise NotFound(f"no such snapshot: {key}")
        if row["mountpoints"]:
            below = _init_key(row["chain"])
        elif row["chain"] is not None:
            below = self.get(row["chain"]).snapshot
        else:
            yield None
            return
        with self.driver.own_directory(below) as directory:
            yield directory

    def _driver_parent(self, keys: tuple[str, ...]) -> str | tuple[str, ...] | None:
        if self.driver.layered:
            return keys
        return keys[-1] if keys else None

    def _delete_snapshot_row(self, key: str) -> None:
        self.database.execute(
            "DELETE FROM snapshots WHERE driver = ? AND key = ?"
            " AND purpose IN ('container', 'work')",
            (self.driver.name, key),
        )

    def _set_root(self, key: str, chain: str) -> None:
        """A layered snapshot's root directory is the one seen, whatever the layers below say."""
        entry = self.lower(chain).entry(b"")
        if entry is None:
            return
        with self.driver.own_directory(key) as directory:
            os.chown(directory, entry.uid, entry.gid)
            os.chmod(directory, entry.mode)
            if entry.mtime_ns:
                os.utime(directory, ns=(entry.mtime_ns, entry.mtime_ns))

    def _mountpoints(self, chain: str | None) -> str:
        """The snapshot of mount points for a stack, made by the first who needs it."""
        key = _init_key(chain)
        with self.making_mountpoints.held(key):
            known = "SELECT key FROM snapshots WHERE driver = ? AND key = ? AND purpose = 'init'"
            if self.database.one(known, (self.driver.name, key)) is not None:
                return key
            with self._draft(chain) as draft:
                if chain is not None and self.driver.layered:
                    self._set_root(draft.key, chain)
                with self.driver.own_directory(draft.key) as directory:
                    write_mountpoints(directory, self.driver.whiteouts, self.lower(chain))
                # As in _place_index.
                self.driver.remove(key)
                self.driver.commit(draft.key, key)
            self.database.execute(
                "INSERT INTO snapshots (key, driver, purpose, chain) VALUES (?, ?, 'init', ?)",
                (key, self.driver.name, chain),
            )
        return key

    # The end of layers.

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keep every layer that is made, or found to be there, inside the block from collection,
        whatever thread it is made in."""
        with self.pins.lease():
            yield

    def collect(self, roots: Iterable[str]) -> list[Layer]:
        """Remove all layers but those of ``roots`` and of what the database still names; gives
        back those that were removed."""
        return collection.collect(self, roots)

    def sweep(self) -> None:
        """At start-up: finish or remove what a killed process has left."""
        collection.sweep(self)


def _shared_key(diff_id: str) -> str:
    return f"l{diff_id[7:39]}"


def _init_key(chain: str | None) -> str:
    return f"i{chain[7:39]}" if chain else "i-scratch"
