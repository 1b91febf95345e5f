"""Layers made of single entries."""

from __future__ import annotations

import hashlib
import io
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layer.tars import make_tar, tree
from layer.test_stacks import stack
from tiffin.errors import CorruptArchive, InvalidParameter
from tiffin.layer.assemble import write_tar
from tiffin.layer.capture import capture
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.index import Index
from tiffin.layer.unpack import unpack
from tiffin.layer.writer import LayerWriter
from tiffin.storage.driver import Whiteouts

pytestmark = pytest.mark.root


@pytest.fixture
def own(tmp_path: Path) -> Path:
    place = tmp_path / "own"
    place.mkdir(mode=0o755)
    return place


def check(index: Index, own: Path) -> None:
    """The index is what capturing the directory gives, and its tar makes the directory again."""
    assert capture(own, Whiteouts.OVERLAY) == index
    output = io.BytesIO()
    write_tar(index, own, own / "none", output)
    again = own.parent / "again"
    again.mkdir(mode=0o755)
    output.seek(0)
    unpacked = unpack(output, again, Whiteouts.OVERLAY, stash=own.parent / "stash")
    assert unpacked.index == index
    assert tree(again) == tree(own)


def test_content_comes_from_anywhere(tmp_path: Path, own: Path) -> None:
    large = os.urandom(5_000_000)
    source = tmp_path / "source"
    source.write_bytes(large)
    with LayerWriter(own, Whiteouts.OVERLAY) as writer, source.open("rb") as file:
        writer.add(Entry(b"a", Kind.FILE, 0o4755, 3, 4, 5), b"bytes")
        writer.add(Entry(b"b", Kind.FILE, 0o644), io.BytesIO(large))
        writer.add(Entry(b"c", Kind.FILE, 0o600), source)
        writer.add(Entry(b"d", Kind.FILE, 0o600), file.fileno())
        os.lseek(file.fileno(), 4_999_999, os.SEEK_SET)
        stored = writer.add(Entry(b"e", Kind.FILE, 0o600), file.fileno())
        assert stored.size == 1
        writer.add(Entry(b"f", Kind.FILE, 0o600))
        index = writer.finish()
    for name in "bcd":
        assert (own / name).read_bytes() == large
    assert (own / "e").read_bytes() == large[-1:]
    check(index, own)


def test_a_stream_of_known_length_is_gone_through_once(own: Path) -> None:
    large = os.urandom(3_000_001)
    digest = hashlib.sha256(large).digest()

    class Once(io.BytesIO):
        """Gives less than it is asked for."""

        def read(self, count: int | None = -1) -> bytes:
            return super().read(min(count or 0, 70_000))

    with LayerWriter(own, Whiteouts.OVERLAY) as writer:
        entry = Entry(b"a", Kind.FILE, 0o644, size=len(large))
        assert writer.add(entry, Once(large)).digest == digest
        entry = Entry(b"b", Kind.FILE, 0o644, size=len(large), digest=digest)
        assert writer.add(entry, Once(large)).digest == digest
        index = writer.finish()
    assert (own / "a").read_bytes() == (own / "b").read_bytes() == large
    check(index, own)


@pytest.mark.parametrize("wrong", [-1, 1, 2_000_000])
def test_a_stream_that_is_not_as_long_as_it_says_is_refused(own: Path, wrong: int) -> None:
    entry = Entry(b"a", Kind.FILE, 0o644, size=3_000_000 + wrong)
    with (
        LayerWriter(own, Whiteouts.OVERLAY) as writer,
        pytest.raises(CorruptArchive, match=r"'a' is (longer|shorter) than it should be"),
    ):
        writer.add(entry, io.BytesIO(bytes(3_000_000)))


def test_a_pipe_is_read_to_its_end(own: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"through a pipe")
    os.close(writing)
    with LayerWriter(own, Whiteouts.OVERLAY) as writer:
        writer.add(Entry(b"a", Kind.FILE, 0o644), reading)
        index = writer.finish()
    os.close(reading)
    assert (own / "a").read_bytes() == b"through a pipe"
    check(index, own)


def test_parents_are_part_of_the_layer_and_look_like_those_below(tmp_path: Path) -> None:
    _, lower = stack(tmp_path, [make_tar(("x", "d", 0), ("y", "l", "x"), mode=0o700, mtime=9)])
    own = tmp_path / "own"
    own.mkdir(mode=0o755)
    with LayerWriter(own, Whiteouts.OVERLAY, lower) as writer:
        stored = writer.add(Entry(b"y/new/file", Kind.FILE, 0o644, mtime_ns=3), b"1")
        assert stored.path == b"x/new/file"
        index = writer.finish()
        assert writer.needs_lower
    assert [(entry.path, entry.mode, entry.mtime_ns) for entry in index.entries] == [
        (b"x", 0o700, 9_000_000_000),
        (b"x/new", 0o755, 0),
        (b"x/new/file", 0o644, 3),
    ]
    check(index, own)


def test_a_hard_link_to_a_file_below_becomes_a_file(tmp_path: Path) -> None:
    _, lower = stack(tmp_path, [make_tar(("x", "f", b"below"))])
    own = tmp_path / "own"
    own.mkdir(mode=0o755)
    with LayerWriter(own, Whiteouts.OVERLAY, lower) as writer:
        assert writer.add(Entry(b"h", Kind.HARDLINK, target=b"x")).kind is Kind.FILE
        index = writer.finish()
    assert (own / "h").read_bytes() == b"below"
    check(index, own)


entries = st.dictionaries(
    st.lists(st.sampled_from([b"a", b"a-", b"b", b"c"]), min_size=1, max_size=3).map(b"/".join),
    st.tuples(st.sampled_from("ffdlw"), st.binary(max_size=40), st.sampled_from([0o644, 0o755])),
    max_size=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(entries, st.randoms())
def test_the_order_of_adding_does_not_matter(tmp_path_factory, items, chance) -> None:
    # Without what would replace something else: then the order is to matter.
    files = {path for path, (kind, _, _) in items.items() if kind != "d"}
    items = {
        path: item
        for path, item in items.items()
        if not any(path.startswith(file + b"/") for file in files)
    }
    digests = set()
    for turn in range(3):
        order = sorted(items, key=lambda path: path.replace(b"/", b"\0"))
        if turn:
            chance.shuffle(order)
        own = tmp_path_factory.mktemp("own")
        own.chmod(0o755)
        with LayerWriter(own, Whiteouts.OVERLAY) as writer:
            for path in order:
                kind, content, mode = items[path]
                if kind == "f":
                    writer.add(Entry(path, Kind.FILE, mode), content)
                elif kind == "d":
                    writer.add(Entry(path, Kind.DIRECTORY, mode))
                elif kind == "l":
                    writer.add(Entry(path, Kind.SYMLINK, 0o777, target=b"t"))
                else:
                    writer.add(Entry(path, Kind.WHITEOUT))
            index = writer.finish()
        captured = capture(own, Whiteouts.OVERLAY)
        assert [entry.path for entry in captured.entries] == [e.path for e in index.entries]
        assert captured.diff_id == index.diff_id
        digests.add(index.diff_id)
    assert len(digests) <= 1


def test_a_path_added_twice_counts_once(own: Path) -> None:
    with LayerWriter(own, Whiteouts.OVERLAY) as writer:
        writer.add(Entry(b"z", Kind.FILE, 0o644), b"first")
        writer.add(Entry(b"a/b", Kind.FILE, 0o644), b"in a directory")
        writer.add(Entry(b"z", Kind.FILE, 0o600), b"second")
        writer.add(Entry(b"a", Kind.FILE, 0o600), b"a file now")
        writer.add(Entry(b"0", Kind.HARDLINK, target=b"z"))
        index = writer.finish()
    assert [(entry.path, entry.kind) for entry in index.entries] == [
        (b"0", Kind.FILE),
        (b"a", Kind.FILE),
        (b"z", Kind.HARDLINK),
    ]
    check(index, own)


@pytest.mark.parametrize("path", [b"../x", b"/x", b"a/", b"a/./b", b".wh.x", b"a/.wh.b/c", b"a\0"])
def test_a_path_that_makes_no_sense_is_refused(own: Path, path: bytes) -> None:
    with (
        LayerWriter(own, Whiteouts.OVERLAY) as writer,
        pytest.raises(InvalidParameter, match="can't be a path of a layer"),
    ):
        writer.add(Entry(path, Kind.FILE), b"")


def test_links_lead_nowhere_outside(tmp_path: Path, own: Path) -> None:
    with LayerWriter(own, Whiteouts.OVERLAY) as writer:
        writer.add(Entry(b"out", Kind.SYMLINK, 0o777, target=os.fsencode(tmp_path)))
        writer.add(Entry(b"out/x", Kind.FILE, 0o644), b"1")
        with pytest.raises(CorruptArchive, match="hard link"):
            writer.add(Entry(b"h", Kind.HARDLINK, target=b"none"))
    assert sorted(os.listdir(tmp_path)) == ["own"]


def test_a_writer_given_up_leaves_no_descriptor(own: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with LayerWriter(own, Whiteouts.OVERLAY) as writer:
        for number in range(200):
            writer.add(Entry(b"d%d/f" % number, Kind.FILE, 0o644), b"x" * 20_000)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_random_sizes_around_the_block(own: Path) -> None:
    chance = random.Random(1)
    with LayerWriter(own, Whiteouts.OVERLAY) as writer:
        for number in range(60):
            size = chance.choice([0, 1, 511, 512, 513, 32_768, 32_769, 1 << 20, (1 << 20) + 1])
            writer.add(Entry(b"%02d" % number, Kind.FILE, 0o644), chance.randbytes(size))
        index = writer.finish()
    check(index, own)
