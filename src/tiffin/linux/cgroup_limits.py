"""Which files of a control group set which limits, on version 1 and on version 2.

Each limit comes with the warning, in Docker's words, for a kernel that can't set it.

Source: as :mod:`tiffin.linux.cgroups`; ``io.bfq.weight`` and ``blkio.bfq.weight`` are in
``Documentation/block/bfq-iosched.rst``.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself would cost the keeper more than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable


class Row:
    """One limit to set: the files that may take it with their values, the best one first."""

    __slots__ = ("controller", "values", "warning")

    def __init__(self, controller: str, values: dict[str, str], warning: str) -> None:
        self.controller = controller
        self.values = values
        self.warning = warning


def writes(resources: dict[str, int | str], v2: bool) -> list[Row]:
    """What to write for limits (the fields of ContainerSettings.resources), in order."""

    def number(field: str) -> int:
        return int(resources.get(field) or 0)

    rows: list[Row] = []

    def add(controller: str, file: str, value: str, warning: str) -> None:
        rows.append(Row(controller, {file: value}, warning))

    _write_memory(resources, v2, number, add)
    if shares := number("cpu_shares"):
        what = "CPU shares or the cgroup is not mounted. Shares discarded."
        if v2:
            weight = 1 + (max(2, min(shares, 262144)) - 2) * 9999 // 262142
            add("cpu", "cpu.weight", str(weight), what)
        else:
            add("cpu", "cpu.shares", str(shares), what)
    period, quota = number("cpu_period"), number("cpu_quota")
    what = "CPU CFS scheduler. CPU period/quota discarded."
    if v2:
        if period or quota:
            value = f"{quota if quota > 0 else 'max'} {period or 100000}"
            add("cpu", "cpu.max", value, what)
    else:
        if period:
            add("cpu", "cpu.cfs_period_us", str(period), what)
        if quota:
            add("cpu", "cpu.cfs_quota_us", str(quota), what)
    for field, file in (("cpuset_cpus", "cpuset.cpus"), ("cpuset_mems", "cpuset.mems")):
        if cpuset := resources.get(field):
            what = "cpuset or the cgroup is not mounted. Cpuset discarded."
            add("cpuset", file, str(cpuset), what)
    if pids := number("pids_limit"):
        what = "PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded."
        add("pids", "pids.max", "max" if pids < 0 else str(pids), what)
    _write_block(resources, v2, number, rows)
    return rows


def _write_memory(
    resources: dict[str, int | str],
    v2: bool,
    number: Callable[[str], int],
    add: Callable[[str, str, str, str], None],
) -> None:
    memory, swap = number("memory"), number("memory_swap")
    if memory:
        file = "memory.max" if v2 else "memory.limit_in_bytes"
        value = "max" if v2 and memory < 0 else str(memory)
        what = "memory limit capabilities or the cgroup is not mounted. Limitation discarded."
        add("memory", file, value, what)
    if swap:
        what = "swap limit capabilities or the cgroup is not mounted. Memory limited without swap."
        if v2:
            value = "max" if swap < 0 else str(max(0, swap - memory))
            add("memory", "memory.swap.max", value, what)
        else:
            add("memory", "memory.memsw.limit_in_bytes", str(swap), what)
    if reservation := number("memory_reservation"):
        file = "memory.low" if v2 else "memory.soft_limit_in_bytes"
        what = "memory soft limit capabilities or the cgroup is not mounted. Limitation discarded."
        add("memory", file, str(reservation), what)
    if "memory_swappiness" in resources:
        what = (
            "memory swappiness capabilities or the cgroup is not mounted. Memory swappiness "
            "discarded."
        )
        add("memory", "memory.swappiness", str(number("memory_swappiness")), what)
    if resources.get("oom_kill_disable"):
        add("memory", "memory.oom_control", "1", "OomKillDisable. OomKillDisable discarded.")


_DEVICE_LIMITS = {
    "device_read_bps": (
        "blkio.throttle.read_bps_device",
        "rbps",
        "BPS Block I/O read limit. Block I/O BPS read limit discarded.",
    ),
    "device_write_bps": (
        "blkio.throttle.write_bps_device",
        "wbps",
        "BPS Block I/O write limit. Block I/O BPS write limit discarded.",
    ),
    "device_read_iops": (
        "blkio.throttle.read_iops_device",
        "riops",
        "IOPS Block read limit. Block I/O IOPS read limit has been discarded.",
    ),
    "device_write_iops": (
        "blkio.throttle.write_iops_device",
        "wiops",
        "IOPS Block write limit. Block I/O IOPS write limit has been discarded.",
    ),
}


def _write_block(
    resources: dict[str, int | str], v2: bool, number: Callable[[str], int], rows: list[Row]
) -> None:
    controller = "io" if v2 else "blkio"
    if weight := number("blkio_weight"):
        values = {"blkio.weight": str(weight), "blkio.bfq.weight": str(weight)}
        if v2:
            scaled = f"default {1 + (weight - 10) * 9999 // 990}"
            values = {"io.bfq.weight": str(weight), "io.weight": scaled}
        what = "Block I/O weight or the cgroup is not mounted. Weight discarded."
        rows.append(Row(controller, values, what))
    for line in str(resources.get("blkio_weight_device") or "").splitlines():
        values = {"blkio.weight_device": line, "blkio.bfq.weight_device": line}
        if v2:
            device, _, text = line.partition(" ")
            scaled = f"{device} {1 + (int(text) - 10) * 9999 // 990}"
            values = {"io.bfq.weight": line, "io.weight": scaled}
        rows.append(Row(controller, values, "Block I/O weight_device. Weight-device discarded."))
    for field, (file, key, what) in _DEVICE_LIMITS.items():
        for line in str(resources.get(field) or "").splitlines():
            if v2:
                device, _, rate = line.partition(" ")
                value = f"{device} {key}={rate if rate != '0' else 'max'}"
                rows.append(Row(controller, {"io.max": value}, what))
            else:
                rows.append(Row(controller, {file: line}, what))
