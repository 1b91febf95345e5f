"""devicemapper beyond the conformance suite: sizes, a full pool, a new start. See tests/vm."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import actions as act
from storage.actions import Stack
from storage.conftest import DM_BASESIZE, DM_FS
from tiffin.errors import StorageFull, Unsupported
from tiffin.linux import devicemapper as dm
from tiffin.linux import loopdevices
from tiffin.storage.devicemapper import Devicemapper

pytestmark = pytest.mark.root

_SETTINGS = {
    "dm.loopdatasize": "400m",
    "dm.loopmetadatasize": "32m",
    "dm.basesize": DM_BASESIZE,
    "dm.fs": DM_FS,
}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """An empty stack on a small pool."""
    support = Devicemapper.probe(tmp_path / "root" / "devicemapper", _SETTINGS)
    if not support.works:
        pytest.skip(support.reason)
    driver = Devicemapper(tmp_path / "root" / "devicemapper", _SETTINGS)
    yield Stack(driver, tmp_path)
    driver.close()
    for key in list(driver.keys()):
        driver.remove(key)
    driver.close()


def test_a_size_lets_a_container_write_more_and_not_much_more(stack: Stack) -> None:
    driver = stack.driver
    stack.layer(act.write("file", "lower"))
    driver.prepare("c", stack.parent)
    if _SETTINGS["dm.fs"] != "ext4":
        with pytest.raises(Unsupported, match="ext4 alone"):
            driver.limit("c", 256 << 20)
        return
    with pytest.raises(Unsupported, match="never shrink"):
        driver.limit("c", 1 << 20)
    driver.limit("c", 256 << 20)
    driver.limit("c", 256 << 20)
    with stack.mounted("c") as tree:
        assert (tree / "file").read_text() == "lower"
        free = os.statvfs(tree)
        assert 200 << 20 < free.f_blocks * free.f_frsize < 256 << 20
        with pytest.raises(OSError) as caught, (tree / "big").open("wb") as file:
            for _ in range(300):
                file.write(bytes(1 << 20))
        assert caught.value.errno == errno.ENOSPC


def test_a_pool_that_runs_full_refuses_containers_before_it_loses_anything(stack: Stack) -> None:
    stack.layer(act.write("file", "kept"))
    made = []
    with pytest.raises(StorageFull, match=r"min_free_space keeps 10"):
        for number in range(40):
            with stack.writable(f"c{number}") as tree:
                made.append(f"c{number}")
                (tree / "much").write_bytes(os.urandom(64 << 20))
                os.sync()
            stack.driver.release(f"c{number}")
    assert made
    for key in made:
        with stack.mounted(key) as tree:
            assert (tree / "file").read_text() == "kept"
            assert (tree / "much").stat().st_size == 64 << 20
        stack.driver.release(key)
    stack.driver.remove(made[0])
    stack.driver.prepare("again", stack.parent)


def test_a_pool_is_let_go_and_found_again(stack: Stack) -> None:
    driver = stack.driver
    stack.layer(act.write("file", "kept"))
    with stack.writable() as tree:
        (tree / "own").write_text("own")
    driver.close()
    mark = (driver.home / "pool.json").read_text().split('"')[3]
    assert not {name for name in dm.names() if mark in name}
    stack.driver = Devicemapper(driver.home)
    with stack.mounted("container") as tree:
        assert (tree / "own").read_text() == "own"
        assert (tree / "file").read_text() == "kept"
    stack.driver.close()


def test_a_container_that_runs_keeps_its_device(stack: Stack) -> None:
    driver = stack.driver
    with stack.writable() as tree:
        driver.release("container")
        driver.close()
        (tree / "late").write_text("written")
        assert driver.usage("container").size == 7
        driver.copy("container", "copy")
    with stack.mounted("copy") as tree:
        assert (tree / "late").read_text() == "written"
    driver.release("copy")


def test_a_pool_that_is_there_is_used_and_left(stack: Stack, tmp_path: Path) -> None:
    devices = []
    for part, size in (("metadata", 32 << 20), ("data", 1 << 30)):
        with (tmp_path / part).open("wb") as file:
            file.truncate(size)
        devices.append(loopdevices.attach(tmp_path / part))
    pool = f"tests-{os.getpid()}"
    dm.create(pool, "thin-pool", (1 << 30) // 512, f"{devices[0]} {devices[1]} 128 0")
    try:
        settings = {**_SETTINGS, "dm.thinpooldev": f"/dev/mapper/{pool}"}
        home = tmp_path / "named" / "devicemapper"
        missing = Devicemapper.probe(home, {**settings, "dm.thinpooldev": "nonesuch"})
        assert "there is no device mapper device nonesuch" in missing.reason
        assert ("Pool", f"/dev/mapper/{pool}") in Devicemapper.probe(home, settings).features
        named = Stack(Devicemapper(home, settings), tmp_path)
        named.layer(act.write("file", "lower"))
        with named.writable() as tree:
            (tree / "file").write_text("changed")
        named.driver.close()
        assert pool in dm.names()
        assert not (home / "pool").exists()
        named.driver = Devicemapper(home)
        with named.mounted("container") as tree:
            assert (tree / "file").read_text() == "changed"
        for key in ("container", "layer0"):
            named.driver.remove(key)
        named.driver.close()
    finally:
        assert dm.remove(pool)
        for device in devices:
            loopdevices.detach(device)
