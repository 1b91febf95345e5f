"""From a container's pipes to its log, so that a kill at any moment loses nothing and doubles
nothing.

Output is moved from the pipe into a *spool* file by one system call, splice(2): what has left the
pipe is in the spool, whenever the keeper is killed. Records made of it are appended to the log, and
then the *journal* says how far that came: the position in each spool, the *carry* (the start of a
line that is not whole yet), and the log's length. A keeper that takes over cuts the log to that
length, and goes on from that position. The journal has two slots, written in turn and with a
checksum, so that one of them is always whole. A spool is emptied once it is large; a spool that is
shorter than the journal's position was emptied just before a kill, and starts over.

A terminal's output can't be spliced; there, the few microseconds between a read and a write to the
spool remain.

Where the log driver has a socket, what is recorded is given to a :class:`Forwarder` too, and after
a kill what was not noted in the journal may be sent twice.

All files are made with the first output, in the container's folder of the keeper:
``stdout.spool``, ``stderr.spool``, ``journal``.
"""

from __future__ import annotations

import binascii
import os
import struct

from tiffin.keeper.logfile import Format, log_from, record_end
from tiffin.keeper.loop import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tiffin.keeper.forwarding import Forwarder

STREAMS = ("stdout", "stderr")
_READ = 1 << 16
_SPOOL_LIMIT = 4 << 20
_SLOT = 1 << 16
_SLOT_HEAD = struct.Struct("<IIIQQQQQ")
"""Checksum of the rest, lengths of both carries, number, both positions, the log's length and
inode."""
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


class _Stream:
    def __init__(self, name: str, attributes: dict[str, str] | None) -> None:
        self.name = name
        self.format = Format(name, attributes)
        self.spool = -1
        self.size = 0
        self.position = 0
        self.carry = b""


class Recorder:
    """Writes one container's log. ``options`` as in KeeperClient.start; ``forwarder`` gets all that
    is recorded, and stays the caller's."""

    def __init__(
        self, directory: str, options: dict[str, Any], forwarder: Forwarder | None = None
    ) -> None:
        self._directory = directory
        self._forwarder = forwarder
        self._log = log_from(options)
        attributes = options.get("attrs")
        self._streams = [_Stream(name, attributes) for name in STREAMS]
        self._journal = -1
        self._number = 0
        self._failed = False

    def recover(self) -> None:
        """Go on where another keeper was killed."""
        if not os.path.exists(f"{self._directory}/journal"):
            return
        self._journal = os.open(f"{self._directory}/journal", _FLAGS, 0o600)
        slots = [_read_slot(self._journal, index) for index in (0, 1)]
        known = [slot for slot in slots if slot is not None]
        if not known:
            return
        number, positions, carries, log_size, log_inode = max(known, key=lambda slot: slot[0])
        self._number = number
        self._log.open()
        if self._log.inode == log_inode:
            self._log.truncate(log_size)
        for stream, position, carry in zip(self._streams, positions, carries, strict=True):
            path = f"{self._directory}/{stream.name}.spool"
            if os.path.exists(path):
                stream.spool = os.open(path, _FLAGS, 0o600)
                stream.size = os.fstat(stream.spool).st_size
            stream.carry = carry
            stream.position = position if position <= stream.size else 0
        for stream in self._streams:
            end = stream.size
            while stream.position < end:
                data = os.pread(stream.spool, _READ, stream.position)
                stream.size = stream.position + len(data)
                self._record(stream, data)
            stream.size = end

    def pull(self, index: int, fd: int, *, terminal: bool = False) -> bytes:
        """Move what is in the pipe ``fd`` to the log of stream ``index``; the bytes.

        Raises BlockingIOError if there is nothing, and OSError (EIO) at a terminal's end.
        """
        stream = self._streams[index]
        # A log that can't be written must not stop its container; Docker does the same.
        try:
            self._open(stream)
        except OSError as error:
            self._complain(error)
        data = self._read(stream, fd) if terminal else self._splice(stream, fd)
        self._record(stream, data)
        if stream.size >= _SPOOL_LIMIT:
            os.ftruncate(stream.spool, 0)
            stream.size = stream.position = 0
            self._note()
            self._note()
        return data

    def finish(self) -> None:
        """The streams have ended: write the lines that have no newline; close all."""
        for stream in self._streams:
            if stream.carry:
                self._record(stream, b"", last=True)
        self.close()

    def close(self) -> None:
        """Close all files."""
        self._log.close()
        for stream in self._streams:
            if stream.spool >= 0:
                os.close(stream.spool)
                stream.spool = -1
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1

    def _open(self, stream: _Stream) -> None:
        if stream.spool >= 0:
            return
        if self._journal < 0:
            self._log.open()
            self._journal = os.open(f"{self._directory}/journal", _FLAGS, 0o600)
            self._note()
        stream.spool = os.open(f"{self._directory}/{stream.name}.spool", _FLAGS, 0o600)

    def _splice(self, stream: _Stream, fd: int) -> bytes:
        try:
            count = os.splice(
                fd, stream.spool, _READ, offset_dst=stream.size, flags=os.SPLICE_F_NONBLOCK
            )
            data = os.pread(stream.spool, count, stream.size)
        except BlockingIOError:
            raise
        except OSError as error:
            self._complain(error)
            return os.read(fd, _READ)
        stream.size += count
        return data

    def _read(self, stream: _Stream, fd: int) -> bytes:
        data = os.read(fd, _READ)
        try:
            stream.size += os.pwrite(stream.spool, data, stream.size)
        except OSError as error:
            self._complain(error)
        return data

    def _record(self, stream: _Stream, data: bytes, *, last: bool = False) -> None:
        raw = stream.carry + data if stream.carry else data
        start = stream.size - len(raw)
        records, used = stream.format.records(raw, last=last)
        if self._forwarder is not None and used:
            self._forwarder.take(stream.name, raw[:used])
        done = 0
        try:
            while records:
                room = self._log.room()
                if room is None or len(records) <= room:
                    self._log.write(records)
                    break
                if room > 0:
                    # As many as it takes to fill the file; the one that fills it still goes there.
                    cut = records.find(b"\n", room - 1) + 1
                    for _ in range(records.count(b"\n", 0, cut)):
                        done = record_end(raw, done, last=last)
                    self._log.write(records[:cut])
                    records = records[cut:]
                    stream.carry, stream.position = b"", max(stream.position, start + done)
                    self._note()
                if records:
                    self._log.rotate()
                    self._note()
        except OSError as error:
            self._complain(error)
        stream.carry, stream.position = raw[used:], stream.size
        self._note()

    def _note(self) -> None:
        if self._journal < 0:
            return
        self._number += 1
        out, err = self._streams
        slot = _SLOT_HEAD.pack(
            0,
            len(out.carry),
            len(err.carry),
            self._number,
            out.position,
            err.position,
            self._log.size,
            self._log.inode,
        )
        slot += out.carry + err.carry
        checksum = binascii.crc32(memoryview(slot)[4:]).to_bytes(4, "little")
        try:
            os.pwrite(self._journal, checksum + slot[4:], self._number % 2 * _SLOT)
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            say(f"{self._directory}: output is being lost to the log: {error}")


def _read_slot(
    journal: int, index: int
) -> tuple[int, tuple[int, int], tuple[bytes, bytes], int, int] | None:
    data = os.pread(journal, _SLOT, index * _SLOT)
    if len(data) < _SLOT_HEAD.size:
        return None
    checksum, out, err, number, out_at, err_at, size, inode = _SLOT_HEAD.unpack_from(data)
    middle = _SLOT_HEAD.size + out
    end = middle + err
    if binascii.crc32(memoryview(data)[4:end]) != checksum:
        return None
    carries = (data[_SLOT_HEAD.size : middle], data[middle:end])
    return number, (out_at, err_at), carries, size, inode
