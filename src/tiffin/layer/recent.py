"""A mapping that keeps what was used most recently, up to a total weight."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """See the module's text; the newest value is kept whatever it weighs."""

    def __init__(self, capacity: int, weigh: Callable[[V], int]) -> None:
        self._capacity = capacity
        self._weigh = weigh
        self._lock = threading.Lock()
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._total = 0

    def get(self, key: K) -> V | None:
        """The value, which counts as used, or None."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: K, value: V) -> None:
        """Keep a value, and let go of the oldest as far as the capacity asks for it."""
        weight = self._weigh(value)
        with self._lock:
            self._drop(key)
            self._values[key] = (value, weight)
            self._total += weight
            while self._total > self._capacity and len(self._values) > 1:
                _, (_, least) = self._values.popitem(last=False)
                self._total -= least

    def drop(self, key: K) -> None:
        """Let go of a value; no error if there is none."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: K) -> None:
        if (found := self._values.pop(key, None)) is not None:
            self._total -= found[1]

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._values.clear()
            self._total = 0
