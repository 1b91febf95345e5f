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

Event = dict[str, Any]


class Events:
    """Publishes events to any number of subscribers, each with its own unbounded queue.

    A subscriber is a client's own connection; when it stops reading, it alone falls behind.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._history: collections.deque[Event] = collections.deque(maxlen=HISTORY)
        self._subscribers: set[queue.SimpleQueue[Event]] = set()

    def publish(self, kind: str, action: str, actor: str, **attributes: str) -> None:
        """Tell that ``action`` happened to ``actor`` (an ID or a name) of type ``kind``."""
        now = time.time_ns()
        event: Event = {
            "Type": kind,
            "Action": action,
            "Actor": {"ID": actor, "Attributes": attributes},
            "scope": "local",
            "time": now // 1_000_000_000,
            "timeNano": now,
        }
        if kind in ("container", "image"):
            event["status"] = action
            event["id"] = actor
            if kind == "container":
                event["from"] = attributes.get("image", "")
        with self._lock:
            self._history.append(event)
            for subscriber in self._subscribers:
                subscriber.put(event)

    @contextmanager
    def subscribe(self, since_ns: int | None = None) -> Iterator[queue.SimpleQueue[Event]]:
        """A queue of the events from now on, with the kept ones since ``since_ns`` before them."""
        subscriber: queue.SimpleQueue[Event] = queue.SimpleQueue()
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
