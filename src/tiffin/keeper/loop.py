"""The keeper's event loop: one epoll, callbacks by descriptor, a few timers."""

from __future__ import annotations

import heapq
import itertools
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

IN = select.EPOLLIN
OUT = select.EPOLLOUT
GONE = select.EPOLLHUP | select.EPOLLERR


class Timer:
    """A call that is due later; :meth:`cancel` it when it is not wanted any more."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """The call will not be made."""
        self.call = None


class Loop:
    """Waits for descriptors and timers. Descriptors stay their owners'."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, tuple[int, Callable[[int], None]]] = {}
        self._dropped: set[int] = set()
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()

    def watch(self, fd: int, mask: int, call: Callable[[int], None]) -> None:
        """Call ``call(events)`` whenever ``fd`` is ready; changes the mask of a watched one.

        A mask of 0 still hears of GONE.
        """
        known = self._calls.get(fd)
        if known is None:
            self._epoll.register(fd, mask)
        elif known[0] != mask:
            self._epoll.modify(fd, mask)
        self._calls[fd] = (mask, call)

    def drop(self, fd: int) -> None:
        """Hear no more of ``fd``; to be called before it is closed."""
        if self._calls.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            self._dropped.add(fd)

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call ``call`` in so many seconds."""
        timer = Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._count), timer))
        return timer

    def turn(self) -> None:
        """Wait for something, and make the calls that are due."""
        timers = self._timers
        while timers and timers[0][2].call is None:
            heapq.heappop(timers)
        wait = max(0.0, timers[0][0] - time.monotonic()) if timers else -1
        self._dropped.clear()
        for fd, events in self._epoll.poll(wait):
            # What was dropped in this turn may be another descriptor by now.
            if fd not in self._dropped:
                known = self._calls.get(fd)
                if known is not None and not attempt(known[1], events):
                    self.drop(fd)
        now = time.monotonic()
        while timers and timers[0][0] <= now:
            call = heapq.heappop(timers)[2].call
            if call is not None:
                attempt(call)

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()


def say(text: str) -> None:
    """Write a line to the keeper's log."""
    try:
        os.write(2, f"{text}\n".encode(errors="replace"))
    except OSError:
        # That log lies on the disk of which it may have to tell that it is full; the keeper of
        # all containers must not end for want of words.
        pass


def report() -> None:
    """Write the exception that is being handled to the keeper's log.

    Nothing is opened for that, no module and no source: it may be descriptors that are wanting.
    """
    kind, error, trace = sys.exc_info()
    lines = []
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"  {code.co_filename}:{trace.tb_lineno} in {code.co_name}")
        trace = trace.tb_next
    name = "nothing" if kind is None else kind.__name__
    say("\n".join([f"failed: {name}: {error}", *lines]))


def attempt(call: Callable[..., None], *arguments: int) -> bool:
    """Make a call; whether it succeeded. What fails for one container must not end the others'
    keeper; it is reported, and a descriptor of which it came not looked at again."""
    try:
        call(*arguments)
    except Exception:
        report()
        return False
    return True
