"""Departures: the rules of containers that have ended, taken away many at once.

The kernel takes long to forget a rule; whoever has ended is not waited for. Addresses and ports are
free for others only once no rule leads to them any more.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tiffin.errors import TiffinError
from tiffin.network.firewall import Element
from tiffin.network.ledger import Ledger
from tiffin.network.settings import Endpoint

logger = logging.getLogger("tiffin")


@dataclass(slots=True, eq=False)
class Departure:
    """A container whose place is being cleared."""

    container: str
    endpoints: list[Endpoint]
    elements: list[Element] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)


class Departures:
    """Clears away what containers with rules leave; ``unrule`` takes elements out of the firewall
    for all who left meanwhile, and returns when nobody is led to them any more."""

    def __init__(self, ledger: Ledger, unrule: Callable[[Iterable[Element]], None]) -> None:
        self._ledger = ledger
        self._unrule = unrule
        self._queue: queue.SimpleQueue[Departure | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting: dict[str, Departure] = {}
        self._thread: threading.Thread | None = None

    def leave(self, departure: Departure) -> None:
        """Clear a place: at once where there are no rules, else soon."""
        if not departure.elements:
            self._settle(departure)
            return
        with self._lock:
            self._waiting[departure.container] = departure
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="networks", daemon=True)
                self._thread.start()
        self._queue.put(departure)

    def __contains__(self, container: str) -> bool:
        """Whether a container is on its way out."""
        return container in self._waiting

    def wait(self) -> None:
        """Wait until all that has left has left nothing."""
        for one in list(self._waiting.values()):
            one.done.wait()

    def close(self) -> None:
        """Wait for the last ones."""
        self.wait()
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def _settle(self, departure: Departure) -> None:
        for endpoint in departure.endpoints:
            self._ledger.leave(endpoint)
        self._ledger.unpublish(departure.container)

    def _work(self) -> None:
        while (departure := self._queue.get()) is not None:
            batch = [departure]
            while not self._queue.empty():
                more = self._queue.get()
                if more is None:
                    self._queue.put(None)
                    break
                batch.append(more)
            try:
                elements = [element for one in batch for element in one.elements]
                for one in batch:
                    self._ledger.unpublish(one.container)
                self._unrule(elements)
            except (OSError, TiffinError) as error:
                logger.error("rules of ended containers could not be removed: %s", error)
            finally:
                for one in batch:
                    self._settle(one)
                    with self._lock:
                        self._waiting.pop(one.container, None)
                    one.done.set()
