"""What is known of files that were read before, so that unchanged ones are not read again.

A file is known by its device, inode, size, and times of modification and change. A change of
content, of mode, of owner or of an extended attribute moves the time of change, and no program
can set that one back. One case remains: a file that is changed twice within the same tick of the
file system's clock, and read in between, looks the same afterwards. So nothing is remembered of a
file whose time of change is not older than the moment of reading by more than a tick; that is the
rule by which git treats "racily clean" entries.

What is known can be kept in a file, so that a daemon that starts knows it too. It counts until the
machine boots: the numbers of devices may be given anew then, and what was not on the disk yet is
not what it was.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import zstandard

Stamp = tuple[int, int, int, int, int]
"""Device, inode, size, mtime and ctime in nanoseconds."""

_FORMAT = 2
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_WORTH_SAVING = 256
"""So many files read, or the like of it in bytes, are worth the writing."""
_BYTES_LIKE_A_FILE = 1 << 16
_TICK_NS = 20_000_000
"""More than the kernel's tick (at most 10 ms) that file times are taken from."""
_COARSE_TICK_NS = 2_000_000_000
"""The same for file systems that keep whole seconds, or pairs of them."""


def stamp_of(status: os.stat_result) -> Stamp:
    """What a file is known by."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


class Known(NamedTuple):
    """What was found when a file was read."""

    digest: bytes
    """sha256 of the content."""
    xattrs: dict[str, bytes] | None


_Saved = tuple[int, str, list[tuple[Stamp, bytes, dict[str, bytes] | None]]]


class DigestCache:
    """Digests of files by their stamp; safe to use from any thread."""

    def __init__(
        self,
        limit: int = 400_000,
        clock: Callable[[], int] = time.time_ns,
        path: Path | None = None,
    ) -> None:
        """At most ``limit`` files are remembered; the ones longest unused are forgotten. ``path``
        is where they are kept; it is read when the first file is asked for."""
        self._known: dict[Stamp, Known] = {}
        self._fresh: dict[Stamp, Known] = {}
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._path = path
        self._loaded = path is None
        self._unsaved = 0

    def __len__(self) -> int:
        return len(self._known) + len(self._fresh)

    def now(self) -> int:
        """The moment to note before a file is opened, for :meth:`remember`."""
        return self._clock()

    def find(self, stamp: Stamp) -> Known | None:
        """What is known of the file, or None if it must be read."""
        if not self._loaded:
            self._load()
        known = self._fresh.get(stamp)
        if known is None:
            known = self._known.get(stamp)
            if known is not None:
                self._keep(stamp, known)
        return known

    def remember(self, stamp: Stamp, known: Known, read_at: int) -> None:
        """Keep what was read at ``read_at``, unless the file may still change unseen."""
        changed = max(stamp[3], stamp[4])
        coarse = stamp[4] % 1_000_000_000 == 0
        if changed < read_at - (_COARSE_TICK_NS if coarse else _TICK_NS):
            self._keep(stamp, known)
            self._unsaved += 1 + stamp[2] // _BYTES_LIKE_A_FILE

    def _keep(self, stamp: Stamp, known: Known) -> None:
        # Two generations make a cheap approximation of "longest unused": what is asked for moves
        # to the fresh one; when that is full, it becomes the old one and the old one is dropped.
        with self._lock:
            self._fresh[stamp] = known
            if len(self._fresh) >= self._limit // 2:
                self._known, self._fresh = self._fresh, {}

    def save(self, *, all: bool = False) -> None:
        """Write everything to the file, if much of it is new, or ``all``: if anything is."""
        path = self._path
        if path is None or not self._unsaved:
            return
        if not self._loaded:
            self._load()
        with self._lock:
            if not all and self._unsaved < max(_WORTH_SAVING, len(self) // 10):
                return
            rows = [
                (stamp, known.digest, known.xattrs)
                for stamp, known in {**self._known, **self._fresh}.items()
            ]
            self._unsaved = 0
            packed = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(
                msgspec.msgpack.encode((_FORMAT, _BOOT.read_text(), rows))
            )
            temporary = path.with_name(path.name + ".new")
            temporary.write_bytes(packed)
            temporary.replace(path)

    def _load(self) -> None:
        with self._lock:
            if self._loaded:
                return
            self._loaded = True
            assert self._path is not None
            try:
                packed = zstandard.ZstdDecompressor().decompress(self._path.read_bytes())
                version, boot, rows = msgspec.msgpack.decode(packed, type=_Saved)
            except (FileNotFoundError, zstandard.ZstdError, msgspec.MsgspecError):
                return  # it is a cache: the files are read again
            if version == _FORMAT and boot == _BOOT.read_text():
                self._known = {stamp: Known(digest, xattrs) for stamp, digest, xattrs in rows}
