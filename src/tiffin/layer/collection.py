"""The end of layers: mark and sweep, and the repair of what a killed process has left."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tiffin.layer.layer import Layer
from tiffin.storage import tree

if TYPE_CHECKING:
    from tiffin.layer.store import LayerStore

# What the database itself says is in use: read in the transaction that deletes, so that a row
# that another thread writes is either seen here, or finds its layer gone and fails.
_NAMED = """
    SELECT top AS chain FROM images WHERE top IS NOT NULL
    UNION SELECT base FROM containers WHERE base IS NOT NULL
    UNION SELECT frozen FROM containers WHERE frozen IS NOT NULL
    UNION SELECT top FROM build_cache WHERE top IS NOT NULL
    UNION SELECT chain FROM snapshots WHERE chain IS NOT NULL AND purpose != 'init'
    UNION SELECT chain FROM moves
"""
_UNNAMED_SNAPSHOTS = """
    FROM snapshots WHERE purpose = 'layer'
    AND (driver, key) NOT IN (SELECT driver, snapshot FROM layers)
    AND (driver, key) NOT IN (SELECT driver, snapshot FROM migrated)
"""


def collect(store: LayerStore, roots: Iterable[str]) -> list[Layer]:
    """As :meth:`LayerStore.collect`."""
    database = store.database
    with database.transaction():
        rows = {row["chain_id"]: row for row in database.all("SELECT * FROM layers")}
        marked = {row["chain"] for row in database.all(_NAMED)}
        pending = list(marked.union(roots, store.pins.all()))
        live: set[str] = set()
        while pending:
            chain = pending.pop()
            if chain in live or chain not in rows:
                continue
            live.add(chain)
            if (parent := rows[chain]["parent"]) is not None:
                pending.append(parent)
        dead = [row for chain, row in rows.items() if chain not in live]
        if not dead:
            return []
        listed = json.dumps([row["chain_id"] for row in dead])
        inside = "chain IN (SELECT value FROM json_each(?)) AND purpose = 'init'"
        inits = database.all(f"SELECT driver, key FROM snapshots WHERE {inside}", (listed,))
        database.execute(f"DELETE FROM snapshots WHERE {inside}", (listed,))
        # In one statement: a layer and its parent may both be among them.
        database.execute(
            "DELETE FROM layers WHERE chain_id IN (SELECT value FROM json_each(?))", (listed,)
        )
        database.execute(
            "DELETE FROM migrated WHERE chain IN (SELECT value FROM json_each(?))", (listed,)
        )
        unnamed = forget_unnamed(store)
    store.forget(key for _, key in unnamed)
    for row in inits:
        with store.making_mountpoints.held(row["key"]):
            remove_unowned(store, row["driver"], row["key"])
    diff_ids = {row["snapshot"]: row["diff_id"] for row in dead}
    for driver, key in unnamed:
        # What another driver has of a migration that was given up has no layer any more.
        with store.making.held(diff_ids.get(key, key)):
            remove_unowned(store, driver, key)
    return [Layer.of(row) for row in dead]


def forget_unnamed(store: LayerStore) -> set[tuple[str, str]]:
    """Inside a transaction: drop the rows of snapshots that no layer names any more; their drivers
    and keys, for :func:`remove_unowned` after it."""
    rows = store.database.all(f"SELECT driver, key {_UNNAMED_SNAPSHOTS}")
    store.database.execute(f"DELETE {_UNNAMED_SNAPSHOTS}")
    return {(row["driver"], row["key"]) for row in rows}


def remove_unowned(store: LayerStore, driver: str, key: str) -> None:
    """Remove the files of a snapshot, unless it has been made anew meanwhile."""
    query = "SELECT key FROM snapshots WHERE driver = ? AND key = ?"
    if store.database.one(query, (driver, key)) is None:
        store.drivers.get(driver).remove(key)
        store.drop_index(key)


def finish_move(store: LayerStore, key: str, layer: Layer) -> None:
    """After a move is recorded: the files are moved, and nothing names the old key any more."""
    driver = store.drivers.get(layer.driver)
    keys = set(driver.keys())
    if layer.snapshot not in keys:
        # Before: what is committed is never written to.
        store.take_mountpoints_out(key, key, store.index(layer))
        driver.commit(key, layer.snapshot)
    elif key in keys:
        # An equal layer was there already.
        driver.remove(key)
    with store.database.transaction():
        store.database.execute(
            "UPDATE containers SET frozen = ? WHERE snapshot = ?", (layer.chain_id, key)
        )
        store.database.execute(
            "UPDATE snapshots SET chain = ?, moved = 1 WHERE key = ? AND purpose = 'container'",
            (layer.chain_id, key),
        )
        store.database.execute(
            "DELETE FROM snapshots WHERE driver = ? AND key = ? AND purpose = 'work'",
            (driver.name, key),
        )
        store.database.execute("DELETE FROM moves WHERE driver = ? AND key = ?", (driver.name, key))


def sweep(store: LayerStore) -> None:
    """As :meth:`LayerStore.sweep`."""
    database = store.database
    for row in database.all("SELECT * FROM moves"):
        finish_move(store, row["key"], store.get(row["chain"]))
    with database.transaction():
        database.execute(
            "DELETE FROM snapshots WHERE purpose = 'work' OR"
            " (purpose = 'container' AND key NOT IN (SELECT snapshot FROM containers))"
        )
        database.execute(f"DELETE {_UNNAMED_SNAPSHOTS}")
        rows = database.all("SELECT driver, key, purpose FROM snapshots")
    owned = {(row["driver"], row["key"]) for row in rows}
    for driver in store.drivers.all():
        for key in list(driver.keys()):
            if (driver.name, key) not in owned:
                driver.remove(key)
        driver.sweep()
    indexed = {row["key"] for row in rows if row["purpose"] == "layer"}
    for name in os.listdir(store.layers_folder):
        if name not in indexed:
            tree.delete(store.layers_folder / name)
    for name in os.listdir(store.work_folder):
        tree.delete(store.work_folder / name)
    for row in database.all("SELECT snapshot, base, frozen FROM containers"):
        _restore(store, row["snapshot"], row["frozen"] or row["base"])


def _restore(store: LayerStore, key: str, chain: str | None) -> None:
    """Give a container whose files a commit has moved away an empty snapshot again."""
    row = store.database.one("SELECT driver, moved FROM snapshots WHERE key = ?", (key,))
    if row is not None and not row["moved"] and store.drivers.get(row["driver"]).exists(key):
        return
    store.remove_snapshot(key)
    store.prepare(key, chain, mountpoints=True, purpose="container")
