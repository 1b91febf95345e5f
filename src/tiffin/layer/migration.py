"""Everything of one storage driver goes to another: layers, and what lies on them.

The words: a *family* is all layers that lie on the same lowest one, with the containers on them;
containers without any layer are a family too. A family lies in one driver, and moves at once.

How: each layer's tar is made of its files and its index and unpacked again, which checks its
digest; the copy is written down (``migrated``) when it is complete. What a container changed goes
the same way. When all of a family is there, one transaction says so; then the old files go. So a
migration that is killed is continued by the next one, layer by layer, and at every moment all of
a family is whole in one driver or the other. It takes room for one family twice.

Rules: no container may run. Layers that arrive meanwhile are found before the transaction, or
refused by the store when they would lie on a stack that has moved.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

from tiffin.errors import Conflict, TiffinError
from tiffin.layer import collection
from tiffin.layer.assemble import write_tar
from tiffin.layer.capture import capture
from tiffin.layer.layer import Layer
from tiffin.layer.snapshots import driver_parent
from tiffin.layer.store import LayerStore, planned
from tiffin.layer.unpack import unpack
from tiffin.storage.driver import StorageDriver
from tiffin.store.database import Row

Say = Callable[[str, str], None]
"""What is being done (``layer``, ``container``, ``family``), and to what."""

_MEMBERS = """
    WITH RECURSIVE family (chain_id, depth) AS (
        SELECT ?, 0
        UNION ALL
        SELECT above.chain_id, family.depth + 1
            FROM layers AS above JOIN family ON above.parent = family.chain_id
    )
    SELECT layers.* FROM family JOIN layers USING (chain_id) ORDER BY depth, chain_id
"""
_ATTEMPTS = 10


def migrate(
    store: LayerStore,
    to: StorageDriver,
    still: Callable[[Sequence[str]], AbstractContextManager[None]],
    say: Say,
) -> int:
    """Move all that lies in other drivers to ``to``; how many layers moved.

    ``still`` keeps containers, by the keys of their snapshots, from starting inside its block;
    it raises Conflict if one runs. Raises Conflict where something is in use, StorageFull.
    """
    roots = store.database.all(
        "SELECT * FROM layers WHERE parent IS NULL AND driver != ? ORDER BY created", (to.name,)
    )
    moved = 0
    for root in roots:
        say("family", root["chain_id"])
        with store.pins.held(root["chain_id"]):
            for _ in range(_ATTEMPTS):
                members = [
                    Layer.of(row) for row in store.database.all(_MEMBERS, (root["chain_id"],))
                ]
                if not members or members[0].driver == to.name:
                    break
                for layer in members:
                    _copy_layer(store, layer, to, say)
                if _switch(store, members, to, still, say):
                    moved += len(members)
                    break
            else:
                raise Conflict(f"layers keep arriving on {root['chain_id']}: try again later")
    _switch(store, [], to, still, say)
    return moved


def _copies(store: LayerStore, to: StorageDriver) -> dict[str, str]:
    rows = store.database.all("SELECT chain, snapshot FROM migrated WHERE driver = ?", (to.name,))
    return {row["chain"]: row["snapshot"] for row in rows}


def _keys(store: LayerStore, chain: str | None, copies: dict[str, str]) -> tuple[str, ...]:
    """The keys that a stack's copy has."""
    return tuple(copies[layer.chain_id] for layer in store.chain(chain))


def _copy_layer(store: LayerStore, layer: Layer, to: StorageDriver, say: Say) -> None:
    """Copy one layer whose stack below is there; nothing if that was done before."""
    copies = _copies(store, to)
    if (key := copies.get(layer.chain_id)) is not None and to.exists(key):
        return
    say("layer", layer.diff_id)
    index = store.index(layer)
    with store.making.held(layer.diff_id):
        shared = planned(to, layer.parent, index, False)
        if to.layered and not layer.snapshot.startswith("c") and to.exists(shared.snapshot):
            _record(store, shared)
            return
        below = _keys(store, layer.parent, copies)
        with store.draft_on(to, below) as draft:
            source = store.drivers.get(layer.driver)
            stash = store.layers_folder / layer.snapshot / "stash"
            with (
                source.own_directory(layer.snapshot) as old,
                to.own_directory(draft.key) as new,
                _piped(lambda out: write_tar(index, old, stash, out)) as tar,
            ):
                unpacked = unpack(
                    tar,
                    new,
                    to.whiteouts,
                    lower=store.lower(layer.parent) if layer.parent else None,
                    expect_diff_id=layer.diff_id,
                    stash=draft.folder / "stash",
                )
            needs_lower = unpacked.needs_lower or bool(unpacked.index.implied)
            copy = planned(to, layer.parent, unpacked.index, needs_lower)
            store.place_index(draft, copy, unpacked.index)
            to.commit(draft.key, copy.snapshot)
            _record(store, copy)


def _record(store: LayerStore, copy: Layer) -> None:
    with store.database.transaction():
        store.database.execute(
            "INSERT OR IGNORE INTO snapshots (key, driver, purpose) VALUES (?, ?, 'layer')",
            (copy.snapshot, copy.driver),
        )
        store.database.execute(
            "INSERT OR REPLACE INTO migrated (chain, driver, snapshot) VALUES (?, ?, ?)",
            (copy.chain_id, copy.driver, copy.snapshot),
        )


def _on(store: LayerStore, chains: set[str], to: StorageDriver) -> list[Row]:
    """The writable snapshots on these stacks, or on nothing if there are none."""
    rows = store.database.all(
        "SELECT * FROM snapshots WHERE purpose IN ('container', 'work') AND driver != ?",
        (to.name,),
    )
    return [row for row in rows if (row["chain"] in chains if chains else row["chain"] is None)]


def _switch(
    store: LayerStore,
    members: list[Layer],
    to: StorageDriver,
    still: Callable[[Sequence[str]], AbstractContextManager[None]],
    say: Say,
) -> bool:
    """Copy what lies on a family, and say that all of it has moved; False if it has grown."""
    chains = {layer.chain_id for layer in members}
    rows = _on(store, chains, to)
    if busy := [row["key"] for row in rows if row["purpose"] == "work" or row["moved"]]:
        raise Conflict(f"something is being built on the layers ({busy[0]}): try again later")
    if not chains and not rows:
        return True
    keys = [row["key"] for row in rows]
    with still(keys):
        copies = _copies(store, to)
        try:
            for row in rows:
                say("container", row["key"])
                _copy_container(store, row, to, copies)
            olds = _write_down(store, members, rows, to, copies)
        except BaseException:
            for key in keys:
                if store.holder(key) is not to:
                    to.remove(key)
            raise
        if olds is None:
            for key in keys:
                to.remove(key)
            return False
        store.forget(key for _, key in olds)
        store.forget(copies.values())
        for row in rows:
            store.drivers.get(row["driver"]).remove(row["key"])
        for driver, key in olds:
            collection.remove_unowned(store, driver, key)
    return True


def _write_down(
    store: LayerStore,
    members: list[Layer],
    rows: list[Row],
    to: StorageDriver,
    copies: dict[str, str],
) -> set[tuple[str, str]] | None:
    """The one transaction; what is named by nobody any more, or None if the family has grown."""
    database = store.database
    chains = {layer.chain_id for layer in members}
    listed = json.dumps(sorted(chains))
    with database.transaction():
        if members:
            now = database.all(_MEMBERS, (members[0].chain_id,))
            if {row["chain_id"] for row in now} != chains:
                return None
        if {row["key"] for row in _on(store, chains, to)} != {row["key"] for row in rows}:
            return None
        for layer in members:
            database.execute(
                "UPDATE layers SET driver = ?, snapshot = ? WHERE chain_id = ?",
                (to.name, copies[layer.chain_id], layer.chain_id),
            )
        for row in rows:
            database.execute(
                "UPDATE snapshots SET driver = ? WHERE driver = ? AND key = ?",
                (to.name, row["driver"], row["key"]),
            )
        inside = "chain IN (SELECT value FROM json_each(?))"
        if not members:
            inside = "chain IS NULL AND ? IS NOT NULL"
        inits = f"FROM snapshots WHERE {inside} AND purpose = 'init' AND driver != ?"
        olds = {
            (row["driver"], row["key"])
            for row in database.all(f"SELECT driver, key {inits}", (listed, to.name))
        }
        database.execute(f"DELETE {inits}", (listed, to.name))
        database.execute(
            "DELETE FROM migrated WHERE chain IN (SELECT value FROM json_each(?))", (listed,)
        )
        olds |= collection.forget_unnamed(store)
        return olds


def _copy_container(store: LayerStore, row: Row, to: StorageDriver, copies: dict[str, str]) -> None:
    """Make the writable snapshot of a container in the other driver too."""
    key, chain = row["key"], row["chain"]
    to.remove(key)
    below = _keys(store, chain, copies)
    if row["mountpoints"]:
        below = (*below, store.mountpoints(to, chain, below))
    to.prepare(key, driver_parent(to, below))
    source = store.drivers.get(row["driver"])
    with source.own_directory(key) as old:
        base_tree = nullcontext(None) if source.layered else store.base_tree(key)
        with base_tree as base:
            index = capture(old, source.whiteouts, lower_tree=base)
        with (
            to.own_directory(key) as new,
            _piped(lambda out: write_tar(index, old, Path("/nonexistent"), out)) as tar,
        ):
            unpack(
                tar,
                new,
                to.whiteouts,
                lower=store.lower(chain) if chain else None,
                expect_diff_id=index.diff_id,
                stash=store.work_folder / "nothing",
            )


@contextmanager
def _piped(write: Callable[[int], None]) -> Iterator[BinaryIO]:
    """What ``write`` writes into a descriptor, to be read meanwhile; raises what it raises."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            write(writer)
        except BrokenPipeError:
            # Whoever reads has had enough, and says why.
            pass
        except BaseException as error:
            failures.append(error)
        finally:
            os.close(writer)

    thread = threading.Thread(target=run, name="migration", daemon=True)
    thread.start()
    try:
        with open(reader, "rb") as stream:
            yield stream
    except TiffinError:
        thread.join()
        if failures:
            raise failures[0] from None
        raise
    thread.join()
    if failures:
        raise failures[0]
