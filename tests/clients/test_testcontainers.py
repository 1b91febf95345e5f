"""testcontainers for Python, unmodified: what it does with dockerd, it does with tiffin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

pytestmark = [pytest.mark.peer, pytest.mark.root]


@pytest.fixture(params=["dockerd", "tiffin"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One engine after the other, in the variables that testcontainers reads."""
    peer = request.getfixturevalue(request.param)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{peer.socket}")
    monkeypatch.setenv("DOCKER_CONFIG", str(peer.home / "config"))
    # Its helper is an image of a registry.
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)
    yield peer
    peer.reset()


def container(*command: str) -> DockerContainer:
    return DockerContainer("busybox").with_command(list(command)).with_kwargs(network_mode="none")


def test_a_container_runs_until_the_block_ends(engine: Any) -> None:
    one = container("sh", "-c", "echo ready; sleep 100").with_env("A", "1").with_name("one")
    with one.waiting_for(LogMessageWaitStrategy("ready")) as started:
        assert started.exec(["sh", "-c", "echo $A; exit 3"]) == (3, b"1\n")
        assert started.get_logs() == (b"ready\n", b"")
        assert started.get_wrapped_container().name == "one"
        assert started.get_wrapped_container().status in ("created", "running")
    assert engine.request("GET", "/containers/json?all=1") == []


def test_folders_are_mounted_and_files_copied(engine: Any, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("of the host")
    one = container("sleep", "100").with_volume_mapping(str(tmp_path), "/d", "rw")
    with one as started:
        started.copy_into_container(b"copied", "/tmp/g")
        assert started.exec(["cat", "/d/f", "/tmp/g"]).output == b"of the hostcopied"
        assert started.exec(["sh", "-c", "echo back > /d/h"]).exit_code == 0
    assert (tmp_path / "h").read_text() == "back\n"


def test_a_container_that_fails_is_told(engine: Any) -> None:
    one = container("sh", "-c", "echo no >&2; exit 1")
    with (
        pytest.raises((RuntimeError, TimeoutError)),
        one.waiting_for(LogMessageWaitStrategy("ready").with_startup_timeout(2)),
    ):
        pass
