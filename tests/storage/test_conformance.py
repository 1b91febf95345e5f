"""What every storage driver must do with snapshots: the same tests for each driver of the table."""

from __future__ import annotations

import errno
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage import actions as act
from storage.actions import Stack
from storage.killing import Arm, killed_at, steps
from tiffin.errors import Conflict, InvalidParameter, NotFound
from tiffin.storage.driver import StorageDriver

pytestmark = pytest.mark.root


def test_a_writable_snapshot_shows_its_parent_and_keeps_its_own_changes(stack: Stack) -> None:
    stack.layer(act.write("etc/base", "base"))
    with stack.writable("one") as tree:
        assert (tree / "etc/base").read_text() == "base"
        (tree / "etc/base").write_text("changed")
        (tree / "new").write_text("new")
    with stack.mounted("one") as tree:
        assert (tree / "etc/base").read_text() == "changed"
        assert (tree / "new").read_text() == "new"
    with stack.writable("two") as tree:
        assert (tree / "etc/base").read_text() == "base"
        assert not (tree / "new").exists()


def test_two_snapshots_mounted_at_once_never_see_each_other(stack: Stack) -> None:
    stack.layer(act.write("shared", "lower"))
    with stack.writable("one") as first, stack.writable("two") as second:
        (first / "shared").write_text("one")
        (second / "only-two").touch()
        assert (second / "shared").read_text() == "lower"
        assert not (first / "only-two").exists()


def test_a_snapshot_without_parent_is_an_empty_writable_tree(stack: Stack) -> None:
    with stack.writable() as tree:
        assert os.listdir(tree) == []
        (tree / "file").touch()
        assert os.listdir(tree) == ["file"]


def test_a_committed_snapshot_is_seen_read_only(stack: Stack) -> None:
    name = stack.layer(act.write("file", "kept"))
    with stack.mounted(name) as tree:
        assert (tree / "file").read_text() == "kept"
        with pytest.raises(OSError) as caught:
            (tree / "file").write_text("no")
        assert caught.value.errno == errno.EROFS


def test_a_view_shows_the_stack_read_only_and_leaves_nothing(stack: Stack) -> None:
    stack.layer(act.write("a", "1"), act.write("b", "1"))
    stack.layer(act.write("b", "2"), act.delete("a"))
    before = sorted(stack.driver.keys())
    with stack.viewed() as tree:
        assert act.state(tree).keys() == {"b"}
        assert (tree / "b").read_text() == "2"
        with pytest.raises(OSError) as caught:
            (tree / "c").touch()
        assert caught.value.errno == errno.EROFS
    assert sorted(stack.driver.keys()) == before


def test_a_committed_snapshot_goes_by_its_new_name_alone(stack: Stack) -> None:
    driver = stack.driver
    driver.prepare("draft", None)
    driver.commit("draft", "final")
    assert list(driver.keys()) == ["final"]
    with pytest.raises(NotFound):
        driver.mounts("draft")


def test_keys_that_exist_are_refused(driver: StorageDriver) -> None:
    driver.prepare("one", None)
    driver.commit("one", "layer")
    driver.prepare("two", None)
    with driver.own_directory("two") as directory:
        (directory / "kept").touch()
    for key in ("two", "layer"):
        with pytest.raises(Conflict, match=key):
            driver.prepare(key, None)
    with pytest.raises(Conflict, match="layer"):
        driver.commit("two", "layer")
    with driver.own_directory("two") as directory:
        assert os.listdir(directory) == ["kept"]
    driver.commit("two", "other")


def test_what_does_not_exist_is_refused_by_name(driver: StorageDriver) -> None:
    parent: str | tuple[str, ...] = ("absent",) if driver.layered else "absent"
    with pytest.raises(NotFound, match="absent"):
        driver.prepare("one", parent)
    assert list(driver.keys()) == []
    with pytest.raises(NotFound, match="absent"):
        driver.commit("absent", "name")
    with pytest.raises(NotFound, match="absent"):
        driver.mounts("absent")
    with pytest.raises(NotFound, match="absent"):
        driver.view(("absent",))
    with pytest.raises(NotFound, match="absent"):
        driver.usage("absent")
    driver.remove("absent")


def test_a_writable_snapshot_is_no_parent(driver: StorageDriver) -> None:
    driver.prepare("open", None)
    with pytest.raises(NotFound, match="not committed"):
        driver.prepare("child", ("open",) if driver.layered else "open")


@pytest.mark.parametrize("key", ["", "..", "a/b", "A", "x" * 101, "a b", ".hidden"])
def test_a_key_that_is_no_key_is_refused(driver: StorageDriver, key: str) -> None:
    with pytest.raises(InvalidParameter):
        driver.prepare(key, None)
    driver.prepare("good", None)
    with pytest.raises(InvalidParameter):
        driver.commit("good", key)


def test_a_removed_snapshot_is_gone_with_all_its_files(stack: Stack, tmp_path: Path) -> None:
    driver = stack.driver
    stack.layer(act.write("lower"))
    # What is kept of a stack that was seen (overlay's joined trees) is made now.
    with stack.writable("first"):
        pass
    driver.remove("first")
    before = sorted(str(path) for path in driver.home.rglob("*"))
    with stack.writable() as tree:
        (tree / "upper").touch()
        (tree / "lower").unlink()
    driver.remove("container")
    driver.remove("container")
    assert sorted(str(path) for path in driver.home.rglob("*")) == before
    driver.prepare("container", stack.parent)


def test_a_tree_deeper_than_a_path_may_be_is_measured_copied_and_removed(stack: Stack) -> None:
    name, depth = "n" * 200, 60
    stack.driver.prepare("deep", None)
    with stack.driver.own_directory("deep") as directory:
        fd = os.open(directory, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir(name, dir_fd=fd)
            below = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        for file in ("first", "second"):
            with open(os.open(file, os.O_WRONLY | os.O_CREAT, dir_fd=fd), "w") as stream:
                stream.write("x" * 1000)
        os.link("first", "third", src_dir_fd=fd, dst_dir_fd=fd)
        os.close(fd)
    usage = stack.driver.usage("deep")
    assert (usage.size, usage.inodes) == (2000, depth + 2)
    stack.driver.commit("deep", "layer0")
    stack.layers.append("layer0")
    stack.driver.prepare("child", stack.parent)
    if not stack.driver.layered:
        assert stack.driver.usage("child") == usage
    for key in ("child", "layer0"):
        stack.driver.remove(key)
    assert list(stack.driver.home.rglob(f"{name}*")) == []


def test_usage_counts_content_once_and_no_directories_or_whiteouts(stack: Stack) -> None:
    if stack.driver.layered:
        stack.layer(act.write("gone", "x" * 5000))
    with stack.writable() as tree:
        if stack.driver.layered:
            (tree / "gone").unlink()
        (tree / "directory").mkdir()
        (tree / "directory/file").write_bytes(b"x" * 1000)
        os.link(tree / "directory/file", tree / "linked")
        (tree / "symlink").symlink_to("0123456789")
        with (tree / "sparse").open("wb") as file:
            file.truncate(1 << 20)
    usage = stack.driver.usage("container")
    assert usage.size == 1000 + 10 + (1 << 20)
    assert usage.inodes == 4


def test_threads_prepare_and_remove_at_once(stack: Stack) -> None:
    driver = stack.driver
    stack.layer(act.write("file"))
    stack.layer(act.write("other"))

    def live(number: int) -> None:
        for turn in range(8):
            key = f"c{number}-{turn}"
            driver.prepare(key, stack.parent)
            with driver.own_directory(key) as directory:
                (directory / "own").write_text(key)
            assert driver.mounts(key)
            if turn % 2:
                driver.remove(key)
            else:
                driver.commit(key, f"done{number}-{turn}")
            driver.sweep()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(live, range(8)))
    done = {f"done{number}-{turn}" for number in range(8) for turn in range(0, 8, 2)}
    assert set(driver.keys()) == done | set(stack.layers)
    for key in done:
        with driver.own_directory(key) as directory:
            assert (directory / "own").exists()


def test_of_threads_that_prepare_one_key_a_single_one_wins(driver: StorageDriver) -> None:
    def prepare(_: int) -> bool:
        try:
            driver.prepare("same", None)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(prepare, range(16))) == 1
    assert driver.mounts("same")


def test_a_new_driver_on_the_same_folder_knows_everything(stack: Stack) -> None:
    stack.layer(act.write("file", "kept"))
    with stack.writable() as tree:
        (tree / "file").write_text("changed")
    stack.driver = type(stack.driver)(stack.driver.home)
    assert sorted(stack.driver.keys()) == ["container", "layer0"]
    with stack.mounted("container") as tree:
        assert (tree / "file").read_text() == "changed"


def test_killed_at_any_line_nothing_but_the_snapshot_in_hand_is_lost(
    stack: Stack, tmp_path: Path
) -> None:
    driver = stack.driver
    stack.layer(act.write("file", "lower"), act.write("d/e/f"), act.link("d/link", "file"))
    kept = _kept(driver)

    def live(arm: Arm) -> None:
        arm()
        fresh = type(driver)(driver.home)
        fresh.prepare("victim", stack.parent)
        with fresh.own_directory("victim") as directory:
            (directory / "own").write_text("x")
        fresh.commit("victim", "done")
        fresh.prepare("other", None)
        fresh.remove("done")
        fresh.remove("other")

    deaths = 0
    for step in steps():
        if not killed_at(step, live, ["storage/"]):
            break
        deaths += 1
        for key in list(driver.keys()):
            if key == "layer0":
                continue
            try:
                driver.mounts(key)
            except NotFound:
                pass
            else:
                # What can be mounted is whole.
                with stack.mounted(key) as tree:
                    assert key == "other" or (tree / "d/e/f").exists()
            driver.remove(key)
        driver.sweep()
        assert _kept(driver) == kept, f"killed at line {step}"
    assert deaths > 20


def _kept(driver: StorageDriver) -> dict[str, tuple[object, ...]]:
    """All that lies in the driver's folder, but whole joined trees of overlay, which may stay."""
    found = {
        f"{place.name}/{path}": what
        for place in driver.home.iterdir()
        if place.is_dir() and place.name != "pool"
        for path, what in act.state(place).items()
    }
    return {path: what for path, what in found.items() if not re.match("joined/[^~]*$", path)}
