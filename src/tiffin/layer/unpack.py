"""A layer's tar becomes files in a snapshot's own directory, and an index.

One pass: the stream is hashed as it is read, files are written and hashed, and every byte that is
not content is kept for the index. Content that has no file of its own in the end (a path that
comes twice, a directory that becomes a file, what old AUFS layers keep under ``.wh..wh.``) goes
into the stash, so that the tar can be given back.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import zstandard

from tiffin.errors import CorruptArchive, DigestMismatch, TiffinError
from tiffin.layer import tarwriter
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.failure import explain
from tiffin.layer.folders import clean_path
from tiffin.layer.index import Index, Piece
from tiffin.layer.lower import Lower
from tiffin.layer.pipeline import INLINE, Incoming, write_all
from tiffin.layer.tarreader import Member, TarReader
from tiffin.layer.tree import OwnDirectory
from tiffin.storage.driver import Whiteouts

_RAW_LEVEL = 1
_RAW_BATCH = 1 << 20
_ZEROS = bytes(1 << 20)
_PLAIN_TRAILER = 1 << 16
"""A trailer longer than this goes into the stash."""
_PREFIX = tarwriter.WHITEOUT_PREFIX
_META = tarwriter.WHITEOUT_META_PREFIX
_sha256 = hashlib.sha256


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
    with Incoming(tar) as stream, _Unpacking(stream, directory, whiteouts, lower, stash) as work:
        index = work.run()
    if expect_diff_id is not None and index.diff_id != expect_diff_id:
        raise DigestMismatch(
            f"the layer's digest is {index.diff_id}, and {expect_diff_id} was expected"
        )
    return Unpacked(index, work.tree.needs_lower)


class _Unpacking:
    def __init__(
        self,
        stream: Incoming,
        directory: Path,
        whiteouts: Whiteouts,
        lower: Lower | None,
        stash: Path,
    ) -> None:
        self._stream = stream
        self._reader = TarReader(stream.next_block)
        self.tree = OwnDirectory(directory, whiteouts, lower, self._rescue)
        self._private = whiteouts.private
        self._stash_path = stash
        self._stash: int | None = None
        self._stash_size = 0
        self._entries: list[Entry] = []
        self._pieces: list[Piece] = []
        # Where the pieces of the file at a path start: their first number, and how many.
        self._placed: dict[bytes, tuple[int, int]] = {}
        self._mark = 0
        self._compressor = zstandard.ZstdCompressor(level=_RAW_LEVEL).compressobj()
        self._packed: list[bytes] = []
        self._canonical = True
        self._canonical_at = 0
        self._padding = 0
        # Content of AUFS's hard link folder, by name: where in the stash, and the entry.
        self._links: dict[bytes, tuple[int, Entry]] = {}

    def __enter__(self) -> _Unpacking:
        return self

    def __exit__(self, *exc: object) -> None:
        self.tree.__exit__()
        if self._stash is not None:
            os.close(self._stash)
            self._stash = None

    def run(self) -> Index:
        reader = self._reader
        path = b""
        try:
            while (member := reader.next()) is not None:
                path = member.entry.path
                self._member(member)
            path = b""
            self._trailer()
            self.tree.finish()
        except OSError as error:
            raise explain(error, path) from error
        except TiffinError:
            raise
        diff_id = self._stream.finish()
        if self._canonical:
            return Index(diff_id, self._stream.length, self._entries)
        self._pack(everything=True)
        raw = b"".join(self._packed)
        return Index(diff_id, self._stream.length, self._entries, self._pieces, raw)

    # Raw bytes

    def _piece(self, length: int, entry: int, offset: int) -> None:
        """Content follows what the reader has kept since the piece before."""
        end = len(self._reader.raw)
        self._pieces.append(Piece(end - self._mark, length, entry, offset))
        self._mark = end
        if end > _RAW_BATCH:
            self._pack()

    def _flush(self) -> None:
        if len(self._reader.raw) > _RAW_BATCH:
            self._piece(0, -1, 0)

    def _pack(self, everything: bool = False) -> None:
        raw = self._reader.raw
        if everything and len(raw) > self._mark:
            self._pieces.append(Piece(len(raw) - self._mark, 0, -1, 0))
            self._mark = len(raw)
        self._packed.append(self._compressor.compress(raw[: self._mark]))
        del raw[: self._mark]
        self._canonical_at -= self._mark
        self._mark = 0
        if everything:
            self._packed.append(self._compressor.flush())

    def _compare(self, entry: Entry | None) -> None:
        """Whether what was kept since the last time is what the canonical writer would write."""
        raw = self._reader.raw
        wanted = tarwriter.TRAILER if entry is None else tarwriter.header(entry)
        if raw[self._canonical_at :] != bytes(self._padding) + wanted:
            self._canonical = False
        self._canonical_at = len(raw)
        self._padding = 0

    # Members

    def _member(self, member: Member) -> None:
        entry = member.entry
        name = entry.path
        if name[:1] in b"./" or b"/." in name or b"//" in name or len(name) > 250:
            entry.path = clean_path(name)
        elif name[-1:] == b"/":
            entry.path = name[:-1]
        if entry.kind is Kind.HARDLINK:
            entry.target = clean_path(entry.target)
        if entry.xattrs:
            entry.xattrs = {
                key: value
                for key, value in entry.xattrs.items()
                if not key.startswith(self._private)
            } or None
        if _PREFIX in entry.path and self._marked(member):
            return
        if not entry.path and entry.kind is not Kind.DIRECTORY:
            raise CorruptArchive(f"the entry {os.fsdecode(name)!r} is the root and no directory")
        kind = entry.kind
        if kind is Kind.FILE:
            self._file(member)
            return
        if kind is Kind.DIRECTORY:
            entry = self.tree.directory(entry)
        elif kind is Kind.HARDLINK:
            entry = self._hardlink(entry)
        else:
            entry = self.tree.other(entry)
        self._keep(entry)
        if member.length:
            self._stash_content(member.length)

    def _keep(self, entry: Entry) -> None:
        self._entries.append(entry)
        if self._canonical:
            self._compare(entry)
        self._flush()

    def _file(self, member: Member) -> None:
        entry = member.entry
        tree = self.tree
        folder, name, path = tree.place(entry.path)
        if path != entry.path:
            entry.path = path
            self._canonical = False
        fd = tree.create(folder, name, entry)
        try:
            number = len(self._entries)
            first = len(self._pieces)
            self._entries.append(entry)
            if self._canonical:
                self._compare(entry)
                self._padding = -entry.size % 512
            if member.stretches is not None:
                self._sparse(fd, entry, member.stretches, number)
            else:
                length = member.length
                if length:
                    self._piece(length, number, 0)
                whole = self._reader.whole(length)
                if whole is not None:
                    if length:
                        written = os.write(fd, whole)
                        if written != length:
                            write_all(fd, whole[written:])
                    if length <= INLINE:
                        entry.digest = _sha256(whole).digest()
                    else:
                        self._stream.jobs.append((None, whole, entry))
                else:
                    self._large(fd, entry, length)
            if len(self._pieces) > first:
                self._placed[path] = (first, len(self._pieces) - first)
            tree.complete(fd, folder, entry)
        finally:
            os.close(fd)

    def _large(self, fd: int, entry: Entry, length: int) -> None:
        running = _sha256()
        for part in self._reader.content(length):
            # Before the next block is asked for, since that ends the use of this one.
            length -= len(part)
            self._stream.jobs.append((running, part, None if length else entry))
            write_all(fd, part)

    def _sparse(self, fd: int, entry: Entry, stretches: list[tuple[int, int]], number: int) -> None:
        self._canonical = False
        running = _sha256()
        at = 0
        for offset, length in stretches:
            _hash_zeros(running, offset - at)
            self._piece(length, number, offset)
            at = offset
            for part in self._reader.content(length):
                os.lseek(fd, at, os.SEEK_SET)
                write_all(fd, part)
                running.update(part)
                at += len(part)
        os.ftruncate(fd, entry.size)
        _hash_zeros(running, entry.size - at)
        entry.digest = running.digest()

    def _hardlink(self, entry: Entry) -> Entry:
        known = self._links.get(entry.target)
        if known is None:
            linked = self.tree.hardlink(entry)
            if linked.kind is not Kind.HARDLINK or linked.target != entry.target:
                self._canonical = False
            return linked
        offset, source = known
        folder, name, path = self.tree.place(entry.path)
        made = replace(source, path=path)
        fd = self.tree.create(folder, name, made)
        try:
            assert self._stash is not None
            _copy_range(self._stash, offset, fd, made.size)
            self.tree.complete(fd, folder, made)
        finally:
            os.close(fd)
        return made

    def _marked(self, member: Member) -> bool:
        """Deal with names that are marks; False for a name that only looks like one."""
        entry = member.entry
        path = entry.path
        *parents, last = path.split(b"/")
        for position, part in enumerate([*parents, last]):
            if part.startswith(_META) and (
                part != tarwriter.OPAQUE_NAME or position < len(parents)
            ):
                self._ignored(member)
                return True
        if any(part.startswith(_PREFIX) for part in parents):
            raise CorruptArchive(f"the entry {os.fsdecode(path)!r} lies inside a whiteout")
        if not last.startswith(_PREFIX):
            return False
        parent = b"/".join(parents)
        if last == tarwriter.OPAQUE_NAME:
            mark = Entry(self.tree.opaque(parent), Kind.OPAQUE)
        else:
            hidden = last[len(_PREFIX) :]
            if hidden in (b"", b".", b".."):
                raise CorruptArchive(f"the whiteout {os.fsdecode(path)!r} names no file")
            where = self.tree.whiteout(parent + b"/" + hidden if parent else hidden)
            mark = Entry(where, Kind.WHITEOUT)
        self._keep(mark)
        if member.length:
            self._stash_content(member.length)
        return True

    def _ignored(self, member: Member) -> None:
        """AUFS's own files: its hard link folder is the only one that others refer to."""
        self._canonical = False
        entry = member.entry
        start = self._stash_size
        if member.stretches is not None:
            raise CorruptArchive(f"the entry {os.fsdecode(entry.path)!r} is sparse")
        digest = self._stash_content(member.length)
        if entry.kind is Kind.FILE:
            self._links[entry.path] = (start, replace(entry, digest=digest))

    # The stash

    def _open_stash(self) -> int:
        if self._stash is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            self._stash = os.open(self._stash_path, flags, 0o600)
        return self._stash

    def _stash_content(self, length: int) -> bytes:
        """Put the member's content there; gives its digest."""
        self._canonical = False
        running = _sha256()
        stash = self._open_stash()
        if length:
            self._piece(length, -1, self._stash_size)
        for part in self._reader.content(length):
            write_all(stash, part)
            running.update(part)
        self._stash_size += length
        return running.digest()

    def _rescue(self, path: bytes) -> None:
        """The file at ``path`` is about to go: what the tar needs of it goes into the stash."""
        self._canonical = False
        first, count = self._placed.pop(path, (0, 0))
        if not count:
            return
        source = self.tree.open(path)
        try:
            stash = self._open_stash()
            for number in range(first, first + count):
                piece = self._pieces[number]
                _copy_range(source, piece.offset, stash, piece.length)
                self._pieces[number] = piece._replace(entry=-1, offset=self._stash_size)
                self._stash_size += piece.length
        finally:
            os.close(source)

    def _trailer(self) -> None:
        raw = self._reader.raw
        kept = 0
        for part in self._reader.trailer():
            kept += len(part)
            if kept <= _PLAIN_TRAILER or bytes(part).count(0) == len(part):
                raw += part
                self._flush()
            else:
                self._canonical = False
                self._piece(len(part), -1, self._stash_size)
                write_all(self._open_stash(), part)
                self._stash_size += len(part)
        if self._canonical:
            self._compare(None)


def _hash_zeros(running: hashlib._Hash, length: int) -> None:
    while length > 0:
        running.update(_ZEROS[:length])
        length -= len(_ZEROS)


def _copy_range(source: int, offset: int, target: int, length: int) -> None:
    while length:
        data = os.pread(source, min(length, 1 << 20), offset)
        if not data:
            raise CorruptArchive("a file became shorter while it was read")
        write_all(target, data)
        offset += len(data)
        length -= len(data)
