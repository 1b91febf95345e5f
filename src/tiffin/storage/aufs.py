"""aufs: each snapshot holds its changes alone, and a kernel with AUFS stacks them as branches.

On disk (the folders' own rules are :mod:`tiffin.storage.shelf`'s)::

    ROOT/storage/aufs/
        writable/KEY   → ../d/ID
        committed/KEY  → ../d/ID
        empty/             what a stack without layers shows
        d/ID/fs/           the snapshot's own files: a branch ``rw``, later ``ro+wh``
        d/ID/lower         what it was prepared on, the uppermost first: d/ID/fs:d/ID/fs…
        trash/

AUFS marks deletions as layer tars do: ``.wh.NAME``, and ``.wh..wh..opq`` in an opaque directory; a
read-only branch that holds such marks is ``ro+wh``, else they would be files. What AUFS keeps for
itself in the branch that it writes to (``.wh..wh.aufs``, ``.wh..wh.plnk`` for hard links whose
other names lie below, ``.wh..wh.orph`` for files that are open and deleted) is no part of a layer
and is taken out before a commit: a file that was written to by one of its names is then another
than that of the names below, as on overlayfs.

A mount takes a page of options, so further branches are appended by remounts, which are read from
left to right: each ``mounts`` is one mount and as many remounts as it takes. ``xino`` (inode
numbers) lies on a tmpfs, since AUFS writes it all the time; ``dio`` passes direct I/O on to the
branch; ``dirperm1``, where it is known, lets the permissions of the uppermost directory count
alone, so that a container can loosen those of its image. How many branches there may be was chosen
when the kernel was built: 127 or more.

No kernel of a distribution's package has AUFS: options, marks and the order of calls are tested,
mounting is not.

Source: aufs(5) of aufs-util; the AUFS documentation's ``design`` folder.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from tiffin.errors import InvalidParameter
from tiffin.linux import syscalls
from tiffin.linux.mounttree import detached_tree
from tiffin.storage import tree
from tiffin.storage.driver import Mount, Support, Usage, Whiteouts
from tiffin.storage.filesystem import file_system_name
from tiffin.storage.shelved import Stacked

# Left for an SELinux label, which the runtime adds to each of the mounts.
_LABEL = 256
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SETTINGS = ("xino=/dev/shm/aufs.xino", "dio")
_OWN = (".wh..wh.aufs", ".wh..wh.plnk", ".wh..wh.orph")
_BRANCHES = 1023


class Aufs(Stacked):
    """See the module's text."""

    name: ClassVar[str] = "aufs"
    whiteouts: Whiteouts = Whiteouts.AUFS

    @classmethod
    def probe(cls, home: Path, settings: Mapping[str, str] | None = None) -> Support:
        home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        backing = file_system_name(home.parent)
        if not _known():
            with suppress(FileNotFoundError):
                subprocess.run(["modprobe", "aufs"], capture_output=True)
        if not _known():
            return Support(
                False,
                "the kernel has no AUFS (modprobe aufs): it is no part of Linux; take a kernel "
                "that was patched with it (aufs-standalone)",
            )
        if backing in ("btrfs", "aufs", "ecryptfs"):
            return Support(False, f"AUFS can't write to {backing}: use another file system")
        with tempfile.TemporaryDirectory(prefix="probe", dir=home.parent) as name:
            refused = _refused(Path(name))
            reflinks = not refused and tree.can_reflink(Path(name))
            dirperm1 = not refused and not _refused(Path(name), "dirperm1")
        if refused:
            return Support(False, f"the kernel refuses to mount AUFS on {backing}: {refused}")
        features = (
            ("Backing Filesystem", backing),
            ("Native Diff", "true"),
            ("Quota", "false"),
            ("Reflinks", "true" if reflinks else "false"),
            ("Using metacopy", "false"),
            ("Dirperm1 Supported", "true" if dirperm1 else "false"),
        )
        return Support(True, f"the kernel mounts AUFS on {backing}", features)

    def _check_depth(self, lower: list[str]) -> None:
        if len(lower) >= _BRANCHES:
            raise InvalidParameter(f"max depth exceeded: AUFS takes {_BRANCHES} branches")

    def commit(self, key: str, name: str) -> None:
        folder, _ = self._shelf.find(key)
        _tidy(self.home / folder / "fs")
        super().commit(key, name)

    def usage(self, key: str) -> Usage:
        with self.own_directory(key) as directory:
            found = tree.measure(directory)
            # Marks are hard links of each other, and counted as one.
            marks = {
                os.lstat(os.path.join(place, name)).st_ino
                for place, directories, files in os.walk(directory)
                for name in [*directories, *files]
                if name.startswith(".wh.")
            }
        return Usage(found.size, found.inodes - len(marks))

    def mounts(self, key: str) -> list[Mount]:
        folder, committed = self._shelf.find(key)
        lower = self._lower(folder)
        if committed:
            return self._mount(None, [f"{folder}/fs", *lower])
        return self._mount(f"{folder}/fs", lower)

    def view(self, stack: tuple[str, ...]) -> list[Mount]:
        return self._mount(None, self._stack(stack) or ["empty"])

    def _mount(self, writable: str | None, lower: list[str]) -> list[Mount]:
        """One mount with as many branches as fit, and remounts that append the others."""
        flags = () if writable else ("ro",)
        rest = [f"{one}=ro+wh" for one in lower]
        branches = f"br:{writable}=rw" if writable else f"br:{rest.pop(0)}"
        room = _PAGE - 1 - _LABEL
        first = room - sum(len(option) + 1 for option in (*flags, *self._settings))
        while rest and len(branches) + len(rest[0]) + 1 <= first:
            branches += f":{rest.pop(0)}"
        home = str(self.home)
        mounts = [Mount("aufs", "none", (*flags, branches, *self._settings), home)]
        while rest:
            more = [f"append:{rest.pop(0)}"]
            length = len("remount") + len(more[0])
            while rest and (length := length + len(f",append:{rest[0]}")) <= room:
                more.append(f"append:{rest.pop(0)}")
            mounts.append(Mount("aufs", "none", (*flags, "remount", *more), home))
        return mounts

    @cached_property
    def _settings(self) -> tuple[str, ...]:
        with tempfile.TemporaryDirectory(prefix="probe", dir=self.home) as name:
            return _SETTINGS if _refused(Path(name), "dirperm1") else (*_SETTINGS, "dirperm1")


def _known() -> bool:
    return "\taufs\n" in Path("/proc/filesystems").read_text()


def _refused(place: Path, *options: str) -> str:
    """Mount one branch with these options, where nobody sees it; what the kernel says against it,
    or nothing."""
    branch, target = place / "branch", place / "target"
    for directory in (branch, target):
        directory.mkdir(exist_ok=True)
    data = ",".join((f"br:{branch}=rw", *_SETTINGS, *options))
    try:
        os.close(
            detached_tree(str(target), lambda: syscalls.mount("none", str(target), "aufs", 0, data))
        )
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _tidy(own: Path) -> None:
    """Take out what AUFS keeps for itself; its pseudo links are names of files that have others."""
    status = os.stat(own)
    for name in _OWN:
        tree.delete(own / name)
    os.utime(own, ns=(status.st_atime_ns, status.st_mtime_ns))
