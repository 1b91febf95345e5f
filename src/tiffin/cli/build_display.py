"""A build on a terminal: what is done stays, what runs is drawn anew below it."""

from __future__ import annotations

import sys
import time

from tiffin.cli.command import CommandError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TextIO

    from tiffin.client.connection import Response

_TAIL = 30
_SHOWN = 4


class _Step:
    def __init__(self, event: dict[str, Any]) -> None:
        self.label = f"[{event['step']}/{event['total']}] {event.get('text', '')}".split("\n")[0]
        self.began = time.monotonic()
        self.state = ""
        self.why = ""
        self.output: list[str] = []

    def took(self) -> str:
        return f"{time.monotonic() - self.began:.1f}s"


class Terminal:
    """Draws the events of one build."""

    def __init__(self, out: TextIO, width: int) -> None:
        self._out = out
        self._width = width
        self._running: dict[int, _Step] = {}
        self._drawn = 0

    def event(self, event: dict[str, Any]) -> None:
        """Take one event in."""
        stage, state = event["stage"], event["state"]
        if state == "started":
            self._running[stage] = _Step(event)
        step = self._running.get(stage)
        if step is None:
            return
        if state == "cached":
            step.state = "CACHED "
        elif state == "missed":
            step.why = event["why"]
        elif state == "output":
            lines = (step.output.pop() if step.output else "") + event["text"]
            step.output += lines.split("\n")
            del step.output[:-_TAIL]
        elif state == "done":
            del self._running[stage]
            took = "" if step.state else f" ({step.took()})"
            self.line(f"{step.state}{step.label}{took}")
            if step.why:
                self.line(f"    not cached: {step.why}")
            return
        self._draw()

    def line(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        self._out.write(f"{self._cut(text)}\n")
        self._draw()

    def fail(self) -> None:
        """The build fails: what its unfinished steps have printed last stays."""
        self._clear()
        for step in self._running.values():
            self._out.write(f"{self._cut(step.label)} ({step.took()})\n")
            for line in step.output:
                self._out.write(f"    {line}\n" if line else "")
        self._running.clear()
        self._out.flush()

    def end(self) -> None:
        """Take away what is drawn."""
        self._clear()
        self._out.flush()

    def _cut(self, text: str) -> str:
        return text if len(text) <= self._width else text[: self._width - 1] + "…"

    def _clear(self) -> None:
        if self._drawn:
            self._out.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0

    def _draw(self) -> None:
        self._clear()
        for step in self._running.values():
            lines = [f"{step.label} {step.took()}"]
            lines += [f"    {line}" for line in step.output if line][-_SHOWN:]
            for line in lines:
                self._out.write(f"{self._cut(line)}\n")
                self._drawn += 1
        self._out.flush()


def show_events(response: Response, *, aux: Callable[[Any], None]) -> None:
    """Draws a build; raises CommandError for its error."""
    import shutil
    from json import loads

    terminal = Terminal(sys.stdout, shutil.get_terminal_size().columns)
    for line in response.lines():
        message = loads(line)
        if "build" in message:
            terminal.event(message["build"])
        elif "stream" in message:
            terminal.line(message["stream"].rstrip("\n"))
        elif "aux" in message:
            aux(message["aux"])
        elif "error" in message:
            terminal.fail()
            detail = message.get("errorDetail") or {}
            raise CommandError(detail.get("message") or message["error"], detail.get("code") or 1)
    terminal.end()


def show_raw(response: Response, *, aux: Callable[[Any], None]) -> None:
    """Prints the messages as they are, one JSON object a line."""
    from json import loads

    failure: CommandError | None = None
    for line in response.lines():
        sys.stdout.write(line.decode().strip() + "\n")
        sys.stdout.flush()
        message = loads(line)
        if "aux" in message:
            aux(message["aux"])
        elif "error" in message:
            detail = message.get("errorDetail") or {}
            failure = CommandError(
                detail.get("message") or message["error"], detail.get("code") or 1
            )
    if failure is not None:
        raise failure
