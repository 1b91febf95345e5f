"""Streams of large blocks, with the hashing of them in threads beside the work.

Two directions. :class:`Incoming` reads a tar ahead of the one who takes it apart, and hashes it
while doing so. :class:`Outgoing` collects a tar from one who puts it together, and hands full
blocks to a consumer (a hash, or a file). Both hash the contents of single files in a further
thread: sha256 and reads release the interpreter's lock, so two cores are kept busy.

Blocks are a ring of buffers made once. A buffer is used again when everyone who got it is done
with it. A stream of less than a block starts no thread at all.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

from tiffin.errors import CorruptArchive, TiffinError
from tiffin.layer.entry import Entry

BLOCK = 1 << 20
RING = 8
INLINE = 1 << 15
"""Contents up to this are hashed at once; handing them over would take longer."""

_sha256 = hashlib.sha256
_Job = tuple[Any, memoryview, Entry | None]


class _Worker:
    """A thread that does what it is given in order; what it raises comes out of ``check``."""

    def __init__(self, work: Callable[[Any], object], done: threading.Semaphore) -> None:
        self._work = work
        self._done = done
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="layer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._work(item)
                except BaseException as error:
                    self._error = error
            self._done.release()

    def put(self, item: Any) -> None:
        self._queue.put(item)

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()


def _digest(jobs: list[_Job]) -> None:
    for running, view, entry in jobs:
        if running is None:
            assert entry is not None
            entry.digest = _sha256(view).digest()
        else:
            running.update(view)
            if entry is not None:
                entry.digest = running.digest()


class Incoming:
    """A stream read ahead in blocks, and its digest. A context manager: leaving it ends it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._readinto = getattr(stream, "readinto", None)
        self._hash = _sha256()
        self.length = 0
        self.jobs: list[_Job] = []
        """Digests of contents in the current block, to be made before it is used again."""
        self._reader: threading.Thread | None = None
        self._digester: _Worker | None = None
        self._stop = False
        self._ended = False
        self._view = memoryview(bytearray(BLOCK))
        self._first: int | None = self._fill(self._view)

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop = True
        if self._reader is not None:
            # It may be waiting for a free buffer.
            for _ in range(RING):
                self._free.release()
            self._reader.join()
            self._reader = None
        if self._digester is not None:
            self._digester.close()
            self._digester = None

    def _fill(self, view: memoryview) -> int:
        got = 0
        while got < BLOCK and not self._stop:
            try:
                if self._readinto is not None:
                    count = self._readinto(view[got:])
                else:
                    data = self._stream.read(BLOCK - got)
                    count = len(data)
                    view[got : got + count] = data
            except OSError as error:
                raise TiffinError(f"the archive can't be read: {error}") from error
            if not count:
                break
            got += count
        self._hash.update(view[:got])
        self.length += got
        return got

    def _run(self) -> None:
        position = 1
        try:
            while True:
                self._free.acquire()
                if self._stop:
                    return
                view = self._ring[position % RING]
                got = self._fill(view)
                self._full.put(view[:got])
                if got < BLOCK:
                    return
                position += 1
        except BaseException as error:
            self._full.put(error)

    def next_block(self) -> memoryview:
        """The next block: full but for the last one; empty at the end. Ends the use of the one
        before. Raises what reading the stream raises."""
        if self._first is not None:
            got, self._first = self._first, None
            if got == BLOCK:
                self._ring = [self._view] + [memoryview(bytearray(BLOCK)) for _ in range(RING - 1)]
                self._free = threading.Semaphore(RING - 1)
                self._full: queue.SimpleQueue[memoryview | BaseException] = queue.SimpleQueue()
                self._digester = _Worker(_digest, self._free)
                self._reader = threading.Thread(target=self._run, name="layer-read", daemon=True)
                self._reader.start()
            else:
                self._ended = True
            return self._view[:got]
        jobs, self.jobs = self.jobs, []
        if self._digester is None:
            _digest(jobs)
        else:
            self._digester.put(jobs)
        if self._ended:
            return self._view[:0]
        block = self._full.get()
        if isinstance(block, BaseException):
            self._ended = True
            raise block
        if len(block) < BLOCK:
            self._ended = True
        return block

    def finish(self) -> str:
        """The diff ID, once the stream has been read to its end and all digests are made."""
        while len(self.next_block()):
            pass
        digester = self._digester
        self.__exit__()
        if digester is not None:
            digester.check()
        return "sha256:" + self._hash.hexdigest()


class Outgoing:
    """A stream collected in blocks. ``consume`` gets them in order, in a thread of its own.

    A context manager: leaving it ends the thread; :meth:`finish` must have been called for the
    last block to be consumed.
    """

    def __init__(self, consume: Callable[[memoryview], object]) -> None:
        self._consume = consume
        self._ring = [memoryview(bytearray(BLOCK))]
        self._view = self._ring[0]
        self._fill = 0
        self._turns = 0
        self.length = 0
        self._jobs: list[_Job] = []
        self._consumer: _Worker | None = None
        self._digester: _Worker | None = None

    def __enter__(self) -> Outgoing:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in (self._consumer, self._digester):
            if worker is not None:
                worker.close()
        self._consumer = self._digester = None

    def _turn(self) -> None:
        if self._consumer is None:
            self._ring += [memoryview(bytearray(BLOCK)) for _ in range(RING - 1)]
            self._consumed = threading.Semaphore(RING - 1)
            self._digested = threading.Semaphore(RING - 1)
            self._consumer = _Worker(self._consume, self._consumed)
            self._digester = _Worker(_digest, self._digested)
        assert self._digester is not None
        self._consumer.check()
        self._consumer.put(self._view[: self._fill])
        self._digester.put(self._jobs)
        self._jobs = []
        self._consumed.acquire()
        self._digested.acquire()
        self._turns += 1
        self._view = self._ring[self._turns % RING]
        self._fill = 0

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes that are at hand."""
        self.length += len(data)
        end = self._fill + len(data)
        if end <= BLOCK:
            self._view[self._fill : end] = data
            self._fill = end
            return
        rest = memoryview(data)
        while rest:
            if self._fill == BLOCK:
                self._turn()
            part = rest[: BLOCK - self._fill]
            self._view[self._fill : self._fill + len(part)] = part
            self._fill += len(part)
            rest = rest[len(part) :]

    def content(
        self, source: int, size: int, entry: Entry | None = None, copy: int | None = None
    ) -> None:
        """Add ``size`` bytes read from the descriptor ``source``.

        Their digest is put into ``entry`` (by :meth:`finish` at the latest); they are written to
        the descriptor ``copy`` too. Raises CorruptArchive if the source ends early.
        """
        self.length += size
        view = self._view
        start = self._fill
        if size <= BLOCK - start:
            end = start + size
            while start < end:
                got = os.readv(source, (view[start:end],))
                if not got:
                    raise CorruptArchive("a file became shorter while it was read")
                start += got
            start = self._fill
            self._fill = end
            part = view[start:end]
            if copy is not None and size:
                write_all(copy, part)
            if entry is not None:
                if size <= INLINE:
                    entry.digest = _sha256(part).digest()
                else:
                    self._jobs.append((None, part, entry))
            return
        running = _sha256() if entry is not None else None
        left = size
        while left:
            if self._fill == BLOCK:
                self._turn()
            start = self._fill
            end = min(BLOCK, start + left)
            got = os.readv(source, (self._view[start:end],))
            if not got:
                raise CorruptArchive("a file became shorter while it was read")
            self._fill += got
            left -= got
            part = self._view[start : start + got]
            if copy is not None:
                write_all(copy, part)
            if running is not None:
                self._jobs.append((running, part, None if left else entry))

    def finish(self) -> None:
        """Have everything consumed, and all digests made."""
        if self._consumer is None:
            self._consume(self._view[: self._fill])
            _digest(self._jobs)
            self._jobs = []
            return
        assert self._digester is not None
        consumer, digester = self._consumer, self._digester
        consumer.put(self._view[: self._fill])
        digester.put(self._jobs)
        self.__exit__()
        consumer.check()
        digester.check()


def write_all(fd: int, data: memoryview | bytes | bytearray) -> None:
    """write(2) until everything is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
