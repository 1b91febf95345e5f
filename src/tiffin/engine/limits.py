"""Limits of containers: what may be asked, what this machine can do, and what ``update`` changes.

The rules and the sentences are Docker's. A limit that the kernel can't set is taken out, and the
answer of ``create`` or ``update`` warns of it.

Source: Docker Engine API v1.50, ``Resources``.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Any

from tiffin.errors import Conflict, InvalidParameter
from tiffin.linux.cgroups import Hierarchy
from tiffin.runtime.settings import Resources
from tiffin.units import parse_size

JSON = dict[str, Any]

_MEBIBYTE = 1 << 20
_LEAST_MEMORY = 6 * _MEBIBYTE
_CPU_SHARES = (2, 262144)

_DEVICES = {
    "BlkioWeightDevice": ("blkio_weight_device", "Weight"),
    "BlkioDeviceReadBps": ("device_read_bps", "Rate"),
    "BlkioDeviceWriteBps": ("device_write_bps", "Rate"),
    "BlkioDeviceReadIOps": ("device_read_iops", "Rate"),
    "BlkioDeviceWriteIOps": ("device_write_iops", "Rate"),
}
_PLAIN = {
    "Memory": "memory",
    "MemorySwap": "memory_swap",
    "MemoryReservation": "memory_reservation",
    "CpuShares": "cpu_shares",
    "CpuQuota": "cpu_quota",
    "CpuPeriod": "cpu_period",
    "CpusetCpus": "cpuset_cpus",
    "CpusetMems": "cpuset_mems",
    "PidsLimit": "pids_limit",
    "BlkioWeight": "blkio_weight",
}

FIELDS = frozenset([*_PLAIN, *_DEVICES, "NanoCpus", "MemorySwappiness", "OomKillDisable"])
"""The fields of HostConfig that this module speaks for."""


def resources(host: JSON) -> Resources:
    """The limits that a container's cgroup gets, zeros and Nones meaning none.

    Raises InvalidParameter for a device that is none.
    """
    result = Resources(**{name: host.get(key) or _none(name) for key, name in _PLAIN.items()})
    if host.get("NanoCpus"):
        result.cpu_period = 100_000
        result.cpu_quota = host["NanoCpus"] * result.cpu_period // 1_000_000_000
    swappiness = host.get("MemorySwappiness")
    if swappiness is not None and swappiness >= 0:
        result.memory_swappiness = swappiness
    result.oom_kill_disable = bool(host.get("OomKillDisable"))
    for key, (name, number) in _DEVICES.items():
        rows = host.get(key) or []
        lines = [f"{_device_number(row['Path'])} {row.get(number) or 0}" for row in rows]
        setattr(result, name, "\n".join(lines))
    return result


def storage_size(host: JSON) -> int:
    """How many bytes the container's own files may take; 0 for any number.

    Raises InvalidParameter.
    """
    for text in (host.get("StorageOpt") or {}).values():
        return parse_size(text)
    return 0


def _none(name: str) -> Any:
    return "" if name.startswith("cpuset") else 0


def _device_number(path: str) -> str:
    try:
        info = os.stat(path)
    except OSError as error:
        raise InvalidParameter(f"stat {path}: {(error.strerror or str(error)).lower()}") from None
    if not stat.S_ISBLK(info.st_mode):
        raise InvalidParameter(f"{path} is not a block device: a limit of block I/O needs one")
    return f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"


def check(host: JSON) -> list[str]:
    """Check the limits of a HostConfig and complete them; what this machine can't do goes.

    Gives the warnings. Raises InvalidParameter, in Docker's words.
    """
    _check_memory(host)
    _check_cpu(host)
    _check_cpuset(host)
    _check_others(host)
    return _discard(host)


def _check_memory(host: JSON) -> None:
    memory, swap = host.get("Memory") or 0, host.get("MemorySwap") or 0
    reservation = host.get("MemoryReservation") or 0
    if 0 < memory < _LEAST_MEMORY:
        raise InvalidParameter("Minimum memory limit allowed is 6MB")
    if memory > 0 and 0 < swap < memory:
        raise InvalidParameter(
            "Minimum memoryswap limit should be larger than memory limit, see usage"
        )
    if memory == 0 and swap > 0:
        raise InvalidParameter(
            "You should always set the Memory limit when using Memoryswap limit, see usage"
        )
    if memory > 0 and swap == 0:
        host["MemorySwap"] = 2 * memory
    swappiness = host.get("MemorySwappiness")
    if swappiness is not None and not -1 <= swappiness <= 100:
        raise InvalidParameter(
            f"Invalid value: {swappiness}, valid memory swappiness range is 0-100"
        )
    if 0 < reservation < _LEAST_MEMORY:
        raise InvalidParameter("Minimum memory reservation allowed is 6MB")
    if 0 < memory < reservation:
        raise InvalidParameter(
            "Minimum memory limit can not be less than memory reservation limit, see usage"
        )


def _check_cpu(host: JSON) -> None:
    nano, period, quota = (host.get(key) or 0 for key in ("NanoCpus", "CpuPeriod", "CpuQuota"))
    if nano and period:
        raise InvalidParameter("Conflicting options: Nano CPUs and CPU Period cannot both be set")
    if nano and quota:
        raise InvalidParameter("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
    count = os.cpu_count() or 1
    if nano < 0 or nano > count * 1_000_000_000:
        raise InvalidParameter(
            f"range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available"
        )
    if period and not 1000 <= period <= 1_000_000:
        raise InvalidParameter(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        )
    if 0 < quota < 1000:
        raise InvalidParameter("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    shares = host.get("CpuShares") or 0
    if shares:
        host["CpuShares"] = max(_CPU_SHARES[0], min(shares, _CPU_SHARES[1]))


def _check_cpuset(host: JSON) -> None:
    for key, title, what, path in (
        ("CpusetCpus", "cpus", "CPUs", "/sys/devices/system/cpu/online"),
        ("CpusetMems", "mems", "memory nodes", "/sys/devices/system/node/online"),
    ):
        text = host.get(key) or ""
        if not text:
            continue
        try:
            wanted = _numbers(text)
        except ValueError:
            raise InvalidParameter(
                f"Invalid value {text} for cpuset {title}: invalid format: {text}"
            ) from None
        available = "0"
        if os.path.exists(path):
            with open(path, encoding="ascii") as file:
                available = file.read().strip()
        if not wanted <= _numbers(available):
            raise InvalidParameter(
                f"Requested {what} are not available - requested {text}, available: {available}"
            )


def _numbers(text: str) -> set[int]:
    """The numbers of a list such as ``0-2,4``; ValueError if it is none."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low, high = int(first), int(last if dash else first)
        if not 0 <= low <= high < 1 << 16:
            raise ValueError(text)
        found.update(range(low, high + 1))
    return found


def _check_others(host: JSON) -> None:
    weight = host.get("BlkioWeight") or 0
    if weight and not 10 <= weight <= 1000:
        raise InvalidParameter("Range of blkio weight is from 10 to 1000")
    for row in host.get("BlkioWeightDevice") or []:
        if row.get("Weight") and not 10 <= row["Weight"] <= 1000:
            raise InvalidParameter("Range of blkio weight is from 10 to 1000")
    score = host.get("OomScoreAdj") or 0
    if not -1000 <= score <= 1000:
        raise InvalidParameter(f"Invalid value {score}, range for oom score adj is [-1000, 1000]")
    resources(host)


def _discard(host: JSON) -> list[str]:
    """Take out what this kernel can't do; the warnings."""
    warnings = []
    if host.get("OomKillDisable") and not host.get("Memory"):
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can "
            "result in the system running out of resources."
        )
    wanted = resources(host).as_dict()
    if not wanted:
        return warnings
    lacking = Hierarchy.detect().unsupported(wanted)
    names = {
        **_PLAIN,
        **{key: name for key, (name, _) in _DEVICES.items()},
        "MemorySwappiness": "memory_swappiness",
        "OomKillDisable": "oom_kill_disable",
    }
    for key, name in names.items():
        if name not in lacking:
            continue
        if lacking[name] not in warnings:
            warnings.append(lacking[name])
        host[key] = {"MemorySwappiness": None, "OomKillDisable": False}.get(key, 0)
        if key in _DEVICES:
            host[key] = None
        if name.startswith("cpuset"):
            host[key] = ""
    return warnings


def updated(host: JSON, body: JSON) -> tuple[JSON, list[str]]:
    """A HostConfig with the limits of an ``update``'s body in it, and warnings.

    Zero and empty mean "as it was". Raises InvalidParameter, Conflict.
    """
    changed = {
        key: value
        for key, value in body.items()
        if key in FIELDS and value and (key, value) != ("MemorySwappiness", -1)
    }
    result = {**host, **changed}
    _check_conflicts(host, changed)
    if changed.get("Memory") and not changed.get("MemorySwap"):
        # Unlike at creation, the swap stays as it was.
        old = host.get("MemorySwap") or 0
        if 0 < old < changed["Memory"]:
            raise InvalidParameter(
                "Memory limit should be smaller than already set memoryswap limit, update the "
                "memoryswap at the same time"
            )
    warnings = check(result)
    return result, warnings


def _check_conflicts(host: JSON, changed: JSON) -> None:
    for new, old, words in (
        ("NanoCpus", "CpuPeriod", ("NanoCPUs", "CPU Period")),
        ("NanoCpus", "CpuQuota", ("NanoCPUs", "CPU Quota")),
        ("CpuPeriod", "NanoCpus", ("CPU Period", "NanoCPUs")),
        ("CpuQuota", "NanoCpus", ("CPU Quota", "NanoCPUs")),
    ):
        if changed.get(new) and host.get(old):
            raise Conflict(
                f"Conflicting options: {words[0]} cannot be updated as {words[1]} has already "
                "been set"
            )


def apply(hierarchy: Hierarchy, group: str, before: JSON, after: JSON) -> None:
    """Set the limits of ``after`` in a group that has those of ``before``.

    All or nothing: where the kernel refuses one, the others are set back. Raises Conflict.
    """
    new, old = resources(after).as_dict(), resources(before).as_dict()
    changed = {name: value for name, value in new.items() if old.get(name) != value}
    # The two depend on each other, and on version 2 one is written as a difference.
    for name, other in (("memory", "memory_swap"), ("cpu_quota", "cpu_period")):
        if {name, other} & changed.keys():
            changed.update({key: new[key] for key in (name, other) if key in new})
    try:
        hierarchy.limit(group, changed)
    except OSError as error:
        with contextlib.suppress(OSError):
            # What can't be set back either is what the message below names.
            hierarchy.limit(group, old)
        raise Conflict(error.strerror or str(error)) from None
