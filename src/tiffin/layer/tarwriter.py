"""The canonical tar of a layer: one way, and one way only, to write each entry.

Rules. Each entry is one ustar header, and before it a PAX header only where ustar cannot say it:
a name or link target of more than 100 bytes, a number too large for its field, a negative time, a
fraction of a second, extended attributes. PAX records are sorted by key. User and group names are
empty, device numbers zero but for devices. A directory's name ends in ``/``. A deleted path is an
empty file ``.wh.NAME``, an opaque directory holds an empty file ``.wh..wh..opq``. Contents are
padded to 512 bytes; the tar ends with two blocks of zeros and nothing more.

Names are bytes. One that is not UTF-8 and needs a PAX record gets ``hdrcharset=BINARY`` too, as
POSIX asks for.

Source: POSIX.1-2017, ``pax``; OCI image specification, ``layer.md``; ``SCHILY.xattr`` records as
in star.
"""

from __future__ import annotations

import os
from functools import lru_cache
from zlib import adler32

from tiffin.layer.entry import Entry, Kind

BLOCK = 512
TRAILER = bytes(2 * BLOCK)
WHITEOUT_PREFIX = b".wh."
WHITEOUT_META_PREFIX = b".wh..wh."
OPAQUE_NAME = b".wh..wh..opq"
XATTR_PREFIX = b"SCHILY.xattr."

_TYPES = {
    Kind.FILE: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHARACTER_DEVICE: b"3",
    Kind.BLOCK_DEVICE: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
    Kind.WHITEOUT: b"0",
    Kind.OPAQUE: b"0",
}
_MAX_ID = 0o7777777
_MAX_SIZE = 0o77777777777
_BILLION = 1_000_000_000
# What follows the checksum in most headers: type and link target go between.
_MAGIC = b"ustar\x0000"
_NO_DEVICE = bytes(64) + b"0000000\x000000000\x00" + bytes(155 + 12)


def tar_name(entry: Entry) -> bytes:
    """The name that ``entry`` has in a tar."""
    path = entry.path
    kind = entry.kind
    if kind is Kind.DIRECTORY:
        return path + b"/" if path else b"./"
    if kind is Kind.WHITEOUT:
        parent, slash, name = path.rpartition(b"/")
        return parent + slash + WHITEOUT_PREFIX + name
    if kind is Kind.OPAQUE:
        return path + b"/" + OPAQUE_NAME if path else OPAQUE_NAME
    return path


def padding(size: int) -> int:
    """How many zeros follow ``size`` bytes of content."""
    return -size % BLOCK


def header(entry: Entry) -> bytes:
    """All the blocks that stand before the content of ``entry``."""
    name = tar_name(entry)
    kind = entry.kind
    target = entry.target
    seconds, fraction = divmod(entry.mtime_ns, _BILLION)
    size = entry.size if kind is Kind.FILE else 0
    uid = entry.uid
    gid = entry.gid
    extended = b""
    if (
        fraction
        or len(name) > 100
        or len(target) > 100
        or entry.xattrs
        or not 0 <= seconds <= _MAX_SIZE
        or uid > _MAX_ID
        or gid > _MAX_ID
        or size > _MAX_SIZE
    ):
        extended = _extended(entry, name, size, seconds, fraction)
        name = name[:100]
        target = target[:100]
        seconds = min(max(seconds, 0), _MAX_SIZE)
        uid = min(uid, _MAX_ID)
        gid = min(gid, _MAX_ID)
        size = min(size, _MAX_SIZE)
    if kind is Kind.CHARACTER_DEVICE or kind is Kind.BLOCK_DEVICE:
        tail = bytes(64) + b"%07o\0%07o\0" % entry.device + bytes(155 + 12)
    else:
        tail = _NO_DEVICE
    rights = _rights(entry.mode, uid, gid)
    return extended + _ustar(name, rights, size, seconds, _TYPES[kind], target, tail)


@lru_cache(1024)
def _rights(mode: int, uid: int, gid: int) -> bytes:
    return b"%07o\0%07o\0%07o\0" % (mode, uid, gid)


def _ustar(
    name: bytes,
    rights: bytes,
    size: int,
    seconds: int,
    typeflag: bytes,
    target: bytes,
    tail: bytes,
) -> bytes:
    start = b"%b%b%011o\0%011o\0" % (name.ljust(100, b"\0"), rights, size, seconds)
    end = b"%b%b%b%b" % (typeflag, target.ljust(100, b"\0"), _MAGIC, tail)
    # The checksum counts its own eight bytes as blanks. The lower half of Adler-32 is a sum, and
    # one more, of bytes that together are less than its modulus: a hundred and some digits.
    checksum = (adler32(start) & 0xFFFF) + (adler32(end) & 0xFFFF) + 254
    return b"%b%06o\0 %b" % (start, checksum, end)


def _extended(entry: Entry, name: bytes, size: int, seconds: int, fraction: int) -> bytes:
    if (
        fraction
        and seconds >= 0
        and not entry.xattrs
        and len(name) <= 100
        and len(entry.target) <= 100
        and entry.uid <= _MAX_ID
        and entry.gid <= _MAX_ID
        and size <= _MAX_SIZE
        and seconds <= _MAX_SIZE
    ):
        # What nearly every file that is not of an archive needs.
        body = _record(b"mtime", b"%d.%b" % (seconds, (b"%09d" % fraction).rstrip(b"0")))
    else:
        body = _records(entry, name, size, seconds, fraction)
    base = entry.path.rpartition(b"/")[2]
    name = (b"PaxHeaders.0/" + base)[:100]
    own = _ustar(name, _rights(0o644, 0, 0), len(body), 0, b"x", b"", _NO_DEVICE)
    return own + body.ljust(-(-len(body) // BLOCK) * BLOCK, b"\0")


def _records(entry: Entry, name: bytes, size: int, seconds: int, fraction: int) -> bytes:
    records: dict[bytes, bytes] = {}
    if len(name) > 100:
        records[b"path"] = name
    if len(entry.target) > 100:
        records[b"linkpath"] = entry.target
    if fraction or not 0 <= seconds <= _MAX_SIZE:
        records[b"mtime"] = _decimal(entry.mtime_ns)
    if entry.uid > _MAX_ID:
        records[b"uid"] = b"%d" % entry.uid
    if entry.gid > _MAX_ID:
        records[b"gid"] = b"%d" % entry.gid
    if size > _MAX_SIZE:
        records[b"size"] = b"%d" % size
    for key, value in (entry.xattrs or {}).items():
        records[XATTR_PREFIX + os.fsencode(key)] = value
    order = sorted(records) if len(records) > 1 else list(records)
    if not (_is_utf8(records.get(b"path", b"")) and _is_utf8(records.get(b"linkpath", b""))):
        # The character set governs the records that follow it.
        records[b"hdrcharset"] = b"BINARY"
        order.insert(0, b"hdrcharset")
    return b"".join([_record(key, records[key]) for key in order])


def _record(key: bytes, value: bytes) -> bytes:
    # The length counts its own digits.
    bare = len(key) + len(value) + 3
    length = bare + len(str(bare))
    length = bare + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _decimal(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    seconds, fraction = divmod(abs(nanoseconds), _BILLION)
    if not fraction:
        return b"%s%d" % (sign, seconds)
    return b"%s%d.%s" % (sign, seconds, (b"%09d" % fraction).rstrip(b"0"))


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
