"""Sizes as storage options write them: ``10g``, ``512M``, ``1024``."""

from __future__ import annotations

import re

from tiffin.errors import InvalidParameter

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)i?b?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of a size; units are powers of 1024. Raises InvalidParameter."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise InvalidParameter(f"invalid size: '{text}': write it as 10g or 512m")
    return int(float(match[1]) * 1024 ** " kmgtp".index(match[2].lower() or " "))
