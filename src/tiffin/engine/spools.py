"""Packed layers on their way in: ``ROOT/ingest/ALGORITHM-HEX``.

A spool gets a blob's bytes as they arrive, and stays until the image that it came for is recorded:
after a broken connection, a failed pull or the end of the daemon the next pull goes on where the
bytes end. What nobody came back for is removed after a week, and by ``image prune``.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiffin.layer.locks import KeyedLocks

LIFETIME = 7 * 24 * 3600.0


class Spools:
    """The spools of a root; any thread may use it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)
        self._mutex = threading.Lock()
        self._users: Counter[str] = Counter()
        self.filling = KeyedLocks()
        """By digest: held by who fills the spool."""

    def path(self, digest: str) -> Path:
        """Where the blob's bytes are kept."""
        return self._folder / digest.replace(":", "-")

    @contextmanager
    def used(self, digests: list[str]) -> Iterator[None]:
        """Keep spools inside the block; they are removed at its end if it succeeds and nobody else
        uses them."""
        with self._mutex:
            self._users.update(digests)
        done = False
        try:
            yield
            done = True
        finally:
            with self._mutex:
                self._users.subtract(digests)
                for digest in set(digests):
                    if self._users[digest] <= 0:
                        del self._users[digest]
                        if done:
                            self.path(digest).unlink(missing_ok=True)

    def sweep(self, age: float = LIFETIME) -> int:
        """Remove spools that nobody uses and that are older than ``age`` seconds; their bytes."""
        before = time.time() - age
        freed = 0
        with self._mutex:
            used = {self.path(digest).name for digest in self._users}
            for path in self._folder.iterdir():
                status = path.stat()
                if path.name not in used and status.st_mtime <= before:
                    path.unlink(missing_ok=True)
                    freed += status.st_size
        return freed
