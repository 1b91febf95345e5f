"""Which file system lies under a path, by the name that ``docker info`` gives it.

Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

from pathlib import Path

_DOCKER_NAMES = {"ext2": "extfs", "ext3": "extfs", "ext4": "extfs", "overlay": "overlayfs"}


def file_system_name(path: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that holds ``path`` (which need not exist yet), or "unknown"."""
    wanted = path.resolve()
    best, found = -1, "unknown"
    for line in mountinfo.read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        # Octal escapes: blank, tab, newline and backslash.
        point = before.split(" ")[4]
        for escape, character in (
            ("\\040", " "),
            ("\\011", "\t"),
            ("\\012", "\n"),
            ("\\134", "\\"),
        ):
            point = point.replace(escape, character)
        # The last of several mounts on the same point is the one that is seen.
        if wanted.is_relative_to(point) and len(point) >= best:
            best, found = len(point), after.split(" ")[0]
    return _DOCKER_NAMES.get(found, found)
