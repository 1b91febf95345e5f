"""Waiting for a container: ``wait`` and its conditions.

``not-running`` is met at once by a container that neither runs nor is about to be restarted, else
by the next end, whether a restart follows or not; ``next-exit`` is met by the next end in any case;
``removed`` by the removal. That is Docker's rule.
"""

from __future__ import annotations

import time
from typing import Any

from tiffin.engine.container import Container
from tiffin.errors import InvalidParameter

JSON = dict[str, Any]

WAIT_CONDITIONS = ("not-running", "next-exit", "removed")


def check_condition(condition: str) -> None:
    """Raises InvalidParameter; as in Docker also where there is no such container."""
    if condition and condition not in WAIT_CONDITIONS:
        raise InvalidParameter(f'invalid condition: "{condition}"')


class Waiter:
    """Someone who waits for a container; made before the thing that is waited for can happen."""

    def __init__(self, container: Container, condition: str) -> None:
        self._container = container
        self._condition = condition
        with container.lock:
            # Which run's end is waited for: the present one, or the next.
            self._run = container.state.runs + (0 if container.running else 1)

    def _answer(self) -> JSON | None:
        container = self._container
        done = container.removed
        if self._condition == "not-running":
            done = done or not container.active
        if self._condition != "removed":
            done = done or container.last_end[0] >= self._run
        if not done:
            return None
        run, code = container.last_end
        return {
            "StatusCode": code if run >= self._run else container.state.exit_code,
            "Error": None,
        }

    def result(self, timeout: float | None = None) -> JSON | None:
        """The answer of ``wait``, or None if it did not happen within ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._container.changed:
            while True:
                answer = self._answer()
                if answer is not None:
                    return answer
                rest = None if deadline is None else deadline - time.monotonic()
                if rest is not None and rest <= 0:
                    return None
                self._container.changed.wait(rest)
