"""What containers leave that has to be removed, if need be in several tries.

The killed need a moment to be gone from a cgroup, and for a while there may be no descriptor to
look into a folder with.
"""

from __future__ import annotations

from tiffin.keeper import adoption
from tiffin.keeper.loop import Loop, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tiffin.keeper.launcher import NativeLauncher

_TRIES = 250
_PAUSE = 0.02


class Remains:
    """Removes what is left of containers whose folders are in ``directory``.

    It asks ``known`` whether there is another start, or end, of the same container meanwhile, and
    ``used`` whether a cgroup is again that of one.
    """

    def __init__(
        self,
        loop: Loop,
        directory: str,
        launcher: NativeLauncher,
        known: Callable[[str], bool],
        used: Callable[[str], bool],
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._launcher = launcher
        self._known = known
        self._used = used

    def of_start(self, id: str, cgroup: str | None, tries: int = _TRIES) -> None:
        """Remove what a start has left that failed, or whose keeper was killed."""
        if self._known(id):
            return
        try:
            names = self._launcher.clear(id, cgroup)
            adoption.remove_folder(f"{self._directory}/{id}")
        except OSError as error:
            if tries:
                self._loop.after(_PAUSE, lambda: self.of_start(id, cgroup, tries - 1))
            else:
                say(f"what the start of {id} has left cannot be removed: {error}")
            return
        for name in names:
            self.cgroup(name)

    def cgroup(self, name: str, tries: int = _TRIES) -> None:
        """Kill what is left in a cgroup, and remove it."""
        if self._used(name):
            # What is left goes with the container that has been started in it.
            return
        problem = "it still has processes"
        try:
            if self._launcher.remove(name):
                return
        except OSError as error:
            problem = str(error)
        if tries:
            self._loop.after(_PAUSE, lambda: self.cgroup(name, tries - 1))
        else:
            say(f"cgroup {name} is left: {problem}")
