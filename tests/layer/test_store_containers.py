"""The layer store's containers: their mount points, what they write, and commits of it."""

from __future__ import annotations

import io
import os
import stat
import tarfile
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
    tree_of,
)
from tiffin.errors import (
    Conflict,
    NotFound,
)
from tiffin.layer.store import LayerStore

pytestmark = pytest.mark.root


def test_mount_points_are_there_and_never_show(store: LayerStore, tmp_path: Path) -> None:
    base = ingest(store, {**BASE, "etc/hosts": "the image's own"})
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
        base = ingest(store, BASE)
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
        assert files_in(store, base, tmp_path) == BASE
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
    base = ingest(store, BASE)
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
    wanted = {**BASE, "large": "x" * 100_000, "linked": "x" * 100_000}
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
    base, other = ingest(store, BASE), ingest(store, {"other": "x"})
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
    base = ingest(store, BASE)
    add_container(store, "c", base)
    with tree_of(store, "c", tmp_path) as tree:
        (tree / "data/new").write_text("as committed")
        (tree / "data/b").unlink()
        os.link(tree / "data/new", tree / "linked")
        (tree / "etc").chmod(0o700)
        layer = store.commit_copy("c", base.chain_id)
        (tree / "data/new").write_text("later")
        (tree / "data/a").unlink()
    wanted = {**BASE, "data/new": "as committed", "linked": "as committed"}
    del wanted["data/b"]
    assert files_in(store, layer, tmp_path) == wanted
    with tree_of(store, "c", tmp_path) as tree:
        assert (tree / "data/new").read_text() == "later"
    assert store.usage("c").size == 5
    second = store.commit_copy("c", base.chain_id)
    assert "data/a" not in files_in(store, second, tmp_path)
    assert store.commit("c", base.chain_id) == second


def test_a_failing_rename_leaves_the_container_as_it_was(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    with root.open() as store:
        base = ingest(store, BASE)
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
