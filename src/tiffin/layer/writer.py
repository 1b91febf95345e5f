"""Making a layer out of single entries: what COPY, WORKDIR and packing of images use.

The tar of the layer is never written, only hashed, as it would be in canonical form: entries sorted
by path, component by component. Entries added in that order are hashed as they come; others are
sorted at the end, and their files read once more.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from tiffin.errors import CorruptArchive, InvalidParameter
from tiffin.layer import tarwriter
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.index import Index, order_key
from tiffin.layer.lower import Lower
from tiffin.layer.pipeline import Outgoing, write_all
from tiffin.layer.tree import OwnDirectory, explain
from tiffin.storage.driver import Whiteouts

Content = bytes | BinaryIO | int | Path | None
"""A file's bytes, something to read them from, a descriptor, or the path of a host's file."""

_FICLONE = 0x40049409
_NO_REFLINK = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ETXTBSY)


class LayerWriter:
    """Puts entries into a snapshot's own directory and makes the layer's index as it goes.

    A context manager: leaving it is :meth:`close`.
    """

    def __init__(self, directory: Path, whiteouts: Whiteouts, lower: Lower | None = None) -> None:
        self._directory = directory
        self._tree = OwnDirectory(directory, whiteouts, lower)
        self._entries: list[Entry] = []
        self._hash = hashlib.sha256()
        self._tar = Outgoing(self._hash.update)
        self._last = b""
        self._sorted = True
        self._implied = 0
        self._reflinks = True

    def __enter__(self) -> LayerWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def needs_lower(self) -> bool:
        """Whether the layer depends on what lies below it."""
        return self._tree.needs_lower

    def add(self, entry: Entry, content: Content = None) -> Entry:
        """Put one entry in; gives back the entry as stored: the path resolved, and for a file its
        size (and its digest, by :meth:`finish` at the latest).

        A descriptor is read from where it stands and stays open. A path's last component is not
        followed. Raises InvalidParameter for a path that leaves the root or is named like a
        whiteout, CorruptArchive, StorageFull.
        """
        for part in entry.path.split(b"/"):
            if part in (b"..", b".") or part.startswith(tarwriter.WHITEOUT_PREFIX):
                raise InvalidParameter(f"{os.fsdecode(entry.path)!r} can't be a path of a layer")
        if entry.path[:1] == b"/" or entry.path[-1:] == b"/" or b"\0" in entry.path:
            raise InvalidParameter(f"{os.fsdecode(entry.path)!r} can't be a path of a layer")
        try:
            return self._add(entry, content)
        except OSError as error:
            raise explain(error, entry.path) from error

    def _add(self, entry: Entry, content: Content) -> Entry:
        tree = self._tree
        kind = entry.kind
        if kind is Kind.FILE:
            return self._file(entry, content)
        if kind is Kind.DIRECTORY:
            stored = tree.directory(entry)
        elif kind is Kind.HARDLINK:
            stored = tree.hardlink(entry)
            if stored.kind is Kind.FILE:
                # A copy of a file of the stack below.
                self._emit_implied()
                fd = tree.open(stored.path)
                try:
                    self._emit(stored, fd)
                finally:
                    os.close(fd)
                return stored
        elif kind is Kind.WHITEOUT:
            stored = Entry(tree.whiteout(entry.path), kind)
        elif kind is Kind.OPAQUE:
            stored = Entry(tree.opaque(entry.path), kind)
        else:
            stored = tree.other(entry)
        self._emit_implied()
        self._emit(replace(stored, size=0, digest=b""), None)
        return stored

    def _emit_implied(self) -> None:
        implied = self._tree.implied
        while self._implied < len(implied):
            self._emit(implied[self._implied], None)
            self._implied += 1

    def _emit(self, entry: Entry, source: int | None, copy: int | None = None) -> None:
        """Let an entry, and its content, become part of the tar."""
        self._entries.append(entry)
        key = order_key(entry.path) + (b"\0" if entry.kind is Kind.OPAQUE else b"")
        if self._sorted and (key > self._last or len(self._entries) == 1):
            self._last = key
            self._tar.write(tarwriter.header(entry))
        else:
            self._sorted = False
        if source is not None:
            # Once the order is lost this stream is only for the digests and the copying.
            self._tar.content(source, entry.size, entry, copy)
            self._tar.write(bytes(tarwriter.padding(entry.size)))

    def _file(self, entry: Entry, content: Content) -> Entry:
        folder, name, path = self._tree.place(entry.path)
        opened: int | None = None
        source: int | None = None
        if isinstance(content, Path):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            source = opened = os.open(content, flags)
        elif isinstance(content, int):
            source = content
        try:
            found = os.fstat(source) if source is not None else None
            if opened is not None and found is not None and not stat.S_ISREG(found.st_mode):
                raise InvalidParameter(f"{content!s} is not a regular file")
            # Not dataclasses.replace, which takes ten times as long.
            entry = Entry(
                path,
                entry.kind,
                entry.mode,
                entry.uid,
                entry.gid,
                entry.mtime_ns,
                0,
                entry.target,
                entry.device,
                entry.xattrs,
            )
            fd = self._tree.create(folder, name, entry)
            try:
                self._emit_implied()
                if source is not None and found is not None and stat.S_ISREG(found.st_mode):
                    at = os.lseek(source, 0, os.SEEK_CUR)
                    entry.size = max(found.st_size - at, 0)
                    if at == 0 and self._reflink(source, fd):
                        entry.size = os.fstat(fd).st_size
                        self._emit(entry, fd)
                    else:
                        self._emit(entry, source, fd)
                else:
                    entry.size = _spool(source if source is not None else content, fd)
                    os.lseek(fd, 0, os.SEEK_SET)
                    self._emit(entry, fd)
                self._tree.complete(fd, folder, entry)
            finally:
                os.close(fd)
        finally:
            if opened is not None:
                os.close(opened)
        return entry

    def _reflink(self, source: int, target: int) -> bool:
        if not self._reflinks:
            return False
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError as error:
            if error.errno not in _NO_REFLINK:
                raise
            # Told apart from a file that merely can't be shared: another file system.
            self._reflinks = error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY)
            return False
        return True

    def finish(self) -> Index:
        """The layer's index. The writer is used up."""
        try:
            self._tree.finish()
            self._tar.write(tarwriter.TRAILER)
            self._tar.finish()
            if self._sorted:
                diff_id = "sha256:" + self._hash.hexdigest()
                return Index(diff_id, self._tar.length, self._entries)
            entries = list(Index("", 0, self._entries).effective())
            return canonical_index(entries, self._tree)
        except OSError as error:
            raise explain(error, b"") from error
        finally:
            self.close()

    def close(self) -> None:
        """Let go of everything; for a writer that is given up, and harmless after finish."""
        self._tar.__exit__()
        self._tree.__exit__()


def canonical_index(entries: list[Entry], tree: OwnDirectory) -> Index:
    """The index of a canonical tar of ``entries``, whose files are in ``tree`` and have digests."""
    running = hashlib.sha256()
    with Outgoing(running.update) as tar:
        for entry in entries:
            tar.write(tarwriter.header(entry))
            if entry.kind is Kind.FILE and entry.size:
                fd = tree.open(entry.path)
                try:
                    tar.content(fd, entry.size)
                finally:
                    os.close(fd)
                tar.write(bytes(tarwriter.padding(entry.size)))
        tar.write(tarwriter.TRAILER)
        tar.finish()
        return Index("sha256:" + running.hexdigest(), tar.length, entries)


def _spool(content: object, target: int) -> int:
    """Write what ``content`` holds or gives; the number of bytes."""
    if content is None:
        return 0
    if isinstance(content, bytes | bytearray | memoryview):
        write_all(target, content)
        return len(content)
    total = 0
    while True:
        if isinstance(content, int):
            data = os.read(content, 1 << 20)
        else:
            read = getattr(content, "read", None)
            if read is None:
                raise CorruptArchive(f"content can't be read from a {type(content).__name__}")
            data = read(1 << 20)
        if not data:
            return total
        write_all(target, data)
        total += len(data)
