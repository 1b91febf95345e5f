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
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from tiffin.storage import tree
from tiffin.storage.driver import Support
from tiffin.storage.filesystem import file_system_name
from tiffin.storage.shelved import WholeTrees


class Vfs(WholeTrees):
    """See the module's text."""

    name: ClassVar[str] = "vfs"

    @classmethod
    def probe(cls, home: Path, settings: Mapping[str, str] | None = None) -> Support:
        home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="probe", dir=home.parent) as name:
            reflinks = tree.can_reflink(Path(name))
        backing = file_system_name(home.parent)
        features = (
            ("Backing Filesystem", backing),
            ("Native Diff", "false"),
            ("Quota", "false"),
            ("Reflinks", "true" if reflinks else "false"),
            ("Using metacopy", "false"),
        )
        how = "contents are shared by reflinks" if reflinks else "each layer is a full copy"
        return Support(True, f"works everywhere; on {backing} {how}", features)

    def prepare(self, key: str, parent: str | tuple[str, ...] | None) -> None:
        below = None if parent is None else self._shelf.find_committed(self.single(parent))
        with self._shelf.making(key) as folder:
            own = folder / "fs"
            own.mkdir(0o755)
            if below is not None:
                tree.copy(self.home / below / "fs", own)
