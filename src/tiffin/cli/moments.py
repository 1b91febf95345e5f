"""Points in time as the API has them (RFC 3339, Unix seconds) and as people read them."""

from __future__ import annotations

import time

from tiffin.units import human_duration, parse_duration

_ZERO = "0001-01-01T00:00:00Z"


def seconds_of(text: str) -> float:
    """Unix time of ``2024-01-31T12:00:00.5Z`` and the like; raises ValueError."""
    from datetime import UTC, datetime

    head, dot, rest = text.partition(".")
    fraction = 0.0
    if dot:
        digits = 0
        while digits < len(rest) and rest[digits].isdigit():
            digits += 1
        fraction = float(f"0.{rest[:digits]}") if digits else 0.0
        head += rest[digits:]
    moment = datetime.fromisoformat(head)
    if moment.tzinfo is None:
        moment = moment.astimezone() if "T" in head else moment.replace(tzinfo=UTC)
    return moment.timestamp() + fraction


def timestamp(text: str, now: float | None = None) -> str:
    """What ``--since`` and ``--until`` send: Unix seconds, from a duration or a date.

    Text that is none of these goes to the daemon as it is, which refuses it by name.
    """
    if not text:
        return text
    try:
        ago = parse_duration(text) / 1e9
    except ValueError:
        ago = None
    if ago is not None:
        return f"{(time.time() if now is None else now) - ago:.9f}"
    try:
        float(text)
        return text
    except ValueError:
        pass
    try:
        return f"{seconds_of(text):.9f}"
    except ValueError:
        return text


def ago(seconds: float) -> str:
    """How long a moment is past: ``3 minutes ago``."""
    return human_duration(max(time.time() - seconds, 0)) + " ago"


def ago_text(text: str) -> str:
    """How long a moment in RFC 3339 is past; empty for the zero moment."""
    return "" if not text or text == _ZERO else ago(seconds_of(text))


def local(seconds: float) -> str:
    """A moment as Go prints it: ``2024-01-31 12:00:00 +0000 UTC``."""
    moment = time.localtime(seconds)
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", moment)


def rfc3339(seconds: float) -> str:
    """A moment as ``2024-01-31T12:00:00Z``, in the local zone."""
    moment = time.localtime(seconds)
    zone = time.strftime("%z", moment)
    zone = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}"
    return time.strftime("%Y-%m-%dT%H:%M:%S", moment) + zone
