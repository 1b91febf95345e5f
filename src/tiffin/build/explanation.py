"""Why a step was not found: the first part that differs from the nearest cached step.

The named parts are compared in the order in which they were added, the files after them, by path.
What is said is one line, for who reads the build's output.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from tiffin.layer.entry import Kind

Part = tuple[str, str]
"""A name and a value."""
FilePart = tuple[bytes, str, int, int, int, bytes, dict[str, bytes] | None]
"""Path, type, mode, uid, gid, content, extended attributes."""

PARENT = "parent"
BASE = "base"
ARGUMENT = "argument "
"""Names of parts, or what they begin with."""

_SHOWN = 120
_STEP_BEFORE = "the step before it changed"


class Described(Protocol):
    """A step, as far as its parts go (:class:`tiffin.build.parts.Parts`)."""

    step: str
    named: list[Part]
    files: list[FilePart]


def distance(parts: Described, other: Described) -> tuple[int, int]:
    """How much differs: named parts weigh more than files."""
    named = len(set(parts.named) ^ set(other.named))
    ours = {each[0]: each[1:6] for each in parts.files}
    theirs = {each[0]: each[1:6] for each in other.files}
    return named, len({path for path, _ in ours.items() ^ theirs.items()})


def explain(
    missed: Described,
    nearest: Described,
    *,
    most: int = 1,
    origin: Callable[[str], str] = lambda key: "",
    excluded: Callable[[str], bool] = lambda path: False,
) -> str:
    """``COPY . /app: app/config.py changed (content)``: the first part that differs.

    ``origin`` gives the text of the step that made the step of a key another one, ``excluded`` says
    whether a file is kept out by ``.dockerignore``.
    """
    ours, theirs = dict(missed.named), dict(nearest.named)
    for name, value in missed.named:
        was = theirs.get(name)
        if was == value:
            continue
        if name in (PARENT, BASE):
            difference = _inherited(name, value, was, origin)
        elif name == "instruction":
            # A build argument is a part of a RUN's text as well: what it is says more.
            difference = _argument(ours, theirs) or (
                f"the instruction changed (it was: {_shown(nearest.step)})"
            )
        elif was is None:
            difference = f"{name} is new"
        else:
            difference = f"{name} changed"
        break
    else:
        gone = next((name for name in theirs if name not in ours), "")
        difference = (
            f"{gone} is gone"
            if gone
            else _file_difference(missed.files, nearest.files, most, excluded)
        )
    return f"{_shown(missed.step)}: {difference}"


def is_inherited(why: str) -> bool:
    """Whether a reason is that of another step."""
    return f": {_STEP_BEFORE}" in why


def _inherited(name: str, value: str, was: str | None, origin: Callable[[str], str]) -> str:
    step = origin(value)
    if name == PARENT or step:
        return f"{_STEP_BEFORE} ({_shown(step)})" if step else _STEP_BEFORE
    if was is None or not value.startswith("sha256:"):
        return "the base image changed"
    return f"the base image changed ({_short(value)}, it was {_short(was)})"


def _short(identifier: str) -> str:
    return identifier.removeprefix("sha256:")[:12]


def _argument(ours: dict[str, str], theirs: dict[str, str]) -> str:
    """The first build argument that differs."""
    for name in [*ours, *theirs]:
        if not name.startswith(ARGUMENT) or ours.get(name) == theirs.get(name):
            continue
        if name not in theirs:
            return f"{name} is new ({_shown(ours[name])})"
        if name not in ours:
            return f"{name} is gone"
        return f"{name} changed ({_shown(ours[name])}, it was {_shown(theirs[name])})"
    return ""


def _shown(step: str) -> str:
    """A step on one line of a bearable length."""
    line = " ".join(step.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


def _file_difference(
    files: list[FilePart],
    others: list[FilePart],
    most: int,
    excluded: Callable[[str], bool],
) -> str:
    theirs = {each[0]: each for each in others}
    differences: list[tuple[str, str]] = []
    for each in files:
        was = theirs.pop(each[0], None)
        if was != each:
            shown = os.fsdecode(each[0]) or "."
            differences.append(
                ("new", f"{shown} is new")
                if was is None
                else ("changed", f"{shown} changed ({_what(each, was)})")
            )
    for path in theirs:
        shown = os.fsdecode(path) or "."
        if excluded(shown):
            differences.append(
                ("excluded by .dockerignore", f"{shown} is gone (.dockerignore excludes it)")
            )
        else:
            differences.append(("gone", f"{shown} is gone"))
    if not differences:
        return "the order of its sources changed"
    said = ", ".join(text for _, text in differences[:most])
    kinds = Counter(kind for kind, _ in differences[most:])
    more = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{said}, and {kinds.total()} more ({more})" if more else said


def _what(one: FilePart, other: FilePart) -> str:
    if one[1] != other[1]:
        return "type"
    if one[5] != other[5]:
        return "link target" if one[1] == Kind.SYMLINK.value else "content"
    if one[2] != other[2]:
        return f"mode {other[2]:04o} to {one[2]:04o}"
    if one[3:5] != other[3:5]:
        return "owner"
    return "extended attributes"
