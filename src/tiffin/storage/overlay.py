"""overlay: the first overlay driver. A container lies on one lower directory, which its layers are
joined into by hard links.

For kernels whose overlayfs takes a single lower directory (3.18 to 3.19), and for those who have
it from Docker. overlay2 is better on every other: joining costs an inode for each directory of a
stack, and hard links, of which a file system allows a file only so many; and a file of an image
shows more links (``st_nlink``) than it has names there.

On disk, beside what overlay2 has (:mod:`tiffin.storage.overlay2`)::

    ROOT/storage/overlay/
        joined/HASH/fs     a stack of layers as one tree; HASH~ while it is being made
        joined/HASH/stack  the folders that it was made of, the uppermost first: d/ID/fs:d/ID/fs…

A joined tree is made when somebody first wants to see its stack, and goes with the first of its
layers.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from tiffin.errors import NotFound
from tiffin.storage import tree
from tiffin.storage.driver import Mount
from tiffin.storage.joining import join
from tiffin.storage.overlay2 import Overlay2


class Overlay(Overlay2):
    """See the module's text."""

    name: ClassVar[str] = "overlay"

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(home, settings)
        (home / "joined").mkdir(mode=0o700, exist_ok=True)
        self._joining = threading.Lock()

    def mounts(self, key: str) -> list[Mount]:
        folder, committed = self._shelf.find(key)
        lower = self._lower(folder)
        if committed:
            return self._bind(self._joined([f"{folder}/fs", *lower]))
        below = [self._joined(lower)] if lower else []
        return self._mount(below, (), f"upperdir={folder}/fs", f"workdir={folder}/work")

    def view(self, stack: tuple[str, ...]) -> list[Mount]:
        return self._bind(self._joined(self._stack(stack)) if stack else "empty")

    def remove(self, key: str) -> None:
        with suppress(NotFound):
            folder, committed = self._shelf.find(key)
            if committed:
                self._part(f"{folder}/fs")
        super().remove(key)

    def sweep(self) -> None:
        super().sweep()
        for name in os.listdir(self.home / "joined"):
            place = self.home / "joined" / name
            with suppress(FileNotFoundError):
                stack = (place / "stack").read_text().split(":")
                if not name.endswith("~") and all((self.home / one).is_dir() for one in stack):
                    continue
            with self._joining:
                tree.delete(place)

    def _bind(self, path: str) -> list[Mount]:
        return [Mount("bind", str(self.home / path), ("bind", "ro"))]

    def _joined(self, stack: list[str]) -> str:
        """The tree of a stack, the uppermost first; made by the first who wants it."""
        recorded = ":".join(stack)
        name = f"joined/{hashlib.sha256(recorded.encode()).hexdigest()[:32]}"
        place = self.home / name
        with self._joining:
            if not place.is_dir():
                fresh = self.home / f"{name}~"
                tree.delete(fresh)
                (fresh / "fs").mkdir(parents=True)
                try:
                    (fresh / "stack").write_text(recorded)
                    below = (self.home / one for one in reversed(stack))
                    join(below, fresh / "fs", self.whiteouts.opaque)
                    os.rename(fresh, place)
                except BaseException:
                    tree.delete(fresh)
                    raise
        return f"{name}/fs"

    def _part(self, own: str) -> None:
        """Remove the trees that a layer is in."""
        with self._joining:
            for name in os.listdir(self.home / "joined"):
                place = self.home / "joined" / name
                with suppress(FileNotFoundError):
                    if own not in (place / "stack").read_text().split(":"):
                        continue
                tree.delete(place)
