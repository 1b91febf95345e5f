"""Files that a layer takes over from an earlier one, as hard links."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tiffin.errors import CorruptArchive
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.index import Index
from tiffin.layer.writer import LayerWriter, Model
from tiffin.storage.driver import Whiteouts

pytestmark = pytest.mark.root

LARGE = os.urandom(3_000_000)
FILES = {b"a/one": b"1", b"a/two": b"22", b"b/large": LARGE, b"c": b"", b"d/e/f": b"deep"}


def file(path: bytes, content: bytes, **members: object) -> Entry:
    entry = Entry(path, Kind.FILE, 0o640, 5, 6, 1_234_567_890_123_456_789, len(content))
    entry.digest = hashlib.sha256(content).digest()
    return replace(entry, **members)  # type: ignore[arg-type]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A finished layer of :data:`FILES`."""
    place = tmp_path / "model"
    place.mkdir(mode=0o755)
    with LayerWriter(place, Whiteouts.OVERLAY) as writer:
        for path in sorted(FILES):
            writer.add(file(path, FILES[path]), FILES[path])
        return Model(writer.finish(), place)


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Path]:
    """Fresh directories."""
    return (made for number in range(99) if not (made := tmp_path / f"own{number}").mkdir(0o755))


def write(place: Path, entries: list[Entry], model: Model | None) -> tuple[Index, set[bytes]]:
    """A layer, and which of its files were linked."""
    linked = set()
    with LayerWriter(place, Whiteouts.OVERLAY, None, model) as writer:
        for entry in sorted(entries, key=lambda entry: entry.path):
            content = FILES.get(entry.path, b"")
            if hashlib.sha256(content).digest() != entry.digest:
                content = b"changed"
            if writer.link(replace(entry)):
                linked.add(entry.path)
            else:
                writer.add(replace(entry), content)
        return writer.finish(), linked


def test_the_layer_is_the_same_with_links_and_without(model: Model, places: Iterator[Path]) -> None:
    entries = [file(path, content) for path, content in FILES.items()]
    entries[1] = file(b"a/two", b"changed")
    entries.append(file(b"new", b"changed"))
    plain, none = write(next(places), entries, None)
    own = next(places)
    index, linked = write(own, entries, model)
    assert none == set()
    assert linked == FILES.keys() - {b"a/two"}
    assert index == plain
    for path in FILES:
        ours, theirs = (Path(os.fsdecode(d), os.fsdecode(path)) for d in (own, model.directory))
        assert ours.samefile(theirs) == (path in linked)
    assert (own / "a/two").read_bytes() == b"changed"


@pytest.mark.parametrize(
    "members",
    [
        {"mode": 0o600},
        {"uid": 1},
        {"gid": 1},
        {"mtime_ns": 7},
        {"xattrs": {"user.x": b"y"}},
        {"digest": hashlib.sha256(b"2").digest()},
        {"digest": b""},
        {"size": 2},
    ],
)
def test_what_differs_in_anything_is_copied(
    model: Model, places: Iterator[Path], members: dict[str, object]
) -> None:
    with LayerWriter(next(places), Whiteouts.OVERLAY, None, model) as writer:
        assert not writer.link(file(b"a/one", b"1", **members))
        assert writer.link(file(b"a/one", b"1"))


def test_only_files_of_the_same_path_are_linked(model: Model, places: Iterator[Path]) -> None:
    own = next(places)
    (own / "a").mkdir()
    (own / "s").symlink_to("a")
    with LayerWriter(own, Whiteouts.OVERLAY, None, model) as writer:
        assert not writer.link(file(b"other", b"1"))
        assert not writer.link(file(b"s/one", b"1"))
    with LayerWriter(next(places), Whiteouts.OVERLAY, None, model) as writer:
        writer.add(Entry(b"x", Kind.DIRECTORY, 0o755))
        writer.add(Entry(b"a", Kind.SYMLINK, 0o777, target=b"x"))
        assert not writer.link(file(b"a/one", b"1")), "it really goes to x/one"
    with LayerWriter(next(places), Whiteouts.OVERLAY, None, model) as writer:
        writer.add(file(b"a/one", b"other"), b"other")
        assert not writer.link(file(b"a/one", b"1")), "the layer itself has it already"
    hostile = Model(Index("", 0, [file(b"../../etc/passwd", b"1")]), model.directory)
    with LayerWriter(next(places), Whiteouts.OVERLAY, None, hostile) as writer:
        assert not writer.link(file(b"../../etc/passwd", b"1"))


@pytest.mark.parametrize("error", [errno.EMLINK, errno.EXDEV, errno.EPERM, errno.ENOENT])
def test_what_can_not_be_linked_is_copied(
    model: Model, places: Iterator[Path], monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def link(*arguments: object, **keywords: object) -> None:
        raise OSError(error, os.strerror(error))

    entries = [file(path, content) for path, content in FILES.items()]
    monkeypatch.setattr("os.link", link)
    index, linked = write(next(places), entries, model)
    assert not linked
    assert index == model.index


def test_a_damaged_file_is_not_taken_over(model: Model, places: Iterator[Path]) -> None:
    (model.directory / "a/one").write_bytes(b"X")
    (model.directory / "a/two").unlink()
    entries = [file(path, content) for path, content in FILES.items()]
    own = next(places)
    index, linked = write(own, entries, model)
    assert linked == FILES.keys() - {b"a/one", b"a/two"}
    assert index == model.index
    assert (own / "a/one").read_bytes() == b"1"
    assert (model.directory / "a/one").read_bytes() == b"X", "what is there was not written to"


def test_a_damaged_large_file_is_an_error(model: Model, places: Iterator[Path]) -> None:
    with (model.directory / "b/large").open("r+b") as damaged:
        damaged.write(b"damage")
    with pytest.raises(CorruptArchive, match="'b/large' of an earlier layer is damaged"):
        write(next(places), [file(b"b/large", LARGE)], model)
