"""A directory becomes a layer's index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tiffin.layer.entry import Entry
from tiffin.layer.index import Index
from tiffin.storage.driver import Whiteouts


def own_entries(
    directory: Path, whiteouts: Whiteouts, *, lower_tree: Path | None = None
) -> Iterator[Entry]:
    """What an own directory changes, without digests: sorted by path; opaque marks come after
    their directory. For ``Whiteouts.NONE`` the difference to the tree ``lower_tree``."""
    raise NotImplementedError


def capture(directory: Path, whiteouts: Whiteouts, *, lower_tree: Path | None = None) -> Index:
    """The index of the layer that ``directory`` holds, with the digest of its canonical tar."""
    raise NotImplementedError
