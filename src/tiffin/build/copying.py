"""COPY and ADD: which files are taken, and where in the image each goes.

Two steps. A :class:`tiffin.build.picking.Picker` finds the sources; that is what a step's cache
key is made of. ``Placement`` decides what is written, once it is known that the step must run:

- a directory's content is copied, not the directory itself; a file keeps its name if the
  destination ends in a slash or is a directory;
- a destination is resolved with the image's symlinks, inside the image; below it a symlink of the
  image is replaced by a file of the same name, but not by a directory;
- directories that are missing on the way are made with mode 0755 (``--chmod`` is for what is
  copied); the destination keeps what it has, and directories below it take what the source's have;
- files of the context belong to root, files of a stage keep their owner, ``--chown`` overrides
  both, also for the directories that are made;
- permissions and modification times are kept, but none is later than ``SOURCE_DATE_EPOCH``;
- ``--parents`` keeps the directories that a source is written with, from a ``/./`` on;
- what ``--exclude`` matches, inside a directory that is copied, is left out;
- ADD unpacks a local tar, compressed or not, into the destination, with the tar's owners:
  ``--chown`` is for the destination alone, as in BuildKit.

Source: the Dockerfile reference (COPY, ADD); where Docker's two builders differ, BuildKit.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

from tiffin.build.archive import read_up_to
from tiffin.build.ownership import Mode
from tiffin.build.picking import Pick, picked_files
from tiffin.build.tree import Source, Tree, changed_meanwhile, join, parent, resolve
from tiffin.errors import BuildFailure, CorruptArchive
from tiffin.layer.compression import decompressed
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.index import order_key
from tiffin.layer.tarreader import Member, TarReader
from tiffin.layer.writer import Content, LayerWriter, OpenFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_NEW_DIRECTORY = 0o755
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a COPY goes."""

    path: bytes
    """Inside the image, symlinks not yet followed."""
    is_directory: bool
    """Whether it was written as a directory."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What ``--chown``, ``--chmod`` and the build's date say; None leaves things as they are."""

    owner: tuple[int, int] | None = None
    mode: Mode | None = None
    latest: int | None = None
    """No file is newer than this (nanoseconds)."""


def destination(working_directory: str, text: str) -> Destination:
    """Where ``text`` leads, from the working directory."""
    is_directory = text.endswith(("/", "/.", "/..")) or text in (".", "..")
    path = text if text.startswith("/") else f"{working_directory}/{text}"
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return Destination(os.fsencode("/".join(parts)), is_directory)


class Placement:
    """What one COPY or ADD writes. Use once."""

    def __init__(self, image: Tree, writer: LayerWriter, attributes: Attributes) -> None:
        self._image = image
        self._writer = writer
        self._attributes = attributes
        self._new: dict[bytes, Entry] = {}
        """What is there by this COPY, written already or not."""
        self._planned: dict[bytes, tuple[Entry, Pick | None]] = {}
        """What is still to be written: the path, and the entry of the source."""
        self._made: set[bytes] = set()
        """Directories that the image does not have, so that nothing is in them but what is new."""
        self._kept: set[bytes] = set()
        """Directories of the image that something is put into."""
        self._newest = 0
        self._copied: list[tuple[Source, Entry, Entry]] = []
        """Each file of a source, with the entry as it was stored."""

    def entry(self, path: bytes) -> Entry | None:
        """What is at ``path`` with what is copied so far; as a Tree."""
        found = self._new.get(path)
        if found is None and parent(path) not in self._made:
            found = self._image.entry(path)
        return found

    def children(self, path: bytes) -> list[Entry]:
        """As a Tree: what the image has."""
        return self._image.children(path)

    def copy(self, picks: list[Pick], where: Destination) -> None:
        """Write everything. Raises BuildFailure where it does not fit into the image."""
        # What is made on the way is as old as the newest file that it is made for, so that the
        # same files give the same layer on another day.
        self._newest = max((entry.mtime_ns for entry in picked_files(picks)), default=0)
        target = resolve(self, where.path)
        for each in picks:
            self._plan_pick(each, target, where.is_directory)
        self._write_planned()

    def _plan_pick(self, pick: Pick, target: bytes, is_directory: bool) -> None:
        if pick.parents:
            self._plan_parents(target)
            is_directory = True
            for above in pick.parents:
                target = join(target, above.path.rpartition(b"/")[2])
                if target not in self._new:
                    self._plan(target, above, pick)
        if pick.entry.kind is Kind.DIRECTORY:
            if pick.parents and pick.name:
                target = join(target, pick.name)
                self._plan(target, pick.entry, pick)
            self._plan_parents(target)
            skip = len(pick.entry.path) + 1 if pick.entry.path else 0
            for entry in pick.below:
                self._plan(join(target, entry.path[skip:]), entry, pick)
        elif not (pick.unpack and self._unpack(pick, target)):
            here = self.entry(target)
            into = is_directory or (here is not None and here.kind is Kind.DIRECTORY)
            path = join(target, pick.name) if into else target
            self._plan_parents(parent(path))
            self._plan(path, pick.entry, pick)

    def verify(self) -> None:
        """Once the layer is finished: what was copied is what was found.

        The digests that were not known before are known then. Raises BuildFailure.
        """
        for source, origin, stored in self._copied:
            if not origin.digest:
                origin.digest = stored.digest
                source.learn(origin)
            elif origin.digest != stored.digest:
                raise changed_meanwhile(origin)

    def _plan_parents(self, path: bytes) -> None:
        """Make sure that ``path`` is a directory."""
        here = self.entry(path)
        if here is None:
            self._plan_parents(parent(path))
            self._made.add(path)
            made = Entry(path, Kind.DIRECTORY, _NEW_DIRECTORY, mtime_ns=self._newest)
            self._new[path] = made
            self._planned[path] = (made, None)
        elif here.kind is not Kind.DIRECTORY:
            raise BuildFailure(f"cannot copy to non-directory: /{os.fsdecode(path)}")

    def _plan(self, path: bytes, origin: Entry, pick: Pick) -> None:
        here = self.entry(path)
        if here is not None:
            if origin.kind is Kind.DIRECTORY:
                if here.kind is not Kind.DIRECTORY:
                    raise BuildFailure(f"cannot copy to non-directory: /{os.fsdecode(path)}")
            elif here.kind is Kind.DIRECTORY:
                raise BuildFailure(f"cannot replace to directory /{os.fsdecode(path)} with file")
        elif origin.kind is Kind.DIRECTORY:
            self._made.add(path)
        self._new[path] = origin
        self._planned[path] = (origin, pick)

    def _write_planned(self) -> None:
        """In the order of a layer's tar, so that it is hashed as it is written."""
        for path in list(self._planned):
            self._keep_above(path)
        for path in sorted(self._planned, key=order_key):
            origin, pick = self._planned[path]
            if pick is None or origin.kind is not Kind.FILE:
                self._writer.add(self._owned(path, origin, pick))
                continue
            if origin.digest and self._writer.link(self._owned(path, origin, pick)):
                continue
            with pick.source.opened(origin) as content:
                stored = self._writer.add(self._owned(path, origin, pick), content)
            self._copied.append((pick.source, origin, stored))
        self._planned.clear()

    def _keep_above(self, path: bytes) -> None:
        """Let the layer say what the directories above ``path`` are that the image has: they are
        then the same whatever storage driver the layer is written with."""
        while path := parent(path):
            if path in self._new or path in self._kept:
                return
            entry = self._image.entry(path)
            if entry is None or entry.kind is not Kind.DIRECTORY:
                return
            self._kept.add(path)
            self._planned[path] = (entry, None)

    def _owned(self, path: bytes, origin: Entry, pick: Pick | None) -> Entry:
        if path in self._kept:
            return origin
        uid, gid, mode, mtime = origin.uid, origin.gid, origin.mode, origin.mtime_ns
        attributes = self._attributes
        if attributes.owner is not None:
            uid, gid = attributes.owner
        elif pick is None or not pick.keep_owners:
            uid = gid = 0
        if attributes.mode is not None and pick is not None and origin.kind is not Kind.SYMLINK:
            mode = attributes.mode.of(mode, directory=origin.kind is Kind.DIRECTORY)
        if attributes.latest is not None and mtime > attributes.latest:
            mtime = attributes.latest
        # Not dataclasses.replace, which takes ten times as long.
        return Entry(
            path,
            origin.kind,
            mode,
            uid,
            gid,
            mtime,
            origin.size,
            origin.target,
            origin.device,
            origin.xattrs,
            origin.digest,
        )

    def _unpack(self, pick: Pick, target: bytes) -> bool:
        """Unpack a tar into ``target``; False if the file is none."""
        if pick.entry.kind is not Kind.FILE:
            return False
        with pick.source.opened(pick.entry) as content:
            stream = decompressed(_as_stream(content))
            beginning = read_up_to(stream, 512)
            if not _is_tar(beginning):
                return False
            self._plan_parents(target)
            self._keep_above(join(target, b"x"))
            self._write_planned()
            reader = TarReader(_Blocks(beginning, stream))
            while (member := reader.next()) is not None:
                self._unpack_member(member, reader, target)
                reader.raw.clear()
        return True

    def _unpack_member(self, member: Member, reader: TarReader, target: bytes) -> None:
        entry = member.entry
        name = _inside(entry.path)
        if not name and entry.kind is Kind.DIRECTORY:
            return  # the destination itself stays as it is
        if entry.kind is Kind.HARDLINK:
            entry.target = join(target, _inside(entry.target))
        entry.path = join(target, name)
        entry.digest = b""
        if self._attributes.latest is not None:
            entry.mtime_ns = min(entry.mtime_ns, self._attributes.latest)
        content = None
        if entry.kind is Kind.FILE:
            content = cast(BinaryIO, io.BufferedReader(_Content(member, reader), _BLOCK))
        self._keep_above(entry.path)
        for path in sorted(self._planned, key=order_key):
            self._writer.add(self._planned.pop(path)[0])
        self._writer.add(entry, content)
        self._new[entry.path] = entry


def _inside(path: bytes) -> bytes:
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise CorruptArchive(f"the archive's entry {os.fsdecode(path)!r} would leave its root")
    return b"/".join(parts)


def _as_stream(content: Content) -> BinaryIO:
    if isinstance(content, OpenFile):
        content = content.fd
    if isinstance(content, int):
        return cast(BinaryIO, open(content, "rb", closefd=False))
    if isinstance(content, bytes):
        return io.BytesIO(content)
    assert content is not None and not isinstance(content, os.PathLike)
    return content


def _is_tar(header: bytes) -> bool:
    """Whether a block is the header of a tar's first entry."""
    if len(header) < 512 or not header[0]:
        return False
    reader = TarReader(_Blocks(header, io.BytesIO()))
    try:
        return reader.next() is not None
    except CorruptArchive:
        # A header that is followed by more than this block can hold has a good checksum still.
        return bool(reader.raw)


class _Blocks:
    """A tar's stream in blocks, as TarReader wants it."""

    def __init__(self, beginning: bytes, stream: BinaryIO) -> None:
        self._beginning = beginning
        self._stream = stream

    def __call__(self) -> memoryview:
        beginning, self._beginning = self._beginning, b""
        return memoryview(beginning + read_up_to(self._stream, _BLOCK - len(beginning)))


class _Content(io.RawIOBase):
    """The content of a tar's member as a stream, with the holes of a sparse file filled."""

    def __init__(self, member: Member, reader: TarReader) -> None:
        self._parts = self._pieces(member, reader)
        self._current = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        if not self._current:
            self._current = next(self._parts, memoryview(b""))
        count = min(len(view), len(self._current))
        view[:count] = self._current[:count]
        self._current = self._current[count:]
        return count

    @staticmethod
    def _pieces(member: Member, reader: TarReader) -> Iterator[memoryview]:
        if member.stretches is None:
            yield from reader.content(member.length)
            return
        end = 0
        for offset, length in [*member.stretches, (member.entry.size, 0)]:
            hole = offset - end
            while hole:
                zeros = memoryview(bytes(min(hole, _BLOCK)))
                yield zeros
                hole -= len(zeros)
            yield from reader.content(length)
            end = offset + length
