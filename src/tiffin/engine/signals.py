"""Signals as users name them."""

from __future__ import annotations

import signal

from tiffin.errors import InvalidParameter


def parse_signal(text: str | int) -> int:
    """A signal's number from its number or name, with ``SIG`` or without; InvalidParameter else."""
    name = str(text).upper()
    if name.isdigit():
        number = int(name)
        if 0 < number < signal.NSIG:
            return number
    else:
        full = name if name.startswith("SIG") else f"SIG{name}"
        if full in signal.Signals.__members__:
            return int(signal.Signals[full])
        for base, start, sign in (
            ("SIGRTMIN+", signal.SIGRTMIN, 1),
            ("SIGRTMAX-", signal.SIGRTMAX, -1),
        ):
            if full.startswith(base) and full[len(base) :].isdigit():
                return int(start) + sign * int(full[len(base) :])
    raise InvalidParameter(f"invalid signal: {text}")
