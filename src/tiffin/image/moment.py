"""Moments as image configs write them: RFC 3339 in UTC with nanoseconds, without trailing zeros.

``2026-11-24T07:14:10.5Z``. A moment inside is an integer: nanoseconds since 1970. Source: Go's
RFC3339Nano layout, which Docker and the OCI tools write.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from tiffin.errors import InvalidParameter

__all__ = ["format_moment", "parse_moment"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = 1_000_000_000
_SHAPE = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:[.,](\d+))?(?:([Zz])|([+-])(\d\d):(\d\d))",
    re.ASCII,
)


def format_moment(nanoseconds: int) -> str:
    """RFC 3339 text of a moment. Raises OverflowError outside the years 1 to 9999."""
    seconds, fraction = divmod(nanoseconds, _SECOND)
    text = (_EPOCH + timedelta(seconds=seconds)).isoformat()[: len("2006-01-02T15:04:05")]
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{text}{digits}Z"


def parse_moment(text: str) -> int:
    """Nanoseconds since 1970 of an RFC 3339 text of any offset; digits past the ninth are dropped.

    Raises InvalidParameter if ``text`` is no such moment.
    """
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise InvalidParameter(f"invalid time {text!r}: expected RFC 3339, 2006-01-02T15:04:05Z")
    try:
        year, month, day, hour, minute, second = map(int, match.group(1, 2, 3, 4, 5, 6))
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise InvalidParameter(f"invalid time {text!r}: {error}") from error
    seconds = (moment - _EPOCH) // timedelta(seconds=1)
    if match.group(9):
        offset = int(match.group(10)) * 3600 + int(match.group(11)) * 60
        seconds += -offset if match.group(9) == "+" else offset
    return seconds * _SECOND + int((match.group(7) or "0")[:9].ljust(9, "0"))
