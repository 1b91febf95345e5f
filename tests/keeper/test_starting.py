"""A start that hangs holds up nobody, and leaves nothing whichever way it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest

from keeper.lab import PATIENCE, Lab, eventually, read_all
from tiffin.errors import Conflict, NotFound, StartFailure, TiffinError
from tiffin.keeper.client import KeeperClient
from tiffin.linux.cgroups import Hierarchy

pytestmark = pytest.mark.root


class Hanging:
    """A container whose start hangs until it is let go: it opens a FIFO that nobody writes to."""

    def __init__(self, lab: Lab, client: KeeperClient, *args: str) -> None:
        self.lab = lab
        self.fifo = lab.root / "fifo"
        os.mkfifo(self.fifo)
        self.plan = lab.plan("hanging", *args)
        self.plan["operations"].insert(0, ["join", "uts", str(self.fifo)])
        self.outcome: list[object] = []
        self._client = client
        self._thread = threading.Thread(target=self._start)
        self._thread.start()
        eventually(lambda: self.waiting(), "the start does not hang")

    def _start(self) -> None:
        try:
            self.outcome.append(self._client.start("hanging", self.plan))
        except TiffinError as error:
            self.outcome.append(error)

    def waiting(self) -> list[int]:
        """The keeper's children that have not become a program, and sleep."""
        found = []
        for keeper in self.lab.keeper_pids():
            for child in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split():
                with contextlib.suppress(OSError):
                    place = Path(f"/proc/{child}")
                    own = (place / "cmdline").read_bytes()
                    state = (place / "stat").read_text().rpartition(")")[2].split()[0]
                    if own == Path(f"/proc/{keeper}/cmdline").read_bytes() and state == "S":
                        found.append(int(child))
        return found

    def join(self) -> object:
        """What became of it."""
        self._thread.join(PATIENCE)
        (outcome,) = self.outcome
        return outcome

    def left(self) -> list[str]:
        """What there is still of it."""
        cgroup = str(self.plan["cgroup"]["name"])
        places = [self.lab.root / "keeper/hanging"]
        groups = [cgroup] if Hierarchy.detect().exists(cgroup) else []
        return [str(place) for place in places if place.exists()] + groups


def test_a_start_that_hangs_holds_up_nobody(lab: Lab) -> None:
    hanging = Hanging(lab, lab.client, "true")
    lab.start("other", "sleep", "1000")
    assert read_all(lab.exec("inside", "other", "echo", "here")) == b"here\n"
    lab.client.signal("other", signal.SIGKILL)
    assert lab.exit("other") == 128 + signal.SIGKILL
    assert [row["id"] for row in lab.client.list()] == ["other"], "it does not run yet"
    with pytest.raises(Conflict, match="running already"):
        lab.client.start("hanging", hanging.plan)
    with pytest.raises(Conflict, match="being started"):
        lab.client.forget("hanging")
    with pytest.raises(NotFound, match="not running"):
        lab.client.signal("hanging", signal.SIGTERM)
    # Not a namespace; so the start fails now.
    hanging.fifo.write_bytes(b"")
    failure = hanging.join()
    assert isinstance(failure, StartFailure)
    assert "uts" in failure.message
    eventually(lambda: not hanging.left())


def test_the_end_of_a_process_that_is_killed_on_its_way_is_told_after_its_start(lab: Lab) -> None:
    attached = lab.attach("hanging", multiplexed=False)
    hanging = Hanging(lab, lab.client, "true")
    (pid,) = hanging.waiting()
    os.kill(pid, signal.SIGKILL)
    assert isinstance(hanging.join(), dict)
    assert lab.exit("hanging") == 128 + signal.SIGKILL
    assert read_all(attached) == b""


def test_a_start_ends_with_the_daemon_that_asked_for_it(lab: Lab) -> None:
    lab.start("other", "sleep", "1000")
    client = lab.connect()
    hanging = Hanging(lab, client, "true")
    (pid,) = hanging.waiting()
    client.close()
    assert isinstance(hanging.join(), TiffinError)
    eventually(lambda: not hanging.left())
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert [row["id"] for row in lab.client.list()] == ["other"]
    lab.client.signal("other", signal.SIGKILL)


def test_a_start_ends_with_the_keeper(lab: Lab) -> None:
    hanging = Hanging(lab, lab.client, "true")
    (pid,) = hanging.waiting()
    os.kill(
        int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL
    )
    assert isinstance(hanging.join(), TiffinError)
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    eventually(lambda: not hanging.left())
