"""Looking into containers that do not run, without waiting for the disk."""

from __future__ import annotations

import io
import os
import signal
import tarfile
from pathlib import Path

import pytest

from conftest import busybox_tar
from tiffin.engine import Engine, hasty
from traffic import child_engine

BODY = {"Image": "busybox", "Cmd": ["cat", "/file"], "HostConfig": {"NetworkMode": "none"}}


def packed() -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("file")
        info.size = 6
        tar.addfile(info, io.BytesIO(b"inside"))
    buffer.seek(0)
    return buffer


def run(engine: Engine, key: str) -> bytes:
    engine.containers.start(key)
    engine.containers.wait(key)
    return b"".join(data for _, data in engine.containers.logs(key)[1])


def marks(root: Path) -> list[Path]:
    return list((root / "storage").glob("overlay2/d/*/work/work/incompat"))


@pytest.fixture
def overlay2(root: Path, busybox: Path) -> Path:
    with Engine(root) as engine:
        if engine.system.info()["Driver"] != "overlay2":
            pytest.skip("overlay2 can't be used here")
        engine.images.import_(io.BytesIO(busybox_tar()), "busybox")
    return root


def test_a_container_starts_after_files_went_in(
    overlay2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    remove = hasty._remove_mark

    def watch(mark: Path) -> None:
        seen.extend(os.listdir(mark))
        remove(mark)

    monkeypatch.setattr(hasty, "_remove_mark", watch)
    with Engine(overlay2) as engine:
        key = engine.containers.create(BODY)["Id"]
        engine.containers.archive_put(key, "/", packed())
        # The kernel has mounted it as we meant it, and that is forgotten.
        assert seen == ["volatile"]
        assert not marks(overlay2)
        assert not list((overlay2 / "hasty").iterdir())
        assert run(engine, key) == b"inside"
        engine.containers.remove(key)
        engine.shutdown_keeper()


def test_killed_before_the_kernels_mark_is_removed(overlay2: Path) -> None:
    def work(engine: Engine) -> None:
        key = engine.containers.create(BODY, "one")["Id"]
        engine.containers.archive_put(key, "/", packed())
        hasty._remove_mark = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        engine.containers.archive_stat(key, "/file")

    child_engine(overlay2, work)
    assert marks(overlay2)
    with Engine(overlay2) as engine:
        assert not marks(overlay2)
        assert run(engine, "one") == b"inside"
        engine.containers.remove("one")
        engine.shutdown_keeper()


def test_a_kernel_that_can_not(overlay2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hasty, "_OPTION", "not_known_to_any_kernel")
    with Engine(overlay2) as engine:
        key = engine.containers.create(BODY)["Id"]
        for _ in range(2):
            engine.containers.archive_put(key, "/", packed())
        assert run(engine, key) == b"inside"
        engine.containers.remove(key)
        engine.shutdown_keeper()
