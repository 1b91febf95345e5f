"""The way from the pipe to the log, cut off between any two system calls."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tiffin.keeper import logfile, recorder
from tiffin.keeper.recorder import Recorder

CALLS = ("splice", "write", "pwrite", "ftruncate", "rename", "unlink", "open")


class Killed(BaseException):
    """What a SIGKILL is to the test."""


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[int]:
    os.mkfifo(tmp_path / "stdout")
    fd = os.open(tmp_path / "stdout", os.O_RDWR | os.O_NONBLOCK)
    yield fd
    os.close(fd)


def mortal(life: int) -> SimpleNamespace:
    """The os module, in which the life-th call of those that change something is never made."""
    left = [life]

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return call(*arguments, **options)

        return wrapped

    names = {name: getattr(os, name) for name in dir(os)}
    return SimpleNamespace(**names | {name: wrap(names[name]) for name in CALLS})


def pull(keeper: Recorder, fifo: int) -> None:
    try:
        while True:
            keeper.pull(0, fifo)
    except BlockingIOError:
        pass


def log_text(path: Path) -> str:
    files = sorted(path.parent.glob("a.log.*"), key=lambda file: -int(file.suffix[1:]))
    lines = [line for file in [*files, path] for line in file.read_bytes().splitlines()]
    return "".join(json.loads(line)["log"] for line in lines)


@pytest.mark.parametrize(("max_size", "max_file"), [(None, 1), (300, 40)])
def test_killed_at_any_moment_nothing_is_lost_or_doubled(
    tmp_path: Path,
    fifo: int,
    monkeypatch: pytest.MonkeyPatch,
    max_size: int | None,
    max_file: int,
) -> None:
    # Often emptied, so that this is cut off too.
    monkeypatch.setattr(recorder, "_SPOOL_LIMIT", 60)
    pieces = [b"one\ntw", b"o\nthree\nfour\nfi", b"ve", b"\n" + b"six\n" * 30, b"sev", b"en"]
    pieces.append(b"x" * (logfile.LONGEST + 5) + b"\ny")
    options = {"max_size": max_size, "max_file": max_file}
    life = deaths = 0
    while deaths == life:
        life += 1
        directory = tmp_path / f"life{life}"
        directory.mkdir()
        path = directory / "a.log"
        keeper = Recorder(str(directory), {"path": str(path), **options})
        world = mortal(life)
        monkeypatch.setattr(recorder, "os", world)
        monkeypatch.setattr(logfile, "os", world)
        sent = 0
        try:
            for piece in pieces:
                os.write(fifo, piece)
                sent += 1
                pull(keeper, fifo)
            keeper.finish()
        except Killed:
            deaths += 1
            monkeypatch.setattr(recorder, "os", os)
            monkeypatch.setattr(logfile, "os", os)
            keeper.close()
            keeper = Recorder(str(directory), {"path": str(path), **options})
            keeper.recover()
            pull(keeper, fifo)
            for piece in pieces[sent:]:
                os.write(fifo, piece)
                pull(keeper, fifo)
            keeper.finish()
        assert log_text(path) == b"".join(pieces).decode(), f"killed at call {life}"
    assert deaths > 30


def test_a_journal_that_is_torn_falls_back_to_the_other_slot(tmp_path: Path, fifo: int) -> None:
    path = tmp_path / "a.log"
    keeper = Recorder(str(tmp_path), {"path": str(path)})
    for piece in (b"one\n", b"two\nth"):
        os.write(fifo, piece)
        pull(keeper, fifo)
    keeper.close()
    journal = tmp_path / "journal"
    data = bytearray(journal.read_bytes())
    slots = [int.from_bytes(data[at + 12 : at + 20], "little") for at in (0, 1 << 16)]
    newest = slots.index(max(slots)) << 16
    data[newest + 30] ^= 0xFF
    journal.write_bytes(data)
    keeper = Recorder(str(tmp_path), {"path": str(path)})
    keeper.recover()
    os.write(fifo, b"ree\n")
    pull(keeper, fifo)
    keeper.finish()
    assert log_text(path) == "one\ntwo\nthree\n"
