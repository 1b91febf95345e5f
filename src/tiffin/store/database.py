"""One SQLite database in WAL mode, one connection, transactions that nest by joining.

A process killed at any line leaves the last committed transaction. ``synchronous=NORMAL``: after
a power failure the database is consistent, and may lack the last moments; start-up then treats
the files that these made as unowned and removes them.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiffin.errors import StorageFull, TiffinError
from tiffin.store.schema import MIGRATIONS

Row = sqlite3.Row
# A full disk: writing the log, and growing the index of the log that is mapped into memory.
_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})

# A checkpoint comes at 4 MiB; the rest is for one that can't be made since the disk is full.
_LOG_ROOM = 6 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT)
# The log, and its index (32 KiB for each 4096 pages).
_SPARE_ROOM = _LOG_ROOM + (256 << 10)


class Database:
    """The store of one engine root; safe to use from any thread."""

    def __init__(self, path: Path) -> None:
        """Open (making it if missing) and migrate.

        Raises TiffinError for a schema newer than this code, and for a file that is no database.
        """
        self._spare = Path(f"{path}-spare")
        self._spare.unlink(missing_ok=True)
        # Containers' environments hold secrets. SQLite gives its log the mode of the database.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        # One connection, serialised by the lock below, is faster here than one a thread: all
        # statements are short, and no reader ever sees half a transaction.
        self._connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=30
        )
        self._connection.row_factory = sqlite3.Row
        self._lock = threading.RLock()
        self._depth = 0
        self._path = path
        try:
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
                self._run(f"PRAGMA {pragma}")
            self._migrate()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise TiffinError(
                f"the database {path} can't be used ({error}): move it away, or use another --root"
            ) from error
        except TiffinError:
            self._connection.close()
            raise
        self._reserve()

    def _reserve(self) -> None:
        """Give the write-ahead log its room ahead of time, so that removing things works on a disk
        that has become full: SQLite writes over the log's space again after each checkpoint."""
        _allocate(f"{self._path}-wal", _LOG_ROOM)

    def _migrate(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise TiffinError(
                f"{self._path} was written by a newer tiffin (schema {version}, this one knows "
                f"{len(MIGRATIONS)}): use that version, or another --root"
            )
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            self._connection.executescript(f"BEGIN; {script}; PRAGMA user_version={number}; COMMIT")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; a transaction inside another joins it."""
        with self._lock:
            if self._depth:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                return
            self._run("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield
            except BaseException:
                # Some errors (a full disk) have rolled back by themselves.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            else:
                try:
                    self._run("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            finally:
                self._depth = 0

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        """Run one statement that returns no rows; the number of rows that it changed."""
        with self._lock:
            return self._run(statement, parameters)

    def _run(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        try:
            return self._connection.execute(statement, parameters).rowcount
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode in _FULL:
                raise StorageFull(
                    f"no space left for the database {self._path}: free some and try again"
                ) from error
            raise

    def all(self, query: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Every row of a query."""
        with self._lock:
            return self._connection.execute(query, parameters).fetchall()

    def one(self, query: str, parameters: Sequence[Any] = ()) -> Row | None:
        """The first row of a query, or None."""
        with self._lock:
            row: Row | None = self._connection.execute(query, parameters).fetchone()
            return row

    def close(self) -> None:
        """Close the connection; the database is complete on disk without it as well.

        SQLite deletes the log then: its room is kept, as a file, for the next who opens.
        """
        with self._lock:
            self._connection.close()
            _allocate(str(self._spare), _SPARE_ROOM)


def _allocate(path: str, size: int) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
        finally:
            os.close(fd)
    except OSError as error:
        # A disk that is full already, or can't reserve, or a root that was removed: then it is as
        # good as without.
        if error.errno not in _NO_ROOM:
            raise
