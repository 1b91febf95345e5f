"""The folders of ``RUN --mount=type=cache``.

They lie under ``ROOT/build-cache``, one folder an id; where an id is ``private`` and in use
already, further ones get a number. Each has a row in ``build_cache`` (key ``mount:FOLDER``, no
parts, no layer), so that it is counted and pruned as every other record. Its size is measured when
somebody asks, and remembered until the folder is used again.

Rules: a row is written before its folder is made, and deleted before its folder is. A folder that
is in use is not pruned. A folder without a row, left by a kill between the two, goes at start-up.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tiffin.build.cache import MOUNT, BuildCache, Record
from tiffin.build.turns import Turns

UNKNOWN = -1
"""The size of a folder that was used since it was measured."""


class CacheFolders:
    """The cache folders of an engine; any thread may use them."""

    def __init__(self, cache: BuildCache, place: Path, turns: Turns) -> None:
        self._cache = cache
        self._place = place
        self._turns = turns
        self._used: dict[str, int] = {}

    def sweep(self) -> None:
        """At start-up: remove folders without a row."""
        if not self._place.exists():
            return
        known = {record.key for record in self._cache.mounts()}
        for entry in os.scandir(self._place):
            if MOUNT + entry.name not in known:
                shutil.rmtree(entry.path)

    @contextmanager
    def used(
        self,
        name: str,
        sharing: str,
        given_up: Callable[[], bool],
        make: Callable[[Path], None],
    ) -> Iterator[Path]:
        """The folder of a cache, for the time of the block. ``make`` fills a new, empty one.

        A ``locked`` one is waited for; ``given_up`` is asked meanwhile, and raises.
        """
        plain = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        folder = plain
        number = 1
        if sharing == "private":
            while not self._turns.try_take(MOUNT + folder):
                number += 1
                folder = f"{plain}-{number}"
            try:
                yield self._ready(folder, name, make)
            finally:
                self._turns.give_back(MOUNT + folder)
                self._done(folder)
        elif sharing == "locked":
            with self._turns.held(MOUNT + folder, given_up):
                try:
                    yield self._ready(folder, name, make)
                finally:
                    self._done(folder)
        else:
            try:
                yield self._ready(folder, name, make)
            finally:
                self._done(folder)

    def _ready(self, folder: str, name: str, make: Callable[[Path], None]) -> Path:
        path = self._place / folder
        with self._turns.held(f"make {folder}", lambda: False):
            self._used[folder] = self._used.get(folder, 0) + 1
            try:
                self._cache.use_mount(MOUNT + folder, name)
                if not path.exists():
                    self._place.mkdir(mode=0o711, exist_ok=True)
                    new = self._place / f"{folder}.new"
                    if new.exists():
                        shutil.rmtree(new)
                    new.mkdir()
                    make(new)
                    new.rename(path)
            except BaseException:
                self._done(folder)
                raise
        return path

    def _done(self, folder: str) -> None:
        left = self._used.get(folder, 1) - 1
        if left:
            self._used[folder] = left
        else:
            self._used.pop(folder, None)

    def measure(self) -> None:
        """Bring the sizes in the rows up to date."""
        for record in self._cache.mounts():
            if record.size == UNKNOWN:
                folder = record.key.removeprefix(MOUNT)
                if folder not in self._used:
                    self._cache.measured(record.key, _size(self._place / folder))

    def in_use(self) -> set[str]:
        """The keys of folders that a command is using now."""
        return {MOUNT + folder for folder in list(self._used)}

    def removed(self, records: list[Record]) -> int:
        """Delete the folders of records that are gone; the bytes that they took."""
        total = 0
        for record in records:
            if record.key.startswith(MOUNT):
                path = self._place / record.key.removeprefix(MOUNT)
                if path.exists():
                    total += _size(path)
                    shutil.rmtree(path)
        return total


def _size(path: Path) -> int:
    total = 0
    pending = [path]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue  # it is being used while it is measured
    return total
