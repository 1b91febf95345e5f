"""Stopping, waiting, removal after the end, and execs with everything that they may have."""

from __future__ import annotations

import io
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from conftest import busybox_tar
from engine.life import (
    PATIENCE,
    create,
    eventually,
    inside,
    listening,
    output,
    started,
    state,
)
from tiffin.engine import Engine
from tiffin.errors import Conflict, InvalidParameter, NotFound, NotModified

TRAP = "trap 'echo got it; exit 7' USR1; echo ready; while :; do sleep 0.05; done"


def ready(engine: Engine, container: str) -> None:
    eventually(lambda: b"ready" in output(engine, container))


def test_the_stop_signal_is_the_container_s_own(engine: Engine) -> None:
    container = started(engine, "sh", "-c", TRAP, StopSignal="SIGUSR1")
    ready(engine, container)
    with listening(engine) as listener:
        engine.containers.stop(container)
        listener.wait("stop")
    assert state(engine, container)["ExitCode"] == 7
    assert [action for action in listener.actions() if action in ("kill", "die", "stop")] == [
        "kill",
        "die",
        "stop",
    ]
    assert listener.wait("kill")["Actor"]["Attributes"]["signal"] == str(int(signal.SIGUSR1))


def test_stop_may_say_another_signal(engine: Engine) -> None:
    container = started(engine, "sh", "-c", TRAP)
    ready(engine, container)
    engine.containers.stop(container, signal="USR1")
    assert state(engine, container)["ExitCode"] == 7


def test_a_signal_that_there_is_none(engine: Engine) -> None:
    container = started(engine, "sleep", "1000")
    with pytest.raises(InvalidParameter, match=r"^invalid signal: NOSUCH"):
        engine.containers.stop(container, signal="NOSUCH")
    with pytest.raises(InvalidParameter, match=f"cannot kill container: {container}: invalid"):
        engine.containers.kill(container, "NOSUCH")
    engine.containers.kill(container)
    # What does not run is stopped, by whichever signal.
    with pytest.raises(NotModified):
        engine.containers.stop(container, signal="NOSUCH")


def test_a_condition_that_there_is_none_is_refused_before_the_container_is_sought(
    engine: Engine,
) -> None:
    with pytest.raises(InvalidParameter, match="invalid condition"):
        engine.containers.wait_later("nosuch", "sometime")


@pytest.mark.parametrize("given", [None, 0])
def test_after_the_stop_timeout_it_is_killed(engine: Engine, given: int | None) -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    container = started(engine, "sh", "-c", script, StopTimeout=1 if given is None else 60)
    ready(engine, container)
    engine.containers.stop(container, timeout=given)
    assert state(engine, container)["ExitCode"] == 137


def test_a_paused_container_can_be_stopped(engine: Engine) -> None:
    container = started(engine, "sh", "-c", TRAP, StopSignal="SIGUSR1")
    ready(engine, container)
    engine.containers.pause(container)
    engine.containers.stop(container)
    assert state(engine, container)["ExitCode"] == 7


def test_wait_has_three_conditions(engine: Engine) -> None:
    container = create(engine, "sh", "-c", "exit 4")
    assert engine.containers.wait(container, "not-running") == {"StatusCode": 0, "Error": None}
    next_exit = engine.containers.wait_later(container, "next-exit")
    removed = engine.containers.wait_later(container, "removed")
    assert next_exit.result(0) is None
    engine.containers.start(container)
    assert next_exit.result(PATIENCE) == {"StatusCode": 4, "Error": None}
    assert engine.containers.wait(container, "not-running") == {"StatusCode": 4, "Error": None}
    assert removed.result(0) is None
    engine.containers.remove(container)
    assert removed.result(PATIENCE) == {"StatusCode": 4, "Error": None}
    with pytest.raises(InvalidParameter, match='invalid condition: "sometime"'):
        engine.containers.wait_later(create(engine, "true"), "sometime")


def test_removal_after_the_end_survives_the_daemon(root: Path, busybox: Path) -> None:
    with Engine(root) as engine:
        engine.images.import_(io.BytesIO(busybox_tar()), "busybox")
        container = started(engine, "sleep", "60", host={"AutoRemove": True})
        pid = state(engine, container)["Pid"]
    os.kill(pid, signal.SIGKILL)
    with Engine(root) as engine:

        def gone() -> bool:
            return engine.containers.list(all=True) == []

        eventually(gone)
        eventually(lambda: not os.listdir(root / "containers"))
        with pytest.raises(NotFound):
            engine.containers.inspect(container)
        engine.shutdown_keeper()


def test_output_keeps_its_order_across_both_streams(engine: Engine) -> None:
    """Each write waits until the one before has been read: that is what pipes allow."""
    script = "for i in 1 2 3 4 5; do echo out $i; sleep 0.05; echo err $i >&2; sleep 0.05; done"
    container = started(engine, "sh", "-c", script)
    engine.containers.wait(container)
    wanted = b"".join(b"out %d\nerr %d\n" % (number, number) for number in range(1, 6))
    assert output(engine, container) == wanted


# Execs.


def test_an_exec_has_its_own_user_place_and_variables(engine: Engine) -> None:
    container = started(engine, "sleep", "60", Env=["A=1", "B=2"], WorkingDir="/var")
    assert inside(engine, container, "sh", "-c", "id -u; pwd; echo $A $B").split() == [
        "0", "/var", "1", "2",
    ]  # fmt: skip
    made = engine.containers.exec_create(
        container,
        {
            "Cmd": ["sh", "-c", "id -u; id -g; pwd; echo $A $B $HOME"],
            "User": "user:extra",
            "WorkingDir": "/tmp",
            "Env": ["B=3"],
            "AttachStdout": True,
        },
    )
    code, out, _ = engine.containers.exec_output(made["Id"])
    assert (code, out.split()) == (0, [b"1000", b"2000", b"/tmp", b"1", b"3", b"/home"])


def test_an_exec_is_under_the_container_s_limits(engine: Engine) -> None:
    host = {
        "Memory": 64 << 20, "PidsLimit": 12,
        "Ulimits": [{"Name": "nofile", "Soft": 100, "Hard": 200}],
    }  # fmt: skip
    container = started(engine, "sleep", "60", host=host)
    assert inside(engine, container, "sh", "-c", "ulimit -n; ulimit -Hn").split() == ["100", "200"]
    groups = inside(engine, container, "cat", "/proc/self/cgroup")
    assert "memory:/\n" in groups + "\n"
    command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M"]
    made = engine.containers.exec_create(container, {"Cmd": command})
    with listening(engine) as listener:
        engine.containers.exec_start(made["Id"], detach=True)
        listener.wait("oom")
        assert listener.wait("exec_die")["Actor"]["Attributes"]["exitCode"] == "137"
    assert state(engine, container)["Status"] == "running"


def test_an_exec_may_have_a_terminal(engine: Engine) -> None:
    container = started(engine, "sleep", "60")
    made = engine.containers.exec_create(
        container,
        {
            "Cmd": ["sh", "-c", "tty; stty size; echo $TERM"],
            "Tty": True,
            "AttachStdout": True,
            "ConsoleSize": [24, 80],
        },
    )
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    with ours:
        with theirs:
            engine.containers.exec_start(made["Id"], theirs)
        data = b""
        while part := ours.recv(4096):
            data += part
    assert data.split() == [b"/dev/pts/0", b"24", b"80", b"xterm"]


def test_execs_are_told_of_and_end_with_their_code(engine: Engine) -> None:
    container = started(engine, "sleep", "60")
    with listening(engine) as listener:
        made = engine.containers.exec_create(container, {"Cmd": ["sh", "-c", "exit 9"]})
        engine.containers.exec_start(made["Id"], detach=True)
        listener.wait("exec_die")
        assert listener.actions() == [
            "exec_create: sh -c exit 9",
            "exec_start: sh -c exit 9",
            "exec_die",
        ]
        told = listener.wait("exec_die")["Actor"]["Attributes"]
    assert (told["exitCode"], told["execID"]) == ("9", made["Id"])
    found = engine.containers.exec_inspect(made["Id"])
    assert (found["ExitCode"], found["Running"]) == (9, False)
    with pytest.raises(Conflict, match="has already run"):
        engine.containers.exec_start(made["Id"], detach=True)


def test_an_end_told_before_the_start_is_written_down_is_not_lost(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifecycle = engine._lifecycle
    start, told = lifecycle.keeper.start, threading.Event()
    container = create(engine, "true")

    def hear(event: dict[str, Any]) -> None:
        lifecycle.keeper_event(event)
        if event["event"] == "exited":
            told.set()

    def start_late(*words: Any, **options: Any) -> dict[str, Any]:
        answer = start(*words, **options)
        # Either the end has been heard by now, or whoever hears it waits for this start.
        told.wait(0.5)
        return answer

    monkeypatch.setattr(lifecycle.keeper, "_on_event", hear)
    monkeypatch.setattr(lifecycle.keeper, "start", start_late)
    engine.containers.start(container)
    assert engine.containers.wait_later(container).result(PATIENCE) is not None
    assert state(engine, container)["Status"] == "exited"


def test_old_execs_are_forgotten(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiffin.engine import execs

    container = started(engine, "sleep", "60")
    made = [engine.containers.exec_create(container, {"Cmd": ["true"]})["Id"] for _ in range(3)]
    with listening(engine) as listener:
        for one in made:
            engine.containers.exec_start(one, detach=True)
        listener.wait("exec_die", 3)
    assert engine.containers.exec_inspect(made[0])["ExitCode"] == 0
    monkeypatch.setattr(execs, "_KEPT_SECONDS", -1.0)
    engine.containers.exec_create(container, {"Cmd": ["true"]})
    with pytest.raises(NotFound, match="No such exec instance"):
        engine.containers.exec_inspect(made[0])
