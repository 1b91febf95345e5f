"""The merged view of a stack of layers, from their indexes, without mounting anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tiffin.layer.entry import Entry
from tiffin.layer.index import Index
from tiffin.storage.driver import Whiteouts


class Lower(Protocol):
    """What lies below a layer. Paths are as ``Entry.path``."""

    def entry(self, path: bytes) -> Entry | None:
        """What is at ``path``, following no symlink at its end or on the way; hard links are
        given as the file that they are. The root is always a directory."""

    def children(self, path: bytes) -> list[Entry]:
        """What is inside the directory ``path``, sorted."""

    def open(self, path: bytes) -> int:
        """A new descriptor for reading the file at ``path``. Raises NotFound."""


@dataclass(frozen=True, slots=True)
class StackedLayer:
    """One layer of a stack."""

    index: Index
    directory: Path
    whiteouts: Whiteouts


class StackLower:
    """A :class:`Lower` of layers, the lowest first."""

    def __init__(self, layers: Sequence[StackedLayer]) -> None:
        raise NotImplementedError

    def entry(self, path: bytes) -> Entry | None:
        """As :meth:`Lower.entry`."""
        raise NotImplementedError

    def children(self, path: bytes) -> list[Entry]:
        """As :meth:`Lower.children`."""
        raise NotImplementedError

    def open(self, path: bytes) -> int:
        """As :meth:`Lower.open`."""
        raise NotImplementedError

    def resolve(self, path: bytes, *, follow: bool = True) -> Entry | None:
        """What ``path`` leads to when symlinks on the way (and at the end, with ``follow``) are
        followed inside the root. ``path`` may be absolute and hold ``..``. None where there is
        nothing. Raises InvalidParameter for a loop of symlinks."""
        raise NotImplementedError

    def read(self, path: bytes, limit: int = 16 << 20) -> bytes | None:
        """The content of the file that ``path`` leads to, or None where there is no file."""
        raise NotImplementedError
