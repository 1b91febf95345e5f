"""What the drivers share that keep snapshots on a :class:`Shelf`: a folder each, ``fs`` in it.

:class:`Shelved` has all that does not depend on how trees come to be; :class:`WholeTrees` is for
drivers whose ``fs`` is the whole tree, which a bind mount shows; :class:`Stacked` for those whose
``fs`` holds the changes, and which keep in ``lower`` what they were prepared on.
"""

from __future__ import annotations

import os
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
    whiteouts: Whiteouts = Whiteouts.NONE

    def mounts(self, key: str) -> list[Mount]:
        return self._bind(*self._shelf.find(key))

    def view(self, stack: tuple[str, ...]) -> list[Mount]:
        return self._bind(self._shelf.find_committed(self.top(stack)), True)

    def _bind(self, folder: str, read_only: bool) -> list[Mount]:
        options = ("bind", "ro") if read_only else ("bind",)
        return [Mount("bind", str(self.home / folder / "fs"), options)]


class Stacked(Shelved):
    """See the module's text."""

    layered: ClassVar[bool] = True

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(home, settings)
        (home / "empty").mkdir(exist_ok=True)

    def prepare(self, key: str, parent: str | tuple[str, ...] | None) -> None:
        if isinstance(parent, str):
            folder = self._shelf.find_committed(parent)
            lower = [f"{folder}/fs", *self._lower(folder)]
        else:
            lower = self._stack(parent or ())
        self._check_depth(lower)
        with self._shelf.making(key) as place:
            own = place / "fs"
            own.mkdir(0o755)
            (place / "lower").write_text(":".join(lower))
            self._furnish(place)
            if lower:
                # The uppermost root directory is the one that is seen.
                _copy_directory_attributes(self.home / lower[0], own)

    def _check_depth(self, lower: list[str]) -> None:
        """Raise InvalidParameter for more layers than can be stacked."""

    def _furnish(self, place: Path) -> None:
        """Make what else belongs into the folder of a snapshot."""

    def _stack(self, keys: tuple[str, ...]) -> list[str]:
        """The own directories of committed snapshots, the uppermost first.

        No file system takes a directory twice. Of two equal layers the lower adds nothing that the
        upper does not also say, so it is left out.
        """
        return list(dict.fromkeys(f"{self._shelf.find_committed(key)}/fs" for key in keys[::-1]))

    def _lower(self, folder: str) -> list[str]:
        """What a snapshot was prepared on, the uppermost first."""
        recorded = (self.home / folder / "lower").read_text()
        return recorded.split(":") if recorded else []


def _copy_directory_attributes(source: Path, target: Path) -> None:
    """Give one directory the owner, mode, xattrs and times of another."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    source_fd = os.open(source, flags)
    try:
        target_fd = os.open(target, flags)
        try:
            tree.copy_attributes(source_fd, target_fd)
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)
