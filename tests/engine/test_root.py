"""The engine root: who may open it, and who may look inside."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiffin.engine import Engine
from tiffin.errors import Forbidden

pytestmark = pytest.mark.root


@pytest.fixture(params=[0o077, 0o000], ids=["closed", "open"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """An unusual umask, set before the engine opens its root."""
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_any_user_of_a_container_reads_its_files_whatever_the_umask(
    umask: None, engine: Engine
) -> None:
    result = engine.run(
        "busybox",
        ["sh", "-c", "cat /etc/hosts /etc/hostname /etc/resolv.conf; ls /data && pwd"],
        user="1000",
        volumes=["named:/data"],
        working_dir="/made/here",
    )
    assert result.stdout.endswith(b"/made/here\n"), result
    assert result.stderr == b""


def test_other_users_of_the_machine_see_nothing(umask: None, engine: Engine) -> None:
    root = engine.root.path
    assert stat.S_IMODE(root.stat().st_mode) & 0o007 == 0
    assert stat.S_IMODE(engine.root.database.stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(f"{engine.root.database}-wal").stat().st_mode) == 0o600


def test_without_roots_rights_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Forbidden, match="run it as root"):
        Engine(tmp_path / "root")
    assert not (tmp_path / "root").exists()
