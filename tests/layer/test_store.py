"""The layer store: what goes in comes out, equal things are kept once, and nothing is left over."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import signal
import stat
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layer.roots import (
    Root,
    add_container,
    files_in,
    files_of,
    in_memory,
    ingest,
    remove_container,
    tar_of,
    tree_of,
)
from storage.killing import Arm, killed_at, steps
from tiffin.errors import (
    Conflict,
    CorruptArchive,
    DigestMismatch,
    InvalidParameter,
    NotFound,
    StorageFull,
)
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.store import LayerStore
from tiffin.layer.writer import LayerWriter
from tiffin.linux import syscalls
from tiffin.storage import tree as trees
from tiffin.storage.driver import StorageDriver
from tiffin.storage.overlay2 import Overlay2
from tiffin.storage.vfs import Vfs

pytestmark = pytest.mark.root

_CODE = ["layer/store.py", "layer/snapshots.py", "layer/collection.py", "storage/", "store/"]
_BASE = {"etc/passwd": "root", "bin/sh": "shell", "data/a": "a", "data/b": "b"}


@pytest.fixture(params=[Overlay2, Vfs], ids=lambda kind: kind.name)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Root]:
    """An empty root, on each driver."""
    with in_memory(tmp_path / "memory") as place:
        yield Root(place / "root", request.param)


@pytest.fixture
def store(root: Root) -> Iterator[LayerStore]:
    """The store of that root."""
    with root.open() as opened:
        yield opened


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class _Unreadable(io.RawIOBase):
    """A stream that nobody may read."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        raise AssertionError("the tar was read")


# Layers in and out.


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_layer_comes_out_as_it_went_in(store: LayerStore, tmp_path: Path, packed: bool) -> None:
    tar = tar_of(_BASE)
    layer = store.ingest(io.BytesIO(gzip.compress(tar) if packed else tar), None)
    assert layer.diff_id == layer.chain_id == _digest(tar)
    assert (layer.parent, layer.tar_size, layer.size) == (None, len(tar), 11)
    output = io.BytesIO()
    store.write_tar(layer, output)
    assert output.getvalue() == tar
    assert files_in(store, layer, tmp_path) == _BASE
    assert store.get(layer.chain_id) == layer
    assert store.index(layer).diff_id == layer.diff_id


def test_stacks_are_named_by_chain_ids(store: LayerStore, tmp_path: Path) -> None:
    base = ingest(store, _BASE)
    middle = ingest(store, {"data/a": "changed", "data/b": None}, base)
    top = ingest(store, {"new": "file"}, middle)
    for below, layer in ((base, middle), (middle, top)):
        assert layer.chain_id == _digest(f"{below.chain_id} {layer.diff_id}".encode())
        assert layer.parent == below.chain_id
    assert store.chain(top.chain_id) == [base, middle, top]
    assert store.chain(None) == []
    wanted = {"etc/passwd": "root", "bin/sh": "shell", "data/a": "changed", "new": "file"}
    assert files_in(store, top, tmp_path) == wanted
    assert store.size(top.chain_id) == base.size + middle.size + top.size == 22
    assert store.size(None) == 0


def test_a_layer_that_is_there_is_not_read_again(store: LayerStore) -> None:
    layer = ingest(store, _BASE)
    assert store.ingest(_Unreadable(), None, diff_id=layer.diff_id) == layer  # type: ignore[arg-type]


def test_an_equal_layer_on_another_stack_shares_its_files(
    store: LayerStore, tmp_path: Path
) -> None:
    one, two = ingest(store, {"one": "1"}), ingest(store, {"two": "2"})
    on_one = ingest(store, {"d/shared": "x"}, one)
    before = set(store.driver.keys())
    if store.driver.layered:
        on_two = store.ingest(_Unreadable(), two.chain_id, diff_id=on_one.diff_id)  # type: ignore[arg-type]
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
    "another digest": (lambda: tar_of(_BASE), _digest(b"other"), DigestMismatch),
    "truncated": (lambda: tar_of({"a": "x" * 5000})[:3000], None, CorruptArchive),
    "truncated gzip": (
        lambda: gzip.compress(os.urandom(1000) + tar_of(_BASE))[:800],
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
        base = ingest(store, _BASE)
        before = root.picture()
        with pytest.raises(error):
            store.ingest(io.BytesIO(make()), base.chain_id, diff_id=diff_id)
        assert root.picture() == before


def test_an_unknown_stack_is_refused(root: Root) -> None:
    with root.open() as store:
        before = root.picture()
        absent = "sha256:" + "0" * 64
        with pytest.raises(NotFound, match="no such layer"):
            store.ingest(io.BytesIO(tar_of(_BASE)), absent)
        with pytest.raises(NotFound, match="no such layer"):
            store.prepare("c", absent)
        with pytest.raises(NotFound, match="no such layer"):
            store.get(absent)
        with pytest.raises(InvalidParameter, match="invalid diff ID"):
            store.ingest(io.BytesIO(tar_of(_BASE)), None, diff_id="sha256:../../etc")
        assert root.picture() == before


@pytest.mark.parametrize("known", [True, False], ids=["digest known", "digest unknown"])
def test_threads_that_store_one_layer_get_one_layer(root: Root, known: bool) -> None:
    tar = tar_of({f"file{number}": "x" * 2000 for number in range(50)})
    barrier = threading.Barrier(6)
    with root.open() as store:
        base = ingest(store, _BASE)
        prepared: list[str] = []
        original = store.driver.prepare

        def counting(key: str, parent: str | tuple[str, ...] | None) -> None:
            prepared.append(key)
            original(key, parent)

        store.driver.prepare = counting  # type: ignore[method-assign]

        def work(_: int) -> object:
            barrier.wait()
            diff_id = _digest(tar) if known else None
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
    base = ingest(store, _BASE)

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
    assert _digest(output.getvalue()) == layer.diff_id


def test_entries_that_fail_leave_nothing(root: Root) -> None:
    def fill(writer: LayerWriter) -> None:
        writer.add(Entry(b"file", Kind.FILE, 0o644), b"content")
        raise RuntimeError("the source is gone")

    with root.open() as store:
        before = root.picture()
        with pytest.raises(RuntimeError):
            store.write(None, fill)
        assert root.picture() == before


# Containers.


def test_mount_points_are_there_and_never_show(store: LayerStore, tmp_path: Path) -> None:
    base = ingest(store, {**_BASE, "etc/hosts": "the image's own"})
    for key in ("one", "two"):
        store.prepare(key, base.chain_id, mountpoints=True)
        with tree_of(store, key, tmp_path) as tree:
            for path in ("dev", "proc", "sys", "dev/pts", "dev/shm"):
                assert (tree / path).is_dir()
            for path in (".dockerenv", "etc/hostname", "etc/resolv.conf"):
                assert (tree / path).read_bytes() == b""
            assert (tree / "etc/hosts").read_text() == "the image's own"
            assert os.readlink(tree / "etc/mtab") == "/proc/mounts"
            assert (tree / "etc/passwd").read_text() == "root"
        assert store.usage(key).size == store.usage(key).inodes == 0
        assert store.changes(key, base.chain_id) == []
    inits = "SELECT count(*) AS n FROM snapshots WHERE purpose = 'init'"
    assert store.database.one(inits)["n"] == 1  # type: ignore[index]
    layer = store.commit("one", base.chain_id)
    assert store.index(layer).size == 0
    assert store.lookup(layer.chain_id, b"etc/hostname") is None


def test_mount_points_leave_the_images_directories_as_they_are(
    store: LayerStore, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, target in (
            ("etc", tarfile.SYMTYPE, "real/etc"),
            ("real/etc", tarfile.DIRTYPE, ""),
            ("proc", tarfile.SYMTYPE, "/proc"),
            ("sys", tarfile.REGTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode, member.uid = kind, target, 0o711, 9
            tar.addfile(member)
    base = store.ingest(io.BytesIO(buffer.getvalue()), None)
    store.prepare("c", base.chain_id, mountpoints=True)
    with tree_of(store, "c", tmp_path) as tree:
        assert os.readlink(tree / "etc") == "real/etc"
        status = (tree / "real/etc").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o711, 9)
        assert (tree / "real/etc/hosts").is_file()
        assert (tree / "sys").is_file()
        assert (tree / "proc").is_symlink()
    assert store.changes("c", base.chain_id) == []


def test_mount_points_of_a_container_without_an_image(store: LayerStore, tmp_path: Path) -> None:
    store.prepare("c", None, mountpoints=True)
    with tree_of(store, "c", tmp_path) as tree:
        assert (tree / "proc").is_dir()
        (tree / "file").write_text("x")
    layer = store.commit("c", None)
    assert [entry.path for entry in store.index(layer).effective() if entry.path] == [b"file"]


def test_what_a_container_writes_is_seen_measured_and_removed(root: Root, tmp_path: Path) -> None:
    with root.open() as store:
        base = ingest(store, _BASE)
        before = root.picture()
        add_container(store, "c", base)
        with tree_of(store, "c", tmp_path) as tree:
            (tree / "data/a").write_text("twelve bytes")
            (tree / "data/b").unlink()
            (tree / "data/sub").mkdir()
            (tree / "data/sub/new").write_text("new")
        assert store.usage("c").size == 15
        listed = [
            f"{change.kind} /{change.path.decode()}" for change in store.changes("c", base.chain_id)
        ]
        assert listed == ["C /data", "C /data/a", "D /data/b", "A /data/sub", "A /data/sub/new"]
        assert files_in(store, base, tmp_path) == _BASE
        with pytest.raises(Conflict):
            store.prepare("c", base.chain_id)
        assert root.picture() != before
        remove_container(store, "c")
        store.remove_snapshot("c")
        with pytest.raises(NotFound):
            store.mounts("c")
        with store.database.transaction():
            store.database.execute("DELETE FROM snapshots WHERE purpose = 'init'")
        store.sweep()
        assert root.picture() == before


def test_a_commit_moves_the_files(store: LayerStore, tmp_path: Path) -> None:
    base = ingest(store, _BASE)
    add_container(store, "c", base)
    with tree_of(store, "c", tmp_path) as tree:
        (tree / "large").write_text("x" * 100_000)
        (tree / "data/a").unlink()
        (tree / "symlink").symlink_to("0123456789")
        os.link(tree / "large", tree / "linked")
    used = store.usage("c").size
    with store.own_directory("c") as directory:
        inode = (directory / "large").stat().st_ino
    layer = store.commit("c", base.chain_id)
    assert layer.size == used == 100_010
    with store.own_directory(layer.snapshot) as directory:
        assert (directory / "large").stat().st_ino == inode
    wanted = {**_BASE, "large": "x" * 100_000, "linked": "x" * 100_000}
    del wanted["data/a"]
    assert files_in(store, layer, tmp_path) == wanted
    with pytest.raises(NotFound):
        store.mounts("c")
    # The container lives on, on top of what it was.
    store.prepare("c", layer.chain_id, mountpoints=True, purpose="container")
    with tree_of(store, "c", tmp_path) as tree:
        assert files_of(tree) == wanted
        (tree / "data/b").write_text("changed")
    listed = [
        f"{change.kind} /{change.path.decode()}"
        for change in store.changes("c", base.chain_id, layer.chain_id)
    ]
    assert listed == ["C /data", "D /data/a", "C /data/b", "A /large", "A /linked", "A /symlink"]
    row = store.database.one("SELECT frozen FROM containers WHERE id = 'c'")
    assert row is not None
    assert row["frozen"] == layer.chain_id


def test_a_commit_does_not_depend_on_the_order_of_writes(store: LayerStore, tmp_path: Path) -> None:
    names = [f"file{number}" for number in range(30)]
    layers = []
    for key, order in (("one", names), ("two", names[::-1])):
        store.prepare(key, None)
        with store.own_directory(key) as directory:
            for name in order:
                (directory / name).write_text(name)
                os.utime(directory / name, ns=(0, 10**18))
            os.utime(directory, ns=(0, 10**18))
        layers.append(store.commit(key, None))
    assert layers[0] == layers[1]
    assert len(set(store.driver.keys())) == 1


def test_a_commit_on_another_stack_is_refused(store: LayerStore) -> None:
    base, other = ingest(store, _BASE), ingest(store, {"other": "x"})
    add_container(store, "c", base)
    for parent in (other.chain_id, None):
        with pytest.raises(Conflict, match="snapshot c lies on"):
            store.commit("c", parent)
        with pytest.raises(Conflict, match="snapshot c lies on"):
            store.commit_copy("c", parent)
    assert store.mounts("c")
    with pytest.raises(NotFound, match="absent"):
        store.commit("absent", base.chain_id)


def test_a_copying_commit_leaves_the_container_alone(store: LayerStore, tmp_path: Path) -> None:
    base = ingest(store, _BASE)
    add_container(store, "c", base)
    with tree_of(store, "c", tmp_path) as tree:
        (tree / "data/new").write_text("as committed")
        (tree / "data/b").unlink()
        os.link(tree / "data/new", tree / "linked")
        (tree / "etc").chmod(0o700)
        layer = store.commit_copy("c", base.chain_id)
        (tree / "data/new").write_text("later")
        (tree / "data/a").unlink()
    wanted = {**_BASE, "data/new": "as committed", "linked": "as committed"}
    del wanted["data/b"]
    assert files_in(store, layer, tmp_path) == wanted
    with tree_of(store, "c", tmp_path) as tree:
        assert (tree / "data/new").read_text() == "later"
    assert store.usage("c").size == 5
    second = store.commit_copy("c", base.chain_id)
    assert "data/a" not in files_in(store, second, tmp_path)
    assert store.commit("c", base.chain_id) == second


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
    base = ingest(store, _BASE)
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


# The end of layers.


def test_collection_keeps_roots_and_what_they_rest_on(root: Root, tmp_path: Path) -> None:
    with root.open() as store:
        base = ingest(store, _BASE)
        kept = ingest(store, {"kept": "x"}, base)
        picture = root.picture()
        first = ingest(store, {"doomed": "x"}, base)
        second = ingest(store, {"doomed too": "x"}, first)
        store.prepare("c", second.chain_id, mountpoints=True)
        assert store.collect([kept.chain_id]) == []
        store.remove_snapshot("c")
        assert set(store.collect([kept.chain_id])) == {first, second}
        assert root.picture() == picture
        assert files_in(store, kept, tmp_path) == {**_BASE, "kept": "x"}
        with pytest.raises(NotFound):
            store.get(second.chain_id)
        assert set(store.collect([])) == {base, kept}
        assert root.picture()["keys"] == []
        again = ingest(store, _BASE)
        assert files_in(store, again, tmp_path) == _BASE


def test_collection_honours_what_the_database_names(store: LayerStore) -> None:
    layers = [ingest(store, {name: "x"}) for name in ("image", "container", "frozen", "cache")]
    image, container, frozen, cache = (layer.chain_id for layer in layers)
    database = store.database
    database.execute(
        "INSERT INTO images (id, config, top, size, created) VALUES ('i', x'', ?, 0, 0)", (image,)
    )
    database.execute(
        "INSERT INTO containers (id, name, image, base, frozen, snapshot, spec, state, created)"
        " VALUES ('c', 'c', 'i', ?, ?, 'c', x'', x'', 0)",
        (container, frozen),
    )
    database.execute(
        "INSERT INTO build_cache (key, step, parts, result, top, size, created, used, uses)"
        " VALUES ('k', '', x'', x'', ?, 0, 0, 0, 0)",
        (cache,),
    )
    assert store.collect([]) == []
    database.execute("DELETE FROM containers")
    assert set(store.collect([])) == {layers[1], layers[2]}


def test_a_shared_snapshot_stays_until_its_last_layer_goes(
    store: LayerStore, tmp_path: Path
) -> None:
    one, two = ingest(store, {"one": "1"}), ingest(store, {"two": "2"})
    shared = {"d/shared": "x"}
    on_one, on_two = ingest(store, shared, one), ingest(store, shared, two)
    store.collect([on_two.chain_id])
    assert files_in(store, on_two, tmp_path) == {"two": "2", **shared}
    store.collect([])
    assert list(store.driver.keys()) == []
    assert on_one.chain_id != on_two.chain_id


def test_a_lease_keeps_what_is_made_inside_it(store: LayerStore) -> None:
    old = ingest(store, {"old": "x"})
    unused = ingest(store, {"unused": "x"})
    with store.lease():
        with ThreadPoolExecutor(1) as pool:
            new = pool.submit(ingest, store, {"new": "x"}).result()
        found = store.ingest(_Unreadable(), None, diff_id=old.diff_id)  # type: ignore[arg-type]
        assert found == old
        assert store.collect([]) == [unused]
    assert set(store.collect([])) == {old, new}


def test_ingest_and_collection_at_once(store: LayerStore, tmp_path: Path) -> None:
    """What is made under a lease stays, whoever collects meanwhile."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def collecting() -> None:
        while not stop.is_set():
            try:
                store.collect([])
            except BaseException as error:
                failures.append(error)
                return

    thread = threading.Thread(target=collecting)
    thread.start()
    try:

        def work(number: int) -> None:
            for turn in range(6):
                with store.lease():
                    base = ingest(store, {"base": "x"})
                    top = ingest(store, {f"top{number % 2}": str(turn)}, base)
                    key = f"c{number}-{turn}"
                    store.prepare(key, top.chain_id, mountpoints=True)
                    with store.own_directory(key) as directory:
                        (directory / "own").write_text(key)
                    layer = store.commit(key, top.chain_id)
                    assert len(store.chain(layer.chain_id)) == 3
                    for each in store.chain(layer.chain_id):
                        store.write_tar(each, io.BytesIO())

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    finally:
        stop.set()
        thread.join()
    assert not failures
    store.collect([])
    assert list(store.driver.keys()) == []
    assert os.listdir(store.layers_folder) == []


def test_drivers_live_side_by_side_in_one_root(tmp_path: Path) -> None:
    with Root(tmp_path, Vfs).open() as store:
        base = ingest(store, _BASE)
        add_container(store, "old", base)
        with store.own_directory("old") as directory:
            (directory / "own").write_text("kept")
    with Root(tmp_path, Overlay2).open() as store:
        assert store.get(base.chain_id).driver == "vfs"
        assert files_in(store, base, tmp_path) == _BASE
        with tree_of(store, "old", tmp_path) as tree:
            assert (tree / "own").read_text() == "kept"
        # A stack stays where it lies; what lies on nothing goes to the driver that was chosen.
        upper = ingest(store, {"more": "m"}, base)
        add_container(store, "new", upper)
        other = ingest(store, {"other": "o"})
        assert (upper.driver, other.driver) == ("vfs", "overlay2")
        assert store.holder("new").name == "vfs"
        assert files_in(store, upper, tmp_path) == {**_BASE, "more": "m"}
        # The same layer on stacks of both drivers, and one that was staged for the wrong one.
        mine = ingest(store, {"more": "m"}, other)
        assert (mine.driver, mine.diff_id) == ("overlay2", upper.diff_id)
        tar = tar_of({"staged": "s"})
        staged = store.stage(io.BytesIO(tar), _digest(tar))
        assert staged is not None
        placed = store.place(staged, upper.chain_id)
        assert placed.driver == "vfs"
        assert files_in(store, placed, tmp_path) == {**_BASE, "more": "m", "staged": "s"}
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


def test_a_start_removes_what_nobody_owns(root: Root) -> None:
    with root.open() as store:
        base = ingest(store, _BASE)
        add_container(store, "kept", base)
        before = root.picture()
        store.driver.prepare("stray", None)
        store.driver.prepare("stray2", None)
        store.driver.commit("stray2", "lstray")
        store.prepare("working", base.chain_id, purpose="work")
        store.prepare("no-row", base.chain_id, mountpoints=True, purpose="container")
        (root.path / "layers/lstray").mkdir()
        (root.path / "layers/lstray/index").touch()
        (root.path / "work/wabc").mkdir()
        (root.path / "work/file").touch()
    with root.open():
        assert root.picture() == before


# Faults.


def _kill_everywhere(
    root: Root, action: Callable[[LayerStore], object], check: Callable[[LayerStore], None]
) -> None:
    """Kill the action at each line of the store and the drivers, and check the root each time,
    after a start; ends as the action comes to its end."""

    def run(arm: Arm) -> None:
        with root.open() as store:
            arm()
            action(store)

    deaths = 0
    for step in steps():
        if not killed_at(step, run, _CODE):
            break
        deaths += 1
        with root.open() as store:
            check(store)
    assert deaths > 20


def test_a_killed_ingest_leaves_all_or_nothing(root: Root) -> None:
    tar = tar_of({"new/file": "x" * 100, "data/a": "changed"})
    with root.open() as store:
        base = ingest(store, _BASE)
        before = root.picture()
        store.ingest(io.BytesIO(tar), base.chain_id)
        complete = root.picture()
        store.collect([base.chain_id])
        assert root.picture() == before

    def check(store: LayerStore) -> None:
        picture = root.picture()
        assert picture in (before, complete)
        if picture == complete:
            output = io.BytesIO()
            store.write_tar(store.ingest(io.BytesIO(tar), base.chain_id), output)
            assert output.getvalue() == tar
        store.collect([base.chain_id])
        assert root.picture() == before

    _kill_everywhere(root, lambda store: store.ingest(io.BytesIO(tar), base.chain_id), check)


def test_an_ingest_killed_while_it_unpacks_leaves_nothing(root: Root) -> None:
    tar = tar_of({f"d/file{number}": "x" * 3000 for number in range(20)})
    with root.open() as store:
        base = ingest(store, _BASE)
        before = root.picture()

    def run(arm: Arm) -> None:
        with root.open() as store:
            arm()
            store.ingest(io.BytesIO(tar), base.chain_id)

    deaths = 0
    for step in range(100, 100_000, 331):
        if not killed_at(step, run, ["layer/"]):
            break
        deaths += 1
        with root.open() as store:
            store.collect([base.chain_id])
            assert root.picture() == before
    assert deaths


def test_a_killed_commit_never_loses_what_the_container_wrote(root: Root, tmp_path: Path) -> None:
    with root.open() as store:
        base = ingest(store, _BASE)
        add_container(store, "keeper", base)
        before = root.picture()
    wanted = {**_BASE, "data/a": "changed", "own": "precious"}
    del wanted["data/b"]

    def make(store: LayerStore) -> None:
        add_container(store, "c", base)
        with tree_of(store, "c", tmp_path) as tree:
            (tree / "own").write_text("precious")
            (tree / "data/a").write_text("changed")
            (tree / "data/b").unlink()

    def commit(store: LayerStore) -> None:
        layer = store.commit("c", base.chain_id)
        store.prepare("c", layer.chain_id, mountpoints=True, purpose="container")

    with root.open() as store:
        make(store)

    def check(store: LayerStore) -> None:
        with tree_of(store, "c", tmp_path) as tree:
            assert files_of(tree) == wanted
        row = store.database.one("SELECT frozen FROM containers WHERE id = 'c'")
        assert row is not None
        changes = store.changes("c", base.chain_id, row["frozen"])
        assert [change.kind for change in changes] == ["C", "C", "D", "A"]
        if row["frozen"] is not None:
            assert files_in(store, store.get(row["frozen"]), tmp_path) == wanted
        remove_container(store, "c")
        store.collect([base.chain_id])
        assert root.picture() == before
        make(store)

    _kill_everywhere(root, commit, check)


def test_a_killed_collection_is_finished_at_the_next_start(root: Root) -> None:
    with root.open() as store:
        base = ingest(store, _BASE)
        before = root.picture()

    def fill(store: LayerStore) -> None:
        layer = ingest(store, {"a": "x", "d/e": "y"}, base)
        layer = ingest(store, {"b": "x"}, layer)
        store.prepare("c", layer.chain_id, mountpoints=True)
        store.remove_snapshot("c")

    with root.open() as store:
        fill(store)

    def check(store: LayerStore) -> None:
        store.collect([base.chain_id])
        assert root.picture() == before
        fill(store)

    _kill_everywhere(root, lambda store: store.collect([base.chain_id]), check)


def test_a_killed_container_leaves_all_or_nothing(root: Root) -> None:
    with root.open() as store:
        base = ingest(store, _BASE)
        add_container(store, "keeper", base)
        before = root.picture()

    def live(store: LayerStore) -> None:
        add_container(store, "c", base)
        remove_container(store, "c")

    def check(store: LayerStore) -> None:
        if store.database.one("SELECT id FROM containers WHERE id = 'c'") is not None:
            assert store.mounts("c")
            remove_container(store, "c")
        assert root.picture() == before

    _kill_everywhere(root, live, check)


def test_a_killed_start_is_finished_by_the_next(root: Root, tmp_path: Path) -> None:
    """What a start repairs is there at the next one too, until it is repaired."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def broken(arm: Arm) -> None:
        with root.open() as store:
            store.prepare("working", base.chain_id, mountpoints=True)
            store.driver.prepare("stray", None)
            store.driver.commit = die  # type: ignore[method-assign]
            store.commit("c", base.chain_id)

    def start(arm: Arm) -> None:
        arm()
        with root.open():
            pass

    with root.open() as store:
        base = ingest(store, _BASE)
        add_container(store, "keeper", base)
        before = root.picture()
    step = 0
    while True:
        with root.open() as store:
            add_container(store, "c", base)
            with store.own_directory("c") as directory:
                (directory / "own").write_text("precious")
        assert killed_at(10**9, broken, [])
        assert root.picture()["moves"]
        step += 41
        killed = killed_at(step, start, _CODE)
        with root.open() as store:
            with tree_of(store, "c", tmp_path) as tree:
                assert files_of(tree) == {**_BASE, "own": "precious"}
            assert root.picture()["moves"] == []
            assert store.chain(None) == []
            frozen = store.database.one("SELECT frozen FROM containers WHERE id = 'c'")
            assert frozen is not None
            assert files_in(store, store.get(frozen["frozen"]), tmp_path)["own"] == "precious"
            remove_container(store, "c")
            store.collect([base.chain_id])
            assert root.picture() == before
        if not killed:
            break
    assert step > 100


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB."""
    point = tmp_path / "small"
    point.mkdir()
    if request.param == "tmpfs":
        syscalls.mount("tmpfs", str(point), "tmpfs", 0, "size=20m")
    else:
        with (tmp_path / "image").open("wb") as file:
            file.truncate(20 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-N", "2000", tmp_path / "image"], check=True)
        subprocess.run(["mount", "-o", "loop", tmp_path / "image", point], check=True)
    try:
        yield point
    finally:
        syscalls.umount(str(point), syscalls.MNT_DETACH)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC


@pytest.mark.parametrize("kind", [Overlay2, Vfs], ids=lambda kind: kind.name)
def test_a_full_disk_leaves_nothing_of_the_attempt(
    small_disk: Path, kind: type[StorageDriver], tmp_path: Path
) -> None:
    root = Root(small_disk / "root", kind)
    with root.open() as store:
        base = ingest(store, _BASE)
        before = root.picture()
        free = os.statvfs(small_disk).f_bavail
        for files in (
            {"large": os.urandom(13 << 20).hex()},
            {f"d{number}/file": "x" * 5000 for number in range(4000)},
        ):
            with pytest.raises(StorageFull, match="no space left"):
                ingest(store, files, base)
            assert root.picture() == before
        os.sync()
        assert abs(os.statvfs(small_disk).f_bavail - free) < 500
        store.prepare("c", base.chain_id)
        with store.own_directory("c") as directory, pytest.raises(OSError):
            (directory / "large").write_bytes(b"x" * (13 << 20))
            (directory / "more").write_bytes(b"x" * (13 << 20))
        held = root.picture()
        with pytest.raises(StorageFull, match="no space left"):
            store.commit_copy("c", base.chain_id)
        assert root.picture() == held
        with store.own_directory("c") as directory:
            _fill(directory / "last")
            with pytest.raises(StorageFull, match="no space left"):
                store.commit("c", base.chain_id)
            assert root.picture() == held
            assert (directory / "large").exists()
        with pytest.raises(StorageFull, match="no space left"):
            ingest(store, {"small": "fits"}, base)
        # Removing things needs no room.
        store.remove_snapshot("c")
        small = ingest(store, {"small": "fits"}, base)
        assert files_in(store, small, tmp_path)["small"] == "fits"


def test_a_failing_database_leaves_no_files(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    with root.open() as store:
        base = ingest(store, _BASE)
        before = root.picture()
        original = store.database.execute

        def execute(statement: str, parameters: object = ()) -> int:
            if statement.startswith("INSERT INTO layers"):
                raise StorageFull("no space left for the database")
            return original(statement, parameters)  # type: ignore[arg-type]

        monkeypatch.setattr(store.database, "execute", execute)
        with pytest.raises(StorageFull):
            ingest(store, {"new": "x"}, base)
        assert root.picture() == before
        store.prepare("c", base.chain_id)
        with store.own_directory("c") as directory:
            (directory / "own").write_text("precious")
        held = root.picture()
        with pytest.raises(StorageFull):
            store.commit("c", base.chain_id)
        assert root.picture() == held
        with store.own_directory("c") as directory:
            assert (directory / "own").read_text() == "precious"


def test_a_failing_rename_leaves_the_container_as_it_was(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    with root.open() as store:
        base = ingest(store, _BASE)
        add_container(store, "c", base)
        with store.own_directory("c") as directory:
            (directory / "own").write_text("precious")
        held = root.picture()

        def commit(key: str, name: str) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(store.driver, "commit", commit)
            with pytest.raises(OSError, match="Input/output error"):
                store.commit("c", base.chain_id)
        assert root.picture() == held
        assert store.index(store.commit("c", base.chain_id)).size == 8


def test_layers_are_staged_and_placed_later(store: LayerStore) -> None:
    below, above = tar_of({"a/x": "1"}), tar_of({"y": "2"})
    staged = [store.stage(io.BytesIO(tar), _digest(tar)) for tar in (below, above)]
    if not store.driver.layered:
        assert staged == [None, None]
        return
    chain = None
    for one in staged:
        assert one is not None
        chain = store.place(one, chain).chain_id
    assert [layer.diff_id for layer in store.chain(chain)] == [_digest(below), _digest(above)]
    found = store.shared(_digest(above))
    assert found is not None
    assert found.diff_id == _digest(above)
    assert store.shared(_digest(b"")) is None


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
    assert store.stage(io.BytesIO(tar), _digest(tar)) is None
    assert not os.listdir(store.work_folder)
    assert not list(store.driver.keys())


def test_a_staged_layer_that_is_given_up_leaves_nothing(store: LayerStore) -> None:
    tar = tar_of({"y": "2"})
    staged = store.stage(io.BytesIO(tar), _digest(tar))
    if staged is not None:
        staged.close()
    assert not os.listdir(store.work_folder)
    assert not list(store.driver.keys())
