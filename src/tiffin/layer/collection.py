"""The end of layers: mark and sweep, and the repair of what a killed process has left."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tiffin.errors import NotFound
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
    FROM snapshots WHERE driver = ? AND purpose = 'layer'
    AND key NOT IN (SELECT snapshot FROM layers)
"""


def collect(store: LayerStore, roots: Iterable[str]) -> list[Layer]:
    """As :meth:`LayerStore.collect`."""
    database, name = store.database, store.driver.name
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
        inits = database.all(f"SELECT key FROM snapshots WHERE {inside}", (listed,))
        database.execute(f"DELETE FROM snapshots WHERE {inside}", (listed,))
        # In one statement: a layer and its parent may both be among them.
        database.execute(
            "DELETE FROM layers WHERE chain_id IN (SELECT value FROM json_each(?))", (listed,)
        )
        unnamed = {row["key"] for row in database.all(f"SELECT key {_UNNAMED_SNAPSHOTS}", (name,))}
        database.execute(f"DELETE {_UNNAMED_SNAPSHOTS}", (name,))
    store.forget(unnamed)
    for row in inits:
        with store.making_mountpoints.held(row["key"]):
            _remove_unowned(store, row["key"])
    for key, diff_id in {row["snapshot"]: row["diff_id"] for row in dead}.items():
        if key in unnamed:
            with store.making.held(diff_id):
                _remove_unowned(store, key)
    return [Layer.of(row) for row in dead]


def _remove_unowned(store: LayerStore, key: str) -> None:
    """Remove the files of a snapshot, unless it has been made anew meanwhile."""
    query = "SELECT key FROM snapshots WHERE driver = ? AND key = ?"
    if store.database.one(query, (store.driver.name, key)) is None:
        store.driver.remove(key)
        tree.delete(store.layers_folder / key)


def finish_move(store: LayerStore, key: str, layer: Layer) -> None:
    """After a move is recorded: the files are moved, and nothing names the old key any more."""
    keys = set(store.driver.keys())
    if layer.snapshot not in keys:
        store.driver.commit(key, layer.snapshot)
    elif key in keys:
        # An equal layer was there already.
        store.driver.remove(key)
    store.take_mountpoints_out(layer.snapshot, key, store.index(layer))
    with store.database.transaction():
        store.database.execute(
            "UPDATE containers SET frozen = ? WHERE snapshot = ?", (layer.chain_id, key)
        )
        store.database.execute(
            "DELETE FROM snapshots WHERE driver = ? AND key = ?", (store.driver.name, key)
        )
        store.database.execute(
            "DELETE FROM moves WHERE driver = ? AND key = ?", (store.driver.name, key)
        )


def sweep(store: LayerStore) -> None:
    """As :meth:`LayerStore.sweep`."""
    database, driver = store.database, store.driver
    for row in database.all("SELECT * FROM moves WHERE driver = ?", (driver.name,)):
        finish_move(store, row["key"], store.get(row["chain"]))
    with database.transaction():
        database.execute(
            "DELETE FROM snapshots WHERE driver = ? AND (purpose = 'work' OR"
            " (purpose = 'container' AND key NOT IN (SELECT snapshot FROM containers)))",
            (driver.name,),
        )
        database.execute(f"DELETE {_UNNAMED_SNAPSHOTS}", (driver.name,))
        owned = {
            row["key"]: row["purpose"]
            for row in database.all(
                "SELECT key, purpose FROM snapshots WHERE driver = ?", (driver.name,)
            )
        }
    for key in list(driver.keys()):
        if key not in owned:
            driver.remove(key)
    driver.sweep()
    for name in os.listdir(store.layers_folder):
        if owned.get(name) != "layer":
            tree.delete(store.layers_folder / name)
    for name in os.listdir(store.work_folder):
        tree.delete(store.work_folder / name)
    for row in database.all("SELECT snapshot, base, frozen FROM containers"):
        _restore(store, row["snapshot"], row["frozen"] or row["base"])


def _restore(store: LayerStore, key: str, chain: str | None) -> None:
    """Give a container whose files a commit has moved away an empty snapshot again."""
    try:
        store.driver.mounts(key)
    except NotFound:
        store.remove_snapshot(key)
        store.prepare(key, chain, mountpoints=True, purpose="container")
