"""Hasty mounts: overlay mounts whose end does not wait for the disk.

When an overlay is unmounted, the kernel writes back all that is dirty in the file system below:
after a ``cp`` of a gigabyte, and after a mere look at a container that comes soon after it, whoever
asked waits for the disk. With the option ``volatile`` it does not. Nothing is lost by that: what
was written is in the file system below as if it had been written there, and nothing here calls
fsync, which such a mount would ignore.

The kernel leaves a mark in the overlay's work directory, and mounts nothing there again until it is
removed. It is removed at once here, once the mount stands. A note with its place, written before
and removed after, lets the next engine remove the mark that a killed one left.

Source: ``Documentation/filesystems/overlayfs.rst``, "Volatile mount". Since Linux 5.10.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tiffin.storage.driver import Mount

_OPTION = "volatile"
_MARK = "work/incompat"
"""Where the kernel's mark is in a work directory."""


class HastyMounts:
    """Makes mounts hasty, as far as the kernel can; ``notes`` is a folder for the notes."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes
        self._notes.mkdir(exist_ok=True, mode=0o700)
        self._possible = True
        for note in self._notes.iterdir():
            # An empty one was being written: nothing was mounted yet.
            if place := note.read_text():
                _remove_mark(notes.parent / place)
            note.unlink()

    def mounted(self, mounts: Sequence[Mount], mount: Callable[[Sequence[Mount]], int]) -> int:
        """What ``mount`` makes of the mounts, of which nobody else may make anything meanwhile.

        Raises what ``mount`` raises.
        """
        marks = [mark for mark in map(_mark_of, mounts) if mark is not None]
        if not marks or not self._possible:
            return mount(mounts)
        hasty = [
            replace(one, options=(*one.options, _OPTION)) if _mark_of(one) else one
            for one in mounts
        ]
        notes = [self._note(mark) for mark in marks]
        try:
            return mount(hasty)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # An older kernel, or something that is wrong with the mounts themselves.
            made = mount(mounts)
            self._possible = False
            return made
        finally:
            for mark, note in zip(marks, notes, strict=True):
                _remove_mark(mark)
                note.unlink()

    def _note(self, mark: Path) -> Path:
        note = self._notes / secrets.token_hex(8)
        # Relative, since the whole root may be moved.
        note.write_text(os.path.relpath(mark, self._notes.parent))
        return note


def _mark_of(mount: Mount) -> Path | None:
    """Where the kernel would leave its mark; None where nothing is written through the mount."""
    if mount.fstype != "overlay":
        return None
    for option in mount.options:
        key, _, value = option.partition("=")
        if key == "workdir":
            return Path(mount.directory or "/", value, _MARK)
    return None


def _remove_mark(mark: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(os.fspath(mark))
