"""Sizes and durations, read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiffin.units import (
    binary_size,
    human_duration,
    human_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("size", "digits", "text"),
    [
        (0, 3, "0B"),
        (62, 3, "62B"),
        (999, 3, "999B"),
        (1000, 3, "1kB"),
        (1984162, 3, "1.98MB"),
        (1984162, 4, "1.984MB"),
        (123456789, 3, "123MB"),
        (5 * 10**12, 4, "5TB"),
    ],
)
def test_sizes_are_shown_in_powers_of_1000(size: int, digits: int, text: str) -> None:
    assert human_size(size, digits) == text


def test_memory_is_shown_in_powers_of_1024() -> None:
    assert binary_size(25276502016) == "23.54GiB"
    assert binary_size(331776) == "324KiB"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512b", 512),
        ("4k", 4096),
        ("4K", 4096),
        ("512m", 512 << 20),
        ("512MB", 512 << 20),
        ("512MiB", 512 << 20),
        ("1.5g", 3 << 29),
        ("2 GB", 2 << 30),
    ],
)
def test_what_people_type_is_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4q", "invalid suffix: 'q'"),
        ("x", "invalid size: 'x'"),
        ("", "invalid size: ''"),
        ("-4", "invalid size: '-4'"),
        ("4mm", "invalid suffix: 'mm'"),
        ("nan", "invalid size: 'nan'"),
    ],
)
def test_a_size_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "Less than a second"),
        (1, "1 second"),
        (59.9, "59 seconds"),
        (60, "About a minute"),
        (119, "About a minute"),
        (120, "2 minutes"),
        (3600, "About an hour"),
        (5399, "About an hour"),
        (5400, "2 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (14 * 86400, "2 weeks"),
        (60 * 86400, "2 months"),
        (730 * 86400, "2 years"),
    ],
)
def test_durations_are_shown_in_one_unit(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("5s", 5 * 10**9),
        ("1h30m", 5400 * 10**9),
        ("1.5s", 1_500_000_000),
        (".5s", 500_000_000),
        ("300ms", 300_000_000),
        ("2\u00b5s", 2000),
        ("2\u03bcs", 2000),
        ("7ns", 7),
        ("-1m", -60 * 10**9),
    ],
)
def test_durations_are_read_in_go_notation(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3", 'time: missing unit in duration "3"'),
        ("3x", 'time: unknown unit "x" in duration "3x"'),
        ("", 'time: invalid duration ""'),
        ("s", 'time: invalid duration "s"'),
        (f"{'9' * 400}h", "time: invalid duration"),
    ],
)
def test_a_duration_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_duration(text)


@given(st.integers(0, 2**53), st.sampled_from(["", "b", "k", "KB", "MiB", "g"]))
def test_a_whole_number_of_any_unit_is_read_exactly(number: int, unit: str) -> None:
    shift = {"": 0, "b": 0, "k": 10, "kb": 10, "mib": 20, "g": 30}[unit.lower()]
    assert parse_size(f"{number}{unit}") == number << shift


@given(st.text())
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        assert parse_size(text) >= 0
    except ValueError:
        return


@given(st.text() | st.from_regex(r"([0-9.]+(ns|us|ms|s|m|h))+", fullmatch=True))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        parse_duration(text)
    except ValueError:
        return
