"""A layer's tar becomes files in a snapshot's own directory, and an index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tiffin.layer.index import Index
from tiffin.layer.lower import Lower
from tiffin.storage.driver import Whiteouts


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What unpacking gives."""

    index: Index
    needs_lower: bool
    """Whether the result depended on what lies below: it may then not be used under another
    stack, and neither may the index."""


def unpack(
    tar: BinaryIO,
    directory: Path,
    whiteouts: Whiteouts,
    *,
    lower: Lower | None = None,
    expect_diff_id: str | None = None,
    stash: Path,
) -> Unpacked:
    """Unpack the plain ``tar`` into ``directory``.

    ``stash`` is written only if the layer needs it. Raises CorruptArchive, DigestMismatch,
    StorageFull; ``directory`` and ``stash`` are then the caller's to remove.
    """
    raise NotImplementedError
