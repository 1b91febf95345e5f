"""What fails for one, or for want of descriptors, ends neither the keeper nor the others."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path

import pytest

import tiffin
from keeper.lab import Lab, eventually, read_all
from tiffin.errors import TiffinError
from tiffin.keeper import adoption
from tiffin.keeper.client import KeeperClient
from tiffin.linux.cgroups import Hierarchy
from tiffin.linux.sockets import connect_unix
from tiffin.runtime import foreign

pytestmark = pytest.mark.root


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def room_for(pid: int, count: int | None) -> None:
    """Let a process open so many more descriptors; None: as many as it likes."""
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = (number for number in range(hard) if number not in used)
    limit = hard if count is None else next(n for index, n in enumerate(free) if index == count)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.parametrize("terminal", [False, True])
def test_too_few_descriptors_refuse_a_start_and_leave_nothing(lab: Lab, terminal: bool) -> None:
    lab.start("other", "sleep", "1000")
    lab.start("warm", "true", terminal=terminal)
    lab.exit("warm")
    lab.client.forget("warm")
    (pid,) = lab.keeper_pids()
    before = descriptors(pid)
    started = 0
    for room in range(24):
        name = f"c{room}"
        room_for(pid, room)
        try:
            lab.start(name, "sleep", "1000", terminal=terminal)
        except TiffinError:
            # Whatever can't be had.
            room_for(pid, None)
            assert name not in [row["id"] for row in lab.client.list()]
        else:
            room_for(pid, None)
            started += 1
            lab.client.signal(name, signal.SIGKILL)
            assert lab.exit(name) == 128 + signal.SIGKILL
            lab.client.forget(name)
        eventually(lambda: len(children(pid)) == 1, "a child is left")
        eventually(lambda: descriptors(pid) <= before, f"a descriptor is left with {room}")
        assert not (lab.root / "keeper" / name).exists()
    assert 0 < started < 24


@pytest.mark.parametrize("terminal", [False, True])
def test_too_few_descriptors_refuse_an_exec_and_leave_nothing(lab: Lab, terminal: bool) -> None:
    lab.start("one", "sleep", "1000")
    (pid,) = lab.keeper_pids()
    read_all(lab.exec("warm", "one", "true", terminal=terminal))
    lab.exit("warm")
    before = descriptors(pid)
    ran = 0
    # A connection that can't be taken over costs the daemon its own: so from one on.
    for room in range(1, 16):
        room_for(pid, room)
        try:
            client = lab.exec(f"e{room}", "one", "true", terminal=terminal)
        except TiffinError:
            room_for(pid, None)
        else:
            room_for(pid, None)
            ran += 1
            assert read_all(client) == b""
            assert lab.exit(f"e{room}") == 0
        eventually(lambda: len(children(pid)) == 1, "a child is left")
        eventually(lambda: descriptors(pid) <= before, f"a descriptor is left with {room}")
        assert [row["id"] for row in lab.client.list()] == ["one"]
    assert 0 < ran < 15


def test_a_connection_that_cannot_be_taken_yet_is_taken_later(lab: Lab) -> None:
    lab.start("other", "sleep", "1000")
    (pid,) = lab.keeper_pids()
    room_for(pid, 0)
    with socket.socket(socket.AF_UNIX) as waiting:
        connect_unix(waiting, lab.root / "keeper/keeper.sock")
        log = lab.root / "keeper/keeper.log"
        eventually(lambda: "cannot be taken yet" in log.read_text())
        assert len(lab.client.list()) == 1, "those that it has are served"
        room_for(pid, None)
        with lab.connect() as client:
            assert len(client.list()) == 1


_FAILING_KEEPER = """
import sys
sys.path.insert(0, {source!r})
from tiffin.keeper import container
from tiffin.keeper.__main__ import main
whole = container.Container._settle
def settle(self):
    if self.id == "bad":
        raise RuntimeError("on purpose")
    whole(self)
container.Container._settle = settle
main(sys.argv[1:])
"""


def test_one_end_that_fails_does_not_keep_the_others_from_being_told(
    lab: Lab, tmp_path: Path
) -> None:
    program = tmp_path / "failing-keeper"
    source = str(Path(tiffin.__file__).parents[1])
    program.write_text(_FAILING_KEEPER.format(source=source))
    lab.client.close()
    lab.client = KeeperClient(
        lab.root, lab._heard, idle=lab.idle, command=[sys.executable, "-I", "-S", str(program)]
    )
    bad = lab.start("bad", "sleep", "1000")
    lab.start("good", "sleep", "1000")
    (keeper,) = lab.keeper_pids()
    os.kill(bad, signal.SIGKILL)
    eventually(lambda: len(children(keeper)) == 1)
    lab.client.signal("good", signal.SIGKILL)
    assert lab.exit("good") == 128 + signal.SIGKILL
    # Nobody can tell of the bad one's end, but the next keeper.
    lab.client.close()
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: keeper not in lab.keeper_pids())
    lab.client = lab.connect()
    lab.client.ensure()
    lab.exit("bad")


def test_a_container_whose_streams_are_lost_is_adopted_all_the_same(lab: Lab) -> None:
    lab.start("one", "sleep", "1000")
    lab.start("two", "sleep", "1000")
    lab.client.shutdown(force=True)
    eventually(lambda: not lab.keeper_pids())
    for name in ("stdout", "stderr"):
        (lab.root / "keeper/one" / name).unlink()
    rows = {row["id"]: row["status"] for row in lab.client.list()}
    assert rows == {"one": "running", "two": "running"}
    for name in rows:
        lab.client.signal(name, signal.SIGKILL)
        lab.exit(name)


def test_what_a_runtime_was_making_when_its_keeper_was_killed_is_removed(lab: Lab) -> None:
    pid = lab.start("one", "sleep", "1000")
    lab.client.shutdown(force=True)
    eventually(lambda: not lab.keeper_pids())
    path = lab.root / "keeper/one/state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"status": "starting"}))
    hierarchy = Hierarchy.detect()
    group = foreign.monitor_group(state["cgroup"])
    hierarchy.create(group, {}, None)
    places = [Path(foreign.STATE) / "crun" / kind / "one" for kind in ("bundles", "state")]
    try:
        for place in places:
            place.mkdir(parents=True)
            (place / "config.json").touch()
        assert lab.client.list() == []
        eventually(lambda: adoption.process_start(pid) is None)
        eventually(lambda: not hierarchy.exists(group))
        assert not any(place.exists() for place in places)
    finally:
        hierarchy.delete(group)
        for place in places:
            with contextlib.suppress(FileNotFoundError):
                foreign.remove(str(place))
