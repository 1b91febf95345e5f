"""Patience: what a process had that has ended, the kernel lets go of a little later.

Its sockets are closed one by one, of which the first tells that it is gone; and its network
namespace, with the interfaces in it and their ports at bridges, is taken apart in the background.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


def once_released(
    take: Callable[[], _Result], seconds: float = 2.0, code: int = errno.EADDRINUSE
) -> _Result:
    """Take an address or a port that may just be on its way to being free.

    Raises OSError: ``code``, if somebody still has it after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return take()
        except OSError as error:
            if error.errno != code or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
