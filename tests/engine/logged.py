"""What the tests of log drivers share: containers that have said something."""

from __future__ import annotations

from typing import Any

from engine.life import PATIENCE, create
from tiffin.engine import Engine


def log(kind: str, **options: str) -> dict[str, Any]:
    config = {name.replace("_", "-"): value for name, value in options.items()}
    return {"LogConfig": {"Type": kind, "Config": config}}


def run(engine: Engine, script: str, host: dict[str, Any], **fields: Any) -> str:
    """A container that has run a script to its end."""
    container = create(engine, "sh", "-c", script, host=host, **fields)
    waiter = engine.containers.wait_later(container, "next-exit")
    engine.containers.start(container)
    assert waiter.result(PATIENCE) is not None
    return container


COUNT = "i=0; while [ $i -lt 4000 ]; do echo line $i of all; i=$((i+1)); done"
ALL = b"".join(b"line %d of all\n" % number for number in range(4000))
