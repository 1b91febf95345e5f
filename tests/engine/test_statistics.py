"""What ``stats`` reads, and what clients compute from it."""

from __future__ import annotations

import os

from engine.life import create, eventually, started, state
from tiffin.engine import Engine
from tiffin.engine.timestamps import ZERO

ALONE = {"NetworkMode": "none"}


def test_two_readings_tell_the_share_of_the_cpus(engine: Engine) -> None:
    host = {**ALONE, "NanoCpus": 500_000_000, "PidsLimit": 50}
    container = started(engine, "sh", "-c", "while :; do :; done", host=host)
    first = engine.containers.stats(container)
    assert (first["preread"], first["precpu_stats"]["cpu_usage"]["total_usage"]) == (ZERO, 0)

    def measurable() -> bool:
        now = engine.containers.stats(container)["cpu_stats"]
        moved = now["system_cpu_usage"] > first["cpu_stats"]["system_cpu_usage"]
        return moved and now["cpu_usage"]["total_usage"] > 200_000_000

    eventually(measurable)
    second = engine.containers.stats(container, first)
    assert second["preread"] == first["read"] < second["read"]
    assert second["precpu_stats"] == first["cpu_stats"]
    now, before = second["cpu_stats"], second["precpu_stats"]
    used = now["cpu_usage"]["total_usage"] - before["cpu_usage"]["total_usage"]
    passed = now["system_cpu_usage"] - before["system_cpu_usage"]
    assert now["online_cpus"] == os.cpu_count()
    # Half a CPU at the most, whatever else the machine does; but ticks are coarse, and on a slow
    # one a tenth of a second is a short time.
    assert 0 < used / passed * now["online_cpus"] < 1.5
    assert second["pids_stats"] == {"current": 1, "limit": 50}


def test_memory_is_what_is_used_of_the_limit(engine: Engine) -> None:
    script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=30; read x"
    host = {**ALONE, "Memory": 100 << 20}
    container = started(engine, "sh", "-c", script, OpenStdin=True, host=host)
    eventually(lambda: engine.containers.stats(container)["memory_stats"]["usage"] > 30 << 20)
    memory = engine.containers.stats(container)["memory_stats"]
    assert memory["limit"] == 100 << 20
    assert memory["stats"].get("total_inactive_file", memory["stats"].get("inactive_file")) >= 0


def test_a_container_that_does_not_run_uses_nothing(engine: Engine) -> None:
    container = create(engine, "true", name="still")
    reading = engine.containers.stats(container)
    assert (reading["name"], reading["id"], reading["read"]) == ("/still", container, ZERO)
    assert reading["cpu_stats"]["cpu_usage"]["total_usage"] == 0
    assert reading["memory_stats"] == reading["pids_stats"] == {}
    assert "networks" not in reading
    assert state(engine, container)["Status"] == "created"
