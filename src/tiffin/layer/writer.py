"""Making a layer out of single entries: what COPY, WORKDIR and packing of images use.

The tar of the layer is never written, only hashed, as it would be in canonical form: entries sorted
by path, component by component. Entries added in that order are hashed as they come; others are
sorted at the end, and their files read once more.

A layer may be much like an earlier one, its *model*: that of the same COPY before one file was
changed. A file that is the same in both, at the same path and with the same attributes, becomes a
hard link to the model's (:meth:`LayerWriter.link`); it is read and compared with its digest all
the same, since the tar's hash wants it. This is safe because nothing ever writes into a finished
layer: containers see it through overlayfs, which copies a file before it changes it, and deleting
the one layer leaves the other its names. Since only equal paths are linked, no stack ever shows
the two names side by side. What shows is the number of links.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tiffin.errors import CorruptArchive, InvalidParameter
from tiffin.layer import tarwriter
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.failure import explain
from tiffin.layer.index import Index, order_key
from tiffin.layer.lower import Lower
from tiffin.layer.pipeline import INLINE, Outgoing, write_all
from tiffin.layer.tree import OwnDirectory
from tiffin.linux import syscalls
from tiffin.storage.driver import Whiteouts


class OpenFile(NamedTuple):
    """A regular file that is open at its beginning, and what is known of it without asking."""

    fd: int
    size: int
    device: int
    digest: bytes = b""
    """sha256 of its content, where it need not be found out again."""


Content = bytes | BinaryIO | int | Path | OpenFile | None
"""A file's bytes, something to read them from, a descriptor, or the path of a host's file."""


@dataclass(frozen=True, slots=True)
class Model:
    """A finished layer that the new one may be much like."""

    index: Index
    directory: Path
    """Its own directory, of a driver that never shows it for writing."""


_FICLONE = 0x40049409
_BLOCK = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
_REFUSED = re.compile(rb"\A/|(?:\A|/)(?:\.wh\.|\.\.?(?:/|\Z))")
"""What a path may not begin with, and what no component of it may be."""
_NO_REFLINK = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ETXTBSY)


class LayerWriter:
    """Puts entries into a snapshot's own directory and makes the layer's index as it goes.

    A context manager: leaving it is :meth:`close`.
    """

    def __init__(
        self,
        directory: Path,
        whiteouts: Whiteouts,
        lower: Lower | None = None,
        model: Model | None = None,
    ) -> None:
        self._tree = OwnDirectory(directory, whiteouts, lower)
        self._model = _OpenModel(model) if model is not None else None
        self._linked: list[tuple[Entry, bytes]] = []
        """Linked files whose digests are still being made, with those that they must have."""
        self._entries: list[Entry] = []
        self._hash = hashlib.sha256()
        self._tar = Outgoing(self._hash.update)
        self._last = b""
        self._sorted = True
        self._implied = 0
        self._reflinks = True
        self._apart: set[int] = set()
        """Devices whose files can't be shared with this layer."""

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
        followed. For something to read from, the entry may say its size, which must be true, and
        then its digest, which is believed: the content is then gone through once. Raises
        InvalidParameter for a path that leaves the root or is named like a whiteout,
        CorruptArchive, StorageFull.
        """
        _check(entry.path)
        try:
            return self._add(entry, content)
        except OSError as error:
            raise explain(error, entry.path) from error

    def link(self, entry: Entry) -> bool:
        """Take a file over from the model, if that has the very same one: size, digest, owner,
        mode, time and attributes as ``entry`` says; then it is stored, and the entry is the
        writer's. If not, nothing has happened, and :meth:`add` is to be called. Raises as that."""
        if self._model is None or not self._model.has(entry):
            return False
        try:
            return self._link(entry, self._model)
        except OSError as error:
            raise explain(error, entry.path) from error

    def _link(self, entry: Entry, model: _OpenModel) -> bool:
        path = entry.path
        folder, name, real = self._tree.place(path)
        if real != path:
            return False
        source = model.folder(path)
        if source is None or not self._tree.adopt(source, folder, name, path):
            return False
        fd = os.open(name, _READ, dir_fd=folder.fd)
        try:
            expected = entry.digest
            if entry.size <= INLINE:
                data = os.read(fd, entry.size + 1)
                if hashlib.sha256(data).digest() != expected:
                    # The model is damaged. Let the file be copied.
                    self._tree.renounce(folder, name, path)
                    return False
                self._emit_implied()
                self._emit(entry, data)
            else:
                self._emit_implied()
                self._linked.append((entry, expected))
                self._emit(entry, fd)
        finally:
            os.close(fd)
        return True

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

    def _emit(
        self,
        entry: Entry,
        content: bytes | int | BinaryIO | None,
        copy: int | None = None,
        *,
        known: bool = False,
    ) -> None:
        """Let an entry, and its content, become part of the tar.

        What is read from a descriptor or a stream is written to ``copy`` too, and gives the entry
        its digest, unless that is ``known``.
        """
        self._entries.append(entry)
        key = order_key(entry.path) + (b"\0" if entry.kind is Kind.OPAQUE else b"")
        if self._sorted and (key > self._last or len(self._entries) == 1):
            self._last = key
            head = tarwriter.header(entry)
        else:
            self._sorted = False
            head = b""
        # Once the order is lost this stream is only for the digests and the copying.
        if content is None:
            self._tar.write(head)
        elif isinstance(content, bytes):
            self._tar.write(b"".join((head, content, bytes(tarwriter.padding(entry.size)))))
        else:
            self._tar.write(head)
            if isinstance(content, int):
                self._tar.content(content, entry.size, None if known else entry, copy)
            else:
                self._pour(content, entry, copy, known)
            self._tar.write(bytes(tarwriter.padding(entry.size)))

    def _pour(self, content: BinaryIO, entry: Entry, copy: int | None, known: bool) -> None:
        running = None if known else hashlib.sha256()
        left = entry.size
        while data := content.read(_BLOCK if left else 1):
            left -= len(data)
            if left < 0:
                raise CorruptArchive(f"{os.fsdecode(entry.path)!r} is longer than it should be")
            if copy is not None:
                write_all(copy, data)
            if running is not None:
                running.update(data)
            self._tar.write(data)
        if left:
            raise CorruptArchive(f"{os.fsdecode(entry.path)!r} is shorter than it should be")
        if running is not None:
            entry.digest = running.digest()

    def _file(self, entry: Entry, content: Content) -> Entry:
        folder, name, path = self._tree.place(entry.path)
        opened: int | None = None
        if isinstance(content, Path):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            content = opened = os.open(content, flags)
        try:
            if isinstance(content, int) and not isinstance(content, bool):
                found = os.fstat(content)
                if stat.S_ISREG(found.st_mode):
                    if not os.lseek(content, 0, os.SEEK_CUR):
                        content = OpenFile(content, found.st_size, found.st_dev)
                elif opened is not None:
                    raise InvalidParameter(f"{os.fsdecode(path)!r}: not a regular file")
            said = entry
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
                self._fill(entry, content, fd, said)
                self._tree.complete(fd, folder, entry)
            finally:
                os.close(fd)
        finally:
            if opened is not None:
                os.close(opened)
        return entry

    def _fill(self, entry: Entry, content: Content, fd: int, said: Entry) -> None:
        """Write a file's content, and let it become part of the tar. ``said`` is the entry as it
        was given."""
        if isinstance(content, OpenFile):
            entry.size = content.size
            if content.size and self._reflink(content, fd):
                entry.size = os.fstat(fd).st_size
                self._emit(entry, fd)
                return
            if content.size > INLINE:
                entry.digest = content.digest
                self._emit(entry, content.fd, fd, known=bool(content.digest))
                return
            data = os.read(content.fd, content.size) if content.size else b""
            if len(data) != content.size:
                raise CorruptArchive("a file became shorter while it was read")
            content = data
        if isinstance(content, bytes) and len(content) <= INLINE:
            size = len(content)
            if size and (written := os.write(fd, content)) != size:
                write_all(fd, content[written:])
            entry.size = size
            entry.digest = hashlib.sha256(content).digest()
            self._emit(entry, content)
        elif said.size > INLINE and not isinstance(content, bytes | int | Path | None):
            entry.size, entry.digest = said.size, said.digest
            self._emit(entry, content, fd, known=bool(said.digest))
        else:
            entry.size = _spool(content, fd)
            os.lseek(fd, 0, os.SEEK_SET)
            self._emit(entry, fd)

    def _reflink(self, source: OpenFile, target: int) -> bool:
        if not self._reflinks or source.device in self._apart:
            return False
        try:
            fcntl.ioctl(target, _FICLONE, source.fd)
        except OSError as error:
            if error.errno not in _NO_REFLINK:
                raise
            # Told apart from a file that merely can't be shared.
            if error.errno == errno.EXDEV:
                self._apart.add(source.device)
            self._reflinks = error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY)
            return False
        return True

    def finish(self) -> Index:
        """The layer's index. The writer is used up."""
        try:
            self._tree.finish()
            self._tar.write(tarwriter.TRAILER)
            self._tar.finish()
            self._check_linked()
            if self._sorted:
                diff_id = "sha256:" + self._hash.hexdigest()
                return Index(diff_id, self._tar.length, self._entries)
            entries = list(Index("", 0, self._entries).effective())
            return canonical_index(entries, self._tree)
        except OSError as error:
            raise explain(error, b"") from error
        finally:
            self.close()

    def _check_linked(self) -> None:
        for entry, expected in self._linked:
            if entry.digest != expected:
                raise CorruptArchive(
                    f"the file {os.fsdecode(entry.path)!r} of an earlier layer is damaged: build "
                    "without the cache"
                )

    def close(self) -> None:
        """Let go of everything; for a writer that is given up, and harmless after finish."""
        self._tar.__exit__()
        self._tree.__exit__()
        if self._model is not None:
            self._model.close()


class _OpenModel:
    """A model, and the directory of it that was last looked into."""

    def __init__(self, model: Model) -> None:
        self._index = model.index
        self._root = os.open(model.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._at: tuple[bytes, int] | None = None

    def has(self, entry: Entry) -> bool:
        """Whether it has the very file."""
        return bool(entry.digest) and self._index.get(entry.path) == entry

    def folder(self, path: bytes) -> int | None:
        """A descriptor of the directory that ``path`` is in; None if it can't be had."""
        directory = path.rpartition(b"/")[0]
        if self._at is None or self._at[0] != directory:
            flags = os.O_RDONLY | os.O_DIRECTORY
            try:
                fd = syscalls.openat2(self._root, directory or b".", flags, resolve=_BENEATH)
            except OSError:
                return None  # whatever is wrong with it: the file is copied
            self._leave()
            self._at = (directory, fd)
        return self._at[1]

    def _leave(self) -> None:
        if self._at is not None:
            os.close(self._at[1])
            self._at = None

    def close(self) -> None:
        self._leave()
        if self._root >= 0:
            os.close(self._root)
            self._root = -1


def _check(path: bytes) -> None:
    """Refuse what can't be a path of a layer."""
    # Most paths have no component that begins with a dot, and looking for that takes no time.
    suspicious = b"/." in path or path[:1] in (b".", b"/")
    if (suspicious and _REFUSED.search(path)) or path[-1:] == b"/" or b"\0" in path:
        raise InvalidParameter(f"{os.fsdecode(path)!r} can't be a path of a layer")


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
