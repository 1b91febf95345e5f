"""Control groups: the real ones of this machine, and version 2's files in a pretended tree."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiffin.linux.cgroups import DEFAULT_DEVICES, Controller, Hierarchy
from tiffin.runtime.settings import Resources


@pytest.fixture
def group() -> Iterator[tuple[Hierarchy, str]]:
    hierarchy = Hierarchy.detect()
    if not hierarchy.controllers:
        pytest.skip("no cgroups are mounted")
    name = f"tiffin-test-{uuid.uuid4().hex[:8]}/inner"
    yield hierarchy, name
    hierarchy.kill(name)
    assert hierarchy.delete(name.split("/")[0])


@pytest.mark.root
def test_create_and_delete_everywhere(group: tuple[Hierarchy, str]) -> None:
    hierarchy, name = group
    assert hierarchy.create(name) == []
    assert all(os.path.isdir(path) for path in hierarchy.directories(name))
    assert hierarchy.exists(name)
    assert hierarchy.create(name, {"pids_limit": 5}) == [], "an existing group is taken over"
    assert hierarchy.delete(name)
    assert not hierarchy.exists(name)
    assert hierarchy.delete(name), "deleting what is gone is no error"


@pytest.mark.root
def test_a_group_that_goes_while_it_freezes_is_not_waited_for(
    group: tuple[Hierarchy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hierarchy, name = group
    hierarchy.create(name)
    frozen = hierarchy.frozen

    def gone(name: str) -> bool:
        hierarchy.delete(name)
        return frozen(name)

    monkeypatch.setattr(hierarchy, "frozen", gone)
    with pytest.raises(FileNotFoundError, match="is gone"):
        hierarchy.freeze(name)


@pytest.mark.root
def test_a_limit_that_the_kernel_refuses_leaves_nothing(group: tuple[Hierarchy, str]) -> None:
    hierarchy, name = group
    if "cpuset" not in hierarchy.by_name:
        pytest.skip("needs the cpuset controller of version 1")
    with pytest.raises(OSError, match=r"cpuset\.cpus"):
        hierarchy.create(name, {"cpuset_cpus": "9999"})
    assert not hierarchy.exists(name)


@pytest.mark.root
def test_place_list_kill(group: tuple[Hierarchy, str]) -> None:
    hierarchy, name = group
    hierarchy.create(name, devices=DEFAULT_DEVICES)
    process = subprocess.Popen(["sleep", "60"])
    try:
        hierarchy.place(name, process.pid)
        assert hierarchy.processes(name) == [process.pid]
        with open(f"/proc/{process.pid}/cgroup") as file:
            assert all(line.rstrip("\n").endswith(f"/{name}") for line in file)
        assert hierarchy.delete(name) is False
        hierarchy.freeze(name)
        hierarchy.kill(name)
        hierarchy.thaw(name)
        assert process.wait(20) == -9
    finally:
        process.kill()
        process.wait()


@pytest.mark.root
def test_a_group_made_inside_is_deleted_with_it(group: tuple[Hierarchy, str]) -> None:
    hierarchy, name = group
    hierarchy.create(name)
    for directory in hierarchy.directories(name):
        os.mkdir(f"{directory}/below")
    assert hierarchy.delete(name)


@pytest.mark.root
def test_memory_limits_can_be_raised_and_lowered(group: tuple[Hierarchy, str]) -> None:
    hierarchy, name = group
    if "memory" not in hierarchy.by_name:
        pytest.skip("needs the memory controller of version 1")
    mib = 1 << 20
    hierarchy.create(name, {"memory": 64 * mib, "memory_swap": 64 * mib})
    hierarchy.limit(name, {"memory": 256 * mib, "memory_swap": 512 * mib})
    hierarchy.limit(name, {"memory": 32 * mib, "memory_swap": 32 * mib})
    path = Path(hierarchy.by_name["memory"]) / name
    assert int((path / "memory.limit_in_bytes").read_text()) == 32 * mib
    assert int((path / "memory.memsw.limit_in_bytes").read_text()) == 32 * mib


@pytest.mark.root
def test_statistics_of_a_group_that_is_gone(group: tuple[Hierarchy, str]) -> None:
    hierarchy, name = group
    with pytest.raises(FileNotFoundError):
        hierarchy.statistics(name)
    assert hierarchy.oom_kills(name) == 0


def test_a_missing_controller_is_a_warning_in_dockers_words(tmp_path: Path) -> None:
    (tmp_path / "freezer/g").mkdir(parents=True)
    hierarchy = Hierarchy([Controller(1, str(tmp_path / "freezer"), ("freezer",))])
    (warning,) = hierarchy.limit("g", {"memory": 1 << 26})
    assert warning == (
        "Your kernel does not support memory limit capabilities or the cgroup is not mounted. "
        "Limitation discarded."
    )


@pytest.fixture
def unified(tmp_path: Path) -> tuple[Hierarchy, Path]:
    """A directory that looks like a group of a version 2 tree."""
    group = tmp_path / "g"
    group.mkdir()
    files = "memory.max memory.swap.max memory.low cpu.max cpu.weight cpuset.cpus pids.max"
    for name in files.split():
        (group / name).touch()
    return Hierarchy([Controller(2, str(tmp_path), ())]), group


def test_the_limits_of_version_2(unified: tuple[Hierarchy, Path]) -> None:
    hierarchy, group = unified
    assert hierarchy.version == "2"
    resources = Resources(
        memory=1 << 26,
        memory_swap=1 << 27,
        memory_reservation=1 << 25,
        cpu_shares=1024,
        cpu_quota=50000,
        cpuset_cpus="0-1",
        pids_limit=-1,
    )
    assert hierarchy.limit("g", resources.as_dict()) == []
    assert {path.name: path.read_text() for path in group.iterdir()} == {
        "memory.max": str(1 << 26),
        "memory.swap.max": str(1 << 26),
        "memory.low": str(1 << 25),
        "cpu.weight": "39",
        "cpu.max": "50000 100000",
        "cpuset.cpus": "0-1",
        "pids.max": "max",
    }


def test_the_statistics_of_version_2(unified: tuple[Hierarchy, Path]) -> None:
    hierarchy, group = unified
    (group / "cpu.stat").write_text("usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\n")
    (group / "memory.current").write_text("4096\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.stat").write_text("anon 5\nfile 6\n")
    (group / "memory.events").write_text("low 0\nmax 3\noom 2\noom_kill 1\n")
    (group / "pids.current").write_text("2\n")
    (group / "pids.max").write_text("max\n")
    (group / "io.stat").write_text("8:0 rbytes=10 wbytes=20 rios=1 wios=2\n")
    statistics: dict[str, dict[str, object]] = hierarchy.statistics("g")  # type: ignore[assignment]
    assert statistics["cpu_stats"]["cpu_usage"] == {
        "total_usage": 30000,
        "usage_in_kernelmode": 10000,
        "usage_in_usermode": 20000,
    }
    memory = statistics["memory_stats"]
    assert (memory["usage"], memory["failcnt"], memory["stats"]) == (
        4096,
        3,
        {"anon": 5, "file": 6},
    )
    assert memory["limit"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert statistics["pids_stats"] == {"current": 2}
    assert statistics["blkio_stats"]["io_service_bytes_recursive"] == [
        {"major": 8, "minor": 0, "op": "read", "value": 10},
        {"major": 8, "minor": 0, "op": "write", "value": 20},
    ]
    assert hierarchy.oom_kills("g") == 1


def test_the_three_setups_are_told_apart() -> None:
    one, two = Controller(1, "/c/cpu", ("cpu",)), Controller(2, "/c/unified", ())
    assert [Hierarchy(item).version for item in ([], [one], [two], [one, two])] == [
        "",
        "1",
        "2",
        "hybrid",
    ]
