"""Moments: RFC 3339 with nanoseconds, in and out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiffin.errors import InvalidParameter
from tiffin.image.moment import format_moment, parse_moment


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("2026-11-24T07:14:10.123456789Z", 1795504450123456789),
        ("1969-12-31T23:59:59.999999999Z", -1),
        ("0001-01-01T00:00:00Z", -62135596800_000_000_000),
    ],
)
def test_known_moments_both_ways(text: str, nanoseconds: int) -> None:
    assert parse_moment(text) == nanoseconds
    assert format_moment(nanoseconds) == text


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2026-11-24T08:14:10+01:00", "2026-11-24T07:14:10Z"),
        ("2026-11-24T02:44:10.100-04:30", "2026-11-24T07:14:10.1Z"),
        ("2026-11-24 07:14:10z", "2026-11-24T07:14:10Z"),
        ("2026-11-24T07:14:10.1234567891Z", "2026-11-24T07:14:10.123456789Z"),
    ],
)
def test_offsets_and_long_fractions_are_normalised(text: str, same: str) -> None:
    assert format_moment(parse_moment(text)) == same


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-24", "2026-13-01T00:00:00Z"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid time"):
        parse_moment(text)


@settings(deadline=None)
@given(st.integers(-62135596800 * 10**9, 253402300799 * 10**9))
def test_every_moment_reads_back(nanoseconds: int) -> None:
    assert parse_moment(format_moment(nanoseconds)) == nanoseconds
