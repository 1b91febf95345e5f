"""Reading tars as they are found in the wild.

The dialects: v7, ustar, PAX (global and local headers, fractions of seconds, ``SCHILY.xattr``,
``GNU.sparse`` 0.0, 0.1 and 1.0), GNU (long names and links, old sparse files, base-256 numbers),
star's shorter prefix. Names are bytes throughout.

The reader keeps every byte that is not content in ``raw``, so that the tar can be given back. It
ends at the first block of zeros, or at the stream's end on a header's boundary or in what fills up
the last content's block (the docker client leaves that out behind a Dockerfile that it adds to a
context, and Go's reader takes it so); whatever follows is trailer. Anything that is not a tar, or
ends early, is a CorruptArchive naming the last entry.

Source: POSIX.1-2017 ``pax``; the GNU tar manual, "Basic Tar Format" and "Storing Sparse Files";
star(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tiffin.errors import CorruptArchive
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.pipeline import BLOCK as STREAM_BLOCK
from tiffin.layer.tarwriter import XATTR_PREFIX

_ZEROS = bytes(512)
_MAX_EXTENSION = 8 << 20
"""A PAX header or a long name may be this long; real ones stay below 1 MiB."""
_MAX_STRETCHES = 1 << 20
_KINDS = {
    0x30: Kind.FILE,
    0x00: Kind.FILE,
    0x37: Kind.FILE,  # "contiguous": a plain file everywhere
    0x53: Kind.FILE,  # GNU sparse
    0x31: Kind.HARDLINK,
    0x32: Kind.SYMLINK,
    0x33: Kind.CHARACTER_DEVICE,
    0x34: Kind.BLOCK_DEVICE,
    0x35: Kind.DIRECTORY,
    0x44: Kind.DIRECTORY,  # GNU dump directory: its content is a list of names
    0x36: Kind.FIFO,
}
_WITHOUT_CONTENT = frozenset(b"123456")
_OCTAL = re.compile(rb"[0-7]+")
_NUMBER = re.compile(rb"\s*-?[0-9]+\s*")
_TIME = re.compile(rb"\s*(-?)([0-9]*)(?:\.([0-9]*))?\s*")
_MAX_ID = (1 << 32) - 2
_MAX_TIME = (1 << 63) - 1
_BILLION = 1_000_000_000


@dataclass(slots=True)
class Member:
    """One entry of a tar, as found; ``entry.path`` is the name as it stands, uncleaned."""

    entry: Entry
    length: int
    """Bytes of content that follow in the stream."""
    start: int
    """Where the entry's headers start in the reader's ``raw``."""
    stretches: list[tuple[int, int]] | None = None
    """For a sparse file where its content belongs: (offset, length) of each stretch; ``entry.size``
    is then the whole file's."""


class TarReader:
    """Takes a tar apart. ``next_block`` gives the stream in blocks of a multiple of 512 bytes, the
    last one of any length, then empty ones."""

    def __init__(self, next_block: Callable[[], memoryview]) -> None:
        self._next_block = next_block
        self._block = memoryview(b"")
        self._at = 0
        self._padding = 0
        self._globals: list[tuple[bytes, bytes]] = []
        self._last = b""
        self.raw = bytearray()
        """Bytes that are not content, in order. The reader only appends; its user may take them
        out between two members."""

    # Blocks

    def _header_block(self) -> bytes | None:
        """The next 512 bytes, or None at the end of the stream."""
        at = self._at
        block = bytes(self._block[at : at + 512])
        if len(block) == 512:
            self._at = at + 512
            return block
        if block:
            raise self._broken("ends in the middle of a header")
        self._block = self._next_block()
        self._at = 0
        return self._header_block() if len(self._block) else None

    def _broken(self, what: str) -> CorruptArchive:
        where = f" after {os.fsdecode(self._last)!r}" if self._last else ""
        return CorruptArchive(f"the tar {what}{where}")

    def _skip_padding(self) -> None:
        """Move the padding of the last content into ``raw``; the stream may end in it."""
        while self._padding:
            part = self._block[self._at : self._at + self._padding]
            if not part:
                self._block = self._next_block()
                self._at = 0
                if not len(self._block):
                    self._padding = 0
                continue
            self._at += len(part)
            self._padding -= len(part)
            self.raw += part

    def _parts(self, length: int) -> Iterator[memoryview]:
        while length:
            block = self._block
            at = self._at
            part = block[at : at + length]
            if not part:
                self._block = self._next_block()
                self._at = 0
                if not len(self._block):
                    raise self._broken("is truncated: it ends in the middle of an entry")
                continue
            self._at = at + len(part)
            length -= len(part)
            yield part

    def content(self, length: int) -> Iterator[memoryview]:
        """The next ``length`` bytes of the member's content. A part is good until the next one is
        asked for."""
        return self._parts(length)

    def whole(self, length: int) -> memoryview | None:
        """All of the next ``length`` bytes if they lie in the current block, else None."""
        at = self._at
        end = at + length
        if end > len(self._block):
            return None
        self._at = end
        return self._block[at:end]

    def trailer(self) -> Iterator[memoryview]:
        """What follows the last entry, block by block."""
        while True:
            rest = self._block[self._at :]
            if len(rest):
                yield rest
            self._block = self._next_block()
            self._at = 0
            if not len(self._block):
                return

    def _extension(self, length: int, what: str) -> bytes:
        if length > _MAX_EXTENSION:
            raise self._broken(f"has a {what} of {length} bytes, which is too long, ")
        data = b"".join([bytes(part) for part in self._parts(length)])
        self.raw += data
        self._padding = -length % 512
        self._skip_padding()
        return data

    # Members

    def next(self) -> Member | None:
        """The next member, or None at the end. The content of the one before must have been read
        to its end."""
        self._skip_padding()
        start = len(self.raw)
        records: list[tuple[bytes, bytes]] | None = None
        long_name: bytes | None = None
        long_link: bytes | None = None
        while True:
            block = self._header_block()
            if block is None:
                if len(self.raw) > start:
                    raise self._broken("ends between an extended header and its entry")
                return None
            if block[0] == 0 and block == _ZEROS:
                # The rest of the stream, this block included, is trailer.
                self._at -= 512
                return None
            self._check(block)
            self.raw += block
            typeflag = block[156]
            if typeflag == 0x78 or typeflag == 0x58:  # x, X
                size = _number(block[124:136], self._broken)
                records = self._records(self._extension(size, "PAX header"))
            elif typeflag == 0x67:  # g
                size = _number(block[124:136], self._broken)
                self._globals += self._records(self._extension(size, "PAX header"))
            elif typeflag == 0x4C:  # L
                size = _number(block[124:136], self._broken)
                long_name = self._extension(size, "name").partition(b"\0")[0]
            elif typeflag == 0x4B:  # K
                size = _number(block[124:136], self._broken)
                long_link = self._extension(size, "link target").partition(b"\0")[0]
            elif typeflag == 0x56:  # V: the label of a volume
                self._extension(_number(block[124:136], self._broken), "volume label")
            else:
                break
        member = self._member(block, start)
        entry = member.entry
        if long_name is not None:
            entry.path = long_name
        if long_link is not None:
            entry.target = long_link
        self._last = entry.path
        if self._globals:
            records = self._globals + (records or [])
        # Above the sparse map, which lies in front of the content and after all headers.
        length = member.length
        if records:
            length = self._apply(records, member)
        if block[156] == 0x53:
            self._old_sparse(block, member)
        if not block[156] and entry.path.endswith(b"/"):
            entry.kind = Kind.DIRECTORY
        if max(entry.uid, entry.gid) > _MAX_ID or abs(entry.mtime_ns) > _MAX_TIME:
            raise self._broken("has a number out of range")
        if entry.kind is not Kind.FILE:
            entry.size = 0
            if entry.kind is not Kind.DIRECTORY or block[156] != 0x44:
                member.length = 0
            length = member.length
        if entry.kind is not Kind.SYMLINK and entry.kind is not Kind.HARDLINK:
            entry.target = b""
        self._padding = -length % 512
        return member

    def _check(self, block: bytes) -> None:
        stored = block[148:156]
        try:
            wanted = int(stored.strip(b" \0") or b"0", 8)
        except ValueError:
            wanted = -1
        rest = sum(block) - sum(stored) + 256
        if rest != wanted:
            # Some old programs summed signed characters.
            signed = rest - 256 * sum(1 for byte in block[:148] + block[156:] if byte > 127)
            if signed != wanted:
                if not self.raw:
                    raise CorruptArchive("this is not a tar archive: its first header is invalid")
                raise self._broken("has an invalid header")

    def _member(self, block: bytes, start: int) -> Member:
        typeflag = block[156]
        kind = _KINDS.get(typeflag)
        name = block[:100].partition(b"\0")[0]
        magic = block[257:263]
        if magic == b"ustar\0" and block[345]:
            end = 476 if block[508:512] == b"tar\0" else 500
            name = block[345:end].partition(b"\0")[0] + b"/" + name
        if kind is None:
            self._last = name
            raise self._broken(f"has an entry of the unknown type {chr(typeflag)!r}")
        try:
            # The form that nearly every header has: digits and one terminator.
            mode = int(block[100:107], 8)
            uid = int(block[108:115], 8)
            gid = int(block[116:123], 8)
            size = int(block[124:135], 8)
            mtime = int(block[136:147], 8)
            if (
                max(block[107], block[115], block[123], block[135], block[147]) > 32
                or min(mode, uid, gid, size) < 0
            ):
                raise ValueError
        except ValueError:
            self._last = name
            broken = self._broken
            mode = _number(block[100:108], broken)
            uid = _number(block[108:116], broken)
            gid = _number(block[116:124], broken)
            size = _number(block[124:136], broken)
            mtime = _number(block[136:148], broken, signed=True)
        entry = Entry(name, kind, mode & 0o7777, uid, gid, mtime * _BILLION, size)
        if typeflag == 0x31 or typeflag == 0x32:
            entry.target = block[157:257].partition(b"\0")[0]
        elif typeflag == 0x33 or typeflag == 0x34:
            major = _number(block[329:337], self._broken)
            minor = _number(block[337:345], self._broken)
            if major >= 1 << 12 or minor >= 1 << 20:
                raise self._broken("has a device number out of range")
            entry.device = (major, minor)
        return Member(entry, size if typeflag not in _WITHOUT_CONTENT else 0, start)

    # PAX

    def _records(self, data: bytes) -> list[tuple[bytes, bytes]]:
        records: list[tuple[bytes, bytes]] = []
        at = 0
        end = len(data)
        while at < end:
            blank = data.find(b" ", at, at + 20)
            digits = data[at:blank]
            if blank < 0 or not digits.isdigit():
                if not data[at:].strip(b"\0"):
                    break  # padded with zeros inside, as some writers do
                raise self._broken("has a malformed PAX header")
            stop = at + int(digits)
            equals = data.find(b"=", blank, stop)
            if stop > end or stop <= blank or equals < 0 or data[stop - 1] != 0x0A:
                raise self._broken("has a malformed PAX header")
            if b"\0" in data[blank:equals]:
                raise self._broken("has a malformed PAX header")
            records.append((data[blank + 1 : equals], data[equals + 1 : stop - 1]))
            at = stop
        return records

    def _apply(self, records: list[tuple[bytes, bytes]], member: Member) -> int:
        """Let PAX records override the header; gives the length of the content in the tar."""
        entry = member.entry
        sparse: dict[bytes, bytes] = {}
        stretches: list[int] = []
        for key, value in records:
            if key == b"mtime":
                entry.mtime_ns = self._time(value)
            elif key == b"path":
                if value:
                    entry.path = value
            elif key == b"linkpath":
                if value:
                    entry.target = value
            elif key == b"size":
                if entry.kind is Kind.FILE and value:
                    entry.size = member.length = self._decimal(value)
            elif key == b"uid":
                if value:
                    entry.uid = self._decimal(value)
            elif key == b"gid":
                if value:
                    entry.gid = self._decimal(value)
            elif key.startswith(XATTR_PREFIX):
                name = os.fsdecode(key[len(XATTR_PREFIX) :])
                xattrs = entry.xattrs if entry.xattrs is not None else {}
                xattrs[name] = value
                entry.xattrs = xattrs
            elif key == b"GNU.sparse.offset" or key == b"GNU.sparse.numbytes":
                stretches.append(self._decimal(value))
            elif key.startswith(b"GNU.sparse."):
                sparse[key[11:]] = value
            if b"\0" in value and key in (b"path", b"linkpath", b"GNU.sparse.name"):
                raise self._broken(f"has a NUL byte in the record {os.fsdecode(key)!r}")
        self._last = entry.path
        length = member.length
        if entry.kind is Kind.FILE and (sparse or stretches):
            self._pax_sparse(sparse, stretches, member)
        return length

    def _pax_sparse(self, sparse: dict[bytes, bytes], flat: list[int], member: Member) -> None:
        entry = member.entry
        if sparse.get(b"name"):
            entry.path = sparse[b"name"]
        real = sparse.get(b"realsize", sparse.get(b"size"))
        if sparse.get(b"major") == b"1":
            flat = self._sparse_map(member)
        elif b"map" in sparse:
            flat = [self._decimal(number) for number in sparse[b"map"].split(b",") if number]
        elif not flat and not (sparse.get(b"numblocks") == b"0" and real):
            return  # records of sparseness without a map: a whole file
        if real is None:
            raise self._broken("has a sparse file without its real size")
        entry.size = self._decimal(real)
        self._stretch(flat, member)

    def _sparse_map(self, member: Member) -> list[int]:
        """The map of version 1.0: decimal numbers, one a line, in the content's first blocks."""
        text = b""
        wanted: int | None = None
        lines: list[bytes] = []
        while wanted is None or len(lines) < wanted:
            if member.length < 512 or len(text) > _MAX_EXTENSION:
                raise self._broken("has a malformed sparse map")
            part = b"".join([bytes(view) for view in self._parts(512)])
            self.raw += part
            member.length -= 512
            text += part
            lines = text.split(b"\n")[:-1]
            if wanted is None and lines:
                count = self._decimal(lines[0])
                if count > _MAX_STRETCHES:
                    raise self._broken("has a malformed sparse map")
                wanted = 1 + 2 * count
        return [self._decimal(line) for line in lines[1:wanted]]

    def _old_sparse(self, block: bytes, member: Member) -> None:
        """GNU's first way: four stretches in the header, 21 in each block that follows it."""
        flat: list[int] = []
        table, more = block[386:482], block[482]
        member.entry.size = _number(block[483:495], self._broken)
        while True:
            for at in range(0, len(table) - 23, 24):
                if table[at] == 0:
                    break
                flat.append(_number(table[at : at + 12], self._broken))
                flat.append(_number(table[at + 12 : at + 24], self._broken))
            if not more:
                break
            following = self._header_block()
            if following is None or len(flat) > 2 * _MAX_STRETCHES:
                raise self._broken("has a malformed sparse map")
            self.raw += following
            table, more = following[:504], following[504]
        self._stretch(flat, member)

    def _stretch(self, flat: list[int], member: Member) -> None:
        if len(flat) % 2:
            raise self._broken("has a malformed sparse map")
        stretches = []
        end = total = 0
        for offset, length in zip(flat[::2], flat[1::2], strict=True):
            if offset < end or length < 0 or offset + length > member.entry.size:
                raise self._broken("has a malformed sparse map")
            end = offset + length
            total += length
            if length:
                stretches.append((offset, length))
        if total != member.length:
            raise self._broken("has a sparse map that does not fit its content")
        member.stretches = stretches

    def _decimal(self, value: bytes) -> int:
        if not _NUMBER.fullmatch(value) or len(value) > 24:
            raise self._broken("has a malformed number in a PAX header")
        number = int(value)
        if number < 0:
            raise self._broken("has a negative number in a PAX header")
        return number

    def _time(self, value: bytes) -> int:
        match = _TIME.fullmatch(value)
        if match is None or len(value) > 40:
            raise self._broken("has a malformed time in a PAX header")
        sign, seconds, fraction = match.groups(b"")
        total = int(seconds or b"0") * _BILLION + int(fraction[:9].ljust(9, b"0"))
        return -total if sign else total


def _number(field: bytes, broken: Callable[[str], CorruptArchive], *, signed: bool = False) -> int:
    """A number of a header: octal digits, or base 256 where the first bit is set."""
    first = field[0]
    if first & 0x80:
        number = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if first & 0x40:
            number -= 1 << (8 * len(field) - 1)
        if (number < 0 and not signed) or number.bit_length() > 63:
            raise broken("has a number out of range")
        return number
    digits = field.partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    if signed and digits[:1] == b"-":
        return -_number(digits[1:], broken)
    if not _OCTAL.fullmatch(digits):
        raise broken("has a malformed number in a header")
    return int(digits, 8)


assert STREAM_BLOCK % 512 == 0
