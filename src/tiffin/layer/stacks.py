"""Stacks of layers, read: rows, indexes, and the merged view."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from tiffin.errors import NotFound
from tiffin.layer.entry import Entry
from tiffin.layer.index import Index
from tiffin.layer.layer import Layer
from tiffin.layer.locks import Pins
from tiffin.layer.lower import StackedLayer, StackLower
from tiffin.layer.recent import Recent
from tiffin.storage.driver import StorageDriver
from tiffin.storage.drivers import Drivers
from tiffin.store.database import Database

_STACK = """
    WITH RECURSIVE stack (chain_id, diff_id, parent, snapshot, driver, tar_size, size, depth) AS (
        SELECT chain_id, diff_id, parent, snapshot, driver, tar_size, size, 0
            FROM layers WHERE chain_id = ?
        UNION ALL
        SELECT below.chain_id, below.diff_id, below.parent, below.snapshot, below.driver,
               below.tar_size, below.size, stack.depth + 1
            FROM layers AS below JOIN stack ON below.chain_id = stack.parent
    )
"""
# Entries of indexes that are kept in memory; one takes some 500 bytes.
_INDEX_ENTRIES = 200_000


class Stacks:
    """The layers of one engine root, by chain ID; any number of threads may use it."""

    def __init__(self, database: Database, driver: StorageDriver, root: Path) -> None:
        self.database = database
        self.drivers = Drivers(root, driver)
        self.layers_folder = root / "layers"
        self.pins = Pins()
        self._indexes: Recent[str, Index] = Recent(
            _INDEX_ENTRIES, lambda index: len(index.entries) + 100
        )
        self._lowers: Recent[str, StackLower] = Recent(16, lambda lower: 1)

    @property
    def driver(self) -> StorageDriver:
        """The storage driver that takes what lies on nothing yet."""
        return self.drivers.chosen

    def driver_of(self, chain: str | None) -> StorageDriver:
        """The storage driver that a stack lies in, and what is put on it; raises NotFound."""
        if chain is None:
            return self.drivers.chosen
        return self.drivers.get(self.get(chain).driver)

    def get(self, chain: str) -> Layer:
        """The layer of that chain ID; raises NotFound."""
        row = self.database.one("SELECT * FROM layers WHERE chain_id = ?", (chain,))
        if row is None:
            raise NotFound(f"no such layer: {chain}")
        return Layer.of(row)

    def chain(self, chain: str | None) -> list[Layer]:
        """The layers of a stack, the lowest first; raises NotFound."""
        if chain is None:
            return []
        rows = self.database.all(f"{_STACK} SELECT * FROM stack ORDER BY depth DESC", (chain,))
        if not rows:
            raise NotFound(f"no such layer: {chain}")
        return [Layer.of(row) for row in rows]

    def size(self, chain: str | None) -> int:
        """Bytes of the files of all layers of a stack, from the rows alone."""
        row = self.database.one(f"{_STACK} SELECT sum(size) AS size FROM stack", (chain,))
        return int(row["size"] or 0) if row is not None else 0

    def total_size(self) -> int:
        """Bytes of the files of all layers, each that several stacks share counted once."""
        row = self.database.one(
            "SELECT sum(size) AS size FROM (SELECT DISTINCT snapshot, driver, size FROM layers)"
        )
        return int(row["size"] or 0) if row is not None else 0

    def index(self, layer: Layer) -> Index:
        """The file index of a layer; raises NotFound, CorruptArchive."""
        found = self._indexes.get(layer.snapshot)
        if found is None:
            found = Index.load(self.layers_folder / layer.snapshot / "index")
            self._indexes.put(layer.snapshot, found)
        return found

    def lower(self, chain: str | None) -> StackLower:
        """The merged view of a stack, from its indexes."""
        if chain is None:
            return StackLower([])
        found = self._lowers.get(chain)
        if found is not None:
            return found
        # Pinned, so that what is kept here can't be of a stack that is collected meanwhile.
        with self.pins.held(chain):
            layers = []
            for layer in self.chain(chain):
                driver = self.drivers.get(layer.driver)
                own = partial(driver.own_directory, layer.snapshot)
                layers.append(StackedLayer(self.index(layer), own))
            found = StackLower(layers)
            self._lowers.put(chain, found)
            return found

    def lookup(self, chain: str | None, path: bytes, follow: bool = False) -> Entry | None:
        """What ``path`` is in a stack; symlinks on the way are followed inside its root, and one
        at the end with ``follow``."""
        return self.lower(chain).resolve(path, follow=follow)

    def keys(self, chain: str | None) -> tuple[str, ...]:
        """The driver's keys of a stack, the lowest first; raises NotFound."""
        return tuple(layer.snapshot for layer in self.chain(chain))

    def remember(self, snapshot: str, index: Index) -> None:
        """Keep the index of a layer that was just made."""
        self._indexes.put(snapshot, index)

    def forget(self, snapshots: Iterable[str]) -> None:
        """Drop what is kept of removed snapshots."""
        for snapshot in snapshots:
            self._indexes.drop(snapshot)
        self._lowers.clear()
