"""What a container changed: ``docker diff``.

A path is *added* (not below), *changed* (below too, and different; or a directory in which
something changed) or *deleted* (below, and not there any more). Deletion of a directory is one
line; each path of a new directory has its own. What was copied up and not changed after all is no
change. The root is never listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tiffin.layer.entry import Entry, Kind
from tiffin.layer.lower import Lower


class Change(NamedTuple):
    """One line of ``docker diff``."""

    kind: str
    """``A`` added, ``C`` changed, ``D`` deleted."""
    path: bytes
    """As ``Entry.path``."""


def changes(layers: Sequence[Iterable[Entry]], lower: Lower | None) -> list[Change]:
    """How the layers (the lowest first) differ from ``lower``, sorted by path.

    Each layer is given by its entries: ``Index.effective()`` or ``capture.own_entries(...)``.
    """
    upper = _Upper()
    for layer in layers:
        upper.apply(layer)
    kinds: dict[bytes, str] = {}
    for path, entry in upper.entries.items():
        old = lower.entry(path) if lower is not None and path else None
        if entry.kind is Kind.WHITEOUT:
            if old is not None:
                kinds[path] = "D"
        elif old is None:
            if path:
                kinds[path] = "A"
        elif _differs(upper.real(entry), old):
            kinds[path] = "C"
        if (
            lower is not None
            and entry.kind is Kind.DIRECTORY
            and (old is None or old.kind is Kind.DIRECTORY)
            and upper.hides(path)
        ):
            for below in lower.children(path):
                if below.path not in upper.entries:
                    kinds[below.path] = "D"
    for path in list(kinds):
        parent = path.rpartition(b"/")[0]
        while parent and parent not in kinds:
            known = lower is not None and lower.entry(parent) is not None
            kinds[parent] = "C" if known else "A"
            parent = parent.rpartition(b"/")[0]
    return [Change(kinds[path], path) for path in sorted(kinds)]


class _Upper:
    """Layers, one applied over the other; whiteouts and opaque marks are kept."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        self._opaque: set[bytes] = set()
        self._linked: dict[bytes, Entry] = {}

    def apply(self, layer: Iterable[Entry]) -> None:
        for entry in layer:
            path = entry.path
            before = self.entries.get(path)
            if entry.kind is Kind.OPAQUE:
                self._drop_below(path)
                self._opaque.add(path)
                continue
            if entry.kind is not Kind.DIRECTORY:
                if before is not None and before.kind is Kind.DIRECTORY:
                    self._drop_below(path)
                self._opaque.discard(path)
            elif before is not None and before.kind is not Kind.DIRECTORY:
                self._opaque.add(path)
            if entry.kind is Kind.HARDLINK:
                target = self.entries.get(entry.target)
                if target is not None:
                    self._linked[path] = self._linked.get(entry.target, target)
            else:
                self._linked.pop(path, None)
            self.entries[path] = entry

    def _drop_below(self, path: bytes) -> None:
        start = path + b"/" if path else b""
        self.entries = {
            known: entry
            for known, entry in self.entries.items()
            if known == path or not known.startswith(start)
        }
        self._opaque = {known for known in self._opaque if not known.startswith(start)}

    def real(self, entry: Entry) -> Entry:
        return self._linked.get(entry.path, entry)

    def hides(self, path: bytes) -> bool:
        """Whether nothing of the stack below shows inside the directory."""
        if not self._opaque:
            return False
        while path not in self._opaque:
            if not path:
                return False
            path = path.rpartition(b"/")[0]
        return True


def _differs(new: Entry, old: Entry) -> bool:
    if new.kind is not old.kind:
        return True
    mine = (new.mode, new.uid, new.gid, new.size, new.target, new.device, new.xattrs or None)
    other = (old.mode, old.uid, old.gid, old.size, old.target, old.device, old.xattrs or None)
    return mine != other or (new.kind is not Kind.DIRECTORY and new.mtime_ns != old.mtime_ns)
