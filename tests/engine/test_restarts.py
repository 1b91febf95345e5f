"""Restart policies: who comes back, when, and how often; also after the daemon has died."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import pytest

from conftest import busybox_tar
from engine.life import create, eventually, listening, started, state
from tiffin.engine import Engine, restarts
from tiffin.engine.container import Container, Spec, State
from tiffin.errors import Conflict, InvalidParameter, NotModified


def policy(name: str, most: int = 0) -> dict[str, object]:
    return {"RestartPolicy": {"Name": name, "MaximumRetryCount": most}}


def container_of(name: str, most: int = 0, state: State | None = None) -> Container:
    spec = Spec({}, policy(name, most), {}, [], "")
    return Container("i", "n", "image", None, "s", spec, state or State(), 0)


@pytest.mark.parametrize(
    ("name", "most", "code", "before", "by_hand", "again"),
    [
        ("no", 0, 1, 0, False, False),
        ("always", 0, 0, 0, False, True),
        ("always", 0, 0, 0, True, False),
        ("unless-stopped", 0, 1, 5, False, True),
        ("unless-stopped", 0, 1, 5, True, False),
        ("on-failure", 0, 0, 0, False, False),
        ("on-failure", 0, 1, 99, False, True),
        ("on-failure", 3, 1, 2, False, True),
        ("on-failure", 3, 1, 3, False, False),
    ],
)
def test_who_is_wanted_again(
    name: str, most: int, code: int, before: int, by_hand: bool, again: bool
) -> None:
    container = container_of(name, most, State(restarts=before, stopped_by_hand=by_hand))
    assert restarts.wanted(container, code) is again


def test_the_delay_doubles_up_to_a_minute_and_begins_anew_after_ten_seconds() -> None:
    container = container_of("always")
    delays = [restarts.delay(container, 0) for _ in range(12)]
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == 60.0
    assert restarts.delay(container, 10 * 10**9) == 0.1


@pytest.mark.parametrize(
    ("host", "message"),
    [
        (policy("sometimes"), "unknown policy 'sometimes'; use one of 'no', 'always'"),
        (policy("always", 3), "maximum retry count can only be used with 'on-failure'"),
        (policy("on-failure", -1), "maximum retry count cannot be negative"),
        ({**policy("always"), "AutoRemove": True}, "can't create 'AutoRemove' container with"),
    ],
)
def test_policies_that_make_no_sense(engine: Engine, host: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        create(engine, "true", host=host)


def test_on_failure_tries_so_many_times(engine: Engine) -> None:
    with listening(engine) as listener:
        container = started(engine, "sh", "-c", "exit 3", host=policy("on-failure", 2))
        listener.wait("die", 3)
        assert [action for action in listener.actions() if action in ("start", "die")] == [
            "start", "die", "start", "die", "start", "die",
        ]  # fmt: skip
    found = engine.containers.inspect(container)
    assert (found["RestartCount"], found["State"]["ExitCode"]) == (2, 3)


def test_a_restarting_container_can_be_stopped_and_removed(engine: Engine) -> None:
    with listening(engine) as listener:
        container = started(engine, "true", host=policy("always"))
        # After this one the next start comes in 1.6 seconds.
        listener.wait("die", 5)
    found = state(engine, container)
    assert (found["Running"], found["Restarting"], found["Pid"]) == (True, True, 0)
    (row,) = engine.containers.list()
    assert row["State"] == "restarting"
    assert row["Status"].startswith("Restarting (0) ")
    with pytest.raises(NotModified):
        engine.containers.start(container)
    with pytest.raises(Conflict, match="container is restarting: stop the container before"):
        engine.containers.remove(container)
    engine.containers.stop(container)
    assert state(engine, container)["Status"] == "exited"
    with pytest.raises(NotModified):
        engine.containers.stop(container)
    engine.containers.remove(container)


def test_a_container_that_was_killed_by_hand_stays_down(engine: Engine) -> None:
    container = started(engine, "sleep", "60", host=policy("always"))
    engine.containers.kill(container)
    engine.containers.wait(container)
    assert state(engine, container)["Status"] == "exited"
    # Until it is started again; then the policy holds as before.
    engine.containers.start(container)
    _kill(state(engine, container)["Pid"])
    eventually(lambda: engine.containers.inspect(container)["RestartCount"] == 1)


def test_wait_hears_of_each_end_with_its_own_code(engine: Engine) -> None:
    container = create(
        engine, "sh", "-c", "echo x >> /n; exit $(wc -l < /n)", host=policy("on-failure", 2)
    )
    first = engine.containers.wait_later(container, "next-exit")
    engine.containers.start(container)
    assert first.result(20) == {"StatusCode": 1, "Error": None}
    eventually(lambda: state(engine, container)["Status"] == "exited")
    assert first.result(0) is not None
    assert engine.containers.wait(container) == {"StatusCode": 3, "Error": None}


def test_an_update_of_the_policy_holds_for_the_next_end(engine: Engine) -> None:
    container = started(engine, "sleep", "60")
    engine.containers.update(container, policy("on-failure", 1))
    with listening(engine) as listener:
        _kill(state(engine, container)["Pid"])
        listener.wait("start")
    assert engine.containers.inspect(container)["RestartCount"] == 1
    engine.containers.update(container, policy("no"))
    _kill(state(engine, container)["Pid"])
    eventually(lambda: state(engine, container)["Status"] == "exited")
    kept = create(engine, "true", host={"AutoRemove": True})
    with pytest.raises(InvalidParameter, match="cannot be updated because AutoRemove is enabled"):
        engine.containers.update(kept, policy("always"))


def _kill(pid: int) -> None:
    """Not by the engine, which would take it for somebody's wish."""
    os.kill(pid, signal.SIGKILL)


def test_removal_after_the_end_does_not_disturb_a_restart_by_hand(engine: Engine) -> None:
    container = started(engine, "sleep", "60", host={"AutoRemove": True})
    engine.containers.restart(container, timeout=0)
    assert state(engine, container)["Status"] == "running"
    waiter = engine.containers.wait_later(container, "removed")
    engine.containers.stop(container, timeout=0)
    assert waiter.result(20) is not None


def test_what_ended_without_a_daemon_is_restarted_by_the_next(root: Path, busybox: Path) -> None:
    with Engine(root) as engine:
        engine.images.import_(io.BytesIO(busybox_tar()), "busybox", changes=["CMD sh"])
        kept = started(engine, "sleep", "60", host=policy("always"), name="kept")
        plain = started(engine, "sleep", "60", name="plain")
        stopped = started(engine, "sleep", "60", host=policy("always"), name="stopped")
        engine.containers.stop(stopped, timeout=0)
        pids = [state(engine, one)["Pid"] for one in (kept, plain)]
    for pid in pids:
        _kill(pid)
    with Engine(root) as engine:
        eventually(lambda: state(engine, kept)["Status"] == "running")
        assert engine.containers.inspect(kept)["RestartCount"] == 1
        assert [state(engine, one)["Status"] for one in (plain, stopped)] == ["exited", "exited"]
        for one in (kept, plain, stopped):
            engine.containers.remove(one, force=True)
        engine.shutdown_keeper()


def test_a_daemon_that_stays_starts_always_what_shall_always_run(root: Path, busybox: Path) -> None:
    # What Docker 20.10 and 26.1 do.
    with Engine(root) as engine:
        engine.images.import_(io.BytesIO(busybox_tar()), "busybox", changes=["CMD sh"])
        for name in ("always", "unless-stopped", "on-failure", "no"):
            started(engine, "sleep", "60", host=policy(name), name=name)
            engine.containers.stop(name, timeout=0)
        create(engine, "sleep", "60", host=policy("always"), name="never-started")
    with Engine(root) as engine:
        # One that a command has started leaves alone what was stopped.
        assert {row["State"] for row in engine.containers.list(all=True)} == {"exited", "created"}
    with Engine(root, lasting=True) as engine:
        for name in ("always", "on-failure"):
            eventually(lambda name=name: state(engine, name)["Status"] == "running")
        assert state(engine, "unless-stopped")["Status"] == "exited"
        assert state(engine, "no")["Status"] == "exited"
        assert state(engine, "never-started")["Status"] == "created"
        for row in engine.containers.list(all=True):
            engine.containers.remove(row["Id"], force=True)
        engine.shutdown_keeper()


def test_after_a_boot_always_means_always(
    root: Path, busybox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(root) as engine:
        engine.images.import_(io.BytesIO(busybox_tar()), "busybox", changes=["CMD sh"])
        names = ("always", "unless-stopped", "no")
        containers = {
            name: started(engine, "sleep", "60", host=policy(name), name=name) for name in names
        }
        running = started(engine, "sleep", "60", host=policy("unless-stopped"), name="running")
        for one in containers.values():
            engine.containers.stop(one, timeout=0)
        pid = state(engine, running)["Pid"]
        monkeypatch.setattr(engine._lifecycle, "boot", "another")
        for name in names:
            engine.containers.start(name)
            engine.containers.stop(name, timeout=0)
    _kill(pid)
    with Engine(root) as engine:
        eventually(lambda: state(engine, "always")["Status"] == "running")
        eventually(lambda: state(engine, "running")["Status"] == "running")
        assert state(engine, "unless-stopped")["Status"] == "exited"
        assert state(engine, "no")["Status"] == "exited"
        for row in engine.containers.list(all=True):
            engine.containers.remove(row["Id"], force=True)
        engine.shutdown_keeper()


def test_a_start_that_was_not_written_down_ends_the_rest(root: Path, busybox: Path) -> None:
    """As if the daemon had died right after the keeper had started the container."""
    with Engine(root) as engine:
        engine.images.import_(io.BytesIO(busybox_tar()), "busybox", changes=["CMD sh"])
        one = started(engine, "sleep", "600", host=policy("always"))
        engine.containers.stop(one, timeout=0)
        (before,) = engine._database.all("SELECT state FROM containers")
        engine.containers.start(one)
        pid = state(engine, one)["Pid"]
        engine._database.execute("UPDATE containers SET state = ?", (before["state"],))
    with Engine(root) as engine:
        assert state(engine, one)["Pid"] == pid
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: engine.containers.inspect(one)["RestartCount"] == 1)
        eventually(lambda: state(engine, one)["Status"] == "running")
        engine.containers.remove(one, force=True)
        engine.shutdown_keeper()
