"""A process on its way to its program: a start under way, driven by the keeper's loop.

The keeper goes on with its other work meanwhile: what is started may hang on a file system, be
frozen, or out of memory. It is given up after :data:`~tiffin.runtime.launching.PATIENCE` seconds.
"""

from __future__ import annotations

from tiffin.errors import StartFailure
from tiffin.keeper.loop import IN, Loop, Timer, report
from tiffin.runtime.launching import PATIENCE, Begun, Ended, too_late

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tiffin.runtime.launching import Launched, Launching


class Arrival:
    """Drives ``start`` (:mod:`tiffin.runtime.launching`).

    ``begun(pid, own)`` hears of its children as soon as there are any, and :meth:`ended` must be
    told of the ends of those that are not its own. ``done`` hears what became of it, once.
    """

    def __init__(
        self,
        loop: Loop,
        start: Launching,
        begun: Callable[[int, bool], None],
        done: Callable[[Launched | StartFailure], None],
    ) -> None:
        self._loop = loop
        self._start = start
        self._begun = begun
        self._done = done
        self._fd = -1
        self._codes: dict[int, int] = {}
        self._awaited = 0
        self._timer: Timer | None = None
        self._over = False

    def go(self) -> None:
        """Begin. It is done by then if nothing is to be waited for."""
        self._timer = self._loop.after(PATIENCE, lambda: self.abandon(too_late()))
        self._step(None)

    def ended(self, pid: int, code: int) -> None:
        """A child that is not its own was reaped."""
        if self._over:
            return
        self._codes[pid] = code
        if pid == self._awaited:
            self._awaited = 0
            self._step(self._codes.pop(pid))

    def abandon(self, failure: StartFailure) -> None:
        """Give it up, for this reason."""
        if not self._over:
            self._finish(failure)

    def _step(self, answer: int | None) -> None:
        try:
            while True:
                wanted = self._start.send(answer)
                answer = None
                if isinstance(wanted, Begun):
                    self._begun(wanted.pid, wanted.own)
                elif isinstance(wanted, Ended):
                    if wanted.pid not in self._codes:
                        self._awaited = wanted.pid
                        return
                    answer = self._codes.pop(wanted.pid)
                else:
                    self._fd = wanted.fd
                    self._loop.watch(self._fd, IN, self._heard)
                    return
        except StopIteration as end:
            outcome: Launched | StartFailure = end.value
        except StartFailure as failure:
            outcome = failure
        except Exception as error:
            # A mistake in here, or a failing file system: this start fails, the others go on.
            report()
            outcome = StartFailure(f"failed to start the container: {error}")
        self._finish(outcome)

    def _heard(self, _events: int) -> None:
        # The descriptor is the start's, which may close it now.
        self._loop.drop(self._fd)
        self._fd = -1
        self._step(None)

    def _finish(self, outcome: Launched | StartFailure) -> None:
        self._over = True
        if self._fd >= 0:
            self._loop.drop(self._fd)
            self._fd = -1
        if self._timer is not None:
            self._timer.cancel()
        self._start.close()
        self._done(outcome)
