"""A build on a terminal: what is done stays, what runs is drawn anew below it."""

from __future__ import annotations

import sys
import time

from tiffin.cli.command import CommandError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Lock
    from typing import Any, TextIO

    from tiffin.client.connection import Response

_TAIL = 30
_SHOWN = 4
_PAUSE = 0.1
"""Seconds between two drawings; times go on where nothing else happens."""


class _Step:
    def __init__(self, event: dict[str, Any]) -> None:
        self.label = f"[{event['step']}/{event['total']}] {event.get('text', '')}".split("\n")[0]
        self.began = time.monotonic()
        self.state = ""
        self.why = ""
        self.output: list[str] = []

    def took(self) -> str:
        return f"{time.monotonic() - self.began:.1f}s"

    def add(self, text: str) -> None:
        """Take output in: whole lines, as a terminal would show them."""
        lines = (self.output.pop() if self.output else "") + text
        self.output += lines.split("\n")
        del self.output[:-_TAIL]

    def lines(self) -> list[str]:
        return [text for line in self.output if (text := plain(line))]


def plain(line: str) -> str:
    """What is left of a line when a terminal has shown it: what a carriage return has gone back
    over is gone, escape sequences move nothing here, and tabs are blanks."""
    if "\x1b" in line:
        import re

        line = re.sub(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)", "", line)
    line = line.rstrip("\r").rpartition("\r")[2].expandtabs()
    return "".join(each for each in line if each.isprintable())


def width(text: str) -> int:
    """How many columns a text takes."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(each) else 1 + (unicodedata.east_asian_width(each) in "WF")
        for each in text
    )


def cut(text: str, columns: int) -> str:
    """A text that takes no more columns than there are."""
    if width(text) <= columns:
        return text
    while text and width(text) > columns - 1:
        text = text[:-1]
    return text + "…"


class Terminal:
    """Draws the events of one build."""

    def __init__(self, out: TextIO, size: Callable[[], tuple[int, int]]) -> None:
        """``size`` gives columns and rows."""
        self._out = out
        self._size = size
        self._running: dict[int, _Step] = {}
        self._drawn = 0
        self._drawn_at = 0.0

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
            step.add(event["text"])
        elif state == "done":
            del self._running[stage]
            why = (f"    not cached: {step.why}",) if step.why else ()
            self._stay(self._timed(f"{step.state}{step.label}", "" if step.state else step.took()))
            for line in why:
                self._stay(line)
            self.draw()
            return
        self.draw(rested=True)

    def line(self, text: str) -> None:
        """A line that stays."""
        self._stay(text)
        self.draw()

    def _stay(self, text: str) -> None:
        self._clear()
        self._out.write(f"{cut(text, self._size()[0])}\n")

    def _timed(self, text: str, took: str) -> str:
        """A text with a time at its end, which is not cut."""
        if not took:
            return text
        return f"{cut(text, self._size()[0] - len(took) - 1)} {took}"

    def fail(self) -> None:
        """The build fails: what its unfinished steps have printed last stays."""
        self._clear()
        for step in self._running.values():
            self._out.write(f"{self._timed(step.label, step.took())}\n")
            for line in step.lines():
                self._out.write(f"    {line}\n")
        self._running.clear()
        self._out.flush()

    def end(self) -> None:
        """Take away what is drawn."""
        self._running.clear()
        self._clear()
        self._out.flush()

    def _clear(self) -> None:
        if self._drawn:
            self._out.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0

    def draw(self, *, rested: bool = False) -> None:
        """Draw what runs; ``rested``: only if the last time is a while ago."""
        now = time.monotonic()
        if rested and now - self._drawn_at < _PAUSE:
            return
        self._drawn_at = now
        columns, rows = self._size()
        self._clear()
        lines: list[str] = []
        for step in self._running.values():
            lines.append(self._timed(step.label, step.took()))
            lines += [cut(f"    {line}", columns) for line in step.lines()[-_SHOWN:]]
        # What has left the screen at its top can't be taken back.
        for line in lines[-max(1, rows - 1) :]:
            self._out.write(f"{line}\n")
            self._drawn += 1
        self._out.flush()


def show_events(response: Response, *, aux: Callable[[Any], None]) -> None:
    """Draws a build; raises CommandError for its error."""
    import shutil
    from threading import Event, Lock, Thread

    terminal = Terminal(sys.stdout, lambda: shutil.get_terminal_size())
    lock = Lock()
    over = Event()

    def tick() -> None:
        while not over.wait(_PAUSE):
            with lock:
                if not over.is_set():
                    terminal.draw(rested=True)

    ticker = Thread(target=tick, daemon=True)
    ticker.start()
    try:
        _follow(response, terminal, lock, aux)
    finally:
        over.set()
        ticker.join()
        terminal.end()


def _follow(response: Response, terminal: Terminal, lock: Lock, aux: Callable[[Any], None]) -> None:
    from json import loads

    for line in response.lines():
        message = loads(line)
        with lock:
            if "build" in message:
                terminal.event(message["build"])
            elif "stream" in message:
                terminal.line(message["stream"].rstrip("\n"))
            elif "aux" in message:
                aux(message["aux"])
            elif "error" in message:
                terminal.fail()
                detail = message.get("errorDetail") or {}
                raise CommandError(
                    detail.get("message") or message["error"], detail.get("code") or 1
                )


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
