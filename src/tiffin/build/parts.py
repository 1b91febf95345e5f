"""The parts of a step, which are everything that its result depends on, and its key out of them.

Each part has a name: ``parent`` (the key of the step before) or ``base`` (the image's id, for a
stage's first step), ``instruction`` (its text, variables replaced), ``argument NAME`` (build
arguments that a RUN can see); and there is a row for each file that a COPY brings: path, type,
mode, owner, and the digest of its content. Modification times are no part. The *key* is the digest
of the parts.

They are kept as msgpack in zstd: ``[2, [[name, value], …], [[path, type, mode, uid, gid, content,
xattrs], …], why]``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import zstandard

from tiffin.build.explanation import FilePart, Part
from tiffin.errors import CorruptArchive
from tiffin.layer.entry import Entry, Kind

_FORMAT = 2
_KEY_FORMAT = 1
_PACKING = 1

# Taking an enum's value costs more than all the rest of a file's row.
_TYPES = {kind: kind.value for kind in Kind}

_encoder = msgspec.msgpack.Encoder(order="deterministic")


class Stored(msgspec.Struct, array_like=True):
    """Parts as they are kept, with why the step was made when it was."""

    format: int
    named: list[Part]
    files: list[FilePart]
    why: str = ""


_decoder = msgspec.msgpack.Decoder(Stored)


@dataclass(slots=True)
class Parts:
    """What a step's result depends on, in the order in which differences are reported."""

    step: str
    """The instruction, as it is shown and as it is written to the history."""
    named: list[Part] = field(default_factory=list)
    files: list[FilePart] = field(default_factory=list)
    _packed: bytes = b""

    def add(self, name: str, value: str) -> None:
        """One more named part."""
        self.named.append((name, value))
        self._packed = b""

    def add_files(self, entries: Iterable[Entry]) -> None:
        """The files that a step reads; their digests must be known."""
        self.files += [file_part(entry) for entry in entries]
        self._packed = b""

    def packed(self) -> bytes:
        """The parts as bytes, always the same for the same parts."""
        if not self._packed:
            self._packed = _encoder.encode((_KEY_FORMAT, self.named, self.files))
        return self._packed

    @property
    def parent(self) -> str:
        """The key of the step before, or the base image."""
        return next((value for name, value in self.named if name in ("parent", "base")), "")

    @property
    def key(self) -> str:
        """The step's key."""
        return "sha256:" + hashlib.sha256(self.packed()).hexdigest()


def file_part(entry: Entry) -> FilePart:
    """What of a file counts."""
    if entry.kind is Kind.FILE:
        content = entry.digest
    elif entry.kind is Kind.SYMLINK:
        content = entry.target
    elif entry.kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE):
        content = f"{entry.device[0]}:{entry.device[1]}".encode()
    else:
        content = b""
    return (
        entry.path,
        _TYPES[entry.kind],
        entry.mode,
        entry.uid,
        entry.gid,
        content,
        entry.xattrs,
    )


def pack(named: list[Part], files: list[FilePart], why: str) -> bytes:
    """The form in which parts are kept."""
    return zstandard.compress(_encoder.encode((_FORMAT, named, files, why)), _PACKING)


def unpack(data: bytes) -> Stored:
    """What :func:`pack` has packed; raises CorruptArchive."""
    try:
        return _decoder.decode(zstandard.ZstdDecompressor().decompress(data))
    except (zstandard.ZstdError, msgspec.MsgspecError) as error:
        raise CorruptArchive(str(error)) from error
