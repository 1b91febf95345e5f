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

Layers of an image that arrive at the same time are *staged*: unpacked into drafts, each by itself,
and placed on each other at the end. A layer whose files depend on what lies below it can't be: it
is ingested once that is there.

Rules: one process owns an engine root, so leases, pins and locks are in memory. A layer is made by
one thread at a time, by diff ID. Locks are taken in the order: diff ID, mount points, database.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from tiffin.errors import Conflict, NotFound
from tiffin.layer import collection
from tiffin.layer.assemble import write_tar
from tiffin.layer.capture import capture
from tiffin.layer.compression import decompressed
from tiffin.layer.digest import chain_id
from tiffin.layer.entry import Entry
from tiffin.layer.index import Index
from tiffin.layer.layer import Layer
from tiffin.layer.locks import KeyedLocks
from tiffin.layer.snapshots import Draft, Snapshots
from tiffin.layer.space import space_needed
from tiffin.layer.unpack import unpack
from tiffin.layer.writer import LayerWriter, Model
from tiffin.storage import tree
from tiffin.storage.driver import StorageDriver
from tiffin.store.database import Database

__all__ = ["Layer", "LayerStore"]


class LayerStore(Snapshots):
    """See the module's text. Any number of threads may use one store."""

    def __init__(self, database: Database, driver: StorageDriver, root: Path) -> None:
        """Open the store of an engine root; call :meth:`sweep` before the first use.

        ``driver`` takes what is new; stacks that lie in others stay there.
        """
        super().__init__(database, driver, root)
        # By diff ID: held by who makes a layer's snapshot, or removes it.
        self.making = KeyedLocks()

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

    def shared(self, diff_id: str, base: str | None = None) -> Layer | None:
        """A layer whose files can be used on any stack of the driver that ``base`` lies in, kept
        by the leases; else None."""
        driver = self.driver_of(base)
        if not driver.layered:
            return None
        with self.making.held(diff_id), self.database.transaction():
            row = self.database.one(
                "SELECT * FROM layers WHERE snapshot = ? AND driver = ?",
                (_shared_key(diff_id), driver.name),
            )
            if row is None:
                return None
            self.pins.made(row["chain_id"])
            return Layer.of(row)

    def stage(self, tar: BinaryIO, diff_id: str, base: str | None = None) -> Staged | None:
        """Unpack a layer before what lies below it is there; :meth:`place` or close it.

        ``base`` is a stack that it will lie on somewhere above. None where that can't be, since its
        files depend on the layers below, or since the driver keeps whole trees; ``tar`` may then
        have been read in part. Raises as :meth:`ingest`.
        """
        driver = self.driver_of(base)
        if not driver.layered:
            return None
        with ExitStack() as stack:
            draft = stack.enter_context(self.draft_on(driver, ()))
            try:
                with driver.own_directory(draft.key) as directory:
                    unpacked = unpack(
                        decompressed(tar),
                        directory,
                        driver.whiteouts,
                        lower=_Unknown(),
                        expect_diff_id=diff_id,
                        stash=draft.folder / "stash",
                    )
            except _LowerNeededError:
                return None
            if unpacked.needs_lower or unpacked.index.implied:
                return None
            return Staged(draft, unpacked.index, stack.pop_all())
        raise AssertionError

    def place(self, staged: Staged, parent: str | None) -> Layer:
        """Let a staged layer become one of the stack ``parent``; it is used up, also on failure.

        Raises NotFound for ``parent``, StorageFull.
        """
        with staged, self._pinned(parent):
            if staged.draft.driver is not self.driver_of(parent):
                return self._carry_over(staged, parent)
            return self._settle(staged.draft, parent, staged.index, False)

    def _carry_over(self, staged: Staged, parent: str | None) -> Layer:
        """Place what was staged in another driver than that of its stack."""
        draft = staged.draft
        with tempfile.TemporaryFile(dir=self.work_folder) as spool:
            with draft.driver.own_directory(draft.key) as directory:
                stash = draft.folder / "stash"
                write_tar(staged.index, directory, stash, spool)
            spool.seek(0)
            return self.ingest(spool, parent, diff_id=staged.index.diff_id)

    def keep(self, chain_id: str) -> None:
        """Tell the leases of a layer that was found, so that they keep it too."""
        self.pins.made(chain_id)

    def known(self, parent: str | None, diff_id: str) -> Layer | None:
        """The layer, if it can be had without reading its tar."""
        with self._pinned(parent), self.making.held(diff_id):
            return self._known(parent, diff_id)

    def _ingest(self, tar: BinaryIO, parent: str | None, diff_id: str | None) -> Layer:
        with self._draft(parent) as draft:
            with draft.driver.own_directory(draft.key) as directory:
                unpacked = unpack(
                    decompressed(tar),
                    directory,
                    draft.driver.whiteouts,
                    lower=self.lower(parent) if parent else None,
                    expect_diff_id=diff_id,
                    stash=draft.folder / "stash",
                )
            index = unpacked.index
            return self._settle(draft, parent, index, unpacked.needs_lower or bool(index.implied))

    def write(
        self, parent: str | None, fill: Callable[[LayerWriter], None], *, model: str | None = None
    ) -> Layer:
        """Store a layer made of the entries that ``fill`` gives to a writer.

        ``model`` is the chain ID of one that it may be much like, if that still is there.
        """
        with ExitStack() as stack:
            stack.enter_context(self._pinned(parent))
            found = self._model(model, stack) if model is not None else None
            draft = stack.enter_context(self._draft(parent))
            with draft.driver.own_directory(draft.key) as directory:
                lower = self.lower(parent) if parent else None
                writer = LayerWriter(directory, draft.driver.whiteouts, lower, found)
                try:
                    fill(writer)
                    index = writer.finish()
                finally:
                    writer.close()
            return self._settle(draft, parent, index, bool(index.implied))

    def _model(self, chain: str, stack: ExitStack) -> Model | None:
        """A layer that files may be linked from, kept until ``stack`` is left."""
        stack.enter_context(self.pins.held(chain))
        try:
            layer = self.get(chain)
        except NotFound:
            return None  # it has been collected
        driver = self.drivers.get(layer.driver)
        if not driver.layered:
            return None  # what is there is a whole tree, which is copied for each container
        directory = stack.enter_context(driver.own_directory(layer.snapshot))
        return Model(self.index(layer), directory)

    def commit(self, snapshot_key: str, parent: str | None) -> Layer:
        """Make a layer on ``parent`` of a writable snapshot by moving it.

        Nothing may be running on the snapshot. It is gone afterwards: a container that lives on
        wants a new one on the new layer (``prepare`` with the same key), and its row says so
        (``frozen``) as soon as the move is recorded; :meth:`sweep` makes it if nobody else did.
        Raises NotFound, StorageFull, and Conflict for a ``parent`` that it does not lie on; the
        snapshot is then as it was.
        """
        self._check_parent(snapshot_key, parent)
        folder = self.work_folder / f"w{secrets.token_hex(8)}"
        try:
            with self._pinned(parent), space_needed(self.root, "the layer"):
                folder.mkdir(mode=0o700, parents=True)
                index = self._capture(snapshot_key, snapshot_key)
                with self.making.held(index.diff_id):
                    draft = Draft(snapshot_key, folder, self.holder(snapshot_key))
                    return self._move(draft, parent, index)
        finally:
            tree.delete(folder)

    def commit_copy(self, snapshot_key: str, parent: str | None) -> Layer:
        """Make a layer on ``parent`` of a copy of a writable snapshot, which goes on as it is.

        Raises as :meth:`commit`.
        """
        self._check_parent(snapshot_key, parent)
        driver = self.holder(snapshot_key)
        folder = self.work_folder / f"w{secrets.token_hex(8)}"
        draft = Draft(folder.name, folder, driver)
        try:
            with self._pinned(parent), space_needed(self.root, "the layer"):
                folder.mkdir(mode=0o700, parents=True)
                driver.copy(snapshot_key, draft.key)
                index = self._capture(draft.key, snapshot_key)
                self.take_mountpoints_out(draft.key, snapshot_key, index)
                return self._settle(draft, parent, index, False)
        finally:
            driver.remove(draft.key)
            tree.delete(folder)

    def _check_parent(self, key: str, parent: str | None) -> None:
        """What a snapshot changes means nothing on another stack."""
        if (lies_on := self._row(key)["chain"]) != parent:
            raise Conflict(
                f"snapshot {key} lies on {lies_on or 'nothing'}: it can't be committed on "
                f"{parent or 'nothing'}"
            )

    def _capture(self, key: str, original: str) -> Index:
        """The index of what ``key`` holds: ``original``, or a copy of it."""
        driver = self.holder(original)
        with driver.own_directory(key) as directory:
            if driver.layered:
                return capture(directory, driver.whiteouts)
            with self.base_tree(original) as base:
                return capture(directory, driver.whiteouts, lower_tree=base)

    # The steps of a layer's making.

    def _known(self, parent: str | None, diff_id: str) -> Layer | None:
        """The layer, if it is there, or if an equal one on another stack can be shared."""
        chain = chain_id(parent, diff_id)
        with self.database.transaction():
            row = self.database.one("SELECT * FROM layers WHERE chain_id = ?", (chain,))
            if row is None and (driver := self.driver_of(parent)).layered:
                shared = self.database.one(
                    "SELECT * FROM layers WHERE snapshot = ? AND driver = ?",
                    (_shared_key(diff_id), driver.name),
                )
                if shared is not None:
                    layer = Layer(
                        chain,
                        diff_id,
                        parent,
                        shared["snapshot"],
                        driver.name,
                        shared["tar_size"],
                        shared["size"],
                    )
                    self._insert(layer)
                    return layer
            if row is None:
                return None
            self.pins.made(chain)
            return Layer.of(row)

    def _settle(self, draft: Draft, parent: str | None, index: Index, needs_lower: bool) -> Layer:
        """Turn the draft into a layer, or find the one that is there already."""
        with self.making.held(index.diff_id):
            if (known := self._known(parent, index.diff_id)) is not None:
                return known
            layer = planned(draft.driver, parent, index, needs_lower)
            self.place_index(draft, layer, index)
            try:
                draft.driver.commit(draft.key, layer.snapshot)
                with self.database.transaction():
                    self._insert(layer)
            except BaseException:
                draft.driver.remove(layer.snapshot)
                self.drop_index(layer.snapshot)
                raise
            return layer

    def _move(self, draft: Draft, parent: str | None, index: Index) -> Layer:
        """As ``_settle`` for a snapshot that must not be lost: see the module's text."""
        key = draft.key
        if (known := self._known(parent, index.diff_id)) is not None:
            with self.database.transaction():
                self._insert_move(key, known)
            collection.finish_move(self, key, known)
            return known
        layer = planned(draft.driver, parent, index, False)
        self.place_index(draft, layer, index)
        try:
            with self.database.transaction():
                self._insert(layer)
                self._insert_move(key, layer)
        except BaseException:
            self.drop_index(layer.snapshot)
            raise
        try:
            self.take_mountpoints_out(key, key, index)
            draft.driver.commit(key, layer.snapshot)
        except BaseException:
            with self.database.transaction():
                self.database.execute("DELETE FROM moves WHERE key = ?", (key,))
                self._delete_rows(layer)
            self.drop_index(layer.snapshot)
            raise
        collection.finish_move(self, key, layer)
        return layer

    def place_index(self, draft: Draft, layer: Layer, index: Index) -> None:
        """Give the index, and what else lies in the draft's folder, the layer's name."""
        # No row names this snapshot: what there is under its name was left by a kill.
        draft.driver.remove(layer.snapshot)
        if self._indexed(layer.snapshot):
            # Another driver has the same layer, and with it the same index.
            return
        place = self.layers_folder / layer.snapshot
        tree.delete(place)
        index.save(draft.folder / "index")
        os.rename(draft.folder, place)
        self.remember(layer.snapshot, index)

    def drop_index(self, snapshot: str) -> None:
        """Remove the index of a snapshot, unless another driver has a layer of that name."""
        if not self._indexed(snapshot):
            tree.delete(self.layers_folder / snapshot)

    def _indexed(self, snapshot: str) -> bool:
        named = "SELECT key FROM snapshots WHERE key = ? AND purpose = 'layer'"
        return self.database.one(named, (snapshot,)) is not None

    def _insert(self, layer: Layer) -> None:
        """Inside a transaction: the layer's rows. Raises Conflict if what it lies on has been moved
        to another driver meanwhile."""
        if layer.parent is not None and self.get(layer.parent).driver != layer.driver:
            raise Conflict(
                f"layer {layer.parent} has been moved to another storage driver: try again"
            )
        self.pins.made(layer.chain_id)
        self.database.execute(
            "INSERT INTO layers (chain_id, diff_id, parent, snapshot, driver, tar_size, size,"
            " created) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                layer.chain_id,
                layer.diff_id,
                layer.parent,
                layer.snapshot,
                layer.driver,
                layer.tar_size,
                layer.size,
                time.time_ns(),
            ),
        )
        self.database.execute(
            "INSERT OR IGNORE INTO snapshots (key, driver, purpose) VALUES (?, ?, 'layer')",
            (layer.snapshot, layer.driver),
        )

    def _insert_move(self, key: str, layer: Layer) -> None:
        self.database.execute(
            "INSERT INTO moves (driver, key, name, chain) VALUES (?, ?, ?, ?)",
            (layer.driver, key, layer.snapshot, layer.chain_id),
        )

    def _delete_rows(self, layer: Layer) -> None:
        self.database.execute("DELETE FROM layers WHERE chain_id = ?", (layer.chain_id,))
        self.database.execute(
            "DELETE FROM snapshots WHERE driver = ? AND key = ?", (layer.driver, layer.snapshot)
        )

    # Layers go.

    def write_tar(self, layer: Layer, output: int | BinaryIO) -> None:
        """Write the layer's tar, byte for byte as it came."""
        stash = self.layers_folder / layer.snapshot / "stash"
        driver = self.drivers.get(layer.driver)
        with self._pinned(layer.chain_id), driver.own_directory(layer.snapshot) as directory:
            write_tar(self.index(layer), directory, stash, output)

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


class Staged:
    """A layer that is unpacked and lies on no stack yet. A context manager: leaving it ends it."""

    def __init__(self, draft: Draft, index: Index, owned: ExitStack) -> None:
        self.draft = draft
        self.index = index
        self._owned = owned

    def close(self) -> None:
        """Remove what has not become a layer."""
        self._owned.close()

    def __enter__(self) -> Staged:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _LowerNeededError(Exception):
    """A layer depends on what lies below it."""


class _Unknown:
    """The stack below a layer that is staged: asking for it ends the staging."""

    def entry(self, path: bytes) -> Entry | None:
        raise _LowerNeededError

    def children(self, path: bytes) -> list[Entry]:
        raise _LowerNeededError

    def open(self, path: bytes) -> int:
        raise _LowerNeededError


def planned(driver: StorageDriver, parent: str | None, index: Index, needs_lower: bool) -> Layer:
    """The layer that an index will be on a stack, in a driver."""
    chain = chain_id(parent, index.diff_id)
    shared = driver.layered and not needs_lower
    snapshot = _shared_key(index.diff_id) if shared else f"c{chain[7:39]}"
    return Layer(chain, index.diff_id, parent, snapshot, driver.name, index.tar_size, index.size)


def _shared_key(diff_id: str) -> str:
    return f"l{diff_id[7:39]}"
