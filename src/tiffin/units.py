"""Sizes and durations as people write and read them.

Docker counts file and image sizes in powers of 1000 (``1.98MB``) and memory in powers of 1024
(``512MiB``); what a person types is always in powers of 1024 (``-m 512m``). Durations are shown
rounded to one unit (``About an hour``), and written in Go's notation (``1h30m``).
"""

from __future__ import annotations

from tiffin.errors import InvalidParameter

_DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")
_SUFFIXES = {"k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "\u00b5s": 10**3,  # the micro sign
    "\u03bcs": 10**3,  # the Greek letter
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}


class Malformed(InvalidParameter, ValueError):
    """A text that is no size, or no duration."""


def human_size(size: float, digits: int = 4) -> str:
    """A size in powers of 1000 with so many digits: ``1.984MB``."""
    return _scaled(size, 1000.0, _DECIMAL, digits)


def binary_size(size: float, digits: int = 4) -> str:
    """A size in powers of 1024: ``23.54GiB``."""
    return _scaled(size, 1024.0, _BINARY, digits)


def _scaled(size: float, base: float, units: tuple[str, ...], digits: int) -> str:
    unit = 0
    while size >= base and unit < len(units) - 1:
        size /= base
        unit += 1
    return f"{size:.{digits}g}{units[unit]}"


def parse_size(text: str) -> int:
    """Bytes from ``512``, ``512m``, ``1.5GiB``; raises Malformed with the reason."""
    number = text.strip()
    split = len(number)
    while split and not (number[split - 1].isdigit() or number[split - 1] == "."):
        split -= 1
    digits, suffix = number[:split], number[split:].strip().lower()
    try:
        value = float(digits)
    except ValueError:
        raise Malformed(f"invalid size: '{text}'") from None
    if value < 0 or value != value or value in (float("inf"),):
        raise Malformed(f"invalid size: '{text}'")
    shift = 0
    if suffix:
        unit = suffix[0]
        if unit in _SUFFIXES and suffix[1:] in ("", "b", "ib"):
            shift = _SUFFIXES[unit]
        elif suffix != "b":
            raise Malformed(f"invalid suffix: '{suffix}'")
    return int(value * (1 << shift))


def parse_duration(text: str) -> int:
    """Nanoseconds from ``1h30m``, ``1.5s``, ``300ms`` (Go's notation); raises Malformed."""
    rest, total, sign = text, 0, 1
    if rest[:1] in ("+", "-"):
        sign = -1 if rest[0] == "-" else 1
        rest = rest[1:]
    if rest == "0":
        return 0
    if not rest:
        raise Malformed(f'time: invalid duration "{text}"')
    while rest:
        split = 0
        while split < len(rest) and (rest[split].isdigit() or rest[split] == "."):
            split += 1
        end = split
        while end < len(rest) and not (rest[end].isdigit() or rest[end] == "."):
            end += 1
        unit = rest[split:end]
        try:
            number = float(rest[:split])
        except ValueError:
            raise Malformed(f'time: invalid duration "{text}"') from None
        if unit not in _NANOSECONDS:
            reason = f'unknown unit "{unit}" in' if unit else "missing unit in"
            raise Malformed(f'time: {reason} duration "{text}"')
        if number == float("inf"):
            raise Malformed(f'time: invalid duration "{text}"')
        total += round(number * _NANOSECONDS[unit])
        rest = rest[end:]
    return sign * total


def human_duration(seconds: float) -> str:
    """How long, roughly: ``3 minutes``, ``About an hour``, ``2 weeks``."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = int(seconds / 60)
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{int(seconds / 3600) // 24 // 365} years"
