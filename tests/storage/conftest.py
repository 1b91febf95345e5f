"""Drivers to test, and file systems to test them on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.actions import Stack
from tiffin.linux import syscalls
from tiffin.storage.driver import StorageDriver
from tiffin.storage.drivers import DRIVERS, home

pytestmark = pytest.mark.root


@pytest.fixture(params=[driver for driver, _ in DRIVERS], ids=lambda driver: driver.name)
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> StorageDriver:
    """Each driver of the table in turn, on an empty root."""
    kind: type[StorageDriver] = request.param
    place = home(tmp_path / "root", kind.name)
    support = kind.probe(place)
    if not support.works:
        assert os.environ.get("CI") != "true", support.reason
        pytest.skip(support.reason)
    return kind(place)


@pytest.fixture
def stack(driver: StorageDriver, tmp_path: Path) -> Stack:
    """An empty stack of that driver."""
    return Stack(driver, tmp_path)


@pytest.fixture(scope="session", params=["xfs", "btrfs"])
def reflink_root(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A file system that can share contents between files, in a loop-mounted image."""
    if shutil.which(f"mkfs.{request.param}") is None:
        assert os.environ.get("CI") != "true", f"mkfs.{request.param} is missing"
        pytest.skip(f"mkfs.{request.param} is missing")
    base = tmp_path_factory.mktemp(request.param)
    image, point = base / "image", base / "mount"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    point.mkdir()
    subprocess.run([f"mkfs.{request.param}", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        yield point
    finally:
        syscalls.umount(str(point), syscalls.MNT_DETACH)
