"""A few lines of a Dockerfile with some of them marked, as errors and findings show them."""

from __future__ import annotations

import re
from collections.abc import Sequence

_AROUND = 2
_RULE = "-" * 20
_LINE = re.compile(r"(?:parse error on line|\(Dockerfile line) (\d+)")


def line_of(message: str) -> int | None:
    """The line that an error of a build names."""
    match = _LINE.search(message)
    return int(match[1]) if match is not None else None


def excerpt(name: str, lines: Sequence[str], line: int, last_line: int = 0, column: int = 0) -> str:
    """``Dockerfile:3:1`` and the lines around; ``column`` 0: where the line's text begins."""
    last_line = max(line, last_line)
    if not 1 <= line <= len(lines):
        return f"{name}:{line}"
    if not column:
        text = lines[line - 1]
        column = len(text) - len(text.lstrip()) + 1
    first, end = max(1, line - _AROUND), min(len(lines), last_line + _AROUND)
    width = len(str(end))
    shown = [
        f"{number:>{width + 2}} | {'>>>' if line <= number <= last_line else '   '} "
        f"{lines[number - 1]}".rstrip()
        for number in range(first, end + 1)
    ]
    return "\n".join([f"{name}:{line}:{column}", _RULE, *shown, _RULE])
