"""A container's log, in the format of Docker's json-file driver.

One *record* a line: ``{"log":"text\\n","stream":"stdout","time":"…"}`` (RFC 3339, nanoseconds). A
record is a line of output; a line over 16 KiB becomes several records, and only the last one's
text ends in a newline. Bytes that are no UTF-8 become U+FFFD.

A log that has reached its greatest size is moved to ``NAME.1`` (and that one to ``NAME.2``, up to
the number of files wanted) before the next record is written. If asked for, the files from the
second one on are compressed (``NAME.2.gz``) by a process of their own; ``NAME.1`` is not, so that
whoever follows the log still finds the file that he was reading. The file name in a compressed
file's header is the inode number that it had before.

Source: https://docs.docker.com/engine/logging/drivers/json-file/.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time

from tiffin.linux.syscalls import close_range

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LONGEST = 16 << 10
"""The most bytes of output in one record."""
_HEAD = b'{"log":"'
_ESCAPES = {byte: b"\\u%04x" % byte for byte in range(0x20)} | {
    ord("\t"): b"\\t",
    ord("\r"): b"\\r",
    ord('"'): b'\\"',
    ord("\\"): b"\\\\",
}
_HARMLESS = bytes(byte for byte in range(256) if byte == ord("\n") or byte not in _ESCAPES)


class Format:
    """Makes records of one stream's bytes."""

    def __init__(self, stream: str, attributes: dict[str, str] | None) -> None:
        before = f'","stream":"{stream}",'
        if attributes:
            before += f'"attrs":{json.dumps(attributes)},'
        self._before_time = before
        self._second = -1
        self._second_text = ""

    def records(self, raw: bytes, *, last: bool = False) -> tuple[bytes, int]:
        """The records of ``raw``, and how many of its bytes they hold.

        What follows is the start of a record, unless this is the ``last`` of the stream.
        """
        now = time.time_ns()
        second, fraction = divmod(now, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        tail = f'{self._before_time}"time":"{self._second_text}.{fraction:09d}Z"}}\n'.encode()
        between = b"\\n%b%b" % (tail, _HEAD)
        parts: list[bytes] = []
        start = position = 0
        while True:
            # Whole lines, none of them too long, reach up to the last newline in the window.
            newline = raw.rfind(b"\n", position, position + LONGEST)
            if newline >= 0:
                position = newline + 1
                continue
            if start < position:
                # The last newline is taken away first, else it would begin one record too many.
                block = _escape(raw[start : position - 1]).replace(b"\n", between)
                parts += (_HEAD, block, b"\\n", tail)
            end = record_end(raw, position, last=last)
            if not end:
                return b"".join(parts), position
            parts += (_HEAD, _escape(raw[position:end]), tail)
            start = position = end


def _escape(raw: bytes) -> bytes:
    """As it stands in a JSON string, but for newlines, which stay as they are.

    All of it is done by the few operations that are fast on bytes: most blocks need but the first.
    """
    if not raw.isascii():
        raw = raw.decode("utf-8", "replace").encode()
    # A backslash is the greatest of them, and has to be the first: the others make more of it.
    for byte in sorted(set(raw.translate(None, _HARMLESS)), reverse=True):
        raw = raw.replace(bytes((byte,)), _ESCAPES[byte])
    return raw


def record_end(raw: bytes, start: int, *, last: bool = False) -> int:
    """Where the record that starts at ``start`` ends; 0 if ``raw`` does not hold all of it."""
    newline = raw.find(b"\n", start, start + LONGEST)
    if newline >= 0:
        return newline + 1
    if len(raw) - start < LONGEST:
        return len(raw) if last and start < len(raw) else 0
    end = start + LONGEST
    # Not in the middle of a character, if it is one (of four bytes at most).
    for back in range(1, 4):
        byte = raw[end - back]
        if byte & 0xC0 != 0x80:
            width = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return end - back if width > back else end
    return end


class LogFile:
    """A log that is written to; it is made with its first record."""

    def __init__(
        self, path: str, max_size: int | None, max_file: int, compress: bool = False
    ) -> None:
        self._path = path
        self._max_size = max_size
        self._max_file = max_file
        self._compress = compress
        self._fd = -1
        self.size = 0
        self.inode = 0

    def open(self) -> None:
        """Open or make the file. Raises OSError."""
        if self._fd >= 0:
            return
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        status = os.fstat(self._fd)
        self.size, self.inode = status.st_size, status.st_ino

    def room(self) -> int | None:
        """How many bytes may be written before the file is full; None: any number."""
        return None if self._max_size is None else self._max_size - self.size

    def write(self, records: bytes) -> None:
        """Append whole records. Raises OSError, and then leaves none of them."""
        self.open()
        view = memoryview(records)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, self.size)
            raise
        self.size += len(records)

    def truncate(self, size: int) -> None:
        """Cut off what lies behind ``size``."""
        self.open()
        if size < self.size:
            os.ftruncate(self._fd, size)
            self.size = size

    def rotate(self) -> None:
        """Move the file out of the way and begin a new one. Raises OSError."""
        self.close()
        if self._max_file > 1:
            with _Renaming(self._path):
                self._shift()
            if self._compress and self._max_file > 2:
                start_compressing(f"{self._path}.2")
        else:
            os.unlink(self._path)
        self.open()

    def _shift(self) -> None:
        last = 1
        while last < self._max_file - 1 and _existing(f"{self._path}.{last}"):
            last += 1
        for number in range(last, 0, -1):
            target = f"{self._path}.{number}"
            for old in _existing(target):
                os.unlink(target + old)
            source = f"{self._path}.{number - 1}" if number > 1 else self._path
            for suffix in _existing(source):
                os.rename(source + suffix, target + suffix)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class NoLog(LogFile):
    """A log that is not kept."""

    def __init__(self) -> None:
        super().__init__("/dev/null", None, 1)

    def open(self) -> None:
        """Nothing is opened."""

    def write(self, records: bytes) -> None:
        """Nothing is written."""

    def truncate(self, size: int) -> None:
        """Nothing is cut off."""


def log_from(options: dict[str, Any]) -> LogFile:
    """The log that a daemon's ``log`` options describe."""
    if options["path"] is None:
        return NoLog()
    size, files = options.get("max_size"), max(1, int(options.get("max_file") or 1))
    return LogFile(str(options["path"]), size, files, bool(options.get("compress")))


def _existing(path: str) -> list[str]:
    """Which of the forms of a file there are: ``""`` plain, ``".gz"`` compressed."""
    return [suffix for suffix in ("", ".gz") if os.path.exists(path + suffix)]


class _Renaming:
    """Inside the block, nobody else renames the files of the log ``path``."""

    def __init__(self, path: str) -> None:
        self._directory = os.path.dirname(path) or "."

    def __enter__(self) -> None:
        self._lock = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)


def start_compressing(path: str) -> None:
    """Compress a file in a process of its own, which is reaped like any other child."""
    try:
        # Opened here: by the time that the child runs, the file may have another name.
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if os.fork():
        os.close(source)
        return
    code = 1
    try:
        os.dup2(source, 3)
        close_range(4)
        os.nice(10)
        compress(path.rpartition(".")[0], 3)
        code = 0
    except OSError as error:
        print(f"{path} is not compressed: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def compress(base: str, source: int) -> None:
    """Put a compressed file in the place of ``source``, one of the older files of the log ``base``,
    which may be moved meanwhile. Raises OSError."""
    import zlib

    inode = os.fstat(source).st_ino
    made = f"{base}.{inode}.tmp"
    output = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    checksum = size = 0
    # RFC 1952: magic, deflate, "has a name", no time, no hints, Unix.
    _write_all(output, b"\x1f\x8b\x08\x08\0\0\0\0\0\x03%d\0" % inode)
    while data := os.read(source, 1 << 18):
        checksum, size = zlib.crc32(data, checksum), size + len(data)
        _write_all(output, packer.compress(data))
    _write_all(output, packer.flush())
    _write_all(output, checksum.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little"))
    with _Renaming(base):
        number = 1
        while _existing(f"{base}.{number}"):
            try:
                if os.stat(f"{base}.{number}").st_ino == inode:
                    os.rename(made, f"{base}.{number}.gz")
                    os.unlink(f"{base}.{number}")
                    return
            except FileNotFoundError:
                # This one is compressed already.
                pass
            number += 1
        # It was too old, and is gone.
        os.unlink(made)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
