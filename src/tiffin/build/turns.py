"""Whose turn it is to make a step: two builds that need the same one make it once.

A turn is a lock by name, for as long as someone holds or awaits it, that can be given up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOOK_AGAIN = 0.1


class Turns:
    """Locks by name; one for all builds of an engine."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken: set[str] = set()

    @contextmanager
    def held(self, name: str, given_up: Callable[[], bool]) -> Iterator[None]:
        """Hold the turn inside the block. ``given_up`` is asked while waiting: it raises, or
        says True, which lets the block go on without a turn."""
        owned = False
        with self._changed:
            while name in self._taken:
                if given_up():
                    break
                self._changed.wait(_LOOK_AGAIN)
            else:
                self._taken.add(name)
                owned = True
        try:
            yield
        finally:
            if owned:
                with self._changed:
                    self._taken.discard(name)
                    self._changed.notify_all()

    def try_take(self, name: str) -> bool:
        """Take a turn if nobody has it; to be given back."""
        with self._changed:
            if name in self._taken:
                return False
            self._taken.add(name)
            return True

    def give_back(self, name: str) -> None:
        """Give back what :meth:`try_take` took."""
        with self._changed:
            self._taken.discard(name)
            self._changed.notify_all()
