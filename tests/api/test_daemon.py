"""The daemon as a process: its start, its end, and what it tells whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tiffin.api.daemon import default_host, socket_path
from tiffin.errors import InvalidParameter, Unsupported

pytestmark = pytest.mark.root

CODE = """
import sys
from tiffin.api.daemon import serve
sys.exit(serve(sys.argv[1], sys.argv[4:], on_demand=sys.argv[2] == "1", ready_fd=int(sys.argv[3])))
"""


class Daemon:
    """One daemon process; ``said`` is the line that it wrote when it was ready, or was not."""

    def __init__(self, root: Path, *hosts: str, on_demand: bool = False, idle: float = 30) -> None:
        ready, theirs = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE, str(root), str(int(on_demand)), str(theirs), *hosts],
            pass_fds=[theirs],
            env={
                **os.environ,
                "TIFFIN_IDLE_SECONDS": str(idle),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
            stderr=subprocess.PIPE,
        )
        os.close(theirs)
        with open(ready, encoding="utf-8") as file:
            self.said = file.read().rstrip("\n")

    def end(self) -> tuple[int, str]:
        """Wait for its end: its exit code, and its log."""
        _, log = self.process.communicate(timeout=30)
        return self.process.returncode, log.decode()


@pytest.fixture
def daemon(root: Path) -> Iterator[Callable[..., Daemon]]:
    started: list[Daemon] = []

    def start(*arguments: Any, **named: Any) -> Daemon:
        started.append(Daemon(root, *arguments, **named))
        return started[-1]

    yield start
    for one in started:
        if one.process.returncode is None:
            one.process.kill()
            one.process.communicate()


def test_a_daemon_says_that_it_is_ready_and_stops_when_told(
    daemon: Callable[..., Daemon], root: Path, clients: Callable[[Path], Any]
) -> None:
    one = daemon()
    assert one.said == "ready"
    path = root / "tiffin.sock"
    assert clients(path).request("GET", "/_ping").body == b"OK"
    one.process.send_signal(signal.SIGTERM)
    code, log = one.end()
    assert code == 0
    assert "Traceback" not in log
    assert not path.exists()


def test_the_second_daemon_of_a_root_is_told_by_whom_it_is_owned(
    daemon: Callable[..., Daemon],
) -> None:
    first = daemon()
    second = daemon(on_demand=True)
    assert second.end()[0] != 0
    assert f"process {first.process.pid}" in second.said
    assert "in use" in second.said


def test_a_daemon_that_comes_while_another_is_leaving_waits_for_the_root(
    daemon: Callable[..., Daemon], root: Path, clients: Callable[[Path], Any]
) -> None:
    first = daemon(on_demand=True)
    # Stopped in the middle of leaving: the socket is gone, the root is not free yet.
    first.process.send_signal(signal.SIGSTOP)
    (root / "tiffin.sock").unlink()
    wake = threading.Timer(0.3, first.process.kill)
    wake.start()
    second = daemon(on_demand=True)
    wake.join()
    assert second.said == "ready"
    assert clients(root / "tiffin.sock").request("GET", "/_ping").status == 200


def test_a_killed_daemon_leaves_nothing_in_the_way(
    daemon: Callable[..., Daemon], root: Path, clients: Callable[[Path], Any]
) -> None:
    one = daemon()
    one.process.kill()
    one.end()
    assert (root / "tiffin.sock").exists()
    assert daemon().said == "ready"
    assert clients(root / "tiffin.sock").request("GET", "/_ping").status == 200


def test_a_daemon_on_demand_leaves_when_nobody_needs_it(
    daemon: Callable[..., Daemon], root: Path
) -> None:
    one = daemon(on_demand=True, idle=0.1)
    assert one.said == "ready"
    assert one.end()[0] == 0
    assert not (root / "tiffin.sock").exists()


def test_shutdown_by_the_api(
    daemon: Callable[..., Daemon], root: Path, clients: Callable[[Path], Any]
) -> None:
    one = daemon()
    assert clients(root / "tiffin.sock").request("POST", "/tiffin/shutdown").status == 204
    assert one.end()[0] == 0


def test_a_daemon_listens_where_it_is_told(
    daemon: Callable[..., Daemon], tmp_path: Path, clients: Callable[[Path], Any]
) -> None:
    # Longer than a socket's address can be.
    paths = [tmp_path / "a.sock", tmp_path / ("long" * 40) / "b.sock"]
    assert daemon(*(f"unix://{path}" for path in paths)).said == "ready"
    for path in paths:
        assert clients(path).request("GET", "/_ping").status == 200


def test_what_cannot_be_listened_on_is_said(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    one = daemon("tcp://127.0.0.1:1")
    assert "tcp://127.0.0.1:1" in one.said
    assert one.end()[0] != 0
    (tmp_path / "file").write_text("")
    one = daemon(f"unix://{tmp_path}/file")
    assert "not a socket" in one.said
    assert one.end()[0] != 0


def test_addresses() -> None:
    assert socket_path("unix:///a/b.sock") == Path("/a/b.sock")
    assert socket_path("/a/b.sock") == Path("/a/b.sock")
    with pytest.raises(Unsupported):
        socket_path("tcp://0.0.0.0:2375")
    with pytest.raises(InvalidParameter):
        socket_path("unix://relative")
    assert default_host(Path("/var/lib/tiffin")) == "unix:///run/tiffin/tiffin.sock"
    assert default_host(Path("/x")) == "unix:///x/tiffin.sock"
