"""Reading containers' logs, which the keeper writes (:mod:`tiffin.keeper.logfile`).

A log is ``NAME`` and the older files ``NAME.1``, ``NAME.2``, …, which may be compressed
(``NAME.2.gz``); here they are one sequence of records. The end of it is found without reading the
rest, and so is a time, by halving: records are in the order of time. A reader that follows hears of
changes by inotify, and goes from file to file as the log is rotated.
"""

from __future__ import annotations

import datetime
import gzip
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote_plus

import msgspec

from tiffin.engine.streams import NUMBERS, header
from tiffin.linux.inotify import IN_CLOSE_WRITE, IN_CREATE, IN_MODIFY, IN_MOVED_TO, Inotify

_T = TypeVar("_T")

_BLOCK = 1 << 16
_READ = 1 << 18
_PATIENCE = 0.25
"""How often a follower asks whether the container has ended, if nothing happens."""
_SHORT_PATIENCE = 0.005
_CLOSED_ROUNDS = 200
"""How often it asks in quick succession after the log was closed: the exit is about to be told."""
_CHANGES = IN_MODIFY | IN_CLOSE_WRITE | IN_CREATE | IN_MOVED_TO


class _Record(msgspec.Struct):
    log: str
    stream: str
    time: str = ""
    attrs: dict[str, str] = {}


class _Output(msgspec.Struct, gc=False):
    """What a record has of a container's output alone: half the time to read."""

    log: str
    stream: str


_decode = msgspec.json.Decoder(_Record).decode
_decode_outputs = msgspec.json.Decoder(_Output).decode_lines
_decode_lines = msgspec.json.Decoder(_Record).decode_lines


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to read of a log.

    ``since`` and ``until`` are nanoseconds of the clock, both included; ``tail`` is the number of
    last records to begin with; ``timestamps`` puts the time in front of each line, and ``details``
    what the log's options added to it. With ``follow`` it goes on until ``ended()`` is true and
    everything is read.
    """

    stdout: bool = True
    stderr: bool = True
    since: int | None = None
    until: int | None = None
    tail: int | None = None
    timestamps: bool = False
    details: bool = False
    follow: bool = False
    ended: Callable[[], bool] = lambda: True


def read_logs(path: str | Path, wanted: Wanted | None = None) -> Iterator[tuple[str, bytes]]:
    """The records of a log: (``stdout`` or ``stderr``, bytes), each a line or a part of a long one.

    A log that does not exist is empty.
    """
    wanted = wanted or Wanted()
    picker = _Picker(wanted)
    yield from _read(os.fspath(path), wanted, picker, picker.pick)


def read_output(path: str | Path, wanted: Wanted, *, multiplexed: bool) -> Iterator[bytes]:
    """The same, many records at a time, in the form in which clients get it: frames of the
    multiplexed stream, one a record, or what a terminal printed."""
    picker = _Picker(wanted)

    def take(file: _File) -> Iterator[bytes]:
        return picker.packed(file, multiplexed=multiplexed)

    yield from _read(os.fspath(path), wanted, picker, take)


def _read(
    path: str, wanted: Wanted, picker: _Picker, take: Callable[[_File], Iterator[_T]]
) -> Iterator[_T]:
    if wanted.follow:
        yield from _follow(path, wanted, picker, take)
        return
    files = _open_all(path)
    try:
        for file in _begin(files, wanted.tail, picker.since):
            yield from take(file)
    finally:
        for file in files:
            file.close()


def _follow(
    path: str, wanted: Wanted, picker: _Picker, take: Callable[[_File], Iterator[_T]]
) -> Iterator[_T]:
    until, ended = wanted.until, wanted.ended
    files: list[_File] = []
    with Inotify() as inotify:
        try:
            inotify.watch(os.path.dirname(path) or ".", _CHANGES)
        except FileNotFoundError:
            return
        try:
            files = _open_all(path)
            _begin(files, wanted.tail, picker.since)
            hurry = 0
            while True:
                # Asked before reading: what was written until then is read below.
                last = ended()
                for file in files:
                    yield from take(file)
                    if picker.over:
                        return
                newer = _open_newer(path, files)
                if newer:
                    # Nothing is written to these any more; what was in the meantime is read.
                    for file in files:
                        yield from take(file)
                        file.close()
                    files = newer
                    continue
                if last or (until is not None and time.time_ns() > until):
                    return
                hurry -= hurry > 0
                for _, mask, _ in inotify.wait(_SHORT_PATIENCE if hurry else _PATIENCE):
                    if mask & IN_CLOSE_WRITE:
                        hurry = _CLOSED_ROUNDS
        finally:
            for file in files:
                file.close()


class _Picker:
    """Chooses and shapes records."""

    def __init__(self, wanted: Wanted) -> None:
        streams = (("stdout", wanted.stdout), ("stderr", wanted.stderr))
        self._wanted = {name for name, want in streams if want}
        self.since = _text(wanted.since)
        self._until = _text(wanted.until)
        self._timestamps = wanted.timestamps
        self._details = wanted.details
        self._within: set[str] = set()
        self.over = False

    @property
    def _plain(self) -> bool:
        """Whether records are given as they are."""
        timed = self.since is not None or self._until is not None
        return not (timed or self._timestamps or self._details)

    def packed(self, file: _File, *, multiplexed: bool) -> Iterator[bytes]:
        """The records from the file's position on as clients get them, a block at a time."""
        wanted = self._wanted
        while not self.over and (block := file.read_lines()):
            pairs: Iterable[tuple[str, bytes]]
            if self._plain:
                pairs = [(one.stream, one.log.encode()) for one in _outputs(block)]
                if len(wanted) < 2:
                    pairs = [pair for pair in pairs if pair[0] in wanted]
            else:
                pairs = self._picked(block)
            if multiplexed:
                yield b"".join([header(NUMBERS[name], len(data)) + data for name, data in pairs])
            else:
                yield b"".join([data for _, data in pairs])

    def pick(self, file: _File) -> Iterator[tuple[str, bytes]]:
        """The records from the file's position on; the position moves along."""
        while not self.over and (block := file.read_lines()):
            if self._plain:
                for one in _outputs(block):
                    if one.stream in self._wanted:
                        yield one.stream, one.log.encode()
            else:
                yield from self._picked(block)

    def _picked(self, block: bytes) -> Iterator[tuple[str, bytes]]:
        for record in _records(block):
            stream = record.stream
            stamp = _fixed(record.time)
            if self.since is not None and stamp < self.since:
                continue
            if self._until is not None and stamp > self._until:
                self.over = True
                return
            if stream not in self._wanted:
                continue
            text = record.log
            if self._timestamps or self._details:
                # A long line is several records, but one line.
                if stream not in self._within:
                    if self._details:
                        text = f"{_attributes(record.attrs)} {text}"
                    if self._timestamps:
                        text = f"{stamp} {text}"
                if text.endswith("\n"):
                    self._within.discard(stream)
                else:
                    self._within.add(stream)
            yield stream, text.encode()


class _File:
    """An open log file and a position in it, which is the start of a record."""

    def __init__(self, path: str) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            packed = os.open(f"{path}.gz", os.O_RDONLY | os.O_CLOEXEC)
            self.inode = os.fstat(packed).st_ino
            self._fd, self.origin = _unpacked(packed)
        else:
            self.inode = self.origin = os.fstat(self._fd).st_ino
        self.position = 0

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read_lines(self) -> bytes:
        """The next whole lines; nothing if there are none (yet)."""
        size = _READ
        if self.size < self.position:
            # It was emptied by hand.
            self.position = 0
        while True:
            block = os.pread(self._fd, size, self.position)
            end = block.rfind(b"\n") + 1
            if end or len(block) < size:
                self.position += end
                return block[:end]
            size *= 2

    def seek_last(self, count: int) -> int:
        """Go to the ``count``-th last record, or the first; how many there are from there on."""
        end = position = self.size
        found = 0
        while position > 0:
            start = max(0, position - _BLOCK)
            block = os.pread(self._fd, position - start, start)
            at = len(block)
            while (at := block.rfind(b"\n", 0, at)) >= 0:
                if start + at == end - 1:
                    # The end of the last record, not the one before it.
                    continue
                found += 1
                if found == count:
                    self.position = start + at + 1
                    return count
            position = start
        self.position = 0
        return found + (end > 0)

    def seek_time(self, since: str) -> None:
        """Go to the first record that is not before ``since``, if that is further on."""
        low, high = self.position, self.size
        while high - low > _BLOCK:
            middle = (low + high) // 2
            start, stamp = self._record_after(middle)
            if stamp is None or start >= high or stamp >= since:
                high = middle
            else:
                low = start
        self.position = low

    def _record_after(self, position: int) -> tuple[int, str | None]:
        """Where the first record behind ``position`` starts, and its time."""
        size = _BLOCK
        while True:
            block = os.pread(self._fd, size, position)
            start = block.find(b"\n") + 1
            end = block.find(b"\n", start) if start else -1
            if end >= 0:
                for record in _records(block[start : end + 1]):
                    return position + start, _fixed(record.time)
                return position + start, None
            if len(block) < size:
                return position + len(block), None
            size *= 2

    def close(self) -> None:
        os.close(self._fd)


def _unpacked(packed: int) -> tuple[int, int]:
    """A descriptor of what is compressed in ``packed``, which is closed, and the inode number that
    the file had before."""
    output = os.memfd_create("log", os.MFD_CLOEXEC)
    name = b""
    with open(packed, "rb") as file, open(output, "wb", closefd=False) as plain:
        head = file.read(64)
        if len(head) > 10 and head[3] & 8:
            name = head[10:].partition(b"\0")[0]
        file.seek(0)
        with gzip.GzipFile(fileobj=file) as content:
            shutil.copyfileobj(content, plain)
    return output, int(name) if name.isdigit() else 0


def _attributes(attrs: dict[str, str]) -> str:
    """What the log's options added to a line, as ``--details`` shows it."""
    return ",".join(f"{quote_plus(key)}={quote_plus(attrs[key])}" for key in sorted(attrs))


def _open_all(path: str) -> list[_File]:
    """All files of a log, the oldest first."""
    while True:
        files: list[_File] = []
        newest = None
        number = missing = 0
        # A keeper that was killed while it rotated the log has left a gap of one.
        while missing < 2:
            try:
                files.insert(0, _File(f"{path}.{number}" if number else path))
            except FileNotFoundError:
                missing += 1
            number += 1
            if number == 1 and files:
                newest = files[0].inode
        if _inode(path) == newest and len({file.inode for file in files}) == len(files):
            return files
        # Rotated meanwhile: one is missing, or there twice.
        for file in files:
            file.close()


def _open_newer(path: str, files: list[_File]) -> list[_File]:
    """The files that have come after the last one of ``files``; all if that one is gone."""
    if files and _inode(path) in (files[-1].inode, None):
        return []
    newer = _open_all(path)
    # The number can't be another file's while this one is open, but an older file may have had it.
    known = [file.origin for file in newer]
    if files and files[-1].inode in known:
        at = len(known) - known[::-1].index(files[-1].inode)
        for file in newer[:at]:
            file.close()
        newer = newer[at:]
    return newer


def _begin(files: list[_File], tail: int | None, since: str | None) -> list[_File]:
    """Set the positions that reading begins at."""
    left = tail
    for file in reversed(files):
        if left is not None:
            if left > 0:
                left -= file.seek_last(left)
            else:
                file.position = file.size
        if since is not None:
            file.seek_time(since)
    return files


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None


def _records(block: bytes) -> list[_Record]:
    try:
        return _decode_lines(block)
    except msgspec.DecodeError:
        return [record for line in block.splitlines() if (record := _record(line)) is not None]


def _outputs(block: bytes) -> Sequence[_Output | _Record]:
    try:
        return _decode_outputs(block)
    except msgspec.DecodeError:
        return _records(block)


def _record(line: bytes) -> _Record | None:
    """One record; None if the line is none (a disk that was full, an editor)."""
    try:
        return _decode(line)
    except msgspec.DecodeError:
        return None


def _text(nanoseconds: int | None) -> str | None:
    """A time as records have it."""
    if nanoseconds is None:
        return None
    seconds, fraction = divmod(max(0, nanoseconds), 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:09d}Z"


def _fixed(stamp: str) -> str:
    """A time of any RFC 3339 form in UTC with nine digits, so that text order is time order."""
    if len(stamp) == 30 and stamp.endswith("Z"):
        return stamp
    try:
        moment = datetime.datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    moment = moment.astimezone(datetime.UTC)
    head, _, rest = stamp.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))] if head else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{digits:0<9.9}Z"
