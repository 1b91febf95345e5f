"""Where a driver that keeps snapshots in directories puts them, and how they survive kill -9.

::

    HOME/writable/KEY   → ../d/ID     a symlink: the writable snapshot KEY
    HOME/committed/KEY  → ../d/ID     a symlink: the committed snapshot KEY
    HOME/d/ID/                        a snapshot's folder; ID is short and random
    HOME/d/ID~/                       the same while it is being made
    HOME/trash/ID…/                   folders on their way out

A folder never moves but into the trash, so that mounts and open directories stay good over a
commit, and its path is short whatever the key is (a mount's options must fit into a page).

The order of writes. *Making*: the link, then the folder as ``ID~``, filled, then renamed to
``ID``; a link to nothing is a half-made snapshot, which ``keys`` lists and nothing else finds.
*Commit*: one rename of the link. *Removal*: the folder is renamed into the trash, the link deleted,
then the folder. So a folder in ``d`` always has a link, and a link that leads to a folder leads to
a whole one.
"""

from __future__ import annotations

import base64
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tiffin.errors import Conflict, InvalidParameter, NotFound
from tiffin.storage import tree

_KEY = re.compile(r"[a-z0-9.-]{1,100}")


def _identifier() -> str:
    return base64.urlsafe_b64encode(os.urandom(6)).decode()


class Shelf:
    """The snapshot folders of one driver; any number of threads may use it."""

    def __init__(self, home: Path, discard: Callable[[Path], None] = tree.delete) -> None:
        """Take ``home``, making it if missing, closed to others than root.

        ``discard`` deletes a folder that is in the trash, and all that belongs to it; where it
        can't yet, it leaves the folder there.
        """
        self.home = home
        self._discard = discard
        for name in ("writable", "committed", "d", "trash"):
            (home / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        home.chmod(0o700)
        # Held between looking for a name and taking it.
        self._naming = threading.Lock()

    @contextmanager
    def making(self, key: str) -> Iterator[Path]:
        """A new writable snapshot: the folder to fill in the block, complete after it.

        Raises Conflict if the key exists. If the block fails, nothing remains.
        """
        if not _KEY.fullmatch(key) or key.startswith("."):
            raise InvalidParameter(f"invalid snapshot key: {key!r}")
        identifier = _identifier()
        with self._naming:
            if os.path.lexists(self.home / "committed" / key):
                raise Conflict(f"snapshot {key} exists already")
            try:
                os.symlink(f"../d/{identifier}", self.home / "writable" / key)
            except FileExistsError:
                raise Conflict(f"snapshot {key} exists already") from None
        try:
            partial = self.home / "d" / f"{identifier}~"
            os.mkdir(partial, 0o700)
            yield partial
            os.rename(partial, self.home / "d" / identifier)
        except BaseException:
            self.remove(key)
            raise

    def find(self, key: str) -> tuple[str, bool]:
        """The snapshot's folder, relative to ``home``, and whether it is committed.

        Raises NotFound, for a half-made snapshot too.
        """
        for state in ("committed", "writable"):
            try:
                folder = os.readlink(self.home / state / key)[3:]
            except FileNotFoundError:
                continue
            if os.path.isdir(self.home / folder):
                return folder, state == "committed"
        raise NotFound(f"no such snapshot: {key}")

    def has(self, key: str) -> bool:
        """Whether there is a whole snapshot of that key."""
        try:
            self.find(key)
        except NotFound:
            return False
        return True

    def find_committed(self, key: str) -> str:
        """The folder of a committed snapshot, relative to ``home``; raises NotFound."""
        folder, committed = self.find(key)
        if not committed:
            raise NotFound(f"snapshot {key} is not committed: nothing can be put on top of it")
        return folder

    def commit(self, key: str, name: str) -> None:
        """Give the writable ``key`` its committed ``name``; raises Conflict and NotFound."""
        if not _KEY.fullmatch(name) or name.startswith("."):
            raise InvalidParameter(f"invalid snapshot key: {name!r}")
        with self._naming:
            _, committed = self.find(key)
            if committed:
                raise Conflict(f"snapshot {key} is committed already")
            if os.path.lexists(self.home / "committed" / name) or (
                name != key and os.path.lexists(self.home / "writable" / name)
            ):
                raise Conflict(f"snapshot {name} exists already")
            os.rename(self.home / "writable" / key, self.home / "committed" / name)

    def remove(self, key: str) -> None:
        """Remove the snapshot, half-made or whole; no error if there is none."""
        for state in ("committed", "writable"):
            link = self.home / state / key
            try:
                identifier = os.readlink(link).rpartition("/")[2]
            except FileNotFoundError:
                continue
            doomed = []
            for name in (identifier, f"{identifier}~"):
                trashed = self.home / "trash" / f"{name}{_identifier()}"
                try:
                    os.rename(self.home / "d" / name, trashed)
                except FileNotFoundError:
                    continue
                doomed.append(trashed)
            link.unlink(missing_ok=True)
            for trashed in doomed:
                self._discard(trashed)

    def keys(self) -> Iterator[str]:
        """Every key, of half-made snapshots too."""
        yield from os.listdir(self.home / "writable")
        yield from os.listdir(self.home / "committed")

    def sweep(self) -> None:
        """Empty the trash."""
        for name in os.listdir(self.home / "trash"):
            self._discard(self.home / "trash" / name)
