"""Hears of it when containers run out of memory, and tells of what the kernel kills for it."""

from __future__ import annotations

import os

from tiffin.keeper.container import Container
from tiffin.keeper.launcher import NativeLauncher
from tiffin.keeper.loop import IN, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_PAUSE = 0.05


class MemoryWatch:
    """Watches the memory of containers' cgroups; ``tell`` hears of each kill."""

    def __init__(
        self, loop: Loop, launcher: NativeLauncher, tell: Callable[[dict[str, Any]], None]
    ) -> None:
        self._loop = loop
        self._launcher = launcher
        self._tell = tell

    def watch(self, container: Container) -> None:
        """Watch a container while it runs, if it has a cgroup; its descriptor is its own."""
        if container.running and container.cgroup is not None and container.oom_fd < 0:
            fd = self._launcher.oom_watch(container.cgroup)
            if fd >= 0:
                container.oom_fd = fd
                self._loop.watch(fd, IN, lambda _: self._out_of_memory(container))

    def _out_of_memory(self, container: Container) -> None:
        os.read(container.oom_fd, 4096)
        # On version 1 the kernel tells before it kills.
        if not self._count_kills(container) and not container.oom_pending:
            container.oom_pending = True
            self._loop.after(_PAUSE, lambda: self._look_again(container))

    def _look_again(self, container: Container) -> None:
        container.oom_pending = False
        if container.oom_fd >= 0:
            self._count_kills(container)

    def _count_kills(self, container: Container) -> bool:
        """Tell if there are more than before."""
        more = container.out_of_memory(self._launcher.oom_kills(str(container.cgroup)))
        if more:
            self._tell({"event": "oom", "id": container.id})
        return more
