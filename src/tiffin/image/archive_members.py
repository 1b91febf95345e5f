"""The members of an archive: a tar opened for random access by name, without extracting it.

An archive that is a plain tar in a seekable file is read in place. Anything else (a pipe, a
compressed file) is first written to a *spool*: an unnamed temporary file, which is gone with its
last descriptor, also after kill -9.

Names are normalised (no leading ``/`` or ``./``); where a name comes twice the last one counts, and
links are followed inside the archive only.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import posixpath
import stat
import tarfile
import tempfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

from tiffin.errors import CorruptArchive, DigestMismatch, StorageFull
from tiffin.image.reference import is_digest
from tiffin.layer.compression import decompressed

__all__ = ["Archive", "MemberStream"]

# Large enough for few system calls, small enough to stay in a processor's cache.
_CHUNK = 1 << 18
_LINKS_MAX = 40
_MAGICS = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh")
# Of a zstd frame that is to be skipped; some compressors begin with one. The first byte varies.
_SKIPPABLE = b"\x2a\x4d\x18"
# What a broken tar makes tarfile raise, besides its own errors.
_TAR_ERRORS = (tarfile.TarError, ValueError, OverflowError, EOFError)


class MemberStream(io.RawIOBase):
    """One member's bytes. Reads at its own position, so that several can be read at once."""

    def __init__(self, fd: int, offset: int, size: int, member: str) -> None:
        """``fd`` is borrowed and must stay open as long as this is read."""
        super().__init__()
        self.size = size
        self.name = member
        self._fd = fd
        self._offset = offset
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer)[: max(0, self.size - self._position)]
        if not view:
            return 0
        count = os.preadv(self._fd, [view], self._offset + self._position)
        if count == 0:
            raise CorruptArchive(
                f"invalid archive: {self.name} ends after {self._position} of {self.size} bytes"
            )
        self._position += count
        return count

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes; fewer at the end only."""
        left = max(0, self.size - self._position)
        wanted = left if size < 0 else min(size, left)
        data = os.pread(self._fd, wanted, self._offset + self._position)
        self._position += len(data)
        if len(data) == wanted:
            return data
        rest = bytearray(wanted - len(data))
        view = memoryview(rest)
        while view:
            view = view[self.readinto(view) :]
        return data + rest


class HashedStream(io.RawIOBase):
    """Passes a member's bytes on and hashes them; ``verify`` reads what is left and compares."""

    def __init__(self, stream: MemberStream, digest: str) -> None:
        super().__init__()
        self.size = stream.size
        self.name = stream.name
        self._stream = stream
        self._expected = digest
        self._hash = hashlib.new(digest.partition(":")[0])

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        count = self._stream.readinto(buffer)
        self._hash.update(memoryview(buffer)[:count])
        return count

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._hash.update(data)
        return data

    def verify(self) -> None:
        """Raises DigestMismatch naming the member if its bytes are not what they should be."""
        while data := self._stream.read(_CHUNK):
            self._hash.update(data)
        _compare(self.name, self._expected, self._hash.hexdigest())


class Archive:
    """A tar whose members can be found and read. Close it, or use it in a ``with``."""

    def __init__(self, file: BinaryIO | str | Path, spool: Path) -> None:
        """Reads the members' headers; ``spool`` is the folder for a temporary copy, if one is
        needed. ``file`` is not closed. Raises CorruptArchive, and StorageFull if the copy does
        not fit.
        """
        self._owned: list[BinaryIO] = []
        try:
            if isinstance(file, str | Path):
                file = open(file, "rb")  # noqa: SIM115
                self._owned.append(file)
            tar = file if _is_plain_file(file) else self._spool(file, spool)
            self._fd = tar.fileno()
            self._members = _scan(tar)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        while self._owned:
            self._owned.pop().close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __contains__(self, name: str) -> bool:
        """Whether there is a member of this name, of any type."""
        return _normalised(name) in self._members

    @property
    def is_empty(self) -> bool:
        return not self._members

    def open(self, name: str) -> MemberStream:
        """A member's bytes; links are followed. Raises CorruptArchive if there is no such file."""
        member = self._find(name)
        return MemberStream(self._fd, member.offset_data, member.size, name)

    def open_verified(self, name: str, digest: str) -> HashedStream:
        """A member's bytes, to be verified after reading."""
        return HashedStream(self.open(name), digest)

    def read(self, name: str, limit: int) -> bytes:
        """A small member as a whole. Raises CorruptArchive if it is larger than ``limit``."""
        stream = self.open(name)
        if stream.size > limit:
            raise CorruptArchive(
                f"invalid archive: {name} has {stream.size} bytes, more than the {limit} that it"
                " may have"
            )
        return stream.read()

    def read_verified(self, name: str, digest: str, limit: int) -> bytes:
        """A small member as a whole. Raises DigestMismatch if it does not hash to ``digest``."""
        content = self.read(name, limit)
        algorithm = digest.partition(":")[0]
        _compare(name, digest, hashlib.new(algorithm, content).hexdigest())
        return content

    def _find(self, name: str) -> tarfile.TarInfo:
        place = _normalised(name)
        for _ in range(_LINKS_MAX):
            member = self._members.get(place)
            if member is None:
                raise CorruptArchive(f"invalid archive: {_told(name, place)} is missing")
            if member.issym():
                place = _normalised(posixpath.join(posixpath.dirname(place), member.linkname))
            elif member.islnk():
                place = _normalised(member.linkname)
            elif member.isreg() and not member.issparse():
                return member
            else:
                raise CorruptArchive(f"invalid archive: {_told(name, place)} is no regular file")
        raise CorruptArchive(f"invalid archive: {name} is a link that leads nowhere")

    def _spool(self, file: BinaryIO, folder: Path) -> BinaryIO:
        try:
            copy = cast(BinaryIO, tempfile.TemporaryFile(dir=folder, buffering=0))  # noqa: SIM115
            self._owned.append(copy)
            stream = cast(io.RawIOBase, decompressed(file))
            buffer = memoryview(bytearray(_CHUNK))
            while count := stream.readinto(buffer):
                view = buffer[:count]
                while view:
                    view = view[copy.write(view) :]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(
                    f"no space left for a temporary copy of the archive in {folder}: free some"
                    " space there and load again"
                ) from error
            raise
        copy.seek(0)
        return copy


def _scan(tar: BinaryIO) -> dict[str, tarfile.TarInfo]:
    """The members by normalised name; of several with one name the last."""
    members: dict[str, tarfile.TarInfo] = {}
    try:
        with tarfile.open(fileobj=tar, mode="r:", errors="surrogateescape") as archive:
            size = os.fstat(tar.fileno()).st_size
            for member in archive:
                if member.isreg() and member.offset_data + member.size > size:
                    raise CorruptArchive(
                        f"invalid archive: truncated: {member.name} ends after the archive does"
                    )
                members[_normalised(member.name)] = member
    except _TAR_ERRORS as error:
        if not tar.seek(0, os.SEEK_END):
            raise CorruptArchive("invalid archive: it is empty") from error
        raise CorruptArchive(f"invalid archive: not a tar, or a broken one: {error}") from error
    return members


def _is_plain_file(file: BinaryIO) -> bool:
    # Only of a real file object the descriptor has the bytes that reading it gives: a GzipFile has
    # a fileno() as well.
    if not isinstance(getattr(file, "raw", file), io.FileIO):
        return False
    fd = file.fileno()
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return False
    start = os.pread(fd, 8, file.tell())
    return not start.startswith(_MAGICS) and start[1:4] != _SKIPPABLE


def _normalised(name: str) -> str:
    """The place in the archive; a name that would leave it stays as it is and is never found."""
    return posixpath.normpath(name).lstrip("/")


def _told(name: str, place: str) -> str:
    return name if _normalised(name) == place else f"{place}, which {name} links to,"


def _compare(name: str, expected: str, hexadecimal: str) -> None:
    assert is_digest(expected)
    algorithm, _, wanted = expected.partition(":")
    if wanted != hexadecimal:
        raise DigestMismatch(
            f"{name}: digest mismatch: expected {expected}, got {algorithm}:{hexadecimal}"
        )
