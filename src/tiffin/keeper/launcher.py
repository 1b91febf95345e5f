"""How the keeper starts processes: the native runtime's launcher, loaded when it is first needed.

Tests put another object in its place.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tiffin.runtime.launching import Launching


class NativeLauncher:
    """Starts processes with :mod:`tiffin.runtime.launch`."""

    def load(self) -> None:
        """Import what :meth:`launch` needs, so that the first container need not wait for it."""
        import tiffin.runtime.launch  # noqa: F401

    def launch(
        self,
        plan: dict[str, Any],
        fds: tuple[int, int, int] | None,
        size: tuple[int, int] | None,
    ) -> Launching:
        """Start a container. ``fds`` stay the caller's; None: a terminal."""
        from tiffin.runtime.launch import launching
        from tiffin.runtime.launching import Stdio

        return launching(plan, Stdio(fds, size))

    def clear(self, id: str, cgroup: str | None) -> list[str]:
        """Remove what a start may leave that fails, or whose keeper was killed, of whichever
        runtime; the cgroups that it may leave too."""
        from tiffin.runtime import foreign

        foreign.clear(id)
        return [] if cgroup is None else [cgroup, foreign.monitor_group(cgroup)]

    def enter(
        self,
        pidfd: int,
        entrances: list[str],
        process: dict[str, Any],
        fds: tuple[int, int, int] | None,
        size: tuple[int, int] | None,
    ) -> Launching:
        """Start a process in the container of ``pidfd``; otherwise as :meth:`launch`."""
        from tiffin.runtime.launch import entering
        from tiffin.runtime.launching import Stdio

        return entering(pidfd, process, Stdio(fds, size), entrances)

    def oom_watch(self, cgroup: str) -> int:
        """A descriptor that can be read whenever the group runs out of memory; -1: none."""
        from tiffin.linux.cgroups import Hierarchy

        return Hierarchy.detect().oom_watch(cgroup)

    def oom_kills(self, cgroup: str) -> int:
        """How many processes of the group the kernel has killed for want of memory."""
        from tiffin.linux.cgroups import Hierarchy

        return Hierarchy.detect().oom_kills(cgroup)

    def remove(self, cgroup: str) -> bool:
        """Kill what is left in the group and remove it; False if it takes some more time."""
        from tiffin.linux.cgroups import Hierarchy

        hierarchy = Hierarchy.detect()
        if hierarchy.delete(cgroup):
            return True
        hierarchy.kill(cgroup)
        return hierarchy.delete(cgroup)

    def exit_status(self, pidfd: int) -> int | None:
        """The wait status of an ended process that was another's child, if it can be known."""
        from tiffin.linux.pidfd import exit_status

        return exit_status(pidfd)
