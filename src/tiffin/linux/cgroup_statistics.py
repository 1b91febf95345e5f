"""What a control group has used, in the shape of the Docker Engine API's statistics.

Source: as :mod:`tiffin.linux.cgroups`; the API's ``ContainerStatsResponse``.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tiffin.linux.cgroups import Hierarchy

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_UNLIMITED = (1 << 63) - 1


def read(hierarchy: Hierarchy, name: str) -> dict[str, object]:
    """``cpu_stats``, ``memory_stats``, ``pids_stats`` and ``blkio_stats`` of a group.

    Raises FileNotFoundError if the group is gone.
    """
    if not hierarchy.exists(name):
        raise FileNotFoundError(errno.ENOENT, f"no cgroup {name}")
    return _version1(hierarchy, name) if hierarchy.by_name else _version2(hierarchy, name)


def _text(path: str) -> str:
    """A file's content; empty if its controller is not there."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return ""
        raise


def _number(path: str) -> int:
    text = _text(path).strip()
    if not text:
        return 0
    return _UNLIMITED if text == "max" else int(text)


def _table(path: str) -> dict[str, int]:
    rows = {}
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            rows[key] = int(value)
    return rows


def _memory_limit(limit: int) -> int:
    """A limit that is no limit becomes the machine's memory, as Docker reports it."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(limit or total, total)


def _blkio(path: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for line in _text(path).splitlines():
        fields = line.split()
        if len(fields) == 3 and ":" in fields[0]:
            major, _, minor = fields[0].partition(":")
            rows.append(
                {
                    "major": int(major),
                    "minor": int(minor),
                    "op": fields[1],
                    "value": int(fields[2]),
                }
            )
    return rows


def _version1(hierarchy: Hierarchy, name: str) -> dict[str, object]:
    def directory(controller: str) -> str:
        return f"{hierarchy.by_name.get(controller, '/nowhere')}/{name}"

    cpuacct, cpu, memory = directory("cpuacct"), directory("cpu"), directory("memory")
    ticks = _table(f"{cpuacct}/cpuacct.stat")
    throttled = _table(f"{cpu}/cpu.stat")
    per_cpu = [int(value) for value in _text(f"{cpuacct}/cpuacct.usage_percpu").split()]
    blkio = directory("blkio")
    return {
        "cpu_stats": {
            "cpu_usage": {
                "total_usage": _number(f"{cpuacct}/cpuacct.usage"),
                "percpu_usage": per_cpu,
                "usage_in_kernelmode": ticks.get("system", 0) * _TICK_NS,
                "usage_in_usermode": ticks.get("user", 0) * _TICK_NS,
            },
            "online_cpus": os.cpu_count() or 1,
            "throttling_data": {
                "periods": throttled.get("nr_periods", 0),
                "throttled_periods": throttled.get("nr_throttled", 0),
                "throttled_time": throttled.get("throttled_time", 0),
            },
        },
        "memory_stats": {
            "usage": _number(f"{memory}/memory.usage_in_bytes"),
            "max_usage": _number(f"{memory}/memory.max_usage_in_bytes"),
            "failcnt": _number(f"{memory}/memory.failcnt"),
            "limit": _memory_limit(_number(f"{memory}/memory.limit_in_bytes")),
            "stats": _table(f"{memory}/memory.stat"),
        },
        "pids_stats": _pids(directory("pids")),
        "blkio_stats": {
            "io_service_bytes_recursive": _blkio(f"{blkio}/blkio.throttle.io_service_bytes"),
            "io_serviced_recursive": _blkio(f"{blkio}/blkio.throttle.io_serviced"),
        },
    }


def _pids(directory: str) -> dict[str, object]:
    result: dict[str, object] = {"current": _number(f"{directory}/pids.current")}
    limit = _number(f"{directory}/pids.max")
    if 0 < limit < _UNLIMITED:
        result["limit"] = limit
    return result


def _version2(hierarchy: Hierarchy, name: str) -> dict[str, object]:
    directory = f"{hierarchy.unified}/{name}"
    cpu = _table(f"{directory}/cpu.stat")
    rows: list[dict[str, object]] = []
    for line in _text(f"{directory}/io.stat").splitlines():
        device, *fields = line.split()
        major, _, minor = device.partition(":")
        for field in fields:
            key, _, value = field.partition("=")
            if key in ("rbytes", "wbytes"):
                word = "read" if key == "rbytes" else "write"
                rows.append(
                    {"major": int(major), "minor": int(minor), "op": word, "value": int(value)}
                )
    events = _table(f"{directory}/memory.events")
    memory: dict[str, object] = {
        "usage": _number(f"{directory}/memory.current"),
        "limit": _memory_limit(_number(f"{directory}/memory.max")),
        "stats": _table(f"{directory}/memory.stat"),
    }
    if events.get("max"):
        memory["failcnt"] = events["max"]
    return {
        "cpu_stats": {
            "cpu_usage": {
                "total_usage": cpu.get("usage_usec", 0) * 1000,
                "usage_in_kernelmode": cpu.get("system_usec", 0) * 1000,
                "usage_in_usermode": cpu.get("user_usec", 0) * 1000,
            },
            "online_cpus": os.cpu_count() or 1,
            "throttling_data": {
                "periods": cpu.get("nr_periods", 0),
                "throttled_periods": cpu.get("nr_throttled", 0),
                "throttled_time": cpu.get("throttled_usec", 0) * 1000,
            },
        },
        "memory_stats": memory,
        "pids_stats": _pids(directory),
        "blkio_stats": {"io_service_bytes_recursive": rows},
    }
