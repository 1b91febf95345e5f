"""What ends at once, by many threads: every end is noticed, and told after its start."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.life import create, eventually, listening, output, started, state
from tiffin.engine import Engine
from tiffin.errors import Conflict
from tiffin.keeper.connection import NotAnswered
from tiffin.linux.cgroups import Hierarchy

ALONE = {"NetworkMode": "none"}


def together(work: Callable[[], None], threads: int = 6, times: int = 8) -> None:
    """Do it in several threads, so many times each; what one raises is raised."""
    failures: list[BaseException] = []

    def repeat() -> None:
        try:
            for _ in range(times):
                work()
        except BaseException as error:
            failures.append(error)

    crowd = [threading.Thread(target=repeat) for _ in range(threads)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    if failures:
        raise failures[0]


def test_short_containers_end_with_their_codes_and_logs(engine: Engine) -> None:
    def work() -> None:
        container = create(engine, "sh", "-c", "echo hi; exit 3", host=ALONE)
        waiter = engine.containers.wait_later(container, "next-exit")
        engine.containers.start(container)
        answer = waiter.result(60)
        assert answer is not None, state(engine, container)
        assert (answer["StatusCode"], output(engine, container)) == (3, b"hi\n")
        engine.containers.remove(container)

    with listening(engine) as listener:
        together(work)
        told: dict[str, list[str]] = {}
        listener.actions()
        for event in listener.heard:
            if event["Type"] == "container":
                told.setdefault(event["Actor"]["ID"], []).append(event["Action"])
    assert set(map(tuple, told.values())) == {("create", "start", "die", "destroy")}


def test_short_containers_are_removed_at_their_end(engine: Engine) -> None:
    def work() -> None:
        container = create(engine, "true", host={**ALONE, "AutoRemove": True})
        waiter = engine.containers.wait_later(container, "removed")
        engine.containers.start(container)
        assert waiter.result(60) is not None

    together(work)
    assert engine.containers.list(all=True) == []


def test_short_execs_end_with_their_codes_and_output(engine: Engine) -> None:
    container = started(engine, "sleep", "600", host=ALONE)
    body = {"Cmd": ["sh", "-c", "echo hi; exit 4"], "AttachStdout": True, "AttachStderr": True}

    def work() -> None:
        made = engine.containers.exec_create(container, body)["Id"]
        assert engine.containers.exec_output(made) == (4, b"hi\n", b"")
        assert engine.containers.exec_inspect(made)["ExitCode"] == 4

    with listening(engine) as listener:
        together(work)
        told: dict[str, list[str]] = {}
        listener.actions()
        for event in listener.heard:
            action = event["Action"].partition(":")[0]
            told.setdefault(event["Actor"]["Attributes"]["execID"], []).append(action)
    assert set(map(tuple, told.values())) == {("exec_create", "exec_start", "exec_die")}


def test_nothing_is_run_in_a_container_that_was_paused_meanwhile(engine: Engine) -> None:
    container = started(engine, "sleep", "600", host=ALONE)
    made = engine.containers.exec_create(container, {"Cmd": ["true"], "AttachStdout": True})["Id"]
    engine.containers.pause(container)
    with pytest.raises(Conflict, match="is paused, unpause the container before exec"):
        engine.containers.exec_start(made, detach=True)
    engine.containers.unpause(container)
    assert engine.containers.exec_output(made) == (0, b"", b"")


def test_a_paused_container_can_be_killed(engine: Engine) -> None:
    container = started(engine, "sleep", "600", host=ALONE)
    engine.containers.pause(container)
    engine.containers.kill(container)
    assert (state(engine, container)["Status"], state(engine, container)["ExitCode"]) == (
        "exited",
        137,
    )


def test_a_start_survives_the_keeper(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    other = started(engine, "sleep", "600", host=ALONE)
    keeper = engine.containers._lifecycle.keeper
    start = keeper.start
    deaths = []

    def dies(*args: Any, **fields: Any) -> dict[str, Any]:
        # It does what it was told, but dies before it can say so.
        answer = start(*args, **fields)
        if not deaths:
            deaths.append(answer)
            status = Path(f"/proc/{answer['pid']}/stat").read_text()
            os.kill(int(status.rpartition(")")[2].split()[1]), signal.SIGKILL)
            raise NotAnswered("the keeper died while it was asked to start")
        return answer

    monkeypatch.setattr(keeper, "start", dies)
    container = started(engine, "sh", "-c", "echo hi; sleep 600", host=ALONE)
    assert state(engine, container)["Pid"] == deaths[0]["pid"]
    eventually(lambda: output(engine, container) == b"hi\n")
    for name in (container, other):
        engine.containers.kill(name)
        assert state(engine, name)["Status"] == "exited"


def test_an_exec_that_cannot_begin_yet_holds_up_nobody(engine: Engine) -> None:
    container = started(engine, "sleep", "600", host=ALONE)
    group = engine.containers._lifecycle.launches.cgroup(engine.containers._roster.get(container))
    made = engine.containers.exec_create(container, {"Cmd": ["echo", "hi"], "AttachStdout": True})
    hierarchy = Hierarchy.detect()
    # Behind the engine's back, which would refuse the exec otherwise.
    hierarchy.freeze(group)
    answers: list[object] = []
    thread = threading.Thread(
        target=lambda: answers.append(engine.containers.exec_output(made["Id"]))
    )
    thread.start()
    try:
        assert engine.run("busybox", ["echo", "there"], network="none").stdout == b"there\n"
        assert answers == []
    finally:
        hierarchy.thaw(group)
        thread.join()
    assert answers == [(0, b"hi\n", b"")]
