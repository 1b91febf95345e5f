"""Detach keys: how they are written, and how they are found in what is typed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiffin.errors import InvalidParameter
from tiffin.keeper.keys import KeyMatcher, parse_keys


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (None, b"\x10\x11"),
        ("", b"\x10\x11"),
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("a", b"a"),
        ("ctrl-a,x", b"\x01x"),
        ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", b"\x00\x1b\x1c\x1d\x1e\x1f"),
        ("DEL,-", b"\x7f-"),
    ],
)
def test_keys_as_docker_writes_them(text: str | None, keys: bytes) -> None:
    assert parse_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-P", "ctrl-ab", "ab", "a,", ",", "é", "ctrl-1"])
def test_keys_that_do_not_exist(text: str) -> None:
    with pytest.raises(InvalidParameter, match="Invalid detach keys"):
        parse_keys(text)


letters = st.binary(min_size=0, max_size=12).map(lambda data: bytes(b"abc"[b % 3] for b in data))


@given(letters.filter(bool), st.lists(letters))
def test_the_sequence_is_found_however_it_is_cut(keys: bytes, reads: list[bytes]) -> None:
    matcher = KeyMatcher(keys)
    typed = b"".join(reads)
    delivered, found = b"", False
    for read in reads:
        data, found = matcher.feed(read)
        delivered += data
        if found:
            break
    at = typed.find(keys)
    assert found is (at >= 0)
    if found:
        assert delivered == typed[:at]
    else:
        # What can't become the sequence any more is not held back.
        held = matcher.finish()
        assert delivered + held == typed
        assert len(held) == max(
            length for length in range(len(keys)) if typed.endswith(keys[:length])
        )
