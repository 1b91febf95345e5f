"""A schedule: calls that are due later, made one after the other by one thread.

The thread is started with the first call, and there is only one however many containers there are.
A call should not take long: those behind it wait.
"""

from __future__ import annotations

import heapq
import itertools
import sys
import threading
import time
from collections.abc import Callable


class Due:
    """A call that is due later; :meth:`cancel` it when it is not wanted any more."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """The call will not be made, unless it is being made right now."""
        self._call = None

    def run(self) -> None:
        """Make the call, if it is still wanted."""
        if self._call is not None:
            self._call()


class Schedule:
    """Calls by their time. Any thread may use it; close it at the end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._calls: list[tuple[float, int, Due]] = []
        self._count = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def after(self, seconds: float, call: Callable[[], None]) -> Due:
        """Make ``call`` in so many seconds. After :meth:`close` nothing is done."""
        due = Due(call)
        with self._changed:
            if not self._closed:
                heapq.heappush(self._calls, (time.monotonic() + seconds, next(self._count), due))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                    self._thread.start()
                self._changed.notify()
        return due

    def close(self) -> None:
        """Make no further call; a call under way is waited for."""
        with self._changed:
            self._closed = True
            self._calls.clear()
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _next(self) -> Due | None:
        with self._changed:
            while not self._closed:
                rest = self._calls[0][0] - time.monotonic() if self._calls else None
                if rest is not None and rest <= 0:
                    return heapq.heappop(self._calls)[2]
                self._changed.wait(rest)
        return None

    def _work(self) -> None:
        while (due := self._next()) is not None:
            try:
                due.run()
            except Exception:
                # One container's trouble must not end the others' schedule; it is shown as a
                # thread's end.
                threading.excepthook(
                    threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread()))
                )
