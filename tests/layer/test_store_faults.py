"""The layer store under faults: kills at every step, full disks, a database that fails."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layer.roots import (
    BASE,
    Root,
    add_container,
    files_in,
    files_of,
    ingest,
    remove_container,
    tar_of,
    tree_of,
)
from storage.killing import Arm, killed_at, steps
from tiffin.errors import (
    StorageFull,
)
from tiffin.layer.store import LayerStore
from tiffin.linux import syscalls
from tiffin.storage.driver import StorageDriver
from tiffin.storage.overlay2 import Overlay2
from tiffin.storage.vfs import Vfs

pytestmark = pytest.mark.root

_CODE = ["layer/store.py", "layer/snapshots.py", "layer/collection.py", "storage/", "store/"]


def test_a_start_removes_what_nobody_owns(root: Root) -> None:
    with root.open() as store:
        base = ingest(store, BASE)
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
        base = ingest(store, BASE)
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
        base = ingest(store, BASE)
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
        base = ingest(store, BASE)
        add_container(store, "keeper", base)
        before = root.picture()
    wanted = {**BASE, "data/a": "changed", "own": "precious"}
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
        base = ingest(store, BASE)
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
        base = ingest(store, BASE)
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
        base = ingest(store, BASE)
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
                assert files_of(tree) == {**BASE, "own": "precious"}
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
        base = ingest(store, BASE)
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
        base = ingest(store, BASE)
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
