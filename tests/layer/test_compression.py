"""Streams are told apart by their first bytes; damage is named."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tiffin.errors import CorruptArchive
from tiffin.layer.compression import decompressed


def zstd(data: bytes) -> bytes:
    """Several frames, with a skippable one between."""
    half = len(data) // 2
    pack = zstandard.ZstdCompressor().compress
    skip = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    return skip + pack(data[:half]) + skip + pack(data[half:])


def members(data: bytes) -> bytes:
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(data[half:])


FORMS = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "gzip members": members,
    "zstd": zstd,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}


class Dribble(io.RawIOBase):
    """Gives a few bytes at a time, as a socket may."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._inner.read(min(len(buffer), 7))
        buffer[: len(data)] = data
        return len(data)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=15, deadline=None)
@given(st.binary(max_size=3000), st.integers(1, 200))
def test_every_form_gives_the_plain_bytes(form: str, data: bytes, times: int) -> None:
    data = b"plain" + data * times
    packed = FORMS[form](data)
    assert decompressed(io.BytesIO(packed)).read() == data
    if len(packed) < 20_000:
        assert decompressed(Dribble(packed)).read() == data


@pytest.mark.parametrize("form", ["gzip", "zstd", "xz", "bzip2"])
@pytest.mark.parametrize("cut", [0.3, 0.9, 0.999])
def test_a_truncated_stream_is_refused(form: str, cut: float) -> None:
    packed = FORMS[form](bytes(range(256)) * 5000 + b"end")
    with pytest.raises(CorruptArchive, match=form):
        decompressed(io.BytesIO(packed[: max(int(len(packed) * cut), 8)])).read()


@pytest.mark.parametrize("form", ["gzip", "xz", "bzip2"])
def test_a_damaged_stream_is_refused(form: str) -> None:
    packed = bytearray(FORMS[form](bytes(range(256)) * 5000))
    packed[len(packed) // 2] ^= 0x55
    with pytest.raises(CorruptArchive, match=form):
        decompressed(io.BytesIO(bytes(packed))).read()


def test_a_short_stream_is_plain() -> None:
    assert decompressed(io.BytesIO(b"")).read() == b""
    assert decompressed(io.BytesIO(b"\x1f")).read() == b"\x1f"
    assert decompressed(io.BytesIO(b"BZh9, a name")).read() == b"BZh9, a name"
    assert decompressed(io.BytesIO(bz2.compress(b""))).read() == b""
