"""The database: transactions, migrations, and what a killed process leaves."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiffin.errors import StorageFull, TiffinError
from tiffin.store.database import Database
from tiffin.store.schema import MIGRATIONS

_ADD = "INSERT INTO snapshots (key, driver, purpose) VALUES (?, 'vfs', 'work')"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "tiffin.db")
    yield opened
    opened.close()


def _keys(database: Database) -> list[str]:
    return [row["key"] for row in database.all("SELECT key FROM snapshots ORDER BY key")]


def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    with database.transaction():
        database.execute(_ADD, ("a",))
        database.execute(_ADD, ("b",))
    with pytest.raises(RuntimeError), database.transaction():
        database.execute(_ADD, ("c",))
        raise RuntimeError
    assert _keys(database) == ["a", "b"]


def test_a_transaction_inside_another_is_a_part_of_it(database: Database) -> None:
    with pytest.raises(RuntimeError), database.transaction():
        with database.transaction():
            database.execute(_ADD, ("inner",))
        raise RuntimeError
    assert _keys(database) == []
    with database.transaction():
        database.execute(_ADD, ("after",))
    assert _keys(database) == ["after"]


def test_a_broken_rule_is_refused_and_leaves_the_transaction_usable(database: Database) -> None:
    with database.transaction():
        database.execute(_ADD, ("a",))
        with pytest.raises(sqlite3.IntegrityError):
            database.execute(_ADD, ("a",))
    assert _keys(database) == ["a"]
    with pytest.raises(sqlite3.IntegrityError):
        database.execute(
            "INSERT INTO tags (name, image) VALUES ('busybox', 'an image that is not there')"
        )


def test_a_row_that_is_not_there(database: Database) -> None:
    assert database.one("SELECT * FROM images WHERE id = 'x'") is None
    assert database.execute("DELETE FROM images") == 0


def test_threads_write_at_once(database: Database) -> None:
    def write(number: int) -> None:
        for turn in range(20):
            with database.transaction():
                database.execute(_ADD, (f"{number}-{turn}-a",))
                database.execute(_ADD, (f"{number}-{turn}-b",))
            assert len(_keys(database)) % 2 == 0

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(_keys(database)) == 240


def test_what_was_committed_survives_kill_9(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from tiffin.store.database import Database
database = Database(Path({str(tmp_path / "tiffin.db")!r}))
with database.transaction():
    database.execute({_ADD!r}, ("kept",))
with database.transaction():
    database.execute({_ADD!r}, ("lost",))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    database = Database(tmp_path / "tiffin.db")
    assert _keys(database) == ["kept"]
    database.close()


def test_a_newer_schema_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tiffin.db"
    Database(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(TiffinError, match="written by a newer tiffin"):
        Database(path)


def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tiffin.db"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(TiffinError, match=f"{path} can't be used"):
        Database(path)


def test_a_full_disk_is_told_as_such_and_nothing_remains(database: Database) -> None:
    pages = database.one("PRAGMA page_count")
    assert pages is not None
    database.one(f"PRAGMA max_page_count={pages[0] + 2}")
    with pytest.raises(StorageFull, match="no space left"), database.transaction():
        for number in range(2000):
            database.execute(_ADD, (f"{number}-{'x' * 90}",))
    assert _keys(database) == []
    database.execute(_ADD, ("small",))
    assert _keys(database) == ["small"]
