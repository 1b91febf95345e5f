"""An engine root whose disk is full: what is there can be seen and removed, and that makes room."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from conftest import busybox_tar, kill_keeper
from tiffin.engine import Engine
from tiffin.errors import StorageFull, TiffinError
from tiffin.linux import syscalls

pytestmark = pytest.mark.root


@pytest.fixture
def small(tmp_path: Path, busybox: Path) -> Iterator[Path]:
    """A disk of 32 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    syscalls.mount("tmpfs", str(place), "tmpfs", 0, "size=32m")
    yield place
    kill_keeper(place / "root")
    syscalls.umount(str(place), syscalls.MNT_DETACH)


def fill(place: Path) -> None:
    with (place / "fill").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return


def test_an_engine_that_opens_on_a_full_disk_can_remove(small: Path) -> None:
    root = small / "root"
    with Engine(root) as engine:
        engine.images.import_(io.BytesIO(busybox_tar()), "busybox", changes=["CMD sh"])
        container = engine.containers.create({"Image": "busybox", "Cmd": ["true"]})["Id"]
        engine.shutdown_keeper()
    fill(small)
    with Engine(root) as engine:
        assert engine.system.info()["Images"] == 1
        with pytest.raises(StorageFull, match="no space left on device"):
            engine.images.import_(io.BytesIO(busybox_tar()), "another", message="again")
        engine.containers.remove(container)
        engine.images.remove("busybox")
        engine.images.import_(io.BytesIO(busybox_tar()), "busybox", changes=["CMD sh"])
        assert engine.run("busybox", ["echo", "again"]).stdout == b"again\n"
        engine.shutdown_keeper()


def test_a_container_that_fills_the_disk_ends_and_is_removed(small: Path) -> None:
    with Engine(small / "root") as engine:
        engine.images.import_(io.BytesIO(busybox_tar()), "busybox", changes=["CMD sh"])
        result = engine.run(
            "busybox", ["sh", "-c", "dd if=/dev/zero of=/z bs=64k; echo on; exit 3"], remove=False
        )
        assert (result.exit_code, result.stdout) == (3, b"on\n")
        (container,) = engine.containers.list(all=True)
        with pytest.raises(StorageFull, match="no space left on device"):
            engine.containers.create({"Image": "busybox"})
        with pytest.raises(StorageFull, match="no space left on device"):
            engine.containers.archive_put(container["Id"], "/tmp", io.BytesIO(busybox_tar()))
        (container,) = engine.containers.list(all=True, size=True)
        with pytest.raises(StorageFull, match="no space left on device"):
            engine.containers.commit(container["Id"], "too-much")
        with pytest.raises(TiffinError, match="No space left on device"):
            engine.containers.start(container["Id"])
        (same,) = engine.containers.list(all=True, size=True)
        assert same["SizeRw"] == container["SizeRw"]
        assert {"Path": "/z", "Kind": 1} in engine.containers.changes(container["Id"])
        engine.containers.remove(container["Id"])
        assert engine.run("busybox", ["echo", "again"]).stdout == b"again\n"
        engine.shutdown_keeper()


def test_a_commit_takes_nothing_from_its_container_however_little_room_there_is(
    small: Path,
) -> None:
    with Engine(small / "root") as engine:
        engine.images.import_(io.BytesIO(busybox_tar()), "busybox", changes=["CMD sh"])
        engine.run("busybox", ["sh", "-c", "echo kept > /kept"], remove=False)
        fill(small)
        for _ in range(12):
            os.truncate(small / "fill", (small / "fill").stat().st_size - 4096)
            with suppress(StorageFull):
                engine.containers.commit(engine.containers.list(all=True)[0]["Id"], "made")
            (container,) = engine.containers.list(all=True, size=True)
            assert container["SizeRw"] == 5
            assert engine.containers.changes(container["Id"]) == [{"Path": "/kept", "Kind": 1}]
        engine.shutdown_keeper()
