"""Wildcards as Go's ``filepath.Match`` reads them: ``*``, ``?``, ``[a-z]``, ``[^x]``, ``\\x``.

COPY and ADD match their sources with these, one pattern against a whole path, where no wildcard
matches a ``/``. The rules of ``.dockerignore`` are built on the same pieces, see
:mod:`tiffin.build.dockerignore`.

Source: the Dockerfile reference (COPY), and the documentation of Go's package ``path/filepath``.
"""

from __future__ import annotations

import functools
import re

from tiffin.errors import InvalidParameter

_WILD = re.compile(r"[*?\[]")


def has_wildcards(pattern: str) -> bool:
    """Whether a COPY source names several files; a backslash hides the character after it."""
    position = 0
    while position < len(pattern):
        if pattern[position] == "\\":
            position += 1
        elif pattern[position] in "*?[":
            return True
        position += 1
    return False


def bad_pattern(pattern: str) -> InvalidParameter:
    """The error for a pattern that nothing can match."""
    return InvalidParameter(f"syntax error in pattern: {pattern!r}: a [ or \\ has no end")


def character_class(pattern: str, position: int) -> tuple[str, int]:
    """Translate the class that begins after the ``[`` at ``position - 1``.

    Returns the regular expression and the position after the ``]``. Raises InvalidParameter.
    """
    negated = pattern[position : position + 1] == "^"
    if negated:
        position += 1
    ranges: list[str] = []
    while True:
        if position >= len(pattern):
            raise bad_pattern(pattern)
        if pattern[position] == "]" and ranges:
            break
        low, position = _class_character(pattern, position)
        high = low
        if pattern[position : position + 1] == "-":
            high, position = _class_character(pattern, position + 1)
        if low <= high:
            ranges.append(f"{re.escape(low)}-{re.escape(high)}")
        else:
            ranges.append("")  # an empty range is allowed, and matches nothing
    body = "".join(ranges)
    if negated:
        return (f"[^/{body}]" if body else "[^/]"), position + 1
    return (f"(?!/)[{body}]" if body else "(?!)"), position + 1


def _class_character(pattern: str, position: int) -> tuple[str, int]:
    """One end of a range; the position after it."""
    character = pattern[position : position + 1]
    if not character or character in "-]":
        raise bad_pattern(pattern)
    if character == "\\":
        position += 1
        character = pattern[position : position + 1]
        if not character:
            raise bad_pattern(pattern)
    if position + 1 >= len(pattern):
        raise bad_pattern(pattern)
    return character, position + 1


@functools.lru_cache(maxsize=256)
def compiled(pattern: str) -> re.Pattern[str]:
    """The regular expression to use with ``fullmatch``; raises InvalidParameter."""
    parts: list[str] = []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        position += 1
        if character == "*":
            parts.append("[^/]*")
        elif character == "?":
            parts.append("[^/]")
        elif character == "[":
            expression, position = character_class(pattern, position)
            parts.append(expression)
        elif character == "\\":
            if position >= len(pattern):
                raise bad_pattern(pattern)
            parts.append(re.escape(pattern[position]))
            position += 1
        else:
            parts.append(re.escape(character))
    return re.compile("".join(parts), re.DOTALL)


def literal_prefix(pattern: str) -> str:
    """The leading part of a pattern in whole path components without any wildcard.

    ``a/b*/c`` gives ``a``; what a walk needs to look at lies below it.
    """
    components: list[str] = []
    for component in pattern.split("/"):
        if _WILD.search(component) or "\\" in component:
            break
        components.append(component)
    return "/".join(components)
