"""btrfs: each snapshot is a subvolume, and begins as a snapshot of its parent's.

A snapshot is made and removed in one step, whatever it holds, and takes no room for what it shares
with its parent, down to the block: the first write to a large file of an image costs a block.

On disk (the folders' own rules are :mod:`tiffin.storage.shelf`'s)::

    ROOT/storage/btrfs/        on a btrfs, mounted without ``user_subvol_rm_allowed`` or with
        writable/KEY   → ../d/ID
        committed/KEY  → ../d/ID
        d/ID/fs/           the subvolume: the whole tree
        qgroups/NUMBER     a subvolume that was given a limit; gone when its qgroup is
        trash/

``--storage-opt size=`` of a container limits what is in its subvolume alone (the qgroup's exclusive
bytes), so what it shares with its image is not counted. A subvolume counts from its transaction on:
a write can go over the limit by what the kernel has not written to the disk yet, and is then told
"disk quota exceeded".

Source: btrfs(5), btrfs-quota(8), and :mod:`tiffin.linux.btrfs`.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from tiffin.errors import StorageFull
from tiffin.linux import btrfs
from tiffin.storage import tree
from tiffin.storage.driver import Support
from tiffin.storage.filesystem import file_system_name, file_system_type
from tiffin.storage.shelved import WholeTrees
from tiffin.storage.sizes import parse_size


class Btrfs(WholeTrees):
    """See the module's text."""

    name: ClassVar[str] = "btrfs"
    settings: ClassVar[Mapping[str, str]] = {
        "btrfs.min_space": "refuse new snapshots when less than this is free (10g)",
    }

    @classmethod
    def probe(cls, home: Path, settings: Mapping[str, str] | None = None) -> Support:
        home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The driver's own folder may be a mount of its own.
        place = home if home.is_dir() else home.parent
        backing = file_system_name(place)
        if file_system_type(place) != btrfs.MAGIC:
            return Support(
                False,
                f"{home} must lie on a btrfs, and is on {backing}: make one (package btrfs-progs, "
                f"mkfs.btrfs DEVICE) and mount it at {home} or at the engine root",
            )
        trial = place / f"probe{os.getpid()}"
        try:
            btrfs.create(trial)
            btrfs.destroy(trial)
        except OSError as error:
            return Support(False, f"subvolumes can't be made here: {error.strerror}")
        features = (
            ("Backing Filesystem", backing),
            ("Native Diff", "false"),
            ("Quota", "true"),
            ("Reflinks", "true"),
            ("Using metacopy", "false"),
        )
        return Support(True, "each snapshot is a subvolume, which shares all it can", features)

    def prepare(self, key: str, parent: str | tuple[str, ...] | None) -> None:
        below = None if parent is None else self._shelf.find_committed(self.single(parent))
        self._check_space()
        with self._shelf.making(key) as folder:
            own = folder / "fs"
            if below is None:
                btrfs.create(own)
                own.chmod(0o755)
            else:
                btrfs.snapshot(self.home / below / "fs", own)

    def limit(self, key: str, size: int) -> None:
        own = self.home / self._shelf.find(key)[0] / "fs"
        btrfs.enable_quota(self.home)
        number = btrfs.identifier(own)
        (self.home / "qgroups").mkdir(exist_ok=True)
        (self.home / "qgroups" / str(number)).touch()
        btrfs.limit_exclusive(self.home, number, size)

    def copy(self, source: str, key: str) -> None:
        folder, _ = self._shelf.find(source)
        with self._shelf.making(key) as fresh:
            btrfs.snapshot(self.home / folder / "fs", fresh / "fs")

    def sweep(self) -> None:
        super().sweep()
        self._forget_qgroups()

    def _check_space(self) -> None:
        least = parse_size(self.options.get("btrfs.min_space") or "0")
        free = shutil.disk_usage(self.home).free
        if free < least:
            raise StorageFull(
                f"no space left on device: {free} bytes are free under {self.home}, and "
                f"btrfs.min_space keeps {least}"
            )

    def _forget_qgroups(self) -> None:
        """Drop the qgroups of subvolumes that are gone; they take room in each transaction."""
        place = self.home / "qgroups"
        if not place.is_dir():
            return
        alive = set()
        for name in os.listdir(self.home / "d"):
            with suppress(FileNotFoundError):
                alive.add(str(btrfs.identifier(self.home / "d" / name / "fs")))
        for number in os.listdir(place):
            if number not in alive and btrfs.destroy_qgroup(self.home, int(number)):
                (place / number).unlink(missing_ok=True)
        with suppress(OSError):
            place.rmdir()

    def _discard(self, folder: Path) -> None:
        own = folder / "fs"
        try:
            btrfs.destroy(own)
        except FileNotFoundError:
            pass
        except OSError as error:
            # A subvolume that a container has made lies in it; or it is no subvolume at all.
            if error.errno not in (errno.ENOTEMPTY, errno.ENOTDIR, errno.EINVAL, errno.ENOTTY):
                raise
            _destroy_inner(own)
        tree.delete(folder)


def _destroy_inner(own: Path) -> None:
    """Remove subvolumes inside each other, the innermost first."""
    found = []
    for directory, names, _ in os.walk(own):
        found += [path for name in names if btrfs.is_subvolume(path := Path(directory, name))]
    for path in [*reversed(found), own]:
        with suppress(OSError):
            btrfs.destroy(path)
