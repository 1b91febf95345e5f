"""fuse-overlayfs: its processes begin and end with what they are for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import processes
from storage import actions as act
from storage.actions import Stack
from tiffin.layer.capture import capture
from tiffin.storage.fuse_overlayfs import FuseOverlayfs
from tiffin.storage.overlay2 import Overlay2

pytestmark = pytest.mark.root


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """An empty stack of fuse-overlayfs."""
    home = tmp_path / "root" / "fuse-overlayfs"
    support = FuseOverlayfs.probe(home)
    if not support.works:
        assert os.environ.get("CI") != "true", support.reason
        pytest.skip(support.reason)
    driver = FuseOverlayfs(home)
    yield Stack(driver, tmp_path)
    driver.close()


def _processes(home: Path) -> list[int]:
    return processes(b"fuse-overlayfs", bytes(home))


def _wait_for(count: int, home: Path) -> None:
    deadline = time.monotonic() + 60
    while len(_processes(home)) != count:
        assert time.monotonic() < deadline, _processes(home)
        time.sleep(0.02)


def test_a_process_serves_a_container_until_it_is_released(stack: Stack) -> None:
    driver = stack.driver
    stack.layer(act.write("file", "lower"))
    _wait_for(0, driver.home)
    with stack.writable() as tree:
        driver.mounts("container")
        _wait_for(1, driver.home)
        driver.release("container")
        # It runs on for who has it mounted.
        (tree / "file").write_text("changed")
        _wait_for(1, driver.home)
    _wait_for(0, driver.home)
    with stack.mounted("container") as tree:
        assert (tree / "file").read_text() == "changed"


def test_a_killed_process_is_started_again(stack: Stack) -> None:
    with stack.writable() as tree:
        (tree / "file").write_text("kept")
    (process,) = _processes(stack.driver.home)
    os.kill(process, signal.SIGKILL)
    _wait_for(0, stack.driver.home)
    with stack.mounted("container") as tree:
        assert (tree / "file").read_text() == "kept"


def test_a_start_ends_what_an_earlier_one_has_left(stack: Stack) -> None:
    with stack.writable():
        pass
    stack.layer(act.write("file"))
    with stack.viewed():
        pass
    FuseOverlayfs(stack.driver.home).sweep()
    _wait_for(0, stack.driver.home)
    assert os.listdir(stack.driver.home / "mnt") == []


def test_equal_changes_make_the_layers_that_overlay2_makes(stack: Stack, tmp_path: Path) -> None:
    other = Stack(Overlay2(tmp_path / "root" / "overlay2"), tmp_path)
    digests = []
    for one in (stack, other):
        one.layer(act.write("d/a"), act.write("e/b"), act.write("gone"))
        with one.writable() as tree:
            for action in (
                act.delete("d"),
                act.write("d/new", "new"),
                act.write("fresh/x", "x"),
                act.delete("gone"),
                act.write("e/b", "changed"),
                *(act.set_times(path, 10**18) for path in ("d/new", "fresh/x", "e/b")),
                *(act.set_times(path, 10**18) for path in ("d", "fresh", "e", ".")),
            ):
                action(tree)
        with one.driver.own_directory("container") as own:
            entries = capture(own, one.driver.whiteouts).entries
            digests.append(list(entries))
    assert digests[0] == digests[1]
