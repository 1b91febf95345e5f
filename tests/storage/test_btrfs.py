"""What btrfs has beyond the conformance suite: sizes, sharing, subvolumes that containers make."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import actions as act
from storage.actions import Stack
from tiffin.errors import StorageFull
from tiffin.linux import btrfs
from tiffin.storage.btrfs import Btrfs

pytestmark = pytest.mark.root


@pytest.fixture
def stack(btrfs_place: Path, tmp_path: Path) -> Iterator[Stack]:
    """An empty stack on a btrfs."""
    place = btrfs_place / tmp_path.name
    stack = Stack(Btrfs(place / "btrfs"), tmp_path)
    yield stack
    for key in list(stack.driver.keys()):
        stack.driver.remove(key)
    stack.driver.sweep()


def test_a_size_bounds_what_a_container_writes_and_not_its_image(stack: Stack) -> None:
    driver = stack.driver
    stack.layer(lambda tree: (tree / "large").write_bytes(os.urandom(20 << 20)))
    driver.prepare("small", stack.parent)
    driver.limit("small", 16 << 20)
    driver.prepare("free", stack.parent)
    with stack.mounted("small") as tree:
        (tree / "some").write_bytes(os.urandom(4 << 20))
        with pytest.raises(OSError) as caught, (tree / "much").open("wb") as file:
            for _ in range(40):
                file.write(os.urandom(1 << 20))
                file.flush()
                os.fsync(file.fileno())
        assert caught.value.errno == errno.EDQUOT
        assert (tree / "large").stat().st_size == 20 << 20
    with stack.mounted("free") as tree:
        (tree / "much").write_bytes(os.urandom(18 << 20))
    assert list((driver.home / "qgroups").iterdir())
    driver.remove("small")
    os.sync()
    driver.sweep()


def test_a_first_write_to_a_large_file_copies_a_block(stack: Stack) -> None:
    stack.layer(lambda tree: (tree / "large").write_bytes(os.urandom(16 << 20)))
    os.sync()
    before = os.statvfs(stack.driver.home).f_bfree
    for number in range(8):
        stack.driver.prepare(f"c{number}", stack.parent)
        with stack.mounted(f"c{number}") as tree, (tree / "large").open("r+b") as file:
            file.write(b"changed")
    os.sync()
    after = os.statvfs(stack.driver.home)
    assert (before - after.f_bfree) * after.f_frsize < 8 << 20


def test_subvolumes_that_a_container_has_made_go_with_it(stack: Stack) -> None:
    with stack.writable() as tree:
        btrfs.create(tree / "inner")
        (tree / "inner/d").mkdir()
        btrfs.create(tree / "inner/d/innermost")
        (tree / "inner/d/innermost/file").touch()
    stack.driver.remove("container")
    assert os.listdir(stack.driver.home / "trash") == []
    assert os.listdir(stack.driver.home / "d") == []


def test_too_little_room_is_refused_before_anything_is_made(stack: Stack) -> None:
    driver = Btrfs(stack.driver.home, {"btrfs.min_space": "100t"})
    with pytest.raises(StorageFull, match=r"btrfs\.min_space keeps"):
        driver.prepare("c", None)
    assert list(driver.keys()) == []


def test_a_folder_elsewhere_is_refused_with_what_to_do(tmp_path: Path) -> None:
    support = Btrfs.probe(tmp_path / "btrfs")
    assert not support.works
    assert "must lie on a btrfs" in support.reason
    assert "btrfs-progs" in support.reason


def test_a_running_container_is_copied_at_once(stack: Stack) -> None:
    with stack.writable() as tree:
        act.write("file", "one")(tree)
        stack.driver.copy("container", "copy")
        act.write("file", "two")(tree)
    with stack.mounted("copy") as tree:
        assert (tree / "file").read_text() == "one"
