"""Archives meet real engines: what tiffin writes they read, what they write tiffin reads."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tiffin.image.archive import SavedImage, SavedLayer, read_archive, write_archive
from tiffin.image.config import HistoryEntry, ImageConfig

pytestmark = [pytest.mark.peer, pytest.mark.root]

Run = Callable[..., str]


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            if os.environ.get("CI") == "true":
                pytest.fail(f"{program} is not installed")
            pytest.skip(f"{program} is not installed")


def run(*command: str | Path, **environment: str) -> str:
    ran = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )
    assert ran.returncode == 0, f"{command}: {ran.stderr}"
    return ran.stdout


@pytest.fixture
def images(tarball: Callable[..., bytes]) -> tuple[SavedImage, SavedImage]:
    """An image and its child, which has one layer more and one of its parent's again."""
    tars = [tarball({"bin/": None, "bin/a": b"a" * 3000}), tarball({"b": b"b"})]

    def layer(tar: bytes) -> SavedLayer:
        def write(output: BinaryIO) -> None:
            output.write(tar)

        return SavedLayer(digest(tar), len(tar), write)

    config = ImageConfig.scratch(created=1).with_cmd(["/bin/a"]).with_labels({"k": "é"})
    config = config.with_layer(digest(tars[0]), HistoryEntry(created_by="ADD a"))
    child = config.with_history(HistoryEntry(created_by="USER 1", empty_layer=True)).with_user("1")
    child = child.with_layer(digest(tars[1]), HistoryEntry(created_by="ADD b"))
    child = child.with_layer(digest(tars[0]), HistoryEntry(created_by="ADD a"))
    return (
        SavedImage(config, ["example.com/base:1"], [layer(tars[0])]),
        SavedImage(child, ["example.com/child:2"], [layer(tars[n]) for n in (0, 1, 0)]),
    )


@pytest.fixture
def archive(tmp_path: Path, images: tuple[SavedImage, SavedImage]) -> Path:
    path = tmp_path / "ours.tar"
    with path.open("wb") as output:
        write_archive(output, images)
    return path


@pytest.fixture
def reads_back(store: Any, tmp_path: Path) -> Callable[..., None]:
    """Checks that an archive has exactly these images, under their names."""

    def check(path: Path, *images: SavedImage, names: bool = True, ids: bool = True) -> None:
        loaded = read_archive(path, store.ingest, spool=tmp_path)
        if ids:
            assert {image.config.id for image in loaded} == {image.config.id for image in images}
        assert {image.config.diff_ids for image in loaded} == {
            image.config.diff_ids for image in images
        }
        if names:
            assert sorted(name for image in loaded for name in image.names) == sorted(
                name for image in images for name in image.names
            )

    return check


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive"])
def test_skopeo(
    tmp_path: Path,
    archive: Path,
    images: tuple[SavedImage, SavedImage],
    reads_back: Callable[..., None],
    transport: str,
) -> None:
    need("skopeo")
    _, child = images
    tag = child.names[0] if transport == "docker-archive" else "2"
    for back in ("docker-archive", "oci-archive"):
        path = tmp_path / f"{back}.tar"
        run("skopeo", "copy", f"{transport}:{archive}:{tag}", f"{back}:{path}:{child.names[0]}")
        # From one format to the other it writes the config anew.
        reads_back(path, child, ids=back == transport)


def test_podman(
    tmp_path: Path,
    archive: Path,
    images: tuple[SavedImage, SavedImage],
    reads_back: Callable[..., None],
) -> None:
    need("podman", "runc")
    podman = [
        *("podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs"),
        *("--events-backend", "none", "--storage-driver", "vfs"),
        *("--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "run")),
    ]
    run(*podman, "load", "-i", archive)
    for image in images:
        inspected = json.loads(run(*podman, "image", "inspect", image.names[0]))
        assert "sha256:" + inspected[0]["Id"] == image.config.id
        assert inspected[0]["RootFS"]["Layers"] == list(image.config.diff_ids)
        for form in ("docker-archive", "oci-archive"):
            path = tmp_path / f"{form}.tar"
            run(*podman, "save", "--format", form, "-o", path, image.names[0])
            # It has the image in the format it was loaded in, and writes the config anew for OCI.
            reads_back(path, image, ids=form == "docker-archive")
            path.unlink()


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[list[str]]:
    """The command line of a Docker engine of its own, in a network namespace of its own."""
    need("dockerd", "docker", "unshare")
    # Its sockets' names have to be short.
    folder = Path(tempfile.mkdtemp(prefix="dk"))
    host = f"unix://{folder}/s"
    with (tmp_path / "dockerd.log").open("wb") as log:
        daemon = subprocess.Popen(
            [
                *("unshare", "-n", "dockerd", "-H", host, "--pidfile", folder / "pid"),
                *("--data-root", folder / "data", "--exec-root", folder / "exec"),
                *("--storage-driver", "vfs", "--iptables=false", "--bridge=none"),
            ],
            stdout=log,
            stderr=log,
        )
    client = ["docker", "-H", host]
    try:
        end = time.monotonic() + 60
        while subprocess.run([*client, "version"], capture_output=True).returncode:
            assert daemon.poll() is None, (tmp_path / "dockerd.log").read_text()
            assert time.monotonic() < end, "dockerd does not answer"
            time.sleep(0.1)
        yield client
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)
        shutil.rmtree(folder)


def test_docker(
    tmp_path: Path,
    archive: Path,
    images: tuple[SavedImage, SavedImage],
    reads_back: Callable[..., None],
    docker: list[str],
) -> None:
    run(*docker, "load", "-i", archive)
    for image in images:
        (inspected,) = json.loads(run(*docker, "image", "inspect", image.names[0]))
        assert inspected["Id"] == image.config.id
        assert inspected["RootFS"]["Layers"] == list(image.config.diff_ids)
    path = tmp_path / "theirs.tar"
    run(*docker, "save", "-o", path, *(image.names[0] for image in images))
    reads_back(path, *images)
    run(*docker, "save", "-o", path, images[1].config.id)
    reads_back(path, images[1], names=False)
