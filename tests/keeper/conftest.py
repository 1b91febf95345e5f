"""A laboratory with a root file system of nothing but busybox."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from keeper.lab import Lab

_SHELL = ("sh", "echo", "printf", "true", "sleep", "kill", "id", "stty")
_TEXT = ("cat", "head", "tr", "wc", "sed", "seq", "yes")
_OTHER = ("dd",)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    bin = tmp_path / "fs/bin"
    for name in ("bin", "dev", "proc", "sys", "tmp"):
        (tmp_path / "fs" / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox, "these tests need busybox (Debian: busybox-static)"
    shutil.copy(busybox, bin / "busybox")
    for name in (*_SHELL, *_TEXT, *_OTHER):
        (bin / name).symlink_to("busybox")
    (tmp_path / "keeper/rootfs").mkdir(parents=True)
    lab = Lab(tmp_path)
    yield lab
    lab.end()
