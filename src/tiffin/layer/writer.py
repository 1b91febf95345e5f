"""Making a layer out of single entries."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from tiffin.layer.entry import Entry
from tiffin.layer.index import Index
from tiffin.layer.lower import Lower
from tiffin.storage.driver import Whiteouts

Content = bytes | BinaryIO | int | Path | None
"""A file's bytes, something to read them from, a descriptor, or the path of a host's file."""


class LayerWriter:
    """Puts entries into a snapshot's own directory and makes the layer's index as it goes."""

    def __init__(self, directory: Path, whiteouts: Whiteouts, lower: Lower | None = None) -> None:
        raise NotImplementedError

    def add(self, entry: Entry, content: Content = None) -> Entry:
        """Put one entry in; gives back the entry as stored (path resolved, size, digest)."""
        raise NotImplementedError

    def finish(self) -> Index:
        """The layer's index. The writer is used up."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of everything; for a writer that is given up, and harmless after finish."""
        raise NotImplementedError
