"""What keeps threads of one process out of each other's way in the layer store."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class KeyedLocks:
    """A lock for each key, for as long as someone holds or awaits it; reentrant."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        # The lock, and how many hold or await it.
        self._locks: dict[str, tuple[threading.RLock, int]] = {}

    @contextmanager
    def held(self, key: str) -> Iterator[None]:
        """Hold the key's lock inside the block."""
        with self._mutex:
            lock, users = self._locks.get(key) or (threading.RLock(), 0)
            self._locks[key] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._mutex:
                lock, users = self._locks[key]
                if users == 1:
                    del self._locks[key]
                else:
                    self._locks[key] = (lock, users - 1)


class Pins:
    """Chain IDs that must not be collected: in use by a call, or made under a lease."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._pins: Counter[str] = Counter()
        self._leases: list[set[str]] = []

    @contextmanager
    def held(self, chain: str | None) -> Iterator[None]:
        """Pin a chain ID inside the block."""
        if chain is None:
            yield
            return
        with self._mutex:
            self._pins[chain] += 1
        try:
            yield
        finally:
            with self._mutex:
                self._pins[chain] -= 1
                if not self._pins[chain]:
                    del self._pins[chain]

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Inside the block, keep everything that is :meth:`made`."""
        kept: set[str] = set()
        with self._mutex:
            self._leases.append(kept)
        try:
            yield
        finally:
            with self._mutex:
                # By identity: two leases that hold the same are equal.
                self._leases = [lease for lease in self._leases if lease is not kept]

    def made(self, chain: str) -> None:
        """Tell every lease of a layer that is made or found."""
        with self._mutex:
            for lease in self._leases:
                lease.add(chain)

    def all(self) -> set[str]:
        """Every chain ID that is kept now."""
        with self._mutex:
            return set(self._pins).union(*self._leases)
