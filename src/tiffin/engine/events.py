"""Events: what happened to which container, image or volume, in Docker's form and order.

Source: Docker Engine API v1.50, ``EventMessage``.
"""

from __future__ import annotations

import collections
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HISTORY = 1024
"""How many past events are kept for ``--since``; Docker keeps 256."""

BACKLOG = 1 << 16
"""How far a subscriber may fall behind: some 50 MB."""

Event = dict[str, Any]
Subscriber = queue.SimpleQueue[Event | None]


class Events:
    """Publishes events to any number of subscribers, each with a queue of its own.

    A subscriber is a client's own connection; when it stops reading, it alone falls behind, and one
    that is ``BACKLOG`` events behind is given up: its queue ends with None.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._last = 0
        self._history: collections.deque[Event] = collections.deque(maxlen=HISTORY)
        self._subscribers: set[Subscriber] = set()

    def publish(self, kind: str, action: str, actor: str, **attributes: str) -> None:
        """Tell that ``action`` happened to ``actor`` (an ID or a name) of type ``kind``."""
        event: Event = {
            "Type": kind,
            "Action": action,
            "Actor": {"ID": actor, "Attributes": attributes},
            "scope": "local",
        }
        if kind in ("container", "image"):
            event["status"] = action
            event["id"] = actor
            if kind == "container":
                event["from"] = attributes.get("image", "")
        with self._lock:
            # No two have the same time, so that "since the last one I saw" means something.
            self._last = max(time.time_ns(), self._last + 1)
            event["time"], event["timeNano"] = self._last // 1_000_000_000, self._last
            self._history.append(event)
            behind = [one for one in self._subscribers if one.qsize() >= BACKLOG]
            for subscriber in self._subscribers:
                subscriber.put(event)
            for subscriber in behind:
                subscriber.put(None)
                self._subscribers.remove(subscriber)

    @contextmanager
    def subscribe(self, since_ns: int | None = None) -> Iterator[Subscriber]:
        """A queue of the events from now on, with the kept ones since ``since_ns`` before them."""
        subscriber: Subscriber = queue.SimpleQueue()
        with self._lock:
            if since_ns is not None:
                for event in self._history:
                    if event["timeNano"] >= since_ns:
                        subscriber.put(event)
            self._subscribers.add(subscriber)
        try:
            yield subscriber
        finally:
            with self._lock:
                self._subscribers.discard(subscriber)
