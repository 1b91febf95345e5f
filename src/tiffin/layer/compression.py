"""Compressed streams, told apart by their first bytes.

gzip (also several members after each other, and zeros behind them), zstd (many frames), xz, bzip2,
or plain. A stream that is damaged or ends early raises CorruptArchive from ``read``.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import zstandard
from isal import igzip, isal_zlib

from tiffin.errors import CorruptArchive

_AHEAD = 1 << 18
_MAGIC = 10
# What follows "BZh" and a digit: a block, or the end of a stream without any.
_BZIP2 = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
_DAMAGE: tuple[type[BaseException], ...] = (
    EOFError,
    zlib.error,
    cast(type[BaseException], isal_zlib.error),
    lzma.LZMAError,
    zstandard.ZstdError,
    igzip.BadGzipFile,
)


class _Sniffed(io.RawIOBase):
    """A stream with its first bytes put back."""

    def __init__(self, first: bytes, stream: BinaryIO) -> None:
        self._first = first
        self._stream = stream
        self._into: Callable[[Any], int] | None = getattr(stream, "readinto", None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._first:
            count = min(len(buffer), len(self._first))
            buffer[:count] = self._first[:count]
            self._first = self._first[count:]
            return count
        if self._into is not None:
            return self._into(buffer) or 0
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Decoder(io.RawIOBase):
    """Turns what a decoder raises into CorruptArchive."""

    def __init__(self, stream: Any, form: str) -> None:
        self._inner = stream
        self._form = form
        self._into = stream.readinto

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._into(buffer))
        except _DAMAGE as error:
            raise CorruptArchive(f"the {self._form} stream is damaged or truncated: {error}") from (
                error
            )
        except OSError as error:
            if error.errno is not None:
                raise
            raise CorruptArchive(f"the {self._form} stream is damaged: {error}") from error

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()


class _Zstd:
    """Frames after each other; unlike the library's own reader it notices one that is cut."""

    def __init__(self, stream: io.RawIOBase) -> None:
        self._stream = stream
        self._decoder = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")
        self._begun = False

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if not self._input:
                data = self._stream.read(_AHEAD)
                if not data:
                    if self._begun:
                        raise EOFError("it ends inside a frame")
                    return 0
                self._input = data
            if self._frame is None:
                self._frame = self._decoder.decompressobj()
            self._begun = True
            self._output = memoryview(self._frame.decompress(self._input))
            self._input = b""
            if self._frame.eof:
                self._input = self._frame.unused_data
                self._frame = None
                self._begun = False
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def close(self) -> None:
        self._output = memoryview(b"")


def decompressed(stream: BinaryIO) -> BinaryIO:
    """A stream of the plain bytes of ``stream``; closing it leaves ``stream`` open."""
    first = b""
    while len(first) < _MAGIC:
        data = stream.read(_MAGIC - len(first))
        if not data:
            break
        first += data
    raw = _Sniffed(first, stream)
    if first.startswith(b"\x1f\x8b"):
        ahead = cast(Any, io.BufferedReader(raw, _AHEAD))
        inner = cast(Any, igzip.IGzipFile)(fileobj=ahead, mode="rb")
        return cast(BinaryIO, _Decoder(inner, "gzip"))
    if first.startswith(b"\x28\xb5\x2f\xfd") or (
        len(first) >= 4 and first[0] & 0xF0 == 0x50 and first[1:4] == b"\x2a\x4d\x18"
    ):
        return cast(BinaryIO, _Decoder(_Zstd(raw), "zstd"))
    if first.startswith(b"\xfd7zXZ\0"):
        return cast(BinaryIO, _Decoder(lzma.LZMAFile(io.BufferedReader(raw, _AHEAD)), "xz"))
    if first.startswith(b"BZh") and first[4:10] in _BZIP2:
        return cast(BinaryIO, _Decoder(bz2.BZ2File(io.BufferedReader(raw, _AHEAD)), "bzip2"))
    return cast(BinaryIO, raw)
