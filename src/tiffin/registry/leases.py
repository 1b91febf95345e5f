"""A lock that all machines share who use one store: some add references, or one collects garbage.

Whoever wants it writes a *lease*, an object under ``locks/shared`` or ``locks/exclusive``, and only
then looks for those of the other kind. As the store shows at once what was written (S3 does), at
least one of two sees the other: who adds takes its lease back and waits; who collects keeps it, and
waits until all that add are done. Of two that collect both go back, for a while at random. Nothing
is needed of the store but what :class:`~tiffin.registry.stores.Store` has.

A lease lives for half a minute, by the store's clock, and is renewed while it is held; so one whose
owner was killed holds nobody up for longer. Who was stopped for so long that it may have run out is
told so by :meth:`Hold.assure` before it writes or removes anything.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from tiffin.errors import TiffinError
from tiffin.registry.stores import Store

LIFETIME = 30.0
_SHARED, _EXCLUSIVE = "locks/shared", "locks/exclusive"
_POLL = 0.2


class Hold:
    """The time for which a lock is held."""

    def assure(self) -> None:
        """Raise TiffinError if others may have the lock by now. A lock of this machine is never
        lost."""


class _Lease(Hold):
    """One object in the store, renewed until :meth:`end`."""

    def __init__(self, store: Store, folder: str, lifetime: float) -> None:
        self._store = store
        self.key = f"{folder}/{uuid.uuid4().hex}"
        self._lifetime = lifetime
        self._ended = threading.Event()
        self._renewed = _now()
        store.write(self.key, b"")
        # The store's clock at a moment of ours.
        self._told = store.time(self.key)
        self._moment = self._renewed
        self._thread = threading.Thread(target=self._renew, name="registry-lease", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        # Once it may be another's, it never becomes ours again.
        while not self._ended.wait(self._lifetime / 4) and self._age() < self._lifetime / 2:
            now = _now()
            # What can't be renewed runs out, which `assure` says.
            with contextlib.suppress(TiffinError, OSError):
                self._store.write(self.key, b"")
                self._renewed = now

    def _age(self) -> float:
        return _now() - self._renewed

    def assure(self) -> None:
        if self._age() >= self._lifetime / 2:
            raise TiffinError(
                f"the registry's lock was not renewed for {self._age():.0f} seconds, and may be"
                " another's: try again"
            )

    def others(self, folder: str) -> bool:
        """Whether anybody else has a living lease in a folder; dead ones are removed."""
        now = self._told + _now() - self._moment
        found = False
        for name in self._store.names(folder):
            key = f"{folder}/{name}"
            if key == self.key:
                continue
            with contextlib.suppress(FileNotFoundError):
                if now - self._store.time(key) > self._lifetime:
                    self._store.delete(key)
                else:
                    found = True
        return found

    def end(self) -> None:
        """Give it back."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(FileNotFoundError):
            self._store.delete(self.key)


class Leases:
    """See the module's text. Any thread may use it."""

    def __init__(self, store: Store, lifetime: float = LIFETIME) -> None:
        self._store = store
        self._lifetime = lifetime

    @contextmanager
    def held(self, *, exclusive: bool) -> Iterator[Hold]:
        """Keep who collects (or, if ``exclusive``, everybody) away."""
        lease = self._exclusive() if exclusive else self._shared()
        try:
            yield lease
        finally:
            lease.end()

    def _shared(self) -> _Lease:
        while True:
            lease = _Lease(self._store, _SHARED, self._lifetime)
            try:
                if not lease.others(_EXCLUSIVE):
                    return lease
            except BaseException:
                lease.end()
                raise
            lease.end()
            _wait()

    def _exclusive(self) -> _Lease:
        while True:
            lease = _Lease(self._store, _EXCLUSIVE, self._lifetime)
            try:
                if not lease.others(_EXCLUSIVE):
                    while lease.others(_SHARED):
                        _wait()
                    return lease
            except BaseException:
                lease.end()
                raise
            lease.end()
            _wait()


def _now() -> float:
    """Seconds, of which those count too for which the machine slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _wait() -> None:
    time.sleep(random.uniform(_POLL, 3 * _POLL))
