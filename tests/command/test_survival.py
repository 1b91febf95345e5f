"""Processes are killed at bad moments: containers, logs and exit statuses survive."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from command.conftest import Command, eventually
from tiffin.linux.cgroups import Hierarchy

COUNT = "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); sleep 0.005; done; exit 7"
LINES = "".join(f"line {number}\n" for number in range(400))


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_container_outlives_its_daemon(tiffin: Command) -> None:
    tiffin("run", "-d", "--name", "job", "busybox", "sh", "-c", COUNT)
    first = tiffin.daemon()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: gone(first))
    assert "job" in tiffin("ps", "-a")
    assert tiffin.daemon() != first
    assert tiffin("wait", "job") == "7\n"
    assert tiffin("logs", "job") == LINES
    assert tiffin.inspect("job")["State"]["Status"] == "exited"


def test_a_commit_that_was_killed_leaves_no_container_frozen(tiffin: Command) -> None:
    tiffin("run", "-d", "--name", "job", "busybox", "sh", "-c", COUNT)
    mark = hashlib.sha256(os.fsencode(tiffin.root)).hexdigest()[:8]
    # This is how far a commit gets before it copies.
    Hierarchy.detect().freeze(f"tiffin/{mark}/{tiffin.inspect('job')['Id']}")
    daemon = tiffin.daemon()
    os.kill(daemon, signal.SIGKILL)
    eventually(lambda: gone(daemon))
    assert tiffin("wait", "job") == "7\n"
    assert tiffin("logs", "job") == LINES


def test_an_end_that_no_daemon_saw_is_known_later(tiffin: Command) -> None:
    tiffin("run", "-d", "--name", "job", "busybox", "sh", "-c", "sleep 0.3; echo bye; exit 9")
    pid = tiffin.inspect("job")["State"]["Pid"]
    daemon = tiffin.daemon()
    os.kill(daemon, signal.SIGKILL)
    eventually(lambda: gone(pid) and gone(daemon))
    assert tiffin("wait", "job") == "9\n"
    assert tiffin("logs", "job") == "bye\n"


def test_a_removed_on_exit_container_goes_though_its_daemon_died(tiffin: Command) -> None:
    tiffin("run", "-d", "--rm", "--name", "job", "busybox", "sleep", "0.3")
    daemon = tiffin.daemon()
    os.kill(daemon, signal.SIGKILL)
    eventually(lambda: gone(daemon))
    eventually(lambda: "job" not in tiffin("ps", "-a"))


def test_a_container_outlives_the_keeper(tiffin: Command) -> None:
    tiffin("run", "-d", "--name", "job", "busybox", "sh", "-c", COUNT)
    keeper = tiffin.keeper()
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: gone(keeper))
    assert tiffin("wait", "job") in ("7\n", "255\n")
    assert tiffin("logs", "job") == LINES
    state = tiffin.inspect("job")["State"]
    assert state["ExitCode"] == 7 or "unknown" in state["Error"]


def test_both_are_killed(tiffin: Command) -> None:
    tiffin("run", "-d", "--name", "job", "busybox", "sh", "-c", COUNT)
    keeper, daemon = tiffin.keeper(), tiffin.daemon()
    os.kill(daemon, signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: gone(keeper) and gone(daemon))
    assert tiffin("wait", "job") in ("7\n", "255\n")
    assert tiffin("logs", "job") == LINES


def test_commands_that_start_together_share_one_daemon(tiffin: Command) -> None:
    tiffin("system", "shutdown")
    done: list[subprocess.CompletedProcess[bytes]] = []
    threads = [
        threading.Thread(target=lambda: done.append(tiffin.result("images", "-q")))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(one.returncode, one.stderr) for one in done] == [(0, b"")] * 6
    assert len({one.stdout for one in done}) == 1


def test_a_second_owner_is_told_of_the_first(tiffin: Command) -> None:
    from tiffin.engine import Engine
    from tiffin.errors import RootInUse

    tiffin("images")
    try:
        Engine(tiffin.root)
    except RootInUse as error:
        assert str(tiffin.daemon()) in error.message
    else:
        raise AssertionError("two processes own one root")


def test_shutdown_stops_daemon_and_keeper(tiffin: Command) -> None:
    tiffin("run", "--rm", "busybox", "true")
    daemon, keeper = tiffin.daemon(), tiffin.keeper()
    tiffin("system", "shutdown")
    eventually(lambda: gone(daemon) and gone(keeper))
    assert not (tiffin.root / "tiffin.sock").exists()


def test_idle_processes_leave_by_themselves(tiffin: Command) -> None:
    tiffin("system", "shutdown")
    tiffin.environment["TIFFIN_IDLE_SECONDS"] = "0.5"
    tiffin("images")
    daemon = tiffin.daemon()
    eventually(lambda: gone(daemon))
    assert "busybox" in tiffin("images")


def test_a_build_that_is_killed_leaves_nothing_behind(tiffin: Command, tmp_path: Path) -> None:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(
        "FROM busybox\nRUN echo one > /one\nRUN dd if=/dev/zero of=/big bs=1M count=20; sleep 600\n"
    )
    build = tiffin.start("build", "-t", "x", str(folder), stdout=subprocess.PIPE)
    assert build.stdout is not None
    for line in build.stdout:
        if b"Step 3/3" in line:
            break
    daemon = tiffin.daemon()
    os.kill(daemon, signal.SIGKILL)
    build.wait(30)
    build.stdout.close()
    eventually(lambda: gone(daemon))
    assert "x" not in tiffin("images", "--format", "{{.Repository}}").split()
    assert tiffin("ps", "-aq") == ""
    eventually(lambda: not list(tiffin.root.glob("storage/**/big")))
    (folder / "Dockerfile").write_text("FROM busybox\nRUN echo one > /one\nRUN true\n")
    assert "Using cache" in tiffin("build", "-t", "x", str(folder))


@pytest.mark.parametrize(
    "script",
    [
        "echo started; sleep 600",
        "echo started; busybox yes",
        "echo started; exec >&- 2>&-; sleep 600",
    ],
    ids=["quiet", "flooding", "deaf"],
)
def test_interrupting_a_build_ends_what_it_started(
    tiffin: Command, tmp_path: Path, script: str
) -> None:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM busybox\nRUN {script}\n")
    build = tiffin.start("build", str(folder), stdout=subprocess.PIPE)
    assert build.stdout is not None
    for line in build.stdout:
        if b"started" in line:
            break
    build.send_signal(signal.SIGINT)
    assert build.wait(120) != 0
    build.stdout.close()
    # Refused as long as something runs.
    eventually(lambda: tiffin.result("system", "shutdown").returncode == 0)
