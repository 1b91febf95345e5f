"""Filters of lists: ``--filter key=value``, as the API sends them: key → values.

Values of one key are alternatives; several keys must all hold.
Source: Docker Engine API v1.50, the ``filters`` parameters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tiffin.errors import InvalidParameter

Filters = Mapping[str, Sequence[str]]


def check(filters: Filters, known: set[str]) -> None:
    """Raise InvalidParameter, in Docker's words, for a key that is not known."""
    for key in filters:
        if key not in known:
            raise InvalidParameter(f"invalid filter '{key}': one of {', '.join(sorted(known))}")


def boolean(filters: Filters, key: str, default: bool | None = None) -> bool | None:
    """The one truth value of a key, or ``default`` where the key is missing."""
    values = filters.get(key)
    if not values:
        return default
    truths = {value.lower() in ("1", "true", "t") for value in values}
    if len(truths) != 1 or not all(
        value.lower() in ("1", "true", "t", "0", "false", "f") for value in values
    ):
        raise InvalidParameter(f"invalid filter '{key}=[{' '.join(values)}]': true or false")
    return truths.pop()


def labels(filters: Filters, have: Mapping[str, str] | None, key: str = "label") -> bool:
    """Whether all wanted labels (``name`` or ``name=value``) are there."""
    for wanted in filters.get(key, ()):
        name, equals, value = wanted.partition("=")
        if name not in (have or {}) or (equals and (have or {})[name] != value):
            return False
    return True


def pattern(filters: Filters, key: str, candidates: Sequence[str]) -> bool:
    """Whether any candidate matches any of the key's regular expressions (or there are none)."""
    values = filters.get(key)
    if not values:
        return True
    for value in values:
        try:
            if any(re.search(value, candidate) for candidate in candidates):
                return True
        except re.error as error:
            raise InvalidParameter(f"invalid filter '{key}={value}': {error}") from error
    return False


def any_of(filters: Filters, key: str, have: str) -> bool:
    """Whether ``have`` is one of the key's values (or there are none)."""
    values = filters.get(key)
    return not values or have in values
