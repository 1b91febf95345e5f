"""What the drivers share that keep snapshots on a :class:`Shelf`: a folder each, ``fs`` in it.

:class:`Shelved` has all that does not depend on how trees come to be; :class:`WholeTrees` is for
drivers whose ``fs`` is the whole tree, which a bind mount shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from tiffin.errors import InvalidParameter
from tiffin.storage import tree
from tiffin.storage.driver import Mount, StorageDriver, Usage, Whiteouts
from tiffin.storage.shelf import Shelf


class Shelved(StorageDriver):
    """See the module's text."""

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(home, settings)
        self._shelf = Shelf(home, self._discard)

    def _discard(self, folder: Path) -> None:
        """Delete a folder that is in the trash; left there where it can't be yet."""
        tree.delete(folder)

    def commit(self, key: str, name: str) -> None:
        self._shelf.commit(key, name)

    @contextmanager
    def own_directory(self, key: str) -> Iterator[Path]:
        yield self.home / self._shelf.find(key)[0] / "fs"

    def usage(self, key: str) -> Usage:
        with self.own_directory(key) as directory:
            return tree.measure(directory)

    def remove(self, key: str) -> None:
        self._shelf.remove(key)

    def exists(self, key: str) -> bool:
        return self._shelf.has(key)

    def keys(self) -> Iterator[str]:
        return self._shelf.keys()

    def sweep(self) -> None:
        self._shelf.sweep()

    def single(self, parent: str | tuple[str, ...]) -> str:
        """The one parent of a snapshot that is a whole tree; raises InvalidParameter."""
        if isinstance(parent, str):
            return parent
        if len(parent) != 1:
            raise InvalidParameter(f"{self.name} takes one parent: its snapshots are whole trees")
        return parent[0]

    def top(self, stack: tuple[str, ...]) -> str:
        """The one of a stack that is the whole tree; raises InvalidParameter for none."""
        if not stack:
            raise InvalidParameter("there is nothing to view: no layers were named")
        return stack[-1]


class WholeTrees(Shelved):
    """See the module's text."""

    layered: ClassVar[bool] = False
    whiteouts: ClassVar[Whiteouts] = Whiteouts.NONE

    def mounts(self, key: str) -> list[Mount]:
        return self._bind(*self._shelf.find(key))

    def view(self, stack: tuple[str, ...]) -> list[Mount]:
        return self._bind(self._shelf.find_committed(self.top(stack)), True)

    def _bind(self, folder: str, read_only: bool) -> list[Mount]:
        options = ("bind", "ro") if read_only else ("bind",)
        return [Mount("bind", str(self.home / folder / "fs"), options)]
