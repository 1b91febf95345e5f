"""A build context out of a tar stream: an index in memory, the contents in one unnamed file.

The stream is read once. Each file's content goes to the *spool* (memory while it is small, then a
temporary file without a name, which is gone when the process is) and its digest is taken on the
way, so nothing is unpacked and nothing is read twice. Names are cleaned as for a layer, but an
entry that would leave the context is refused: a context has no reason for one.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from tiffin.build.tree import join, parent, resolve
from tiffin.errors import CorruptArchive
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.tarreader import Member, TarReader
from tiffin.layer.writer import Content

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_BLOCK = 1 << 20
_IN_MEMORY = 16 << 20
_WHOLE = 1 << 20
"""Contents up to this are handed over as bytes."""


class Spool:
    """Bytes that are appended once and read many times."""

    def __init__(self, folder: Path | None) -> None:
        """``folder`` is where the temporary file goes when memory won't do."""
        self._folder = folder
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self.length = 0

    def append(self, data: ReadableBuffer) -> None:
        """Put more bytes at the end."""
        view = memoryview(data)
        self.length += len(view)
        if self._file is None and self.length <= _IN_MEMORY:
            self._memory += view
            return
        if self._file is None:
            # Closed by close(): it has no name, so it ends with the process at the latest.
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
            view = memoryview(bytes(self._memory) + bytes(view))
            self._memory = bytearray()
        while view:
            view = view[self._file.write(view) :]

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from anywhere; fewer only at the very end."""
        if self._file is None:
            return bytes(self._memory[offset : offset + length])
        parts: list[bytes] = []
        while length:
            part = os.pread(self._file.fileno(), min(length, _BLOCK), offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Give the space back."""
        if self._file is not None:
            self._file.close()
        self._memory = bytearray()


class _Slice(io.RawIOBase):
    """A stretch of the spool, to be read once."""

    def __init__(self, spool: Spool, offset: int, length: int) -> None:
        self._spool = spool
        self._offset = offset
        self._left = length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self._spool.read(self._offset, min(len(view), self._left))
        view[: len(data)] = data
        self._offset += len(data)
        self._left -= len(data)
        return len(data)


class ArchiveSource:
    """The files of a tar."""

    def __init__(self, folder: Path | None) -> None:
        self._entries: dict[bytes, Entry] = {b"": Entry(b"", Kind.DIRECTORY, 0o755)}
        self._offsets: dict[bytes, int] = {}
        self._children: dict[bytes, list[Entry]] | None = None
        self._spool = Spool(folder)

    def close(self) -> None:
        self._spool.close()

    def read_tar(self, stream: BinaryIO) -> None:
        """Take in a plain tar. Raises CorruptArchive."""
        reader = TarReader(lambda: memoryview(read_up_to(stream, _BLOCK)))
        while (member := reader.next()) is not None:
            self._add(member, reader)
            reader.raw.clear()
        for _ in reader.trailer():
            pass  # a client that is still sending must be able to finish

    def remove(self, path: bytes) -> None:
        """Take an entry, and all below it, out."""
        if path not in self._entries:
            return  # nor is anything below it: what is above an entry is there
        for inner in [each for each in self._entries if each.startswith(path + b"/")]:
            del self._entries[inner]
        self._entries.pop(path, None)
        self._children = None

    def entry(self, path: bytes) -> Entry | None:
        return self._entries.get(path)

    def children(self, path: bytes) -> list[Entry]:
        children = self._children
        if children is None:
            children = {}
            for each in sorted(self._entries):
                if each:
                    children.setdefault(parent(each), []).append(self._entries[each])
            self._children = children
        return children.get(path, [])

    def identify(self, entry: Entry) -> Entry:
        return entry

    @contextmanager
    def opened(self, entry: Entry) -> Iterator[Content]:
        offset = self._offsets[entry.path]
        if entry.size <= _WHOLE:
            yield self._spool.read(offset, entry.size)
        else:
            yield cast(BinaryIO, _Slice(self._spool, offset, entry.size))

    def learn(self, entry: Entry) -> None:
        pass

    def read(self, path: bytes) -> bytes | None:
        """A file's content, following symlinks inside the context; None where there is none."""
        entry = self._entries.get(resolve(self, path))
        if entry is None or entry.kind is not Kind.FILE:
            return None
        return self._spool.read(self._offsets[entry.path], entry.size)

    def _add(self, member: Member, reader: TarReader) -> None:
        entry = member.entry
        path = self._place(_clean(entry.path))
        if entry.kind is Kind.FILE:
            offset = self._spool.length
            entry.digest = self._store(member, reader)
            self._offsets[path] = offset
        else:
            for _ in reader.content(member.length):
                pass  # the list of names that GNU tar gives a directory
        if entry.kind is Kind.HARDLINK:
            target = self._entries.get(_clean(entry.target))
            if target is None or target.kind is not Kind.FILE:
                shown = os.fsdecode(entry.path)
                raise CorruptArchive(
                    f"the build context's {shown} is a hard link to "
                    f"{os.fsdecode(entry.target)}, which is not there"
                )
            self._offsets[path] = self._offsets[target.path]
            entry.kind, entry.size, entry.digest = Kind.FILE, target.size, target.digest
            entry.target, entry.xattrs = b"", target.xattrs
        if entry.kind is not Kind.DIRECTORY:
            self.remove(path)
        entry.path = path
        self._entries[path] = entry
        self._children = None

    def _place(self, path: bytes) -> bytes:
        """Where an entry really goes, and all directories above it."""
        if not path:
            return path
        directory = resolve(self, parent(path))
        missing = directory
        while missing not in self._entries:
            self._entries[missing] = Entry(missing, Kind.DIRECTORY, 0o755)
            missing = parent(missing)
        return join(directory, path.rpartition(b"/")[2])

    def _store(self, member: Member, reader: TarReader) -> bytes:
        hashing = hashlib.sha256()
        spool = self._spool
        if member.stretches is None:
            for part in reader.content(member.length):
                spool.append(part)
                hashing.update(part)
            return hashing.digest()
        end = 0
        for offset, length in member.stretches:
            self._zeros(offset - end, hashing)
            for part in reader.content(length):
                spool.append(part)
                hashing.update(part)
            end = offset + length
        self._zeros(member.entry.size - end, hashing)
        return hashing.digest()

    def _zeros(self, count: int, hashing: hashlib._Hash) -> None:
        zeros = bytes(min(count, _BLOCK))
        while count:
            part = memoryview(zeros)[:count]
            self._spool.append(part)
            hashing.update(part)
            count -= len(part)


def _clean(path: bytes) -> bytes:
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise CorruptArchive(
            f"the build context's entry {os.fsdecode(path)!r} would leave the context"
        )
    return b"/".join(parts)


def read_up_to(stream: BinaryIO, count: int) -> bytes:
    """That many bytes, unless the stream ends before; a single read may give fewer."""
    parts: list[bytes] = []
    while count and (part := stream.read(count)):
        parts.append(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
