"""The layer store: what goes in comes out, and equal things are kept once."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layer.roots import (
    BASE,
    Root,
    Unreadable,
    add_container,
    digest,
    files_in,
    ingest,
    remove_container,
    tar_of,
    tree_of,
)
from tiffin.errors import (
    CorruptArchive,
    DigestMismatch,
    InvalidParameter,
    NotFound,
)
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.store import LayerStore
from tiffin.layer.writer import LayerWriter
from tiffin.storage import tree as trees
from tiffin.storage.overlay2 import Overlay2
from tiffin.storage.vfs import Vfs

pytestmark = pytest.mark.root


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_layer_comes_out_as_it_went_in(store: LayerStore, tmp_path: Path, packed: bool) -> None:
    tar = tar_of(BASE)
    layer = store.ingest(io.BytesIO(gzip.compress(tar) if packed else tar), None)
    assert layer.diff_id == layer.chain_id == digest(tar)
    assert (layer.parent, layer.tar_size, layer.size) == (None, len(tar), 11)
    output = io.BytesIO()
    store.write_tar(layer, output)
    assert output.getvalue() == tar
    assert files_in(store, layer, tmp_path) == BASE
    assert store.get(layer.chain_id) == layer
    assert store.index(layer).diff_id == layer.diff_id


def test_stacks_are_named_by_chain_ids(store: LayerStore, tmp_path: Path) -> None:
    base = ingest(store, BASE)
    middle = ingest(store, {"data/a": "changed", "data/b": None}, base)
    top = ingest(store, {"new": "file"}, middle)
    for below, layer in ((base, middle), (middle, top)):
        assert layer.chain_id == digest(f"{below.chain_id} {layer.diff_id}".encode())
        assert layer.parent == below.chain_id
    assert store.chain(top.chain_id) == [base, middle, top]
    assert store.chain(None) == []
    wanted = {"etc/passwd": "root", "bin/sh": "shell", "data/a": "changed", "new": "file"}
    assert files_in(store, top, tmp_path) == wanted
    assert store.size(top.chain_id) == base.size + middle.size + top.size == 22
    assert store.size(None) == 0


def test_a_layer_that_is_there_is_not_read_again(store: LayerStore) -> None:
    layer = ingest(store, BASE)
    assert store.ingest(Unreadable(), None, diff_id=layer.diff_id) == layer  # type: ignore[arg-type]


def test_an_equal_layer_on_another_stack_shares_its_files(
    store: LayerStore, tmp_path: Path
) -> None:
    one, two = ingest(store, {"one": "1"}), ingest(store, {"two": "2"})
    on_one = ingest(store, {"d/shared": "x"}, one)
    before = set(store.driver.keys())
    if store.driver.layered:
        on_two = store.ingest(Unreadable(), two.chain_id, diff_id=on_one.diff_id)  # type: ignore[arg-type]
        assert on_two.snapshot == on_one.snapshot
        assert set(store.driver.keys()) == before
    else:
        on_two = ingest(store, {"d/shared": "x"}, two)
    assert on_two.chain_id != on_one.chain_id
    assert files_in(store, on_two, tmp_path) == {"two": "2", "d/shared": "x"}
    assert files_in(store, on_one, tmp_path) == {"one": "1", "d/shared": "x"}


def test_a_layer_that_says_not_all_of_itself_shares_nothing(store: LayerStore) -> None:
    """The tar has a file in ``d`` but no ``d``: its owner and mode are those of the stack below."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("d/file"))
    closed = tarfile.TarInfo("d")
    closed.type, closed.mode, closed.uid = tarfile.DIRTYPE, 0o700, 42
    below = io.BytesIO()
    with tarfile.open(fileobj=below, mode="w") as tar:
        tar.addfile(closed)
    base = store.ingest(io.BytesIO(below.getvalue()), None)
    alone = store.ingest(io.BytesIO(buffer.getvalue()), None)
    stacked = store.ingest(io.BytesIO(buffer.getvalue()), base.chain_id)
    assert alone.diff_id == stacked.diff_id
    assert alone.snapshot != stacked.snapshot
    with store.own_directory(stacked.snapshot) as directory:
        status = (directory / "d").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o700, 42)
    with store.own_directory(alone.snapshot) as directory:
        assert stat.S_IMODE((directory / "d").stat().st_mode) == 0o755


def _escaping() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("../../../escaped")
        tar.addfile(member)
        member = tarfile.TarInfo("hard")
        member.type, member.linkname = tarfile.LNKTYPE, "nowhere"
        tar.addfile(member)
    return buffer.getvalue()


REFUSED: dict[str, tuple[Callable[[], bytes], str | None, type[Exception]]] = {
    "another digest": (lambda: tar_of(BASE), digest(b"other"), DigestMismatch),
    "truncated": (lambda: tar_of({"a": "x" * 5000})[:3000], None, CorruptArchive),
    "truncated gzip": (
        lambda: gzip.compress(os.urandom(1000) + tar_of(BASE))[:800],
        None,
        CorruptArchive,
    ),
    "no tar": (lambda: b"this is no tar" * 100, None, CorruptArchive),
    "link to nothing": (_escaping, None, CorruptArchive),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_nothing(root: Root, case: str) -> None:
    make, diff_id, error = REFUSED[case]
    with root.open() as store:
        base = ingest(store, BASE)
        before = root.picture()
        with pytest.raises(error):
            store.ingest(io.BytesIO(make()), base.chain_id, diff_id=diff_id)
        assert root.picture() == before


def test_an_unknown_stack_is_refused(root: Root) -> None:
    with root.open() as store:
        before = root.picture()
        absent = "sha256:" + "0" * 64
        with pytest.raises(NotFound, match="no such layer"):
            store.ingest(io.BytesIO(tar_of(BASE)), absent)
        with pytest.raises(NotFound, match="no such layer"):
            store.prepare("c", absent)
        with pytest.raises(NotFound, match="no such layer"):
            store.get(absent)
        with pytest.raises(InvalidParameter, match="invalid diff ID"):
            store.ingest(io.BytesIO(tar_of(BASE)), None, diff_id="sha256:../../etc")
        assert root.picture() == before


@pytest.mark.parametrize("known", [True, False], ids=["digest known", "digest unknown"])
def test_threads_that_store_one_layer_get_one_layer(root: Root, known: bool) -> None:
    tar = tar_of({f"file{number}": "x" * 2000 for number in range(50)})
    barrier = threading.Barrier(6)
    with root.open() as store:
        base = ingest(store, BASE)
        prepared: list[str] = []
        original = store.driver.prepare

        def counting(key: str, parent: str | tuple[str, ...] | None) -> None:
            prepared.append(key)
            original(key, parent)

        store.driver.prepare = counting  # type: ignore[method-assign]

        def work(_: int) -> object:
            barrier.wait()
            diff_id = digest(tar) if known else None
            return store.ingest(io.BytesIO(tar), base.chain_id, diff_id=diff_id)

        with ThreadPoolExecutor(6) as pool:
            layers = set(pool.map(work, range(6)))
        assert len(layers) == 1
        assert len(prepared) == 1 or not known
        picture = root.picture()
        assert len(picture["keys"]) == 2  # type: ignore[arg-type]
        assert picture["work folder"] == []


def test_many_layers_in_a_stack(store: LayerStore, tmp_path: Path) -> None:
    layer = None
    for number in range(127):
        layer = ingest(store, {f"d/file{number}": str(number), "top": str(number)}, layer)
    assert layer is not None
    assert len(store.chain(layer.chain_id)) == 127
    store.prepare("c", layer.chain_id, mountpoints=True)
    with tree_of(store, "c", tmp_path) as tree:
        assert len(os.listdir(tree / "d")) == 127
        assert (tree / "top").read_text() == "126"


def test_a_layer_of_entries(store: LayerStore, tmp_path: Path) -> None:
    base = ingest(store, BASE)

    def fill(writer: LayerWriter) -> None:
        writer.add(Entry(b"app", Kind.DIRECTORY, 0o755, 1, 2, mtime_ns=10**18))
        writer.add(Entry(b"app/main", Kind.FILE, 0o644, mtime_ns=10**18), b"print()")
        writer.add(Entry(b"data/a", Kind.WHITEOUT))

    layer = store.write(base.chain_id, fill)
    wanted = {"etc/passwd": "root", "bin/sh": "shell", "data/b": "b", "app/main": "print()"}
    assert files_in(store, layer, tmp_path) == wanted
    assert store.write(base.chain_id, fill) == layer
    output = io.BytesIO()
    store.write_tar(layer, output)
    assert digest(output.getvalue()) == layer.diff_id


def test_entries_that_fail_leave_nothing(root: Root) -> None:
    def fill(writer: LayerWriter) -> None:
        writer.add(Entry(b"file", Kind.FILE, 0o644), b"content")
        raise RuntimeError("the source is gone")

    with root.open() as store:
        before = root.picture()
        with pytest.raises(RuntimeError):
            store.write(None, fill)
        assert root.picture() == before


def test_sizes_come_from_the_rows(store: LayerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = None
    for number in range(5):
        layer = ingest(store, {f"file{number}": "x" * 1000}, layer)
    assert layer is not None

    def walked(*_: object) -> None:
        raise AssertionError("a directory was walked")

    monkeypatch.setattr(trees, "measure", walked)
    monkeypatch.setattr(os, "scandir", walked)
    assert store.size(layer.chain_id) == 5000


def test_paths_are_looked_up_without_mounting(store: LayerStore) -> None:
    base = ingest(store, BASE)
    top = ingest(store, {"data/a": None, "etc/group": "x"}, base)

    def fill(writer: LayerWriter) -> None:
        writer.add(Entry(b"link", Kind.SYMLINK, 0o777, target=b"/etc"))

    linked = store.write(top.chain_id, fill)
    assert store.lookup(linked.chain_id, b"data/a") is None
    found = store.lookup(linked.chain_id, b"link/passwd")
    assert found is not None
    assert (found.path, found.size) == (b"etc/passwd", 4)
    assert store.lookup(linked.chain_id, b"link").kind is Kind.SYMLINK  # type: ignore[union-attr]
    assert store.lookup(linked.chain_id, b"link", follow=True).path == b"etc"  # type: ignore[union-attr]
    fd = store.lower(linked.chain_id).open(b"etc/passwd")
    with open(fd, "rb") as file:
        assert file.read() == b"root"


def test_drivers_live_side_by_side_in_one_root(tmp_path: Path) -> None:
    with Root(tmp_path, Vfs).open() as store:
        base = ingest(store, BASE)
        add_container(store, "old", base)
        with store.own_directory("old") as directory:
            (directory / "own").write_text("kept")
    with Root(tmp_path, Overlay2).open() as store:
        assert store.get(base.chain_id).driver == "vfs"
        assert files_in(store, base, tmp_path) == BASE
        with tree_of(store, "old", tmp_path) as tree:
            assert (tree / "own").read_text() == "kept"
        # A stack stays where it lies; what lies on nothing goes to the driver that was chosen.
        upper = ingest(store, {"more": "m"}, base)
        add_container(store, "new", upper)
        other = ingest(store, {"other": "o"})
        assert (upper.driver, other.driver) == ("vfs", "overlay2")
        assert store.holder("new").name == "vfs"
        assert files_in(store, upper, tmp_path) == {**BASE, "more": "m"}
        # The same layer on stacks of both drivers, and one that was staged for the wrong one.
        mine = ingest(store, {"more": "m"}, other)
        assert (mine.driver, mine.diff_id) == ("overlay2", upper.diff_id)
        tar = tar_of({"staged": "s"})
        staged = store.stage(io.BytesIO(tar), digest(tar))
        assert staged is not None
        placed = store.place(staged, upper.chain_id)
        assert placed.driver == "vfs"
        assert files_in(store, placed, tmp_path) == {**BASE, "more": "m", "staged": "s"}
        committed = store.commit("old", base.chain_id)
        assert committed.driver == "vfs"
    with Root(tmp_path, Overlay2).open() as store:
        assert files_in(store, mine, tmp_path) == {"other": "o", "more": "m"}
        assert store.holder("old").name == "vfs"
        for key in ("old", "new"):
            remove_container(store, key)
        store.collect([])
        assert [list(driver.keys()) for driver in store.drivers.all()] == [[], []]
        assert os.listdir(store.layers_folder) == []


def test_layers_are_staged_and_placed_later(store: LayerStore) -> None:
    below, above = tar_of({"a/x": "1"}), tar_of({"y": "2"})
    staged = [store.stage(io.BytesIO(tar), digest(tar)) for tar in (below, above)]
    if not store.driver.layered:
        assert staged == [None, None]
        return
    chain = None
    for one in staged:
        assert one is not None
        chain = store.place(one, chain).chain_id
    assert [layer.diff_id for layer in store.chain(chain)] == [digest(below), digest(above)]
    found = store.shared(digest(above))
    assert found is not None
    assert found.diff_id == digest(above)
    assert store.shared(digest(b"")) is None


def _one_entry(name: str, kind: bytes, target: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        tar.addfile(member)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "tar",
    [
        _one_entry("no/folder", tarfile.REGTYPE),
        _one_entry("link", tarfile.LNKTYPE, "elsewhere"),
        _one_entry(".wh.gone", tarfile.REGTYPE),
    ],
    ids=["folder", "link", "whiteout"],
)
def test_a_layer_that_needs_what_lies_below_is_not_staged(store: LayerStore, tar: bytes) -> None:
    assert store.stage(io.BytesIO(tar), digest(tar)) is None
    assert not os.listdir(store.work_folder)
    assert not list(store.driver.keys())


def test_a_staged_layer_that_is_given_up_leaves_nothing(store: LayerStore) -> None:
    tar = tar_of({"y": "2"})
    staged = store.stage(io.BytesIO(tar), digest(tar))
    if staged is not None:
        staged.close()
    assert not os.listdir(store.work_folder)
    assert not list(store.driver.keys())
