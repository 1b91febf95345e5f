"""The very tar that a layer came as, out of its index and its files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from tiffin.errors import CorruptArchive
from tiffin.layer import tarwriter
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.index import Index
from tiffin.layer.pipeline import Outgoing, write_all
from tiffin.linux import syscalls

_BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20


def write_tar(index: Index, directory: Path, stash: Path, output: int | BinaryIO) -> None:
    """Write the layer's tar, byte for byte, to a descriptor or a stream.

    Raises CorruptArchive if a file that the index names is missing or has another size; what has
    been written by then is for the caller to discard.
    """
    with _Files(directory) as files, Outgoing(_consumer(output)) as tar:
        if index.pieces is None:
            _canonical(index, files, tar)
        else:
            _pieces(index, files, stash, tar)
        tar.finish()
        if tar.length != index.tar_size:
            raise CorruptArchive(
                f"the tar of layer {index.diff_id} came out with {tar.length} bytes instead of "
                f"{index.tar_size}: the layer is damaged"
            )


def _consumer(output: int | BinaryIO) -> Callable[[memoryview], object]:
    if isinstance(output, int):
        fd = output
        return lambda view: write_all(fd, view)
    stream = output

    def write(view: memoryview) -> None:
        while view:
            # A raw stream may take less than it is given; None is a buffered one of old.
            count: Any = stream.write(view)
            view = view[len(view) if count is None else count :]

    return write


class _Files:
    """The files of an own directory, opened by path; the last directory is kept open, since its
    next file mostly follows."""

    def __init__(self, directory: Path) -> None:
        self._root = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._parent = b""
        self._parent_fd = self._root

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *exc: object) -> None:
        self._leave()
        os.close(self._root)

    def _leave(self) -> None:
        if self._parent_fd != self._root:
            os.close(self._parent_fd)
        self._parent, self._parent_fd = b"", self._root

    def open(self, entry: Entry) -> int:
        parent, _, name = entry.path.rpartition(b"/")
        try:
            if parent != self._parent:
                self._leave()
                if parent:
                    self._parent_fd = syscalls.openat2(
                        self._root, parent, os.O_PATH | os.O_DIRECTORY, resolve=_BENEATH
                    )
                self._parent = parent
            return os.open(name, _OPEN_FILE, dir_fd=self._parent_fd)
        except OSError as error:
            raise CorruptArchive(
                f"the file {os.fsdecode(entry.path)!r} of a layer can't be read: {error.strerror}"
            ) from error


def _canonical(index: Index, files: _Files, tar: Outgoing) -> None:
    for entry in index.entries:
        tar.write(tarwriter.header(entry))
        if entry.kind is Kind.FILE and entry.size:
            fd = files.open(entry)
            try:
                tar.content(fd, entry.size)
            finally:
                os.close(fd)
            tar.write(bytes(tarwriter.padding(entry.size)))
    tar.write(tarwriter.TRAILER)


def _pieces(index: Index, files: _Files, stash: Path, tar: Outgoing) -> None:
    raw = _Raw(index)
    stash_fd = -1
    try:
        for header, length, number, offset in index.pieces or ():
            if header:
                raw.copy(header, tar)
            if not length:
                continue
            if number < 0:
                if stash_fd < 0:
                    stash_fd = os.open(stash, _OPEN_FILE)
                os.lseek(stash_fd, offset, os.SEEK_SET)
                tar.content(stash_fd, length)
                continue
            fd = files.open(index.entries[number])
            try:
                if offset:
                    os.lseek(fd, offset, os.SEEK_SET)
                tar.content(fd, length)
            finally:
                os.close(fd)
    except FileNotFoundError as error:
        raise CorruptArchive(f"a part of layer {index.diff_id} is missing: {error}") from error
    finally:
        if stash_fd >= 0:
            os.close(stash_fd)


class _Raw:
    """The index's raw bytes, unpacked as they are needed."""

    def __init__(self, index: Index) -> None:
        self._diff_id = index.diff_id
        self._chunks = self._unpack(index.raw)
        self._chunk = memoryview(b"")

    @staticmethod
    def _unpack(raw: bytes) -> Iterator[bytes]:
        decoder = zstandard.ZstdDecompressor().decompressobj()
        for at in range(0, len(raw), 1 << 14):
            yield decoder.decompress(raw[at : at + (1 << 14)])

    def copy(self, length: int, tar: Outgoing) -> None:
        while length:
            if not self._chunk:
                try:
                    self._chunk = memoryview(next(self._chunks))
                except (StopIteration, zstandard.ZstdError):
                    raise CorruptArchive(
                        f"the index of layer {self._diff_id} is damaged: its headers end early"
                    ) from None
                continue
            part = self._chunk[:length]
            tar.write(part)
            self._chunk = self._chunk[len(part) :]
            length -= len(part)
