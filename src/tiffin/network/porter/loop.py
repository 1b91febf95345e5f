"""The porter's event loop: descriptors and what is done when they are ready, and timers."""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

IN = select.EPOLLIN
OUT = select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR


class Loop:
    """Calls whoever watches a descriptor; a watcher gets the events."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._watchers: dict[int, Callable[[int], None]] = {}
        self._timers: dict[object, tuple[float, Callable[[], None]]] = {}
        self.running = True

    def watch(self, fd: int, events: int, call: Callable[[int], None]) -> None:
        """Call when a descriptor is ready; again to change for what."""
        if fd in self._watchers:
            self._poll.modify(fd, events)
        else:
            self._poll.register(fd, events)
        self._watchers[fd] = call

    def forget(self, fd: int) -> None:
        """Watch a descriptor no longer; before it is closed."""
        if self._watchers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def after(self, key: object, seconds: float, call: Callable[[], None]) -> None:
        """Call once after some time, unless cancelled; a key has one timer."""
        self._timers[key] = (time.monotonic() + seconds, call)

    def cancel(self, key: object) -> None:
        """Cancel a timer, if it is set."""
        self._timers.pop(key, None)

    def run(self) -> None:
        """Run until :attr:`running` is false."""
        while self.running:
            timeout = -1.0
            if self._timers:
                first = min(moment for moment, _ in self._timers.values())
                timeout = max(0.0, first - time.monotonic())
            for fd, events in self._poll.poll(timeout):
                watcher = self._watchers.get(fd)
                # One that was called before may have forgotten this one.
                if watcher is not None:
                    watcher(events)
            if self._timers:
                now = time.monotonic()
                due = [key for key, (moment, _) in self._timers.items() if moment <= now]
                for key in due:
                    timer = self._timers.pop(key, None)
                    if timer is not None:
                        timer[1]()
