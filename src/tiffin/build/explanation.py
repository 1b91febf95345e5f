"""Why a step was not found: the first part that differs from the nearest cached step.

The named parts are compared in the order in which they were added, the files after them, by path.
What is said is one line, for who reads the build's output.
"""

from __future__ import annotations

import os
from typing import Protocol

from tiffin.layer.entry import Kind

Part = tuple[str, str]
"""A name and a value."""
FilePart = tuple[bytes, str, int, int, int, bytes, dict[str, bytes] | None]
"""Path, type, mode, uid, gid, content, extended attributes."""

_SHOWN = 120


class Described(Protocol):
    """A step, as far as its parts go (:class:`tiffin.build.cache.Parts`)."""

    step: str
    named: list[Part]
    files: list[FilePart]


def distance(parts: Described, other: Described) -> tuple[int, int]:
    """How much differs: named parts weigh more than files."""
    named = len(set(parts.named) ^ set(other.named))
    ours = {each[0]: each[1:6] for each in parts.files}
    theirs = {each[0]: each[1:6] for each in other.files}
    return named, len({path for path, _ in ours.items() ^ theirs.items()})


def explain(missed: Described, nearest: Described, *, most: int = 1) -> str:
    """``COPY . /app: app/config.py changed (content)``: the first part that differs."""
    theirs = dict(nearest.named)
    difference = ""
    for name, value in missed.named:
        was = theirs.pop(name, None)
        if was == value:
            continue
        if name == "parent":
            difference = "the step before it changed"
        elif name == "base":
            difference = "the base image changed"
        elif name == "instruction":
            difference = f"the instruction changed (it was: {_shown(nearest.step)})"
        elif was is None:
            difference = f"{name} is new"
        else:
            difference = f"{name} changed"
        break
    else:
        if theirs:
            difference = f"{next(iter(theirs))} is gone"
    if not difference:
        difference = _file_difference(missed.files, nearest.files, most)
    return f"{_shown(missed.step)}: {difference}"


def _shown(step: str) -> str:
    """A step on one line of a bearable length."""
    line = " ".join(step.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


def _file_difference(files: list[FilePart], others: list[FilePart], most: int) -> str:
    theirs = {each[0]: each for each in others}
    differences: list[str] = []
    for each in files:
        was = theirs.pop(each[0], None)
        if was != each:
            shown = os.fsdecode(each[0]) or "."
            differences.append(
                f"{shown} is new" if was is None else f"{shown} changed ({_what(each, was)})"
            )
    differences += [f"{os.fsdecode(path) or '.'} is gone" for path in theirs]
    if not differences:
        return "the order of its sources changed"
    more = len(differences) - most
    return ", ".join(differences[:most]) + (f", and {more} more" if more > 0 else "")


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
