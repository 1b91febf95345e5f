"""What containers use of the machine: the readings of ``stats``.

A reading's ``cpu_stats`` count from the container's start, and ``system_cpu_usage`` what all CPUs
have spent since boot; a client divides the differences of two readings. Memory in use, as clients
show it, is ``usage`` less the file cache that has not been used lately.

Source: Docker Engine API v1.50, ``ContainerStatsResponse``; proc_stat(5).
"""

from __future__ import annotations

import os
import time
from typing import Any

from tiffin.engine import timestamps
from tiffin.engine.container import Container
from tiffin.linux.cgroups import Hierarchy

JSON = dict[str, Any]

_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_SPENDING = 7
"""The fields of the line "cpu" that count: user, nice, system, idle, iowait, irq, softirq; what
comes after them is part of these, or another machine's."""
_BLOCK_FIELDS = (
    "io_service_bytes_recursive",
    "io_serviced_recursive",
    "io_queue_recursive",
    "io_service_time_recursive",
    "io_wait_time_recursive",
    "io_merged_recursive",
    "io_time_recursive",
    "sectors_recursive",
)


def nothing_used() -> JSON:
    """``cpu_stats`` of nothing."""
    return {
        "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
        "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
    }


def system_usage() -> tuple[int, int]:
    """Nanoseconds that all CPUs have spent since boot, idle or not; how many CPUs are online."""
    total = online = 0
    with open("/proc/stat", encoding="ascii") as file:
        for line in file:
            name, *fields = line.split()
            if name == "cpu":
                total = sum(int(field) for field in fields[:_SPENDING]) * _TICK
            elif name.startswith("cpu"):
                online += 1
            else:
                break
    return total, online


def reading(container: Container, hierarchy: Hierarchy, group: str) -> JSON:
    """One reading of a container; zeros of one that does not run."""
    result: JSON = {
        "name": f"/{container.name}",
        "id": container.id,
        "read": timestamps.ZERO,
        "preread": timestamps.ZERO,
        "pids_stats": {},
        "blkio_stats": dict.fromkeys(_BLOCK_FIELDS),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": nothing_used(),
        "precpu_stats": nothing_used(),
        "memory_stats": {},
    }
    if not container.running:
        return result
    try:
        found: JSON = hierarchy.statistics(group)
    except FileNotFoundError:
        # It has just ended.
        return result
    usage, online = system_usage()
    block = found.pop("blkio_stats")
    result.update(found)
    result["read"] = timestamps.rfc3339(time.time_ns())
    result["cpu_stats"] |= {"system_cpu_usage": usage, "online_cpus": online}
    if hierarchy.by_name:
        result["blkio_stats"] = {field: [] for field in _BLOCK_FIELDS}
    result["blkio_stats"] |= block
    return result


def after(earlier: JSON | None, now: JSON) -> JSON:
    """A reading with the one before it filled in, from which clients compute percentages."""
    if earlier is None:
        return now
    return {**now, "preread": earlier["read"], "precpu_stats": earlier["cpu_stats"]}
