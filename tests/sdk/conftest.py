"""A client of each kind: of a daemon, and of an engine in this process."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiffin
from conftest import busybox_tar, kill_keeper
from tiffin.errors import RootInUse


@pytest.fixture(scope="session")
def sdk_roots(busybox: Path) -> Iterator[Path]:
    """A folder for both engine roots. Its path is short: it holds a socket."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    folder = Path(tempfile.mkdtemp(prefix="tiffin-sdk-", dir="/tmp"))
    yield folder
    for name in ("daemon", "engine"):
        kill_keeper(folder / name)
    shutil.rmtree(folder, ignore_errors=True)


def prepare(client: tiffin.Client) -> None:
    client.images.import_image(busybox_tar(), "busybox", changes=["CMD sh"])


@pytest.fixture(scope="session")
def daemon_client(sdk_roots: Path) -> Iterator[tiffin.Client]:
    """A client of a daemon that it has started."""
    root = sdk_roots / "daemon"
    with tiffin.connect(root=root) as client:
        prepare(client)
        yield client
        client.transport.call("POST", "/tiffin/shutdown", {"force": True, "t": 0})
    deadline = time.monotonic() + 60
    while True:
        try:
            with tiffin.Engine(root):
                return
        except RootInUse:
            assert time.monotonic() < deadline, "the daemon does not leave"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def engine_client(sdk_roots: Path) -> Iterator[tiffin.Engine]:
    """An engine in this process."""
    with tiffin.Engine(sdk_roots / "engine") as engine:
        prepare(engine)
        yield engine
        engine.core.shutdown_keeper()


@pytest.fixture(params=["daemon", "engine"])
def client(request: pytest.FixtureRequest) -> Iterator[tiffin.Client]:
    """One after the other, with the image ``busybox``; what a test leaves is removed."""
    one: tiffin.Client = request.getfixturevalue(f"{request.param}_client")
    yield one
    for container in one.containers.list(all=True, sparse=True):
        container.remove(force=True, v=True)
    for network in one.networks.list():
        if network.name not in ("bridge", "host", "none"):
            network.remove()
    for volume in one.volumes.list():
        volume.remove()
    for image in one.images.list():
        if "busybox:latest" not in image.tags:
            image.remove(force=True)
