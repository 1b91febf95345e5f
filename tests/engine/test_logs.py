"""Reading logs: tails, times, rotation, and following."""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiffin.engine.logs import Wanted, read_logs, read_output
from tiffin.engine.streams import NAMES
from tiffin.keeper.logfile import Format, LogFile

SECOND = 1_000_000_000
BASE = 1_700_000_000 * SECOND


def stamp(nanoseconds: int) -> str:
    return f"2023-11-14T22:13:{20 + nanoseconds // SECOND:02}.{nanoseconds % SECOND:09}Z"


def write(path: Path, rows: list[tuple[str, str, int]]) -> None:
    lines = [
        json.dumps({"log": text, "stream": stream, "time": stamp(at)}, ensure_ascii=False)
        for stream, text, at in rows
    ]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Five lines in three files, a second apart."""
    path = tmp_path / "a.log"
    rows = [
        ("stdout", "one\n", 0),
        ("stderr", "two\n", SECOND),
        ("stdout", "thr", 2 * SECOND),
        ("stdout", "ee\n", 2 * SECOND + 1),
        ("stderr", "four\n", 3 * SECOND),
        ("stdout", "five", 4 * SECOND),
    ]
    write(tmp_path / "a.log.2", rows[:1])
    write(tmp_path / "a.log.1", rows[1:4])
    write(path, rows[4:])
    return path


def text(records: Iterable[tuple[str, bytes]]) -> bytes:
    return b"".join(data for _, data in records)


def test_all_files_in_order(log: Path) -> None:
    assert list(read_logs(log)) == [
        ("stdout", b"one\n"),
        ("stderr", b"two\n"),
        ("stdout", b"thr"),
        ("stdout", b"ee\n"),
        ("stderr", b"four\n"),
        ("stdout", b"five"),
    ]


def test_a_gap_left_by_a_killed_rotation(log: Path) -> None:
    (log.parent / "a.log.2").rename(log.parent / "a.log.3")
    (log.parent / "a.log.1").rename(log.parent / "a.log.2")
    assert text(read_logs(log)) == b"one\ntwo\nthree\nfour\nfive"
    log.rename(log.parent / "a.log.1")
    assert text(read_logs(log)) == b"one\ntwo\nthree\nfour\nfive"


def test_one_stream(log: Path) -> None:
    assert text(read_logs(log, Wanted(stdout=False))) == b"two\nfour\n"
    assert text(read_logs(log, Wanted(stderr=False))) == b"one\nthree\nfive"


@pytest.mark.parametrize(
    ("tail", "expected"),
    [(0, b""), (1, b"five"), (2, b"four\nfive"), (4, b"three\nfour\nfive"), (99, None)],
)
def test_tail(log: Path, tail: int, expected: bytes | None) -> None:
    everything = b"one\ntwo\nthree\nfour\nfive"
    assert text(read_logs(log, Wanted(tail=tail))) == (everything if expected is None else expected)


def test_times(log: Path) -> None:
    assert text(read_logs(log, Wanted(since=BASE + 2 * SECOND))) == b"three\nfour\nfive"
    assert text(read_logs(log, Wanted(since=BASE + 2 * SECOND + 2))) == b"four\nfive"
    assert text(read_logs(log, Wanted(until=BASE + SECOND))) == b"one\ntwo\n"
    assert text(read_logs(log, Wanted(since=BASE + SECOND, until=BASE + SECOND))) == b"two\n"


def test_timestamps_stand_in_front_of_lines(log: Path) -> None:
    assert text(read_logs(log, Wanted(timestamps=True, stderr=False))).decode() == (
        "2023-11-14T22:13:20.000000000Z one\n"
        "2023-11-14T22:13:22.000000000Z three\n"
        "2023-11-14T22:13:24.000000000Z five"
    )


def test_times_as_docker_writes_them(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text(
        '{"log":"a\\n","stream":"stdout","time":"2023-11-14T22:13:20.5Z"}\n'
        '{"log":"b\\n","stream":"stdout","attrs":{"x":"y"},"time":"2023-11-14T22:13:21Z"}\n'
    )
    assert text(read_logs(log, Wanted(timestamps=True, since=BASE + SECOND // 2))).decode() == (
        "2023-11-14T22:13:20.500000000Z a\n2023-11-14T22:13:21.000000000Z b\n"
    )
    assert text(read_logs(log, Wanted(since=BASE + SECOND // 2 + 1))) == b"b\n"


def test_what_is_no_record_is_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    write(log, [("stdout", "a\n", 0)])
    with log.open("a") as file:
        file.write('{"log":"half\n\nnull\n{"log":"b\\n","stream":"stdout"}\n{"log":"no end')
    assert text(read_logs(log)) == b"a\nb\n"


def test_a_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert list(read_logs(tmp_path / "none")) == []
    assert list(read_logs(tmp_path / "no/where", Wanted(follow=True))) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.integers(1, 9000), max_size=60), st.integers(0, 60), st.integers(0, 70))
def test_tail_and_since_of_large_logs(
    tmp_path: Path, sizes: list[int], tail: int, since: int
) -> None:
    log = tmp_path / "a.log"
    rows = [
        ("stdout", "x" * size + "\n", number * SECOND // 2) for number, size in enumerate(sizes)
    ]
    write(log, rows)
    texts = [row[1].encode() for row in rows]
    assert text(read_logs(log, Wanted(tail=tail))) == b"".join(texts[max(0, len(texts) - tail) :])
    assert text(read_logs(log, Wanted(since=BASE + since * SECOND // 2))) == b"".join(texts[since:])


def test_following_through_rotation_misses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    done = threading.Event()

    def produce() -> None:
        file = LogFile(str(log), 2000, 1000)
        make = Format("stdout", None)
        for number in range(3000):
            records, _ = make.records(f"{number}\n".encode())
            if (file.room() or 0) <= 0:
                file.rotate()
            file.write(records)
        file.close()
        done.set()

    thread = threading.Thread(target=produce)
    thread.start()
    found = text(read_logs(log, Wanted(follow=True, ended=done.is_set)))
    thread.join()
    assert found == b"".join(b"%d\n" % number for number in range(3000))


def test_following_a_log_that_is_made_later(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    done = threading.Event()
    records = read_logs(log, Wanted(follow=True, tail=0, ended=done.is_set))
    timer = threading.Timer(0.05, lambda: write(log, [("stdout", "late\n", 0)]))
    timer.start()
    assert next(records) == ("stdout", b"late\n")
    done.set()
    assert list(records) == []
    timer.join()


def test_following_leaves_nothing_open(log: Path) -> None:
    before = os.listdir("/proc/self/fd")
    records = read_logs(log, Wanted(follow=True, ended=lambda: False))
    assert next(records) == ("stdout", b"one\n")
    del records
    assert os.listdir("/proc/self/fd") == before


def test_following_until_a_time(log: Path) -> None:
    found = read_logs(log, Wanted(follow=True, until=BASE + SECOND, ended=lambda: False))
    assert text(found) == b"one\ntwo\n"


def test_a_log_emptied_by_hand_is_followed_on(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    write(log, [("stdout", "a long first line\n", 0)])
    done = threading.Event()
    records = read_logs(log, Wanted(follow=True, ended=done.is_set))
    assert next(records)[1] == b"a long first line\n"
    write(log, [("stdout", "next\n", 0)])
    assert next(records)[1] == b"next\n"
    done.set()
    assert list(records) == []


def test_output_as_clients_get_it(log: Path) -> None:
    assert text(unframed(b"".join(read_output(log, Wanted(), multiplexed=True)))) == (
        b"one\ntwo\nthree\nfour\nfive"
    )
    for wanted in (Wanted(), Wanted(stderr=False), Wanted(timestamps=True), Wanted(tail=2)):
        framed = b"".join(read_output(log, wanted, multiplexed=True))
        assert unframed(framed) == list(read_logs(log, wanted))
        plain = b"".join(read_output(log, wanted, multiplexed=False))
        assert plain == text(read_logs(log, wanted))


def unframed(data: bytes) -> list[tuple[str, bytes]]:
    found = []
    while data:
        number, size = struct.unpack_from(">BxxxI", data)
        found.append((NAMES[number], data[8 : 8 + size]))
        data = data[8 + size :]
    return found
