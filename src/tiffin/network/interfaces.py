"""What has gone through the interfaces of a network namespace.

Source: proc_net(5), ``/proc/net/dev``; the fields are the Docker Engine API's ``NetworkStats``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

_FIELDS = ("bytes", "packets", "errors", "dropped")
_PER_DIRECTION = 8
"""Columns for each direction: bytes, packets, errs, drop, and four that nobody asks for."""

_ENDED = (errno.ENOENT, errno.ESRCH, errno.ENXIO, errno.EINVAL)
"""What the kernel says of a process that has ended, reaped or not."""


def counts(pid: int, names: Iterable[str]) -> dict[str, dict[str, int]]:
    """The counts of those of the interfaces ``names`` that the process ``pid`` has.

    Empty if it has ended.
    """
    try:
        with open(f"/proc/{pid}/net/dev", encoding="ascii") as file:
            lines = file.read().splitlines()[2:]
    except OSError as error:
        if error.errno not in _ENDED:
            raise
        return {}
    wanted = set(names)
    found = {}
    for line in lines:
        name, _, text = line.partition(":")
        name = name.strip()
        if name in wanted:
            numbers = [int(number) for number in text.split()]
            directions = (("rx", numbers), ("tx", numbers[_PER_DIRECTION:]))
            found[name] = {
                f"{direction}_{field}": number
                for direction, columns in directions
                for field, number in zip(_FIELDS, columns, strict=False)
            }
    return found
