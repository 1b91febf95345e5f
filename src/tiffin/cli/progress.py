"""Streams of JSON messages: what a build, a load or an import tells while it works.

A message is a piece of output (``stream``), a step with perhaps an ID and a measure (``status``,
``progressDetail``), an error, or a result for programs (``aux``). On a terminal the steps with an
ID keep their own line each; elsewhere every step is a line and measures are left out.
"""

from __future__ import annotations

from json import loads

from tiffin.cli.command import CommandError
from tiffin.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TextIO

    from tiffin.client.connection import Response

_BAR = 30


def show_messages(
    response: Response, out: TextIO, *, aux: Callable[[Any], None] | None = None
) -> None:
    """Prints the messages as they come; raises CommandError for the one that says error."""
    display = Display(out)
    for line in response.lines():
        message = loads(line)
        if "error" in message or "errorDetail" in message:
            detail = message.get("errorDetail") or {}
            text = detail.get("message") or message.get("error") or "unknown error"
            raise CommandError(text, detail.get("code") or 1)
        if "aux" in message and aux is not None:
            aux(message["aux"])
        display.show(message)


class Display:
    """Where messages are shown."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._rows: dict[str, int] = {}

    def show(self, message: dict[str, Any]) -> None:
        """Shows one message."""
        if "stream" in message:
            self._out.write(message["stream"])
            self._rows.clear()
        elif "status" in message:
            self._step(message)
        self._out.flush()

    def _step(self, message: dict[str, Any]) -> None:
        identifier = message.get("id") or ""
        text = f"{identifier}: {message['status']}" if identifier else message["status"]
        detail = message.get("progressDetail") or {}
        if not self._terminal:
            if not detail.get("current") and not message.get("progress"):
                self._out.write(text + "\n")
            return
        measure = bar(detail) or message.get("progress") or ""
        text = f"{text} {measure}".rstrip()
        row = self._rows.get(identifier) if identifier else None
        if row is None:
            if identifier:
                self._rows[identifier] = len(self._rows)
            else:
                self._rows.clear()
            self._out.write(text + "\n")
            return
        up = len(self._rows) - row
        self._out.write(f"\x1b[{up}A\x1b[2K{text}\r\x1b[{up}B")


def bar(detail: dict[str, Any]) -> str:
    """A progress bar with sizes, or empty where nothing is measured."""
    current, total = detail.get("current") or 0, detail.get("total") or 0
    if current <= 0:
        return ""
    if total <= 0:
        return human_size(current, 3)
    done = min(current / total, 1.0)
    full = int(done * _BAR)
    drawn = "=" * max(full - 1, 0) + (">" if full else "") + " " * (_BAR - full)
    return f"[{drawn}] {human_size(current, 3)}/{human_size(total, 3)}"
