"""The arguments of ``containers.run`` and ``create``, and the API's body that they become.

Names and forms are docker-py's: an environment as dictionary or list, ports as
``{"80/tcp": 8080}``, volumes as ``{"/host": {"bind": "/inside", "mode": "ro"}}`` or
``["/host:/inside"]``. What the API calls by another name is one row of a table here.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from tiffin.errors import InvalidParameter
from tiffin.sdk.types import Healthcheck, linked, size_of

Command = str | Sequence[str] | None


class ContainerSettings(TypedDict, total=False):
    """What ``containers.run`` and ``containers.create`` take, beside image and command."""

    auto_remove: bool
    blkio_weight: int
    blkio_weight_device: list[dict[str, Any]]
    cap_add: list[str]
    cap_drop: list[str]
    cgroup_parent: str
    cgroupns: str
    cpu_period: int
    cpu_quota: int
    cpu_rt_period: int
    cpu_rt_runtime: int
    cpu_shares: int
    cpuset_cpus: str
    cpuset_mems: str
    device_cgroup_rules: list[str]
    device_read_bps: list[dict[str, Any]]
    device_read_iops: list[dict[str, Any]]
    device_requests: list[dict[str, Any]]
    device_write_bps: list[dict[str, Any]]
    device_write_iops: list[dict[str, Any]]
    devices: list[str]
    dns: list[str]
    dns_opt: list[str]
    dns_search: list[str]
    domainname: str
    entrypoint: str | list[str]
    environment: dict[str, str | None] | dict[str, str] | list[str]
    extra_hosts: dict[str, str] | list[str]
    group_add: list[str | int]
    healthcheck: dict[str, Any]
    hostname: str
    init: bool
    ipc_mode: str
    kernel_memory: int | str
    labels: dict[str, str] | list[str]
    links: dict[str, str] | list[str] | list[tuple[str, str]]
    log_config: dict[str, Any]
    mac_address: str
    mem_limit: int | str
    mem_reservation: int | str
    mem_swappiness: int
    memswap_limit: int | str
    mounts: list[Any]
    name: str
    nano_cpus: int
    network: str
    network_disabled: bool
    network_mode: str
    networking_config: dict[str, Any]
    oom_kill_disable: bool
    oom_score_adj: int
    pid_mode: str
    pids_limit: int
    platform: str
    ports: Mapping[Any, Any]
    privileged: bool
    publish_all_ports: bool
    read_only: bool
    restart_policy: dict[str, Any]
    runtime: str
    security_opt: list[str]
    shm_size: int | str
    stdin_open: bool
    stop_signal: str
    stop_timeout: int
    storage_opt: dict[str, str]
    sysctls: dict[str, Any]
    tmpfs: dict[str, str] | list[str]
    tty: bool
    ulimits: list[Any]
    user: str | int
    userns_mode: str
    uts_mode: str
    volume_driver: str
    volumes: Mapping[str, Any] | list[str]
    volumes_from: list[str] | str
    working_dir: str


def words(command: Command) -> list[str] | None:
    """A command as a list, split as a shell would if it is one text."""
    if command is None:
        return None
    return shlex.split(command) if isinstance(command, str) else list(command)


def environment(given: Any) -> list[str]:
    """``NAME=value`` each; a value of None removes what the image has."""
    if isinstance(given, Mapping):
        return [name if value is None else f"{name}={value}" for name, value in given.items()]
    return [str(one) for one in given]


def _labels(given: Any) -> dict[str, str]:
    return dict(given) if isinstance(given, Mapping) else dict.fromkeys(given, "")


def _device(text: str) -> dict[str, str]:
    path, _, rest = text.partition(":")
    inside, _, permissions = rest.partition(":")
    return {
        "PathOnHost": path,
        "PathInContainer": inside or path,
        "CgroupPermissions": permissions or "rwm",
    }


def _hosts(given: Any) -> list[str]:
    if isinstance(given, Mapping):
        return [f"{name}:{address}" for name, address in sorted(given.items())]
    return list(given)


def _tmpfs(given: Any) -> dict[str, str]:
    if isinstance(given, Mapping):
        return dict(given)
    return {path: options for path, _, options in (one.partition(":") for one in given)}


def _ulimit(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name.capitalize(): value for name, value in given.items()}


def _health(given: Mapping[str, Any]) -> dict[str, Any]:
    return dict(given) if any(name[:1].isupper() for name in given) else Healthcheck(**given)


def _log(given: Mapping[str, Any]) -> dict[str, Any]:
    known = {name.capitalize(): value for name, value in given.items()}
    return {"Type": known.get("Type") or "", "Config": known.get("Config") or {}}


_CONFIG: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "domainname": ("Domainname", str),
    "entrypoint": ("Entrypoint", words),
    "environment": ("Env", environment),
    "healthcheck": ("Healthcheck", _health),
    "hostname": ("Hostname", str),
    "labels": ("Labels", _labels),
    "mac_address": ("MacAddress", str),
    "network_disabled": ("NetworkDisabled", bool),
    "stdin_open": ("OpenStdin", bool),
    "stop_signal": ("StopSignal", str),
    "stop_timeout": ("StopTimeout", int),
    "tty": ("Tty", bool),
    "user": ("User", str),
    "working_dir": ("WorkingDir", str),
}
_HOST: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "auto_remove": ("AutoRemove", bool),
    "blkio_weight": ("BlkioWeight", int),
    "blkio_weight_device": ("BlkioWeightDevice", list),
    "cap_add": ("CapAdd", list),
    "cap_drop": ("CapDrop", list),
    "cgroup_parent": ("CgroupParent", str),
    "cgroupns": ("CgroupnsMode", str),
    "cpu_period": ("CpuPeriod", int),
    "cpu_quota": ("CpuQuota", int),
    "cpu_rt_period": ("CpuRealtimePeriod", int),
    "cpu_rt_runtime": ("CpuRealtimeRuntime", int),
    "cpu_shares": ("CpuShares", int),
    "cpuset_cpus": ("CpusetCpus", str),
    "cpuset_mems": ("CpusetMems", str),
    "device_cgroup_rules": ("DeviceCgroupRules", list),
    "device_read_bps": ("BlkioDeviceReadBps", list),
    "device_read_iops": ("BlkioDeviceReadIOps", list),
    "device_requests": ("DeviceRequests", list),
    "device_write_bps": ("BlkioDeviceWriteBps", list),
    "device_write_iops": ("BlkioDeviceWriteIOps", list),
    "devices": ("Devices", lambda given: [_device(one) for one in given]),
    "dns": ("Dns", list),
    "dns_opt": ("DnsOptions", list),
    "dns_search": ("DnsSearch", list),
    "extra_hosts": ("ExtraHosts", _hosts),
    "group_add": ("GroupAdd", lambda given: [str(one) for one in given]),
    "init": ("Init", bool),
    "ipc_mode": ("IpcMode", str),
    "kernel_memory": ("KernelMemory", size_of),
    "links": ("Links", linked),
    "log_config": ("LogConfig", _log),
    "mem_limit": ("Memory", size_of),
    "mem_reservation": ("MemoryReservation", size_of),
    "mem_swappiness": ("MemorySwappiness", int),
    "memswap_limit": ("MemorySwap", size_of),
    "mounts": ("Mounts", list),
    "nano_cpus": ("NanoCpus", int),
    "network_mode": ("NetworkMode", str),
    "oom_kill_disable": ("OomKillDisable", bool),
    "oom_score_adj": ("OomScoreAdj", int),
    "pid_mode": ("PidMode", str),
    "pids_limit": ("PidsLimit", int),
    "privileged": ("Privileged", bool),
    "publish_all_ports": ("PublishAllPorts", bool),
    "read_only": ("ReadonlyRootfs", bool),
    "restart_policy": ("RestartPolicy", dict),
    "runtime": ("Runtime", str),
    "security_opt": ("SecurityOpt", list),
    "shm_size": ("ShmSize", size_of),
    "storage_opt": ("StorageOpt", dict),
    "sysctls": ("Sysctls", lambda given: {name: str(value) for name, value in given.items()}),
    "tmpfs": ("Tmpfs", _tmpfs),
    "ulimits": ("Ulimits", lambda given: [_ulimit(one) for one in given]),
    "userns_mode": ("UsernsMode", str),
    "uts_mode": ("UTSMode", str),
    "volume_driver": ("VolumeDriver", str),
    "volumes_from": (
        "VolumesFrom",
        lambda given: given.split(",") if isinstance(given, str) else list(given),
    ),
}
_LIMITS = (
    "blkio_weight", "cpu_period", "cpu_quota", "cpu_rt_period", "cpu_rt_runtime", "cpu_shares",
    "cpuset_cpus", "cpuset_mems", "kernel_memory", "mem_limit", "mem_reservation",
    "memswap_limit", "nano_cpus", "pids_limit", "restart_policy",
)  # fmt: skip


def _unknown(function: str, names: Sequence[str]) -> TypeError:
    some = ", ".join(f"'{name}'" for name in sorted(names))
    return TypeError(f"{function}() got an unexpected keyword argument {some}")


def _bindings(value: Any) -> list[dict[str, str]]:
    if isinstance(value, list):
        return [one for each in value for one in _bindings(each)]
    if isinstance(value, Mapping):
        return [dict(value)]
    if isinstance(value, tuple):
        host, port = (*value, None)[:2] if len(value) < 3 else (None, None)
        if not isinstance(host, str):
            raise InvalidParameter(f"a port's binding is (address, port), not {value!r}")
        return [{"HostIp": host, "HostPort": "" if port is None else str(port)}]
    return [{"HostIp": "", "HostPort": "" if value is None else str(value)}]


def _ports(given: Mapping[Any, Any]) -> dict[str, list[dict[str, str]]]:
    return {
        text if "/" in (text := str(port)) else f"{text}/tcp": _bindings(value)
        for port, value in given.items()
    }


def _volumes(given: Mapping[str, Any] | list[str]) -> tuple[list[str], dict[str, Any]]:
    """Binds, and the places of anonymous volumes."""
    if not isinstance(given, Mapping):
        return [one for one in given if ":" in one], {one: {} for one in given if ":" not in one}
    binds = []
    for source, value in given.items():
        if isinstance(value, Mapping):
            mode = value.get("mode") or ("ro" if value.get("ro") else "rw")
            if propagation := value.get("propagation"):
                mode = f"{mode},{propagation}"
            binds.append(f"{source}:{value['bind']}:{mode}")
        else:
            binds.append(f"{source}:{value}:rw")
    return binds, {}


def body(
    image: str, command: Command, settings: Mapping[str, Any], *, detach: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The query and the body of ``POST /containers/create``.

    Raises TypeError for an argument that there is not, InvalidParameter for values that make no
    sense.
    """
    left = {name: value for name, value in settings.items() if value is not None}
    query = {"name": left.pop("name", None), "platform": left.pop("platform", None)}
    config: dict[str, Any] = {"Image": image, "Cmd": words(command)}
    host: dict[str, Any] = {}
    if not detach:
        config.update(AttachStdout=True, AttachStderr=True)
        if left.get("stdin_open"):
            config.update(AttachStdin=True, StdinOnce=True)
    if ports := left.pop("ports", None):
        host["PortBindings"] = _ports(ports)
        config["ExposedPorts"] = {port: {} for port in sorted(host["PortBindings"])}
    if volumes := left.pop("volumes", None):
        host["Binds"], config["Volumes"] = _volumes(volumes)
    network, endpoints = left.pop("network", None), left.pop("networking_config", None)
    if network:
        if left.get("network_mode"):
            raise InvalidParameter('"network" and "network_mode" can not be used together')
        chosen = endpoints if endpoints and network in endpoints else {network: {}}
        config["NetworkingConfig"] = {"EndpointsConfig": chosen}
        host["NetworkMode"] = network
    elif endpoints:
        raise InvalidParameter('"networking_config" can not be used without "network"')
    for table, target in ((_CONFIG, config), (_HOST, host)):
        for name, (member, convert) in table.items():
            if name in left:
                target[member] = convert(left.pop(name))
    if left:
        raise _unknown("run", list(left))
    config["HostConfig"] = host
    return query, config


def limits(given: Mapping[str, Any]) -> dict[str, Any]:
    """The body of ``POST /containers/ID/update``; raises TypeError for what is no limit."""
    unknown = [name for name in given if name not in _LIMITS]
    if unknown:
        raise _unknown("update", unknown)
    return {
        _HOST[name][0]: _HOST[name][1](value) for name, value in given.items() if value is not None
    }
