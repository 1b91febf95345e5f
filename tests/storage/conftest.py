"""Drivers to test, and file systems to test them on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.actions import Stack
from tiffin.linux import syscalls
from tiffin.storage.driver import StorageDriver
from tiffin.storage.drivers import DRIVERS, home

pytestmark = pytest.mark.root

FILE_SYSTEMS = {"btrfs": "btrfs"}
"""The drivers that need a file system of their own; the others lie on the usual one, or on what
``TIFFIN_TEST_FS`` says (xfs, btrfs)."""
DM_FS = os.environ.get("TIFFIN_TEST_DM_FS", "ext4")
DM_BASESIZE = "192m" if DM_FS == "ext4" else "320m"
"""mkfs.xfs makes nothing below 300 MiB."""
SETTINGS = {
    "devicemapper": {
        "dm.loopdatasize": "2g",
        "dm.loopmetadatasize": "64m",
        "dm.basesize": DM_BASESIZE,
        "dm.fs": DM_FS,
    },
    "zfs": {"zfs.fsname": os.environ.get("TIFFIN_TEST_ZPOOL", "tiffin")},
}
OTHER_KERNELS = ("devicemapper", "zfs", "aufs")
ASKED = [
    driver
    for driver, _, _ in DRIVERS
    if driver.name == os.environ.get("TIFFIN_TEST_ONLY", driver.name)
]
"""Every driver of the table, or in a guest the one that it is for."""


@pytest.fixture(params=ASKED, ids=lambda driver: driver.name)
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorageDriver]:
    """Each driver of the table in turn, on an empty root; one that wants a certain file system on
    a loop-mounted one."""
    kind: type[StorageDriver] = request.param
    base = tmp_path
    if place := FILE_SYSTEMS.get(kind.name, os.environ.get("TIFFIN_TEST_FS")):
        base = request.getfixturevalue(f"{place}_place") / tmp_path.name
        base.mkdir()
    folder = home(base / "root", kind.name)
    settings = SETTINGS.get(kind.name)
    support = kind.probe(folder, settings)
    if not support.works:
        # Those with kernels of their own: tests/vm/run.
        assert os.environ.get("CI") != "true" or kind.name in OTHER_KERNELS, support.reason
        pytest.skip(support.reason)
    opened = kind(folder, settings)
    yield opened
    opened.close()
    if base != tmp_path or kind.name in OTHER_KERNELS:
        # The uppermost first: layer126, layer125…
        for key in sorted(opened.keys(), key=lambda key: (len(key), key), reverse=True):
            opened.remove(key)
        opened.sweep()
        opened.close()


@pytest.fixture
def stack(driver: StorageDriver, tmp_path: Path) -> Stack:
    """An empty stack of that driver."""
    return Stack(driver, tmp_path)


@contextmanager
def loop_mounted(kind: str, base: Path, options: str = "loop") -> Iterator[Path]:
    """A file system of that kind in an image; skips where it can't be made."""
    if shutil.which(f"mkfs.{kind}") is None:
        assert os.environ.get("CI") != "true", f"mkfs.{kind} is missing"
        pytest.skip(f"mkfs.{kind} is missing")
    image, point = base / "image", base / "mount"
    with image.open("wb") as file:
        file.truncate(800 << 20)
    point.mkdir()
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
    subprocess.run(["mount", "-o", options, image, point], check=True)
    try:
        yield point
    finally:
        syscalls.umount(str(point), syscalls.MNT_DETACH)


@pytest.fixture(scope="session")
def btrfs_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A btrfs."""
    with loop_mounted("btrfs", tmp_path_factory.mktemp("btrfs")) as point:
        yield point


@pytest.fixture(scope="session")
def xfs_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An xfs."""
    with loop_mounted("xfs", tmp_path_factory.mktemp("xfs")) as point:
        yield point


@pytest.fixture(params=["xfs", "btrfs"])
def reflink_root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of a file system that can share contents between files."""
    place: Path = request.getfixturevalue(f"{request.param}_place") / tmp_path.name
    place.mkdir()
    return place
