"""Limits: set at creation, changed while a container runs, refused in Docker's words."""

from __future__ import annotations

import io
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import busybox_tar
from engine.life import create, eventually, inside, listening, output, started, state
from tiffin.engine import Engine, limits
from tiffin.errors import Conflict, InvalidParameter, Unsupported
from tiffin.linux.cgroups import PARENT, Controller, Hierarchy

MIB = 1 << 20
HIERARCHY = Hierarchy.detect() if os.path.exists("/proc/self/mountinfo") else Hierarchy([])


V2 = not HIERARCHY.by_name
ALONE = {"NetworkMode": "none"}


def setting(engine: Engine, container: str, controller: str, file: str) -> str:
    """A file of the container's cgroup."""
    pid = state(engine, container)["Pid"]
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if V2 or controller in names.split(","):
            base = HIERARCHY.unified if V2 else HIERARCHY.by_name[controller]
            return Path(f"{base}{path}/{file}").read_text().strip()
    pytest.fail(f"{controller} is in no cgroup of the container")


def memory(engine: Engine, container: str) -> int:
    """Its limit."""
    file = "memory.max" if V2 else "memory.limit_in_bytes"
    return int(setting(engine, container, "memory", file))


def memory_and_swap(engine: Engine, container: str) -> int:
    """The limit of both together."""
    if V2:
        swap = int(setting(engine, container, "memory", "memory.swap.max"))
        return memory(engine, container) + swap
    return int(setting(engine, container, "memory", "memory.memsw.limit_in_bytes"))


def reservation(engine: Engine, container: str) -> int:
    file = "memory.low" if V2 else "memory.soft_limit_in_bytes"
    return int(setting(engine, container, "memory", file))


def shares(engine: Engine, container: str) -> int:
    """The weight against others, in the numbers of version 1, or what comes of them."""
    return int(setting(engine, container, "cpu", "cpu.weight" if V2 else "cpu.shares"))


def quota(engine: Engine, container: str) -> tuple[int, int]:
    """Microseconds of CPU time, and in how many."""
    if V2:
        used, period = setting(engine, container, "cpu", "cpu.max").split()
        return int(used), int(period)
    used, period = (
        setting(engine, container, "cpu", f"cpu.cfs_{name}_us") for name in ("quota", "period")
    )
    return int(used), int(period)


def weight_file() -> str | None:
    """The file that takes the weight of block I/O here."""
    if HIERARCHY.unsupported({"blkio_weight": 300}):
        return None
    files = ("io.bfq.weight", "io.weight") if V2 else ("blkio.weight", "blkio.bfq.weight")
    base = HIERARCHY.unified if V2 else HIERARCHY.by_name["blkio"]
    return next(file for file in files if Path(f"{base}/{PARENT}/{file}").exists())


def block_device() -> str:
    for name in os.listdir("/sys/block"):
        path = f"/dev/{name}"
        if os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode):
            return path
    pytest.skip("no block device")


def test_every_limit_is_in_the_cgroup(engine: Engine) -> None:
    host = {
        **ALONE, "Memory": 64 * MIB, "MemoryReservation": 32 * MIB, "MemorySwap": 96 * MIB,
        "CpuShares": 512, "CpuPeriod": 50_000, "CpuQuota": 25_000, "PidsLimit": 20,
    }  # fmt: skip
    if not V2:
        host["MemorySwappiness"] = 0
    if "cpuset" in HIERARCHY.available:
        host |= {"CpusetCpus": "0", "CpusetMems": "0"}
    if weight_file():
        host["BlkioWeight"] = 300
    answer = engine.containers.create(
        {"Image": "busybox", "Cmd": ["sleep", "60"], "HostConfig": host}
    )
    assert answer["Warnings"] == []
    container = answer["Id"]
    engine.containers.start(container)
    assert memory(engine, container) == 64 * MIB
    assert memory_and_swap(engine, container) == 96 * MIB
    assert reservation(engine, container) == 32 * MIB
    # Docker's conversion of 2 to 262144 shares into a weight of 1 to 10000.
    assert shares(engine, container) == (20 if V2 else 512)
    assert quota(engine, container) == (25_000, 50_000)
    assert setting(engine, container, "pids", "pids.max") == "20"
    if not V2:
        assert setting(engine, container, "memory", "memory.swappiness") == "0"
    if "CpusetCpus" in host:
        assert setting(engine, container, "cpuset", "cpuset.cpus") == "0"
        assert setting(engine, container, "cpuset", "cpuset.mems") == "0"
    if file := weight_file():
        got = setting(engine, container, "blkio", file).removeprefix("default ")
        assert got == ("2636" if file == "io.weight" else "300")


def test_swap_is_as_much_as_memory_unless_said(engine: Engine) -> None:
    container = create(engine, "true", host={"Memory": 64 * MIB})
    assert engine.containers.inspect(container)["HostConfig"]["MemorySwap"] == 128 * MIB


def test_rates_of_block_devices(engine: Engine) -> None:
    device = block_device()
    host = {
        **ALONE,
        "BlkioDeviceReadBps": [{"Path": device, "Rate": MIB}],
        "BlkioDeviceWriteBps": [{"Path": device, "Rate": 2 * MIB}],
        "BlkioDeviceReadIOps": [{"Path": device, "Rate": 30}],
        "BlkioDeviceWriteIOps": [{"Path": device, "Rate": 40}],
    }
    container = started(engine, "sleep", "60", host=host)
    if V2:
        rates = setting(engine, container, "io", "io.max").split()[1:]
        assert rates == [f"rbps={MIB}", f"wbps={2 * MIB}", "riops=30", "wiops=40"]
        return
    rates = [
        setting(engine, container, "blkio", f"blkio.throttle.{name}_device").split()[1]
        for name in ("read_bps", "write_bps", "read_iops", "write_iops")
    ]
    assert rates == [str(MIB), str(2 * MIB), "30", "40"]


def test_only_the_usual_devices_can_be_used(engine: Engine) -> None:
    # The kernel's log: who may make the node, still may not open it.
    script = (
        "mknod /tmp/null c 1 3 && echo > /tmp/null && echo null; "
        "mknod /tmp/log c 1 11 && echo made; : > /tmp/log && echo opened"
    )

    def opened(host: dict[str, Any]) -> bytes:
        container = started(engine, "sh", "-c", script, host={**ALONE, **host})
        engine.containers.wait(container)
        return b"".join(data for _, data in engine.containers.logs(container, stderr=False)[1])

    assert opened({}) == b"null\nmade\n"
    assert opened({"DeviceCgroupRules": ["c 1:11 rwm"]}) == b"null\nmade\nopened\n"


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


@pytest.fixture
def counting(busybox: Path, tmp_path: Path) -> Iterator[Engine]:
    """An engine on an XFS that counts what projects take."""
    image, point = tmp_path / "image", tmp_path / "mount"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    point.mkdir()
    subprocess.run(["mkfs.xfs", "-q", image], check=True)
    command = ["mount", "-o", "loop,prjquota", image, point]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the kernel has no XFS with quotas: {done.stderr}")
    try:
        with Engine(point / "root") as opened:
            opened.images.import_(io.BytesIO(busybox_tar()), "busybox")
            yield opened
            for row in opened.containers.list(all=True):
                opened.containers.remove(row["Id"], force=True, volumes=True)
            opened.shutdown_keeper()
    finally:
        subprocess.run(["umount", "-l", point], check=True)


WRITE = "dd if=/dev/zero of=/big bs=1M count=20; wc -c < /big"


def test_a_volume_takes_no_more_than_its_size(counting: Engine) -> None:
    counting.volumes.create("small", options={"size": "12M"})
    host = {**ALONE, "Binds": ["small:/v"]}
    container = started(counting, "sh", "-c", WRITE.replace("/big", "/v/big"), host=host)
    counting.containers.wait(container)
    said = output(counting, container)
    assert b"No space left on device" in said, said
    assert 10 * MIB < int(said.split()[-1]) < 12 * MIB + 1
    counting.containers.remove(container)
    counting.volumes.remove("small")


def test_a_container_takes_no_more_than_its_size(counting: Engine) -> None:
    host = {**ALONE, "StorageOpt": {"size": "12M"}}
    container = started(counting, "sh", "-c", WRITE, host=host)
    counting.containers.wait(container)
    said = output(counting, container)
    assert b"No space left on device" in said, said
    assert 10 * MIB < int(said.split()[-1]) < 12 * MIB + 1
    # Others are not counted with it.
    other = started(counting, "sh", "-c", WRITE, host=ALONE)
    counting.containers.wait(other)
    assert output(counting, other).split()[-1] == b"%d" % (20 * MIB)
    # Nor is what a commit has moved away, when it is started again.
    counting.containers.commit(container, "half")
    counting.containers.start(container)
    counting.containers.wait(container)
    assert 10 * MIB < int(output(counting, container).split()[-1]) < 12 * MIB + 1


def test_a_size_needs_a_file_system_that_counts(engine: Engine) -> None:
    with pytest.raises(InvalidParameter, match="Unknown option colour"):
        create(engine, "true", host={"StorageOpt": {"colour": "red"}})
    with pytest.raises(InvalidParameter, match="invalid size: 'much'"):
        create(engine, "true", host={"StorageOpt": {"size": "much"}})
    with pytest.raises(Unsupported, match="--storage-opt is supported only for overlay over xfs"):
        create(engine, "true", host={"StorageOpt": {"size": "1G"}})
    assert engine.containers.list(all=True) == []


def test_a_kernel_without_a_limit_gives_a_warning(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiffin").mkdir()
    (tmp_path / "tiffin/cpu.shares").touch()
    few = Hierarchy([Controller(1, str(tmp_path), ("cpu",))])
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
    container = started(engine, "sleep", "60", host={**ALONE, "Memory": 64 * MIB})
    assert engine.containers.update(
        container, {"Memory": 256 * MIB, "MemorySwap": 512 * MIB, "PidsLimit": 7, "CpuShares": 99}
    ) == {"Warnings": []}
    assert memory(engine, container) == 256 * MIB
    assert memory_and_swap(engine, container) == 512 * MIB
    assert setting(engine, container, "pids", "pids.max") == "7"
    assert shares(engine, container) == (4 if V2 else 99)
    engine.containers.update(container, {"Memory": 32 * MIB, "MemorySwap": -1, "PidsLimit": -1})
    assert memory(engine, container) == 32 * MIB
    assert setting(engine, container, "pids", "pids.max") == "max"
    host = engine.containers.inspect(container)["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["CpuShares"]) == (32 * MIB, -1, 99)


def test_cpus_can_be_updated_and_last_for_the_next_start(engine: Engine) -> None:
    container = started(engine, "sleep", "60", host={**ALONE, "NanoCpus": 500_000_000})
    assert quota(engine, container) == (50_000, 100_000)
    engine.containers.update(container, {"NanoCpus": 1_000_000_000})
    assert quota(engine, container) == (100_000, 100_000)
    engine.containers.restart(container, timeout=0)
    assert quota(engine, container) == (100_000, 100_000)
    with pytest.raises(Conflict, match="CPU Quota cannot be updated as NanoCPUs has already"):
        engine.containers.update(container, {"CpuQuota": 10_000})


@pytest.mark.skipif(V2, reason="version 2 refuses no limit of memory: it kills")
def test_an_update_that_the_kernel_refuses_changes_nothing(engine: Engine) -> None:
    # What the container has touched can't be taken away from it without swap.
    script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>/dev/null; echo ready; sleep 60"
    container = started(engine, "sh", "-c", script, host={**ALONE, "Memory": 128 * MIB})
    eventually(lambda: b"ready" in output(engine, container))
    with pytest.raises(Conflict, match=f"Cannot update container {container}: .* busy"):
        engine.containers.update(container, {"PidsLimit": 9, "Memory": 8 * MIB})
    assert memory(engine, container) == 128 * MIB
    assert engine.containers.inspect(container)["HostConfig"]["Memory"] == 128 * MIB


def test_the_end_of_memory_is_noticed(engine: Engine) -> None:
    with listening(engine) as listener:
        container = started(
            engine,
            "sh",
            "-c",
            "dd if=/dev/zero of=/dev/null bs=200M",
            host={**ALONE, "Memory": 16 * MIB},
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
        container = started(engine, "sh", "-c", script, host={**ALONE, "Memory": 16 * MIB})
        assert listener.wait("oom")["Actor"]["ID"] == container
    eventually(lambda: b"survived" in output(engine, container))
    found = state(engine, container)
    assert (found["Status"], found["OOMKilled"]) == ("running", True)


def test_the_limit_of_processes_holds(engine: Engine) -> None:
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 60 & done; echo all"
    container = started(engine, "sh", "-c", script, host={**ALONE, "PidsLimit": 4})
    eventually(lambda: state(engine, container)["Status"] == "exited")
    assert b"can't fork" in output(engine, container)


def test_pause_stops_everything_and_unpause_goes_on(engine: Engine) -> None:
    container = started(engine, "sh", "-c", "while true; do echo x; done > /dev/null", host=ALONE)
    with listening(engine) as listener:
        engine.containers.pause(container)
        assert state(engine, container)["Status"] == "paused"
        with pytest.raises(Conflict, match="is paused, unpause the container before exec"):
            engine.containers.exec_create(container, {"Cmd": ["true"]})
        engine.containers.unpause(container)
        assert listener.actions() == ["pause", "unpause"]
    assert inside(engine, container, "echo", "here") == "here"
    engine.containers.stop(container, timeout=0)
