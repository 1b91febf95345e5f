"""Health checks: what they run, what their results mean, and where one sees it."""

from __future__ import annotations

import io
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from conftest import busybox_tar
from engine.life import create, eventually, inside, listening, started, state
from tiffin.engine import Engine, health
from tiffin.engine.container import Container, Probe, Spec, State
from tiffin.errors import InvalidParameter

SECOND = 1_000_000_000
FAST = {"Interval": SECOND // 20, "Timeout": 20 * SECOND, "Retries": 2}


def check(*test: str, **more: Any) -> dict[str, Any]:
    return {"Healthcheck": {"Test": list(test), **FAST, **more}}


def health_of(engine: Engine, container: str) -> dict[str, Any]:
    found: dict[str, Any] = state(engine, container)["Health"]
    return found


def reaches(engine: Engine, container: str, status: str) -> None:
    eventually(lambda: health_of(engine, container)["Status"] == status, status)


def test_a_container_becomes_healthy_then_unhealthy_then_healthy(engine: Engine) -> None:
    with listening(engine) as listener:
        container = started(
            engine, "sleep", "60", **check("CMD-SHELL", "echo about to look; test ! -e /broken")
        )
        assert health_of(engine, container)["Status"] == "starting"
        assert engine.containers.list()[0]["Status"].endswith("(health: starting)")
        listener.wait("health_status: healthy")
        assert engine.containers.list()[0]["Status"].endswith("(healthy)")
        inside(engine, container, "touch", "/broken")
        listener.wait("health_status: unhealthy")
        found = health_of(engine, container)
        assert found["FailingStreak"] >= 2
        assert found["Log"][-1]["ExitCode"] == 1
        assert found["Log"][-1]["Output"] == "about to look\n"
        assert found["Log"][-1]["Start"] < found["Log"][-1]["End"]
        assert engine.containers.list()[0]["Status"].endswith("(unhealthy)")
        inside(engine, container, "rm", "/broken")
        listener.wait("health_status: healthy", 2)
        eventually(lambda: len(health_of(engine, container)["Log"]) == 5)
        assert health_of(engine, container)["FailingStreak"] == 0
        assert "exec_die" in listener.actions()


def test_ps_filters_by_health(engine: Engine) -> None:
    good = started(engine, "sleep", "60", **check("CMD", "true"))
    bad = started(engine, "sleep", "60", **check("CMD", "false"))
    plain = started(engine, "sleep", "60")
    reaches(engine, good, "healthy")
    reaches(engine, bad, "unhealthy")
    for value, container in (("healthy", good), ("unhealthy", bad), ("none", plain)):
        rows = engine.containers.list(filters={"health": [value]})
        assert [row["Id"] for row in rows] == [container]
    with pytest.raises(InvalidParameter, match="Unrecognised filter value for health: well"):
        engine.containers.list(filters={"health": ["well"]})


def test_a_check_that_takes_too_long_is_killed(engine: Engine) -> None:
    container = started(
        engine, "sleep", "60",
        **check("CMD-SHELL", "echo slow; exec sleep 77", Timeout=SECOND // 5, Retries=1),
    )  # fmt: skip
    reaches(engine, container, "unhealthy")
    (first, *_) = health_of(engine, container)["Log"]
    assert first["ExitCode"] == -1
    assert first["Output"] == "Health check exceeded timeout (200ms): slow\n"
    engine.containers.pause(container)
    pids = {row[1] for row in engine.containers.top(container)["Processes"]}
    assert len(pids) <= 2
    engine.containers.unpause(container)


def test_a_check_that_cannot_be_run_says_why(engine: Engine) -> None:
    container = started(engine, "sleep", "60", **check("CMD", "nonesuch", Retries=1))
    reaches(engine, container, "unhealthy")
    found = health_of(engine, container)["Log"][-1]
    assert found["ExitCode"] == -1
    assert "executable file not found" in found["Output"]


def test_output_is_cut(engine: Engine) -> None:
    script = "head -c 3000 /dev/zero | tr '\\0' a; head -c 3000 /dev/zero | tr '\\0' b >&2"
    container = started(engine, "sleep", "60", **check("CMD-SHELL", script))
    reaches(engine, container, "healthy")
    assert health_of(engine, container)["Log"][0]["Output"] == "a" * 3000 + "b" * 1096 + "..."


def test_checks_run_as_the_container_does(engine: Engine) -> None:
    container = started(
        engine, "sleep", "60", User="user", WorkingDir="/tmp", Env=["A=b c"],
        **check("CMD-SHELL", "id -u; pwd; echo $A"),
    )  # fmt: skip
    reaches(engine, container, "healthy")
    assert health_of(engine, container)["Log"][0]["Output"] == "1000\n/tmp\nb c\n"


def test_the_image_has_a_check_and_the_user_the_last_word(engine: Engine) -> None:
    engine.images.import_(
        io.BytesIO(busybox_tar()), "checked",
        changes=["CMD sleep 60", "HEALTHCHECK --interval=50ms --retries=7 CMD test -e /bin/sh"],
    )  # fmt: skip
    made = engine.containers.create({"Image": "checked"})["Id"]
    config = engine.containers.inspect(made)["Config"]["Healthcheck"]
    assert config == {
        "Test": ["CMD-SHELL", "test -e /bin/sh"], "Interval": 50_000_000, "Retries": 7,
    }  # fmt: skip
    engine.containers.start(made)
    reaches(engine, made, "healthy")
    merged = engine.containers.create({"Image": "checked", "Healthcheck": {"Retries": 2}})["Id"]
    config = engine.containers.inspect(merged)["Config"]["Healthcheck"]
    assert (config["Retries"], config["Interval"]) == (2, 50_000_000)
    none = engine.containers.create({"Image": "checked", "Healthcheck": {"Test": ["NONE"]}})["Id"]
    engine.containers.start(none)
    assert "Health" not in state(engine, none)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"Interval": 5}, "Interval in Healthcheck cannot be less than 1ms"),
        ({"StartInterval": 5}, "StartInterval in Healthcheck cannot be less than 1ms"),
        ({"Retries": -1}, "Retries in Healthcheck cannot be negative"),
        ({"Test": ["SHELL", "x"]}, "unknown health check 'SHELL'"),
        ({"Test": ["CMD"]}, "the health check CMD has no command"),
    ],
)
def test_checks_that_make_no_sense(engine: Engine, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        create(engine, "true", Healthcheck={"Test": ["CMD", "true"], **wrong})


def test_no_checks_while_paused_and_unhealthy_after_the_end(engine: Engine) -> None:
    container = started(engine, "sleep", "60", **check("CMD-SHELL", "echo x >> /tmp/n"))
    reaches(engine, container, "healthy")
    engine.containers.pause(container)
    with listening(engine) as listener:
        # Several intervals long; none of them begins a probe.
        threading.Event().wait(0.3)
        assert listener.actions() == []
        engine.containers.unpause(container)
        listener.wait("exec_die")
    engine.containers.stop(container, timeout=0)
    assert health_of(engine, container)["Status"] == "unhealthy"
    engine.containers.start(container)
    assert health_of(engine, container)["Status"] == "starting"
    reaches(engine, container, "healthy")


def test_one_thread_serves_all_checks(engine: Engine) -> None:
    many = [started(engine, "sleep", "60", **check("CMD", "true")) for _ in range(8)]
    for container in many:
        reaches(engine, container, "healthy")
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("health") == 1
    assert len(names) < 12


def test_checks_go_on_after_daemon_and_keeper_have_died(root: Path, busybox: Path) -> None:
    with Engine(root) as engine:
        engine.images.import_(io.BytesIO(busybox_tar()), "busybox")
        container = started(engine, "sleep", "60", **check("CMD-SHELL", "test ! -e /broken"))
        reaches(engine, container, "healthy")
    with Engine(root) as engine:
        assert health_of(engine, container)["Status"] == "healthy"
        (keeper,) = keepers(root)
        os.kill(keeper, signal.SIGKILL)
        eventually(lambda: keepers(root) not in ([], [keeper]))
        inside(engine, container, "touch", "/broken")
        reaches(engine, container, "unhealthy")
        engine.containers.remove(container, force=True)
        engine.shutdown_keeper()


def keepers(root: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(root) in line and any(b"keeper/__main__" in word for word in line):
                found.append(int(entry.name))
    return found


# The rules alone.


def container_with(**fields: Any) -> tuple[Container, health.Check]:
    config = {"Healthcheck": {"Test": ["CMD", "x"], "Interval": 30 * SECOND, **fields}}
    spec = Spec(config, {}, {}, [], "")
    container = Container("i", "n", "image", None, "s", spec, State(started=100 * SECOND), 0)
    health.at_start(container)
    found = health.check_of(container)
    assert found is not None
    return container, found


def probe(at: float, code: int) -> Probe:
    return Probe(int(at * SECOND), int(at * SECOND) + 1, code, "")


def test_failures_in_the_start_period_do_not_count_until_it_was_healthy() -> None:
    container, found = container_with(StartPeriod=10 * SECOND, Retries=1)
    assert not health.record(container, found, probe(105, 1))
    assert health.status(container) == "starting"
    assert health.pause(container, found, 105 * SECOND) == 5
    assert health.record(container, found, probe(106, 0))
    assert health.pause(container, found, 106 * SECOND) == 30
    assert health.record(container, found, probe(107, 1))
    assert health.status(container) == "unhealthy"


def test_after_the_start_period_failures_count() -> None:
    container, found = container_with(StartPeriod=10 * SECOND)
    for at in (111, 112):
        assert not health.record(container, found, probe(at, 2))
    assert health.pause(container, found, 112 * SECOND) == 30
    assert health.record(container, found, probe(113, 2))


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (SECOND, "1s"),
        (90 * SECOND, "1m30s"),
        (1_500_000_000, "1.5s"),
        (3600 * SECOND, "1h0m0s"),
        (1_500_000, "1.5ms"),
    ],
)
def test_durations_as_go_writes_them(nanoseconds: int, text: str) -> None:
    assert health.duration(nanoseconds) == text
