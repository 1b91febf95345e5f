"""Limits: set at creation, changed while a container runs, refused in Docker's words."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from engine.life import create, eventually, inside, listening, output, started, state
from tiffin.engine import Engine, limits
from tiffin.errors import Conflict, InvalidParameter, Unsupported
from tiffin.linux.cgroups import Hierarchy

MIB = 1 << 20
HIERARCHY = Hierarchy.detect() if os.path.exists("/proc/self/mountinfo") else Hierarchy([])


def setting(engine: Engine, container: str, controller: str, file: str) -> str:
    """A file of the container's cgroup."""
    pid = state(engine, container)["Pid"]
    if HIERARCHY.by_name:
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            if controller in names.split(","):
                return Path(f"{HIERARCHY.by_name[controller]}{path}/{file}").read_text().strip()
    pytest.skip("cgroup version 1 only")


def block_device() -> str:
    for name in os.listdir("/sys/block"):
        path = f"/dev/{name}"
        if os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode):
            return path
    pytest.skip("no block device")


def test_every_limit_is_in_the_cgroup(engine: Engine) -> None:
    host = {
        "Memory": 64 * MIB, "MemoryReservation": 32 * MIB, "MemorySwap": 96 * MIB,
        "MemorySwappiness": 0, "CpuShares": 512, "CpuPeriod": 50_000, "CpuQuota": 25_000,
        "CpusetCpus": "0", "CpusetMems": "0", "PidsLimit": 20, "BlkioWeight": 300,
    }  # fmt: skip
    answer = engine.containers.create(
        {"Image": "busybox", "Cmd": ["sleep", "60"], "HostConfig": host}
    )
    assert answer["Warnings"] == []
    container = answer["Id"]
    engine.containers.start(container)
    got = {
        file: setting(engine, container, controller, file)
        for controller, file in (
            ("memory", "memory.limit_in_bytes"),
            ("memory", "memory.soft_limit_in_bytes"),
            ("memory", "memory.memsw.limit_in_bytes"),
            ("memory", "memory.swappiness"),
            ("cpu", "cpu.shares"),
            ("cpu", "cpu.cfs_period_us"),
            ("cpu", "cpu.cfs_quota_us"),
            ("cpuset", "cpuset.cpus"),
            ("pids", "pids.max"),
        )
    }
    assert got == {
        "memory.limit_in_bytes": str(64 * MIB),
        "memory.soft_limit_in_bytes": str(32 * MIB),
        "memory.memsw.limit_in_bytes": str(96 * MIB),
        "memory.swappiness": "0",
        "cpu.shares": "512",
        "cpu.cfs_period_us": "50000",
        "cpu.cfs_quota_us": "25000",
        "cpuset.cpus": "0",
        "pids.max": "20",
    }
    weights = [
        file
        for file in ("blkio.weight", "blkio.bfq.weight")
        if os.path.exists(f"{HIERARCHY.by_name['blkio']}/tiffin/{file}")
    ]
    assert setting(engine, container, "blkio", weights[0]) == "300"


def test_swap_is_as_much_as_memory_unless_said(engine: Engine) -> None:
    container = create(engine, "true", host={"Memory": 64 * MIB})
    assert engine.containers.inspect(container)["HostConfig"]["MemorySwap"] == 128 * MIB


def test_rates_of_block_devices(engine: Engine) -> None:
    device = block_device()
    host = {
        "BlkioDeviceReadBps": [{"Path": device, "Rate": MIB}],
        "BlkioDeviceWriteBps": [{"Path": device, "Rate": 2 * MIB}],
        "BlkioDeviceReadIOps": [{"Path": device, "Rate": 30}],
        "BlkioDeviceWriteIOps": [{"Path": device, "Rate": 40}],
    }
    container = started(engine, "sleep", "60", host=host)
    rates = [
        setting(engine, container, "blkio", f"blkio.throttle.{name}_device").split()[1]
        for name in ("read_bps", "write_bps", "read_iops", "write_iops")
    ]
    assert rates == [str(MIB), str(2 * MIB), "30", "40"]


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ({"Memory": MIB}, "Minimum memory limit allowed is 6MB"),
        ({"MemorySwap": 64 * MIB}, "always set the Memory limit when using Memoryswap"),
        ({"Memory": 64 * MIB, "MemorySwap": 32 * MIB}, "should be larger than memory limit"),
        ({"MemorySwappiness": 101}, "valid memory swappiness range is 0-100"),
        ({"Memory": 8 * MIB, "MemoryReservation": 9 * MIB}, "can not be less than memory reserva"),
        ({"NanoCpus": 10**9, "CpuPeriod": 100_000}, "Nano CPUs and CPU Period cannot both"),
        ({"NanoCpus": 10**9, "CpuQuota": 100_000}, "Nano CPUs and CPU Quota cannot both"),
        ({"NanoCpus": 10**15}, "range of CPUs is from 0.01 to"),
        ({"CpuPeriod": 10}, "CPU cfs period can not be less than 1ms"),
        ({"CpuQuota": 10}, "CPU cfs quota can not be less than 1ms"),
        ({"CpusetCpus": "a"}, "Invalid value a for cpuset cpus"),
        ({"CpusetCpus": "0-4000"}, "Requested CPUs are not available - requested 0-4000, avail"),
        ({"CpusetMems": "77"}, "Requested memory nodes are not available"),
        ({"BlkioWeight": 5}, "Range of blkio weight is from 10 to 1000"),
        ({"OomScoreAdj": 2000}, r"range for oom score adj is \[-1000, 1000\]"),
        ({"BlkioDeviceReadBps": [{"Path": "/dev/nonesuch", "Rate": 1}]}, "stat /dev/nonesuch: no"),
        ({"BlkioDeviceReadBps": [{"Path": "/dev/null", "Rate": 1}]}, "is not a block device"),
    ],
)
def test_limits_that_make_no_sense(engine: Engine, host: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        create(engine, "true", host=host)


def test_a_size_of_the_container_is_refused_by_the_driver(engine: Engine) -> None:
    with pytest.raises(Unsupported, match=r"--storage-opt size=1G is not supported by the .*'"):
        create(engine, "true", host={"StorageOpt": {"size": "1G"}})


def test_a_kernel_without_a_limit_gives_a_warning(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Hierarchy([item for item in HIERARCHY.controllers if "memory" not in item.names])
    monkeypatch.setattr(limits.Hierarchy, "detect", lambda: few)
    host = {"Memory": 64 * MIB, "CpuShares": 100, "OomKillDisable": True}
    answer = engine.containers.create({"Image": "busybox", "HostConfig": host})
    assert answer["Warnings"] == [
        (
            "Your kernel does not support memory limit capabilities or the cgroup is not mounted. "
            "Limitation discarded."
        ),
        (
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. "
            "Memory limited without swap."
        ),
        "Your kernel does not support OomKillDisable. OomKillDisable discarded.",
    ]
    kept = engine.containers.inspect(answer["Id"])["HostConfig"]
    assert (kept["Memory"], kept["CpuShares"], kept["OomKillDisable"]) == (0, 100, False)


def test_an_update_changes_a_running_container(engine: Engine) -> None:
    container = started(engine, "sleep", "60", host={"Memory": 64 * MIB})
    assert engine.containers.update(
        container, {"Memory": 256 * MIB, "MemorySwap": 512 * MIB, "PidsLimit": 7, "CpuShares": 99}
    ) == {"Warnings": []}
    assert setting(engine, container, "memory", "memory.limit_in_bytes") == str(256 * MIB)
    assert setting(engine, container, "pids", "pids.max") == "7"
    assert setting(engine, container, "cpu", "cpu.shares") == "99"
    engine.containers.update(container, {"Memory": 32 * MIB, "MemorySwap": -1, "PidsLimit": -1})
    assert setting(engine, container, "memory", "memory.limit_in_bytes") == str(32 * MIB)
    assert setting(engine, container, "pids", "pids.max") == "max"
    host = engine.containers.inspect(container)["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["CpuShares"]) == (32 * MIB, -1, 99)


def test_cpus_can_be_updated_and_last_for_the_next_start(engine: Engine) -> None:
    container = started(engine, "sleep", "60", host={"NanoCpus": 500_000_000})
    assert setting(engine, container, "cpu", "cpu.cfs_quota_us") == "50000"
    engine.containers.update(container, {"NanoCpus": 1_000_000_000})
    assert setting(engine, container, "cpu", "cpu.cfs_quota_us") == "100000"
    engine.containers.restart(container, timeout=0)
    assert setting(engine, container, "cpu", "cpu.cfs_quota_us") == "100000"
    with pytest.raises(Conflict, match="CPU Quota cannot be updated as NanoCPUs has already"):
        engine.containers.update(container, {"CpuQuota": 10_000})


def test_an_update_that_the_kernel_refuses_changes_nothing(engine: Engine) -> None:
    # What the container has touched can't be taken away from it without swap.
    script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>/dev/null; echo ready; sleep 60"
    container = started(engine, "sh", "-c", script, host={"Memory": 128 * MIB})
    eventually(lambda: b"ready" in output(engine, container))
    with pytest.raises(Conflict, match=f"Cannot update container {container}: .* busy"):
        engine.containers.update(container, {"PidsLimit": 9, "Memory": 8 * MIB})
    assert setting(engine, container, "memory", "memory.limit_in_bytes") == str(128 * MIB)
    assert engine.containers.inspect(container)["HostConfig"]["Memory"] == 128 * MIB


def test_the_end_of_memory_is_noticed(engine: Engine) -> None:
    with listening(engine) as listener:
        container = started(
            engine, "sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M", host={"Memory": 16 * MIB}
        )
        listener.wait("die")
    assert listener.actions().index("oom") < listener.actions().index("die")
    found = state(engine, container)
    assert (found["OOMKilled"], found["ExitCode"]) == (True, 137)
    # A run without trouble has none of it.
    engine.containers.update(container, {"Memory": 512 * MIB, "MemorySwap": -1})
    engine.containers.start(container)
    assert state(engine, container)["OOMKilled"] is False
    engine.containers.kill(container)


def test_memory_may_end_for_a_child_alone(engine: Engine) -> None:
    script = "dd if=/dev/zero of=/dev/null bs=200M; echo survived; sleep 60"
    with listening(engine) as listener:
        container = started(engine, "sh", "-c", script, host={"Memory": 16 * MIB})
        assert listener.wait("oom")["Actor"]["ID"] == container
    eventually(lambda: b"survived" in output(engine, container))
    found = state(engine, container)
    assert (found["Status"], found["OOMKilled"]) == ("running", True)


def test_the_limit_of_processes_holds(engine: Engine) -> None:
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 60 & done; echo all"
    container = started(engine, "sh", "-c", script, host={"PidsLimit": 4})
    eventually(lambda: state(engine, container)["Status"] == "exited")
    assert b"can't fork" in output(engine, container)


def test_pause_stops_everything_and_unpause_goes_on(engine: Engine) -> None:
    container = started(engine, "sh", "-c", "while true; do echo x; done > /dev/null")
    with listening(engine) as listener:
        engine.containers.pause(container)
        assert state(engine, container)["Status"] == "paused"
        with pytest.raises(Conflict, match="is paused, unpause the container before exec"):
            engine.containers.exec_create(container, {"Cmd": ["true"]})
        engine.containers.unpause(container)
        assert listener.actions() == ["pause", "unpause"]
    assert inside(engine, container, "echo", "here") == "here"
    engine.containers.stop(container, timeout=0)
