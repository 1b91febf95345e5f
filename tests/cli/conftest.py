"""Daemons for the command line: a scripted one, and a real dockerd."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.programs import Docker, Pair, ScriptedDaemon, Tiffin
from conftest import busybox_tar


def need(program: str, what: str) -> None:
    """Skips where a peer is missing; fails on CI, which must have it."""
    if shutil.which(program) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{what} is not installed")
        pytest.skip(f"{what} is not installed")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    """A scripted daemon."""
    with tempfile.TemporaryDirectory() as folder:
        scripted = ScriptedDaemon(Path(folder, "s"))
        yield scripted
        scripted.close()


@pytest.fixture
def tiffin(daemon: ScriptedDaemon, tmp_path: Path) -> Tiffin:
    """The command line against the scripted daemon."""
    return Tiffin(daemon.host, tmp_path)


@pytest.fixture(scope="session")
def docker_cli() -> None:
    need("docker", "docker's command line")


@pytest.fixture(scope="session")
def dockerd(busybox: Path, docker_cli: None) -> Iterator[str]:
    """The address of a dockerd of our own, with an image ``busybox``."""
    need("dockerd", "dockerd")
    if os.geteuid() != 0:
        pytest.skip("needs root")
    folder = Path(tempfile.mkdtemp(prefix="cli-dockerd-"))
    host = f"unix://{folder}/d.sock"
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [
                *("unshare", "-n", "-m", "dockerd", "--data-root", f"{folder}/data"),
                *("--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid", "-H", host),
                *("--iptables=false", "--bridge=none", "--storage-driver", "vfs"),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        docker = Docker(host)
        deadline = time.monotonic() + 60
        while docker("version").code != 0:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"dockerd did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        done = docker("import", "-c", 'CMD ["sh"]', "-c", "ENV PATH=/bin", "-", "busybox:latest",
                      stdin=busybox_tar())  # fmt: skip
        assert done.code == 0, done.err
        yield host
        running = docker("ps", "-aq").out.split()
        if running:
            docker("rm", "-f", *running)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def pair(dockerd: str, tmp_path: Path) -> Pair:
    """docker and tiffin, both talking to the same dockerd."""
    return Pair(Docker(dockerd, tmp_path), Tiffin(dockerd, tmp_path))
