"""What the tests of a container's life share: making containers, hearing events, waiting."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tiffin.engine import Engine

PATIENCE = 30.0


def create(engine: Engine, *command: str, **fields: Any) -> str:
    """A container of the image busybox; ``host`` is its HostConfig."""
    host = fields.pop("host", {})
    name = fields.pop("name", None)
    body = {"Image": "busybox", "Cmd": list(command) or None, "HostConfig": host, **fields}
    return str(engine.containers.create(body, name)["Id"])


def started(engine: Engine, *command: str, **fields: Any) -> str:
    """A container that has been started."""
    container = create(engine, *command, **fields)
    engine.containers.start(container)
    return container


def output(engine: Engine, container: str, **options: Any) -> bytes:
    """What its log has."""
    _, lines = engine.containers.logs(container, **options)
    return b"".join(data for _, data in lines)


def state(engine: Engine, container: str) -> dict[str, Any]:
    """Its State."""
    found: dict[str, Any] = engine.containers.inspect(container)["State"]
    return found


def inside(engine: Engine, container: str, *command: str) -> str:
    """What a command run in it says."""
    made = engine.containers.exec_create(
        container, {"Cmd": list(command), "AttachStdout": True, "AttachStderr": True}
    )
    code, out, err = engine.containers.exec_output(made["Id"])
    assert code == 0, err
    return out.decode().strip()


class Listener:
    """The events of the containers, as they come."""

    def __init__(self, subscriber: queue.SimpleQueue[dict[str, Any]]) -> None:
        self._subscriber = subscriber
        self.heard: list[dict[str, Any]] = []

    def wait(self, action: str, times: int = 1) -> dict[str, Any]:
        """The event of that action, once there have been so many of it."""
        while True:
            found = [event for event in self.heard if event["Action"] == action]
            if len(found) >= times:
                return found[times - 1]
            self.heard.append(self._subscriber.get(timeout=PATIENCE))

    def actions(self) -> list[str]:
        """All that has come so far."""
        while not self._subscriber.empty():
            self.heard.append(self._subscriber.get())
        return [event["Action"] for event in self.heard]


@contextmanager
def listening(engine: Engine) -> Iterator[Listener]:
    """Hear of events from now on."""
    with engine.events.subscribe() as subscriber:
        yield Listener(subscriber)


def eventually(true: Callable[[], object], what: str = "") -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, what or "it did not become true"
        time.sleep(0.01)
