"""The merged view of a stack of layers, from their indexes, without mounting anything."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tiffin.errors import InvalidParameter, NotFound
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.index import Index
from tiffin.linux import syscalls

_MAX_LINKS = 40


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
    own_directory: Callable[[], AbstractContextManager[Path]]
    """As the storage driver's, of its snapshot."""


class StackLower:
    """A :class:`Lower` of layers, the lowest first. Any number of threads may use it."""

    def __init__(self, layers: Sequence[StackedLayer]) -> None:
        self._layers = tuple(reversed(layers))

    def _find(self, path: bytes) -> tuple[Entry | None, StackedLayer | None]:
        """The entry at ``path``, and the layer that it is from."""
        above = [path[:at] for at in range(1, len(path)) if path[at : at + 1] == b"/"]
        implied: tuple[Entry | None, StackedLayer | None] = (None, None)
        for layer in self._layers:
            index = layer.index
            entry = index.content(path)
            if entry is not None:
                hidden = entry.kind is Kind.WHITEOUT
                if hidden or (implied[0] is not None and entry.kind is not Kind.DIRECTORY):
                    return implied
                return entry, layer
            if path in index.implied:
                if implied[0] is None:
                    implied = (Entry(path, Kind.DIRECTORY, 0o755), layer)
                if index.fresh(path):
                    break
            if any(self._ends(index, parent) for parent in above) or (path and index.opaque(b"")):
                break
        if implied[0] is None and not path:
            return Entry(b"", Kind.DIRECTORY, 0o755), None
        return implied

    @staticmethod
    def _ends(index: Index, parent: bytes) -> bool:
        """Whether the layer hides everything that lower layers have inside ``parent``."""
        entry = index.get(parent)
        if entry is not None and entry.kind is not Kind.DIRECTORY:
            return True
        return index.opaque(parent)

    def entry(self, path: bytes) -> Entry | None:
        """As :meth:`Lower.entry`."""
        return self._find(path)[0]

    def children(self, path: bytes) -> list[Entry]:
        """As :meth:`Lower.children`."""
        found = self.entry(path)
        if found is None or found.kind is not Kind.DIRECTORY:
            return []
        names = {name for layer in self._layers for name in layer.index.names(path)}
        entries = (self.entry(name) for name in sorted(names))
        return [entry for entry in entries if entry is not None]

    def open(self, path: bytes) -> int:
        """As :meth:`Lower.open`."""
        entry, layer = self._find(path)
        if entry is None or layer is None or entry.kind is not Kind.FILE:
            raise NotFound(f"there is no file {os.fsdecode(path)!r} in the image")
        with layer.own_directory() as own:
            directory = os.open(own, os.O_PATH | os.O_DIRECTORY)
            try:
                return syscalls.openat2(
                    directory,
                    path,
                    os.O_RDONLY | os.O_NOFOLLOW,
                    resolve=syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS,
                )
            except FileNotFoundError:
                raise NotFound(
                    f"the file {os.fsdecode(path)!r} of layer {layer.index.diff_id} is missing "
                    f"under {own}"
                ) from None
            finally:
                os.close(directory)

    def resolve(self, path: bytes, *, follow: bool = True) -> Entry | None:
        """What ``path`` leads to when symlinks on the way (and at the end, with ``follow``) are
        followed inside the root. ``path`` may be absolute and hold ``..``. None where there is
        nothing. Raises InvalidParameter for a loop of symlinks."""
        rest = path.split(b"/")[::-1]
        here = self.entry(b"")
        links = 0
        while rest:
            name = rest.pop()
            if here is None or here.kind is not Kind.DIRECTORY:
                return None
            if not name or name == b".":
                continue
            if name == b"..":
                here = self.entry(here.path.rpartition(b"/")[0])
                continue
            step = self.entry(here.path + b"/" + name if here.path else name)
            if step is not None and step.kind is Kind.SYMLINK and (follow or any(rest)):
                links += 1
                if links > _MAX_LINKS:
                    name_of = os.fsdecode(path)
                    raise InvalidParameter(f"too many levels of symbolic links: {name_of!r}")
                rest.extend(reversed(step.target.split(b"/")))
                if step.target.startswith(b"/"):
                    here = self.entry(b"")
                continue
            here = step
        return here

    def read(self, path: bytes, limit: int = 16 << 20) -> bytes | None:
        """The content of the file that ``path`` leads to, or None where there is no file. Raises
        InvalidParameter where it is longer than ``limit``."""
        entry = self.resolve(path)
        if entry is None or entry.kind is not Kind.FILE:
            return None
        if entry.size > limit:
            raise InvalidParameter(f"the file {os.fsdecode(path)!r} of the image is too large")
        with os.fdopen(self.open(entry.path), "rb") as file:
            return file.read()
