"""The file index of a layer: what its tar holds, and what is needed to give that tar back.

The words:

*entry in effect*: a tar may name a path twice, replace a directory by a file, and delete what it
has just made. What is left when all of it has been applied, in order, is in effect.

*implied directory*: one that the tar has files in but no entry of. What it looks like comes from
the layers below, so the index says nothing of it but that it is there.

*piece*: the tar is a row of pieces, each some raw bytes (headers, padding) and then some content.
The raw bytes of all the pieces are kept together and compressed; contents are in the layer's own
directory, or in its *stash* where the layer itself has replaced or ignored them. An index without
pieces is *canonical*: the tar is exactly what :mod:`tiffin.layer.tarwriter` makes of the entries.

The file: eight bytes of magic with the version, the length of the packed part (four bytes, big
endian), the packed part (msgpack in zstd, with a checksum), the compressed raw bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import zstandard

from tiffin.errors import CorruptArchive, NotFound
from tiffin.layer.entry import Entry, Kind

_MAGIC = b"tfnidx\x00\x01"
_LEVEL = 3
_KINDS = {kind.value: kind for kind in Kind}

_Row = tuple[
    bytes,  # path
    str,  # kind
    int,  # mode
    int,  # uid
    int,  # gid
    int,  # mtime_ns
    int,  # size
    bytes,  # target
    int,  # major
    int,  # minor
    list[tuple[bytes, bytes]] | None,  # xattrs
    bytes,  # digest
]


class _Packed(msgspec.Struct, array_like=True):
    diff_id: str
    tar_size: int
    rows: list[_Row]
    pieces: list[int] | None


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


def order_key(path: bytes) -> bytes:
    """What paths are sorted by: component by component, so that a directory's contents follow it
    at once."""
    return path.replace(b"/", b"\0")


class _Effect:
    """The entries of a tar, applied in order."""

    def __init__(self, entries: list[Entry]) -> None:
        self.paths: dict[bytes, Entry] = {}
        self.implied: set[bytes] = set()
        self.opaque: set[bytes] = set()
        # Implied directories that take nothing from below: a whiteout of the layer's own says that
        # what was there is gone. (An opaque mark only hides what is inside.)
        self.fresh: set[bytes] = set()
        # The file (or symlink, or device) that a hard link is, decided when it is made.
        self.linked: dict[bytes, Entry] = {}
        self._children: dict[bytes, list[bytes]] | None = None
        paths = self.paths
        for entry in entries:
            path = entry.path
            parent = path.rpartition(b"/")[0]
            above = paths.get(parent)
            if (above is None or above.kind is not Kind.DIRECTORY) and parent:
                self._imply(parent)
            kind = entry.kind
            if kind is Kind.OPAQUE:
                self._imply(path)
                self.opaque.add(path)
                continue
            before = paths.get(path)
            if kind is Kind.WHITEOUT:
                if path in self.implied or (before and before.kind is Kind.DIRECTORY):
                    self.opaque.add(path)
                    self.fresh.add(path)
                elif before is None:
                    paths[path] = entry
                continue
            if kind is Kind.DIRECTORY:
                if before is not None and before.kind is not Kind.DIRECTORY:
                    self.opaque.add(path)
                    self.linked.pop(path, None)
                self.implied.discard(path)
            else:
                if (before and before.kind is Kind.DIRECTORY) or path in self.implied:
                    self._drop_below(path)
                self.linked.pop(path, None)
                if kind is Kind.HARDLINK:
                    real = self.linked.get(entry.target) or paths.get(entry.target)
                    if real is not None:
                        self.linked[path] = real
            paths[path] = entry

    def _imply(self, path: bytes) -> None:
        while path and path not in self.implied:
            found = self.paths.get(path)
            if found is not None:
                if found.kind is Kind.DIRECTORY:
                    return
                del self.paths[path]
                self.opaque.add(path)
                self.fresh.add(path)
            self.implied.add(path)
            path = path.rpartition(b"/")[0]

    def _drop_below(self, path: bytes) -> None:
        start = path + b"/"
        for below in [known for known in self.paths if known.startswith(start)]:
            del self.paths[below]
            self.linked.pop(below, None)
        self.implied = {known for known in self.implied if not known.startswith(start)} - {path}
        self.opaque = {known for known in self.opaque if not known.startswith(start)} - {path}

    def children(self, path: bytes) -> list[bytes]:
        if self._children is None:
            self._children = {}
            for known in self.paths.keys() | self.implied:
                if known:
                    self._children.setdefault(known.rpartition(b"/")[0], []).append(known)
        return sorted(self._children.get(path, ()))


@dataclass(slots=True)
class Index:
    """What a layer holds. Not changed once it is made; any number of threads may read it."""

    diff_id: str
    tar_size: int
    entries: list[Entry]
    """In the tar's order."""
    pieces: list[Piece] | None = None
    """How the tar is put together again; None for a canonical one."""
    raw: bytes = b""
    """The bytes between the contents, compressed with zstd."""
    _effect: _Effect | None = field(default=None, repr=False, compare=False)

    @property
    def canonical(self) -> bool:
        """Whether the tar is exactly what :mod:`tiffin.layer.tarwriter` makes of the entries."""
        return self.pieces is None

    def _applied(self) -> _Effect:
        if self._effect is None:
            self._effect = _Effect(self.entries)
        return self._effect

    @property
    def implied(self) -> set[bytes]:
        """The implied directories."""
        return self._applied().implied

    def fresh(self, path: bytes) -> bool:
        """Whether the implied directory ``path`` takes nothing from what lies below."""
        return path in self._applied().fresh

    @property
    def size(self) -> int:
        """Bytes that the layer's own files take: as ``storage.driver.Usage.size`` counts."""
        effect = self._applied()
        seen: set[int] = set()
        total = 0
        for path, entry in effect.paths.items():
            real = effect.linked.get(path, entry)
            if id(real) not in seen:
                seen.add(id(real))
                total += len(real.target) if real.kind is Kind.SYMLINK else real.size
        return total

    @property
    def inodes(self) -> int:
        """Files and directories of the layer, a hard-linked one once, without whiteouts."""
        effect = self._applied()
        return len(effect.implied) + len(
            {
                id(effect.linked.get(path, entry))
                for path, entry in effect.paths.items()
                if entry.kind is not Kind.WHITEOUT
            }
        )

    def get(self, path: bytes) -> Entry | None:
        """The entry in effect at ``path`` (the last one of the tar), or None."""
        return self._applied().paths.get(path)

    def content(self, path: bytes) -> Entry | None:
        """As :meth:`get`, with a hard link's entry made that of the file it is, at ``path``."""
        effect = self._applied()
        real = effect.linked.get(path)
        return effect.paths.get(path) if real is None else replace(real, path=path)

    def children(self, path: bytes) -> list[Entry]:
        """The entries in effect directly inside ``path``, sorted, whiteouts among them."""
        effect = self._applied()
        return [effect.paths[child] for child in effect.children(path) if child in effect.paths]

    def names(self, path: bytes) -> list[bytes]:
        """The paths directly inside ``path``, sorted: implied directories and whiteouts too."""
        return self._applied().children(path)

    def opaque(self, path: bytes) -> bool:
        """Whether the layer hides what lower layers have inside the directory ``path``."""
        return path in self._applied().opaque

    def effective(self) -> Iterator[Entry]:
        """Every entry in effect, sorted component by component; opaque marks come after their
        directory. Of a hard-linked file the first path is the file, the others link to it."""
        effect = self._applied()
        first: dict[int, bytes] = {}
        for path in sorted(effect.paths.keys() | effect.opaque, key=order_key):
            entry = effect.paths.get(path)
            if entry is not None:
                real = effect.linked.get(path, entry)
                known = first.setdefault(id(real), path)
                if known != path:
                    yield replace(
                        real,
                        path=path,
                        kind=Kind.HARDLINK,
                        target=known,
                        size=0,
                        device=(0, 0),
                        xattrs=None,
                        digest=b"",
                    )
                elif real.path != path:
                    yield replace(real, path=path)
                else:
                    yield real
            if path in effect.opaque:
                yield Entry(path, Kind.OPAQUE)

    def save(self, path: Path) -> None:
        """Write the index file, synced to disk (the caller renames)."""
        rows: list[_Row] = [
            (
                entry.path,
                entry.kind.value,
                entry.mode,
                entry.uid,
                entry.gid,
                entry.mtime_ns,
                entry.size,
                entry.target,
                entry.device[0],
                entry.device[1],
                [(os.fsencode(key), value) for key, value in entry.xattrs.items()]
                if entry.xattrs
                else None,
                entry.digest,
            )
            for entry in self.entries
        ]
        flat = (
            None if self.pieces is None else [number for piece in self.pieces for number in piece]
        )
        packed = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(
            msgspec.msgpack.encode(_Packed(self.diff_id, self.tar_size, rows, flat))
        )
        with path.open("wb") as file:
            file.write(_MAGIC + len(packed).to_bytes(4, "big"))
            file.write(packed)
            file.write(self.raw)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, path: Path) -> Index:
        """Read an index file. Raises NotFound, CorruptArchive."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise NotFound(f"the layer's index {path} is missing") from None
        end = 12 + int.from_bytes(data[8:12], "big")
        if data[:8] != _MAGIC or len(data) < end:
            raise CorruptArchive(f"{path} is not a layer's index, or of another version of tiffin")
        try:
            packed = msgspec.msgpack.decode(
                zstandard.ZstdDecompressor().decompress(data[12:end]), type=_Packed
            )
        except (zstandard.ZstdError, msgspec.MsgspecError) as error:
            raise CorruptArchive(f"the layer's index {path} is damaged: {error}") from error
        entries = [
            Entry(
                row[0],
                _KINDS[row[1]],
                row[2],
                row[3],
                row[4],
                row[5],
                row[6],
                row[7],
                (row[8], row[9]),
                {os.fsdecode(key): value for key, value in row[10]} if row[10] else None,
                row[11],
            )
            for row in packed.rows
        ]
        flat = packed.pieces
        pieces = None
        if flat is not None:
            fields = iter(flat)
            pieces = [Piece(*four) for four in zip(fields, fields, fields, fields, strict=True)]
        return cls(packed.diff_id, packed.tar_size, entries, pieces, data[end:])
