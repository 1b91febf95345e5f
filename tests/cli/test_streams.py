"""Multiplexed output, cut anywhere, and keys that detach."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiffin.cli.streams import Demultiplexer
from tiffin.cli.terminal import DetachWatch, parse_keys
from tiffin.errors import Unreachable


def frame(number: int, content: bytes) -> bytes:
    return bytes((number, 0, 0, 0)) + len(content).to_bytes(4, "big") + content


class Pipe:
    """A pipe that is read to its end by a thread."""

    def __init__(self) -> None:
        reader, self.fd = os.pipe()
        self._content: list[bytes] = []

        def read() -> None:
            with os.fdopen(reader, "rb") as file:
                self._content.append(file.read())

        self._thread = threading.Thread(target=read)
        self._thread.start()

    def content(self) -> bytes:
        os.close(self.fd)
        self._thread.join()
        return self._content[0]


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=50))),
    st.lists(st.integers(1, 30)),
)
def test_output_goes_where_it_belongs_wherever_it_is_cut(
    frames: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(frame(*each) for each in frames)
    out, err = Pipe(), Pipe()
    demultiplexer = Demultiplexer(out.fd, err.fd)
    while stream:
        size = cuts.pop(0) if cuts else len(stream)
        demultiplexer.feed(memoryview(stream[:size]))
        stream = stream[size:]
    assert out.content() == b"".join(content for number, content in frames if number == 1)
    assert err.content() == b"".join(content for number, content in frames if number == 2)


def test_many_small_frames_come_out_in_order() -> None:
    lines = [f"line {number}\n".encode() for number in range(5000)]
    out = Pipe()
    Demultiplexer(out.fd, None).feed(memoryview(b"".join(frame(1, line) for line in lines)))
    assert out.content() == b"".join(lines)


def test_a_stream_that_is_not_wanted_is_dropped() -> None:
    out = Pipe()
    Demultiplexer(out.fd, None).feed(memoryview(frame(2, b"err") + frame(1, b"out")))
    assert out.content() == b"out"


def test_what_the_daemon_itself_says_is_kept_apart() -> None:
    out = Pipe()
    demultiplexer = Demultiplexer(out.fd, out.fd)
    demultiplexer.feed(memoryview(frame(1, b"out") + frame(3, b"log is broken")))
    assert out.content() == b"out"
    assert demultiplexer.complaint == b"log is broken"


def test_what_is_no_such_stream_is_refused() -> None:
    with pytest.raises(Unreachable, match="Unrecognized input header: 72"):
        Demultiplexer(None, None).feed(memoryview(b"HTTP/1.1 200"))


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("a,B", b"aB"),
        ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", b"\0\x1b\x1c\x1d\x1e\x1f"),
    ],
)
def test_keys_are_named_as_docker_names_them(text: str, keys: bytes) -> None:
    assert parse_keys(text) == keys


@pytest.mark.parametrize("text", ["", "ctrl-", "ctrl-1", "ab", "ctrl-p,"])
def test_other_names_of_keys_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Unknown character"):
        parse_keys(text)


@given(st.lists(st.binary(max_size=3)))
def test_detach_keys_are_noticed_however_they_come(parts: list[bytes]) -> None:
    watch = DetachWatch(b"\x10\x11")
    for part in parts:
        watch.feed(part)
    assert watch.seen == (b"\x10\x11" in b"".join(parts))
