"""The records that output becomes."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tiffin.keeper.logfile import LONGEST, Format, record_end

output = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from([b"\n", b"\\", b"\\n", b'"', b"\x7f", b"\x00", "é€🙂".encode(), b"\r\n"]),
        st.integers(LONGEST - 3, LONGEST + 3).map(lambda size: b"x" * size),
        st.integers(LONGEST // 4 - 2, LONGEST // 2).map(lambda size: "🙂".encode() * size),
    ),
    max_size=12,
).map(b"".join)


def texts(raw: bytes, *, last: bool = False) -> tuple[list[str], int]:
    records, used = Format("stderr", None).records(raw, last=last)
    rows = [json.loads(line) for line in records.splitlines()]
    assert all(set(row) == {"log", "stream", "time"} for row in rows)
    assert all(row["stream"] == "stderr" for row in rows)
    return [row["log"] for row in rows], used


@given(output)
def test_records_hold_every_byte(raw: bytes) -> None:
    logs, used = texts(raw, last=True)
    assert used == len(raw)
    ends, position = [], 0
    while position < len(raw):
        position = record_end(raw, position, last=True)
        ends.append(position)
    pieces = [raw[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    assert logs == [piece.decode("utf-8", "replace") for piece in pieces]
    assert all(0 < len(piece) <= LONGEST for piece in pieces)
    assert all(b"\n" not in piece[:-1] for piece in pieces)
    assert all(piece.endswith(b"\n") or len(piece) > LONGEST - 4 for piece in pieces[:-1])


@given(output, st.integers(0, 1 << 20))
def test_it_does_not_matter_how_output_is_read(raw: bytes, cut: int) -> None:
    cut = min(cut, len(raw))
    first, used = texts(raw[:cut])
    rest, _ = texts(raw[used:], last=True)
    whole, _ = texts(raw, last=True)
    assert first + rest == whole


def test_a_character_is_not_cut_in_two() -> None:
    logs, _ = texts(b"x" + "é".encode() * LONGEST, last=True)
    assert "\ufffd" not in "".join(logs)
    assert "".join(logs) == "x" + "é" * LONGEST


def test_attributes() -> None:
    records, _ = Format("stdout", {"label": 'a "b"'}).records(b"x\ny\n")
    rows = [json.loads(line) for line in records.splitlines()]
    assert [row["attrs"] for row in rows] == [{"label": 'a "b"'}] * 2
