"""zfs beyond the conformance suite: sizes, sharing, where its datasets lie. See tests/vm."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import actions as act
from storage.actions import Stack
from tiffin.linux import syscalls
from tiffin.storage.zfs import Zfs

pytestmark = pytest.mark.root

POOL = os.environ.get("TIFFIN_TEST_ZPOOL", "tiffin")


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[str]:
    """A dataset of the pool, empty."""
    support = Zfs.probe(tmp_path / "root" / "zfs", {"zfs.fsname": POOL})
    if not support.works:
        pytest.skip(support.reason)
    name = f"{POOL}/own"
    subprocess.run(["zfs", "create", "-o", "mountpoint=legacy", name], check=True)
    yield name
    subprocess.run(["zfs", "destroy", "-R", name], check=True)


def _below(dataset: str) -> list[str]:
    command = ["zfs", "list", "-H", "-r", "-t", "all", "-o", "name", dataset]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.split()[1:]


def test_a_life_in_a_dataset_that_was_given(dataset: str, tmp_path: Path) -> None:
    driver = Zfs(tmp_path / "root" / "zfs", {"zfs.fsname": dataset})
    stack = Stack(driver, tmp_path)
    stack.layer(lambda tree: (tree / "large").write_bytes(os.urandom(20 << 20)))
    os.sync()
    before = driver.taken()
    driver.prepare("small", stack.parent)
    driver.limit("small", 16 << 20)
    with stack.mounted("small") as tree:
        # The image is not counted.
        (tree / "some").write_bytes(os.urandom(4 << 20))
        with pytest.raises(OSError) as caught, (tree / "much").open("wb") as file:
            for _ in range(40):
                file.write(os.urandom(1 << 20))
                file.flush()
                os.fsync(file.fileno())
        assert caught.value.errno == errno.EDQUOT
    for key in ("one", "two"):
        driver.prepare(key, stack.parent)
        with stack.mounted(key) as tree, (tree / "large").open("r+b") as file:
            # The first write copies a block.
            file.write(b"changed")
    os.sync()
    assert driver.taken() - before < 30 << 20
    assert _below(dataset)
    # A layer that others lie on stays, and nobody waits for them.
    driver.remove("layer0")
    assert os.listdir(driver.home / "trash")
    for key in ("one", "two", "small"):
        driver.remove(key)
    driver.sweep()
    assert os.listdir(driver.home / "trash") == []
    assert _below(dataset) == []


def test_a_root_on_zfs_needs_no_name(dataset: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir(exist_ok=True)
    syscalls.mount(dataset, str(root), "zfs")
    try:
        assert Zfs.probe(root / "storage" / "zfs").works
        stack = Stack(Zfs(root / "storage" / "zfs"), tmp_path)
        stack.layer(act.write("file", "lower"))
        with stack.writable() as tree:
            (tree / "file").write_text("changed")
        assert all(name.startswith(f"{dataset}/") for name in _below(dataset))
        for key in ("container", "layer0"):
            stack.driver.remove(key)
        assert _below(dataset) == []
    finally:
        syscalls.umount(str(root), syscalls.MNT_DETACH)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    support = Zfs.probe(tmp_path / "zfs", {"zfs.fsname": "nonesuch/tiffin"})
    assert not support.works
    assert "zfs-dkms" in support.reason or "zfs create nonesuch/tiffin" in support.reason
