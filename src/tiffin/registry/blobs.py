"""A blob as it is read from a registry: verified, resumed where the connection breaks, kept.

The *spool* is a file that gets every byte as it arrives. A stream that is opened on a spool with
something in it (an attempt before this one was interrupted, perhaps by the end of the process)
reads that first and asks the registry for the rest. It is the caller who removes the spool, once
what was made of the bytes is safe; bytes that turn out wrong are removed here.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiffin.errors import DigestMismatch, TiffinError, Unreachable
from tiffin.image.manifest import Descriptor
from tiffin.layer.space import space_needed
from tiffin.registry.answers import BROKEN, Answer, failure
from tiffin.registry.transport import Transport

_BLOCK = 1 << 20

Open = Callable[[int], Answer]
"""Ask for the blob's bytes from an offset on; the answer is 200 or 206."""
Progress = Callable[[int], None]
"""Told how many bytes have arrived in all."""


class BlobStream(io.RawIOBase):
    """The bytes of one blob, once, from the first to the last.

    ``read`` raises Unreachable where the registry can't be read any more (what has arrived is in
    the spool), and DigestMismatch for another digest or size than the descriptor's (the spool is
    removed). The end comes only after the digest was found right.
    """

    def __init__(
        self,
        transport: Transport,
        descriptor: Descriptor,
        open_at: Open,
        *,
        spool: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._transport = transport
        self._descriptor = descriptor
        self._open_at = open_at
        self._progress = progress
        self._hash = hashlib.new(descriptor.digest.partition(":")[0])
        self._position = 0
        self._answer: Answer | None = None
        self._failures = 0
        self._spool = spool
        self._kept = -1
        self._held = 0
        self.fetched = 0
        """Bytes that came over the wire."""
        self.resumed = 0
        """Bytes that were here from an earlier attempt."""
        self._complete = False
        if spool is not None:
            self._kept = os.open(spool, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._held = self.resumed = min(os.fstat(self._kept).st_size, descriptor.size)
            os.ftruncate(self._kept, self._held)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """Close the connection and the spool, which stays."""
        if self._answer is not None:
            self._answer.close()
            self._answer = None
        if self._kept >= 0:
            os.close(self._kept)
            self._kept = -1
        super().close()

    @property
    def complete(self) -> bool:
        """Whether every byte was read and found right."""
        return self._complete

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at least one unless at the end; see the class for what is raised."""
        if size < 0 or size > _BLOCK:
            size = _BLOCK
        descriptor = self._descriptor
        if self._position < self._held:
            wanted = min(size, self._held - self._position)
            data = os.pread(self._kept, wanted, self._position)
        elif self._position < descriptor.size:
            data = self._fetch(min(size, descriptor.size - self._position))
        else:
            self._verify()
            return b""
        self._hash.update(data)
        self._position += len(data)
        if self._progress is not None:
            self._progress(self._position)
        if self._position == descriptor.size:
            # At once: who knows how long the stream is may never ask for its end.
            self._verify()
        return data

    def drain(self) -> None:
        """Read to the end, for what :meth:`read` raises and the spool gets."""
        while self.read(_BLOCK):
            pass

    def _fetch(self, size: int) -> bytes:
        """More from the registry, resuming as often as there is progress in between."""
        while True:
            if self._answer is None:
                self._answer = self._ask()
            if self._transport.cancelled():
                self._transport.wait(0.1)
            try:
                data = self._answer.read(size)
                if not data:
                    raise ConnectionError("the answer ended early")
            except BROKEN as error:
                self._answer.close()
                self._answer = None
                self._failed(error)
                continue
            self._failures = 0
            self.fetched += len(data)
            if self._kept >= 0:
                with space_needed(self._spool or Path("."), "the blob"):
                    view = memoryview(data)
                    offset = self._position
                    while view:
                        done = os.pwrite(self._kept, view, offset)
                        view, offset = view[done:], offset + done
                    self._held = offset
            return data

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        patience = self._transport.patience
        if self._failures >= patience.attempts:
            host = self._transport.endpoint.host
            raise Unreachable(
                f"blob {self._descriptor.digest}: registry {host} broke the connection after"
                f" {self._position} of {self._descriptor.size} bytes, {self._failures} times:"
                f" {error}"
            ) from error
        self._transport.wait(patience.delay(self._failures - 1))

    def _ask(self) -> Answer:
        """An answer that stands at our position."""
        answer = self._open_at(self._position)
        skip = 0
        if answer.status == 200:
            skip = self._position
        elif answer.status == 206:
            start = answer.headers.get("Content-Range", "").partition("-")[0].removeprefix("bytes ")
            if start.strip() != str(self._position):
                answer.close()
                raise TiffinError(
                    f"blob {self._descriptor.digest}: the registry answers with another range than"
                    " was asked for"
                )
        else:
            raise failure(answer, f"blob {self._descriptor.digest}")
        length = answer.length
        expected = self._descriptor.size - self._position + skip
        if length is not None and length != expected:
            answer.close()
            self._refuse(f"{length - skip + self._position} bytes")
        while skip:
            try:
                data = answer.read(min(skip, _BLOCK))
                if not data:
                    raise ConnectionError("the answer ended early")
            except BROKEN as error:
                answer.close()
                self._failed(error)
                return self._ask()
            skip -= len(data)
        return answer

    def _verify(self) -> None:
        if self._complete:
            return
        found = f"{self._descriptor.digest.partition(':')[0]}:{self._hash.hexdigest()}"
        if found != self._descriptor.digest:
            self._refuse(f"the digest {found}")
        self._complete = True
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def _refuse(self, what: str) -> None:
        if self._spool is not None:
            self._spool.unlink(missing_ok=True)
        raise DigestMismatch(
            f"blob {self._descriptor.digest} of {self._descriptor.size} bytes is not what registry"
            f" {self._transport.endpoint.host} gives: it has {what}"
        )
