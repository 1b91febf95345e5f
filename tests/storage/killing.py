"""Kill -9 at the n-th line of the code under test."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import tiffin

SOURCE = str(Path(tiffin.__file__).parent)


Arm = Callable[[], None]


def killed_at(step: int, action: Callable[[Arm], object], code: Iterable[str]) -> bool:
    """Run ``action`` in a forked child that dies by SIGKILL as it comes to the ``step``-th line of
    the named rooms (``storage/``) and modules (``layer/store.py``), counted in functions that are
    entered after the action has called its argument. False if the action ended before that; what
    it raises fails the test."""
    prefixes = tuple(f"{SOURCE}/{name}" for name in code)
    with warnings.catch_warnings():
        # A fork beside threads: the child uses nothing that another thread may have locked.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _child(step, action, prefixes)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the action failed in the child (see stderr)"
    return False


def _child(step: int, action: Callable[[Arm], object], prefixes: tuple[str, ...]) -> None:
    left = step

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(prefixes):
            return None
        if event == "line":
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    code = 1
    try:
        action(lambda: sys.settrace(trace))
        sys.settrace(None)
        code = 0
    except BaseException:
        sys.settrace(None)
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def steps(limit: int = 100_000) -> Iterable[int]:
    """Every early line, then ever fewer: 1, 2, 3 … 18, then a ninth further each time."""
    step = 1
    while step < limit:
        yield step
        step += max(1, step // 9)
