"""Device rules on cgroup version 2, on the real kernel."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiffin.linux import device_filter
from tiffin.linux.cgroups import DEFAULT_DEVICES, Hierarchy

pytestmark = pytest.mark.root


@pytest.fixture
def group() -> Iterator[Path]:
    unified = Hierarchy.detect().unified
    if unified is None:
        pytest.skip("no cgroup version 2 tree is mounted")
    path = Path(unified, f"tiffin-test-{uuid.uuid4().hex}")
    path.mkdir()
    yield path
    path.rmdir()


def attempt(group: Path, path: str, flags: int) -> int:
    """The errno that a process of the group gets for opening a device; 0 for none."""
    child = os.fork()
    if child == 0:
        try:
            (group / "cgroup.procs").write_text("0")
            os.open(path, flags)
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def make(group: Path, folder: Path, minor: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            (group / "cgroup.procs").write_text("0")
            os.mknod(folder / f"n{minor}", 0o20600, os.makedev(1, minor))
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_what_no_rule_allows_is_denied(group: Path) -> None:
    assert attempt(group, "/dev/zero", os.O_RDWR) == 0
    device_filter.attach(str(group), ["c 1:3 rwm", "c 1:5 r"])
    assert attempt(group, "/dev/null", os.O_RDWR) == 0
    assert attempt(group, "/dev/zero", os.O_RDONLY) == 0
    assert attempt(group, "/dev/zero", os.O_RDWR) == errno.EPERM
    assert attempt(group, "/dev/full", os.O_RDONLY) == errno.EPERM


def test_wildcards_and_kinds(group: Path, tmp_path: Path) -> None:
    device_filter.attach(str(group), ["b *:* rwm", "c *:* m", "c 1:* r"])
    assert attempt(group, "/dev/full", os.O_RDONLY) == 0
    assert attempt(group, "/dev/full", os.O_WRONLY) == errno.EPERM
    assert make(group, tmp_path, 7) == 0
    assert attempt(group, "/dev/ptmx", os.O_RDONLY | os.O_NOCTTY) == errno.EPERM


def test_everything(group: Path) -> None:
    device_filter.attach(str(group), ["a *:* rwm"])
    assert attempt(group, "/dev/full", os.O_RDWR) == 0


def test_the_default_rules(group: Path, tmp_path: Path) -> None:
    device_filter.attach(str(group), DEFAULT_DEVICES)
    for name in ("null", "zero", "full", "random", "urandom"):
        assert attempt(group, f"/dev/{name}", os.O_RDWR) == 0
    assert make(group, tmp_path, 1) == 0
    os.mknod(tmp_path / "memory", 0o20600, os.makedev(1, 1))
    assert attempt(group, str(tmp_path / "memory"), os.O_RDONLY) == errno.EPERM
