"""Real clients of Docker, each run against a real dockerd and against tiffin."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import peers


def need(*programs: str) -> None:
    """Skip without a program; with CI=true fail."""
    for program in programs:
        if shutil.which(program) is None:
            if os.environ.get("CI") == "true":
                pytest.fail(f"{program} is not installed")
            pytest.skip(f"{program} is not installed")


@pytest.fixture(scope="session")
def dockerd(busybox: Path) -> Iterator[peers.Peer]:
    """A real dockerd without a bridge."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    need("docker", "dockerd", "unshare")
    with peers.dockerd() as peer:
        yield peer


@pytest.fixture(scope="session")
def tiffin(busybox: Path) -> Iterator[peers.Peer]:
    """A tiffin daemon."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with peers.tiffin() as peer:
        yield peer
