"""The file index of a layer: what its tar holds, and what is needed to give that tar back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tiffin.layer.entry import Entry


class Piece(NamedTuple):
    """A stretch of a tar: bytes of the index's own, then bytes of a file."""

    header: int
    """How many of the index's raw bytes come first."""
    length: int
    """How many bytes of content follow them."""
    entry: int
    """Which of the entries the content is of; -1 for the stash."""
    offset: int
    """Where the content starts, in the file or in the stash."""


@dataclass(slots=True)
class Index:
    """What a layer holds."""

    diff_id: str
    tar_size: int
    entries: list[Entry]
    """In the tar's order."""
    implied: list[bytes] = field(default_factory=list)
    """Directories that the tar has files in but no entry of."""
    pieces: list[Piece] | None = None
    """How the tar is put together again; None for a canonical one."""
    raw: bytes = b""
    """The bytes between the contents, compressed with zstd."""

    @property
    def canonical(self) -> bool:
        """Whether the tar is exactly what :mod:`tiffin.layer.tarwriter` makes of the entries."""
        return self.pieces is None

    @property
    def size(self) -> int:
        """Bytes that the layer's own files take: as ``storage.driver.Usage.size`` counts."""
        raise NotImplementedError

    @property
    def inodes(self) -> int:
        """Files and directories that the layer's own directory holds."""
        raise NotImplementedError

    def get(self, path: bytes) -> Entry | None:
        """The entry in effect at ``path`` (the last one of the tar), or None."""
        raise NotImplementedError

    def children(self, path: bytes) -> list[Entry]:
        """The entries in effect directly inside ``path``, sorted, whiteouts among them."""
        raise NotImplementedError

    def opaque(self, path: bytes) -> bool:
        """Whether the layer hides what lower layers have inside the directory ``path``."""
        raise NotImplementedError

    def effective(self) -> Iterator[Entry]:
        """Every entry in effect, sorted by path; opaque marks after their directory."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write the index file, synced to disk (the caller renames)."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: Path) -> Index:
        """Read an index file. Raises NotFound, CorruptArchive."""
        raise NotImplementedError
