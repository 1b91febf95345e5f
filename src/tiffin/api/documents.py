"""JSON: what clients send, bounded in its depth, and what they get.

A decoder recurses at each bracket, on a connection's small stack: nesting is looked at before. What
the API knows is at most eight deep.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from tiffin.errors import InvalidParameter

MAX_DEPTH = 200
_OPENING = b"[{"
_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)


def decode(data: bytes, where: str = "", kind: Any = Any) -> Any:
    """The value; ``where`` names its place in the message, ``kind`` is what it must be.

    Raises InvalidParameter.
    """
    place = f"invalid JSON{where and f' in {where}'}"
    if _is_too_deep(data):
        raise InvalidParameter(f"{place}: it is nested more than {MAX_DEPTH} levels deep")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InvalidParameter(f"{place}: {error}") from None


def encode(value: Any) -> bytes:
    """``value`` as JSON; file names that are not UTF-8 come out as escapes."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        # Lone surrogates stand for the bytes of a name that is not UTF-8. msgspec refuses them.
        import json

        return json.dumps(value).encode("ascii")


def _is_too_deep(data: bytes) -> bool:
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for mark in _MARKS.finditer(data):
        first = data[mark.start()]
        if first in _OPENING:
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif first != 0x22:
            depth -= 1
    return False
