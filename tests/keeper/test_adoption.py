"""The daemon and the keeper are killed while containers run: nothing is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keeper.lab import Lab, eventually, read_all, read_until
from tiffin.keeper import adoption
from tiffin.keeper.client import KeeperClient

pytestmark = pytest.mark.root

DAEMON = """
import json, sys
from pathlib import Path
from tiffin.keeper.client import KeeperClient
request = json.load(sys.stdin)
client = KeeperClient(Path(request["root"]), lambda event: None, idle=request["idle"])
client.start("one", request["plan"], log=request["log"])
print("started", flush=True)
sys.stdin.close()
import threading; threading.Event().wait()
"""


def text(log: Path) -> str:
    return "".join(json.loads(line)["log"] for line in log.read_text().splitlines())


def numbers(count: int) -> str:
    return "".join(f"{number}\n" for number in range(1, count + 1))


def test_the_daemon_is_killed_and_the_next_one_gets_log_and_exit(lab: Lab) -> None:
    script = "for i in $(seq 2000); do echo $i; done; exit 9"
    request = {
        "root": str(lab.root),
        "idle": lab.idle,
        "plan": lab.plan("one", "sh", "-c", script),
        "log": {"path": str(lab.log("one"))},
    }
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert daemon.stdin is not None and daemon.stdout is not None
    with daemon.stdin, daemon.stdout:
        daemon.stdin.write(json.dumps(request).encode())
        daemon.stdin.close()
        assert daemon.stdout.readline() == b"started\n"
        daemon.kill()
        daemon.wait()
    (row,) = lab.client.list()
    assert row["id"] == "one"
    assert lab.exit("one") == 9
    assert text(lab.log("one")) == numbers(2000)


@pytest.mark.parametrize("log", [{}, {"max_size": 100_000, "max_file": 1000}])
def test_the_keeper_is_killed_again_and_again(lab: Lab, log: dict[str, Any]) -> None:
    count = 150_000
    path = lab.log("one")
    lab.sh("one", f"seq {count}; printf end; exit 9", log={"path": str(path), **log})
    chance = random.Random(1)
    for _ in range(8):
        time.sleep(chance.random() * 0.02)
        if any(event["event"] == "exited" for event in lab.events):
            break
        lab.kill_keeper()
        lab.client.list()
    assert lab.exit("one") == 9
    files = sorted(lab.root.glob("one.log.*"), key=lambda file: -int(file.name[8:]))
    assert "".join(text(file) for file in [*files, path]) == numbers(count) + "end"


def test_a_line_that_is_not_whole_survives(lab: Lab) -> None:
    client = lab.attach("one", stdin=True)
    lab.sh("one", "printf first; cat; echo third", open_stdin=True)
    read_until(client, b"first")
    lab.kill_keeper()
    assert lab.event("adopted", "one")["pid"]
    (row,) = lab.client.list()
    assert row["status"] == "running"
    client = lab.attach("one", stdin=True)
    client.sendall(b"second")
    read_until(client, b"second")
    lab.client.signal("one", signal.SIGKILL)
    assert lab.exit("one") == 137
    assert text(lab.log("one")) == "firstsecond"


def test_an_exit_while_there_is_no_keeper(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = lab.sh("one", "read a; echo last; exit 33", open_stdin=True, stdin_once=True)
    spawn: Callable[..., str] = lab.client._spawn

    def late(deadline: float) -> str:
        # Its stdin has ended with the keeper; so does the container.
        eventually(lambda: adoption.process_start(pid) is None)
        return spawn(deadline)

    monkeypatch.setattr(lab.client, "_spawn", late)
    lab.kill_keeper()
    assert lab.exit("one") == 33
    assert text(lab.log("one")) == "last\n"


def test_an_exit_that_nobody_saw_is_unknown(lab: Lab) -> None:
    pid = lab.sh("one", "read a; echo last; exit 33", open_stdin=True, stdin_once=True)
    (keeper,) = lab.keeper_pids()
    # The daemon goes first, then the keeper, and with them all that knew the process.
    lab.client.close()
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: adoption.process_start(pid) is None)
    lab.client = lab.connect()
    lab.client.ensure()
    assert lab.exit("one") is None


def test_a_terminal_outlives_the_keeper(lab: Lab) -> None:
    client = lab.attach("one", stdin=True, multiplexed=False)
    lab.sh("one", "echo ready; read a; echo got $a; exit 3", terminal=True)
    read_until(client, b"ready")
    lab.kill_keeper()
    lab.event("adopted", "one")
    client = lab.attach("one", stdin=True, multiplexed=False)
    client.sendall(b"word\r")
    assert read_all(client).endswith(b"got word\r\n")
    assert lab.exit("one") == 3


def test_a_terminal_reaches_a_new_daemon_and_a_new_keeper(lab: Lab) -> None:
    client = lab.attach("one", stdin=True, multiplexed=False)
    lab.sh("one", "echo ready; read a; echo got $a; exit 3", terminal=True)
    read_until(client, b"ready")
    lab.client.close()
    lab.client = lab.connect()
    lab.client.ensure()
    lab.kill_keeper()
    lab.event("adopted", "one")
    client = lab.attach("one", stdin=True, multiplexed=False)
    client.sendall(b"word\r")
    assert read_all(client).endswith(b"got word\r\n")
    assert lab.exit("one") == 3


def test_an_exec_of_a_dead_keeper_is_reported(lab: Lab) -> None:
    lab.start("one", "sleep", "1000")
    lab.exec("run", "one", "sleep", "1000")
    lab.kill_keeper()
    lab.event("lost")
    assert lab.exit("run") is None
    assert lab.event("adopted", "one")
    lab.client.signal("one", signal.SIGKILL)
    assert lab.exit("one") == 137


def test_an_exit_is_told_to_every_daemon_until_it_is_forgotten(lab: Lab) -> None:
    lab.sh("one", "exit 4")
    assert lab.exit("one") == 4
    told: list[dict[str, Any]] = []
    with KeeperClient(lab.root, told.append) as other:
        eventually(lambda: told or other.list() == [])
        eventually(lambda: told)
        assert (told[0]["id"], told[0]["code"]) == ("one", 4)
        other.forget("one")
    again: list[dict[str, Any]] = []
    with KeeperClient(lab.root, again.append) as other:
        assert other.list() == []
    assert again == []


def test_an_exit_outlives_an_idle_keeper(lab: Lab) -> None:
    lab.sh("one", "exit 4")
    lab.exit("one")
    lab.client.close()
    eventually(lambda: not lab.keeper_pids(), "an idle keeper leaves")
    assert not (lab.root / "keeper/keeper.sock").exists()
    lab.events.clear()
    lab.client = lab.connect()
    (row,) = lab.client.list()
    assert (row["status"], row["code"]) == ("exited", 4)


def test_a_container_that_was_being_started_is_ended(lab: Lab) -> None:
    pid = lab.start("one", "sleep", "1000")
    lab.kill_keeper()
    lab.event("adopted", "one")
    lab.client.shutdown(force=True)
    eventually(lambda: not lab.keeper_pids())
    state = lab.root / "keeper/one/state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"status": "starting"}))
    assert lab.client.list() == []
    eventually(lambda: adoption.process_start(pid) is None)
    assert not state.parent.exists()
