"""Containers on every storage driver that works here; several side by side; migrate and check."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import busybox_tar
from storage.conftest import loop_mounted
from tiffin.engine import Engine
from tiffin.errors import Conflict, InvalidParameter, Unsupported
from tiffin.storage import drivers

pytestmark = pytest.mark.root


@contextmanager
def _opened(root: Path, driver: str | None = None) -> Iterator[Engine]:
    with Engine(root, storage_driver=driver) as engine:
        yield engine


def _import(engine: Engine) -> None:
    engine.images.import_(io.BytesIO(busybox_tar()), "busybox", changes=["CMD sh"])


def _end(engine: Engine) -> None:
    for row in engine.containers.list(all=True):
        engine.containers.remove(row["Id"], force=True, volumes=True)
    engine.shutdown_keeper()


@pytest.mark.parametrize("driver", ["overlay2", "overlay", "fuse-overlayfs", "vfs"])
def test_a_life_on_each_driver(root: Path, busybox: Path, driver: str) -> None:
    if driver == "fuse-overlayfs" and shutil.which(driver) is None:
        assert os.environ.get("CI") != "true", "fuse-overlayfs is not installed"
        pytest.skip("fuse-overlayfs is not installed")
    with _opened(root, driver) as engine:
        _import(engine)
        info = engine.system.info()
        assert info["Driver"] == driver
        assert ["Chosen because", "it was asked for"] in info["DriverStatus"]
        done = engine.run("busybox", ["sh", "-c", "echo hi > /new; rm /etc/group; cat /new"])
        assert (done.exit_code, done.stdout) == (0, b"hi\n")
        made = engine.containers.create({"Image": "busybox", "Cmd": ["sh", "-c", "echo x > /y"]})
        engine.containers.start(made["Id"])
        engine.containers.wait(made["Id"])
        assert {(row["Path"], row["Kind"]) for row in engine.containers.changes(made["Id"])} == {
            ("/y", 1)
        }
        engine.containers.commit(made["Id"], "made", "latest")
        again = engine.run("made", ["cat", "/y"])
        assert again.stdout == b"x\n"
        assert engine.containers.inspect(made["Id"])["GraphDriver"]["Name"] == driver
        _end(engine)


def test_sizes_and_a_life_on_btrfs(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> None:
    with (
        loop_mounted("btrfs", tmp_path_factory.mktemp("btrfs")) as place,
        _opened(place / "root", "btrfs") as engine,
    ):
        _import(engine)
        body = {
            "Image": "busybox",
            "Cmd": ["sh", "-c", "dd if=/dev/urandom of=/big bs=1M count=64 && sync"],
            "HostConfig": {"StorageOpt": {"size": "20m"}},
        }
        made = engine.containers.create(body)
        engine.containers.start(made["Id"])
        assert engine.containers.wait(made["Id"])["StatusCode"] != 0
        free = engine.run("busybox", ["dd", "if=/dev/zero", "of=/big", "bs=1M", "count=64"])
        assert free.exit_code == 0
        _end(engine)


def test_another_driver_hides_nothing_and_all_moves_when_asked(root: Path, busybox: Path) -> None:
    with _opened(root, "vfs") as engine:
        _import(engine)
        old = engine.containers.create(
            {"Image": "busybox", "Cmd": ["sh", "-c", "cat /kept || echo hi > /kept"]}, "old"
        )
        engine.containers.start(old["Id"])
        engine.containers.wait(old["Id"])
    with _opened(root, "overlay2") as engine:
        assert engine.system.info()["Driver"] == "overlay2"
        assert ["Also holds layers", "vfs"] in engine.system.info()["DriverStatus"]
        assert engine.images.list()[0]["RepoTags"] == ["busybox:latest"]
        engine.containers.start(old["Id"])
        engine.containers.wait(old["Id"])
        _, lines = engine.containers.logs(old["Id"], stdout=True, stderr=False)
        assert b"".join(line for _, line in lines) == b"hi\n"
        with pytest.raises(Unsupported, match="not supported for vfs"):
            engine.containers.create(
                {"Image": "busybox", "HostConfig": {"StorageOpt": {"size": "1g"}}}
            )
        said: list[dict[str, object]] = []
        assert engine.storage.migrate("overlay2", say=said.append) == 1
        assert "verified" in str(said[-1]["status"])
        assert engine.containers.inspect("old")["GraphDriver"]["Name"] == "overlay2"
        engine.containers.start(old["Id"])
        engine.containers.wait(old["Id"])
        assert not list((root / "storage/vfs/d").iterdir())
    # It is the chosen one now.
    with _opened(root) as engine:
        assert engine.system.info()["Driver"] == "overlay2"
        sleeper = engine.containers.create({"Image": "busybox", "Cmd": ["sleep", "1000"]}, "busy")
        engine.containers.start(sleeper["Id"])
        with pytest.raises(Conflict, match="containers run: busy"):
            engine.storage.migrate("vfs")
        with pytest.raises(InvalidParameter, match="must lie on a btrfs"):
            engine.storage.migrate("btrfs")
        _end(engine)


def test_layers_are_checked_and_repaired(root: Path, busybox: Path) -> None:
    with _opened(root) as engine:
        _import(engine)
        found = engine.storage.check()
        assert (found["Layers"], found["Problems"]) == (1, 0)
        assert found["Files"] > 50
        (own,) = (root / "storage/overlay2/d").glob("*/fs/etc")
        (own / "passwd").chmod(0o666)
        (own / "group").unlink()
        said: list[dict[str, object]] = []
        found = engine.storage.check(repair=True, say=said.append)
        assert (found["Problems"], found["Repaired"]) == (2, 1)
        text = "\n".join(str(message["status"]) for message in said)
        assert "/etc/passwd (overlay2): mode: repaired from the index" in text
        assert "/etc/group (overlay2): missing" in text


def test_the_drivers_of_this_machine_are_measured(
    root: Path, busybox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tuple(row for row in drivers.DRIVERS if row[0].name in ("overlay2", "btrfs"))
    with _opened(root) as engine:
        monkeypatch.setattr(drivers, "DRIVERS", few)
        said: list[dict[str, object]] = []
        found = engine.storage.benchmark(short=True, say=said.append)
        assert found["Recommended"] == "overlay2"
        assert list(found["Figures"]) == ["overlay2"]
        assert all(value >= 0 for value in found["Figures"]["overlay2"].values())
        assert any("must lie on a btrfs" in str(message["status"]) for message in said)
        assert not list((root / "work").iterdir())
