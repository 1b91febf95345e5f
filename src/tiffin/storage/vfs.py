"""vfs: each snapshot is a whole tree, copied from its parent.

It works on every file system and in every container, and is what the other drivers are measured
against. Where the file system can share contents between files (btrfs, xfs, bcachefs), a copy
takes time for each file but no room; elsewhere it takes both.

On disk (the folders' own rules are :mod:`tiffin.storage.shelf`'s)::

    ROOT/storage/vfs/
        writable/KEY   → ../d/ID
        committed/KEY  → ../d/ID
        d/ID/fs/           the whole tree
        trash/
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from tiffin.errors import InvalidParameter
from tiffin.storage import tree
from tiffin.storage.driver import Mount, StorageDriver, Support, Usage, Whiteouts
from tiffin.storage.filesystem import file_system_name
from tiffin.storage.shelf import Shelf


class Vfs(StorageDriver):
    """See the module's text."""

    name: ClassVar[str] = "vfs"
    layered: ClassVar[bool] = False
    whiteouts: ClassVar[Whiteouts] = Whiteouts.NONE

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._shelf = Shelf(home)

    @classmethod
    def probe(cls, home: Path) -> Support:
        home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="probe", dir=home.parent) as name:
            reflinks = tree.can_reflink(Path(name))
        backing = file_system_name(home.parent)
        features = (
            ("Backing Filesystem", backing),
            ("Reflinks", "true" if reflinks else "false"),
        )
        how = "contents are shared by reflinks" if reflinks else "each layer is a full copy"
        return Support(True, f"works everywhere; on {backing} {how}", features)

    def prepare(self, key: str, parent: str | tuple[str, ...] | None) -> None:
        below = None if parent is None else self._shelf.find_committed(_single(parent))
        with self._shelf.making(key) as folder:
            own = folder / "fs"
            own.mkdir(0o755)
            if below is not None:
                tree.copy(self.home / below / "fs", own)

    def commit(self, key: str, name: str) -> None:
        self._shelf.commit(key, name)

    def mounts(self, key: str) -> list[Mount]:
        folder, committed = self._shelf.find(key)
        return self._mount(folder, committed)

    def view(self, stack: tuple[str, ...]) -> list[Mount]:
        if not stack:
            raise InvalidParameter("there is nothing to view: no layers were named")
        return self._mount(self._shelf.find_committed(stack[-1]), True)

    @contextmanager
    def own_directory(self, key: str) -> Iterator[Path]:
        yield self.home / self._shelf.find(key)[0] / "fs"

    def usage(self, key: str) -> Usage:
        with self.own_directory(key) as directory:
            return tree.measure(directory)

    def remove(self, key: str) -> None:
        self._shelf.remove(key)

    def keys(self) -> Iterator[str]:
        return self._shelf.keys()

    def sweep(self) -> None:
        self._shelf.sweep()

    def _mount(self, folder: str, read_only: bool) -> list[Mount]:
        options = ("bind", "ro") if read_only else ("bind",)
        return [Mount("bind", str(self.home / folder / "fs"), options)]


def _single(parent: str | tuple[str, ...]) -> str:
    if isinstance(parent, str):
        return parent
    if len(parent) != 1:
        raise InvalidParameter("vfs takes one parent: its snapshots are whole trees")
    return parent[0]
