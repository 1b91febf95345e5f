"""Times as Docker writes and reads them: RFC 3339 with nanoseconds, Unix times, durations ago."""

from __future__ import annotations

import datetime
import re
import time

from tiffin.errors import InvalidParameter
from tiffin.image.moment import format_moment
from tiffin.units import Malformed, parse_duration

ZERO = "0001-01-01T00:00:00Z"
"""Go's zero time: what Docker says for "never"."""

_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9})\d*)?)?)?(Z|[+-]\d\d:\d\d)?"
)


def rfc3339(nanoseconds: int) -> str:
    """Nanoseconds since the epoch as ``2026-11-24T06:57:00.123456789Z``; 0 is Docker's never."""
    return format_moment(nanoseconds) if nanoseconds else ZERO


def parse(text: str) -> int:
    """A moment in nanoseconds since the epoch.

    ``text`` is a Unix time (with a fraction or not), an RFC 3339 date or time, or a Go duration
    before now, as ``--since`` and ``until=`` take them. Raises InvalidParameter.
    """
    if re.fullmatch(r"-?\d+(\.\d{1,9}\d*)?", text):
        seconds, _, fraction = text.partition(".")
        return int(seconds) * 1_000_000_000 + int((fraction + "0" * 9)[:9])
    match = _RFC3339.fullmatch(text)
    if not match:
        try:
            return time.time_ns() - parse_duration(text)
        except Malformed as error:
            raise InvalidParameter(
                f'invalid time "{text}": write it as a date, a Unix time, or 10s, 5m or 1h30m ago'
            ) from error
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    offset = datetime.timedelta()
    if zone and zone != "Z":
        sign = -1 if zone[0] == "-" else 1
        offset = sign * datetime.timedelta(hours=int(zone[1:3]), minutes=int(zone[4:6]))
    try:
        moment = datetime.datetime(
            int(year),
            int(month),
            int(day),
            int(hour or 0),
            int(minute or 0),
            int(second or 0),
            tzinfo=datetime.timezone(offset),
        )
    except ValueError as error:
        raise InvalidParameter(f'invalid time "{text}": {error}') from error
    return int(moment.timestamp()) * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))
