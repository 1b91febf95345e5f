"""What the JSON bodies of requests look like, so that the engine need not doubt its input.

A shape is ``str``, ``int``, ``float``, ``bool``, ``ANY``; ``[shape]`` for a list; ``Map(shape)``
for an object with any names; a ``dict`` for one with these; ``WORDS`` for Docker's command, a list
or one string. As in Go: null stands for "not said" everywhere, members that are not known are left
alone, and names are compared without regard to case (``detachKeys`` is ``DetachKeys``).

Source: Docker Engine API v1.50, the definitions of the request bodies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tiffin.errors import InvalidParameter

ANY = object()
STRINGS = [str]
WORDS = object()
_INT64 = 1 << 63


@dataclass(frozen=True)
class Map:
    """An object from any name to values of one shape."""

    of: Any


def checked(value: Any, shape: Any, name: str = "") -> Any:
    """``value`` with its members' names as the shape has them; raises InvalidParameter."""
    if value is None or shape is ANY:
        return value
    if shape is WORDS:
        return value if isinstance(value, str) else checked(value, [str], name)
    if isinstance(shape, list):
        if not isinstance(value, list):
            raise _wrong(value, "a list", name)
        # Go reads a null among strings as an empty one.
        empty = "" if shape[0] is str else None
        return [checked(empty if item is None else item, shape[0], name) for item in value]
    if isinstance(shape, Map):
        return {
            key: checked("" if item is None and shape.of is str else item, shape.of, _in(name, key))
            for key, item in _object(value, name).items()
        }
    if isinstance(shape, dict):
        return _members(_object(value, name), shape, name)
    if not _is(value, shape):
        raise _wrong(value, _NAMES[shape], name)
    return value


def _members(value: dict[str, Any], shape: dict[str, Any], name: str) -> dict[str, Any]:
    if value.keys() - shape.keys():
        known = {key.lower(): key for key in shape}
        for key in value.keys() - shape.keys():
            right = known.get(key.lower())
            if right is not None:
                value.setdefault(right, value.pop(key))
    return {
        key: checked(item, shape[key], _in(name, key)) if key in shape else item
        for key, item in value.items()
    }


def _is(value: Any, shape: type) -> bool:
    if shape is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if shape is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and -_INT64 <= value < _INT64
    return isinstance(value, shape)


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(value, "an object", name)
    return value


def _in(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


_NAMES: dict[Any, str] = {
    str: "a string",
    int: "a whole number of 64 bits",
    float: "a number",
    bool: "true or false",
}


def _wrong(value: Any, expected: str, name: str) -> InvalidParameter:
    text = repr(value)
    if len(text) > 60:
        text = text[:57] + "..."
    return InvalidParameter(f"invalid JSON: {name or 'the body'} must be {expected}, not {text}")


HEALTH = {
    "Test": [str],
    "Interval": int,
    "Timeout": int,
    "Retries": int,
    "StartPeriod": int,
    "StartInterval": int,
}
CONFIG: dict[str, Any] = {
    **dict.fromkeys(("Hostname", "Domainname", "User", "Image", "WorkingDir", "Runtime"), str),
    **dict.fromkeys(("MacAddress", "StopSignal"), str),
    **dict.fromkeys(("AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin"), bool),
    **dict.fromkeys(("StdinOnce", "NetworkDisabled", "ArgsEscaped"), bool),
    **dict.fromkeys(("Env", "OnBuild"), STRINGS),
    **dict.fromkeys(("Cmd", "Entrypoint", "Shell"), WORDS),
    **dict.fromkeys(("ExposedPorts", "Volumes"), Map({})),
    "Labels": Map(str),
    "StopTimeout": int,
    "Healthcheck": HEALTH,
}
_DEVICE_RATES = [{"Path": str, "Rate": int}]
RESOURCES: dict[str, Any] = {
    **dict.fromkeys(("CpuShares", "Memory", "NanoCpus", "CpuPeriod", "CpuQuota"), int),
    **dict.fromkeys(("CpuRealtimePeriod", "CpuRealtimeRuntime", "MemoryReservation"), int),
    **dict.fromkeys(("MemorySwap", "MemorySwappiness", "PidsLimit", "BlkioWeight"), int),
    **dict.fromkeys(("KernelMemory", "KernelMemoryTCP", "CpuCount", "CpuPercent"), int),
    **dict.fromkeys(("IOMaximumIOps", "IOMaximumBandwidth"), int),
    **dict.fromkeys(("CgroupParent", "CpusetCpus", "CpusetMems"), str),
    **dict.fromkeys(("BlkioDeviceReadBps", "BlkioDeviceWriteBps"), _DEVICE_RATES),
    **dict.fromkeys(("BlkioDeviceReadIOps", "BlkioDeviceWriteIOps"), _DEVICE_RATES),
    "BlkioWeightDevice": [{"Path": str, "Weight": int}],
    "Devices": [{"PathOnHost": str, "PathInContainer": str, "CgroupPermissions": str}],
    "DeviceCgroupRules": [str],
    "DeviceRequests": [
        {
            "Driver": str,
            "Count": int,
            "DeviceIDs": [str],
            "Capabilities": [[str]],
            "Options": Map(str),
        }
    ],
    "OomKillDisable": bool,
    "Init": bool,
    "Ulimits": [{"Name": str, "Soft": int, "Hard": int}],
    "RestartPolicy": {"Name": str, "MaximumRetryCount": int},
}
_DRIVER = {"Name": str, "Options": Map(str)}
MOUNT = {
    "Type": str,
    "Source": str,
    "Target": str,
    "ReadOnly": bool,
    "Consistency": str,
    "BindOptions": {
        "Propagation": str,
        "NonRecursive": bool,
        "CreateMountpoint": bool,
        "ReadOnlyNonRecursive": bool,
        "ReadOnlyForceRecursive": bool,
    },
    "VolumeOptions": {
        "NoCopy": bool,
        "Labels": Map(str),
        "Subpath": str,
        "DriverConfig": _DRIVER,
    },
    "ImageOptions": {"Subpath": str},
    "TmpfsOptions": {"SizeBytes": int, "Mode": int, "Options": [[str]]},
}
HOST: dict[str, Any] = {
    **RESOURCES,
    **dict.fromkeys(("Binds", "VolumesFrom", "CapAdd", "CapDrop", "Dns", "DnsOptions"), STRINGS),
    **dict.fromkeys(("DnsSearch", "ExtraHosts", "GroupAdd", "Links", "SecurityOpt"), STRINGS),
    **dict.fromkeys(("MaskedPaths", "ReadonlyPaths"), STRINGS),
    **dict.fromkeys(("ContainerIDFile", "NetworkMode", "VolumeDriver", "CgroupnsMode"), str),
    **dict.fromkeys(("IpcMode", "Cgroup", "PidMode", "UTSMode", "UsernsMode", "Runtime"), str),
    **dict.fromkeys(("Isolation",), str),
    **dict.fromkeys(("AutoRemove", "Privileged", "PublishAllPorts", "ReadonlyRootfs"), bool),
    **dict.fromkeys(("OomScoreAdj", "ShmSize"), int),
    **dict.fromkeys(("Annotations", "StorageOpt", "Tmpfs", "Sysctls"), Map(str)),
    "LogConfig": {"Type": str, "Config": Map(str)},
    "PortBindings": Map([{"HostIp": str, "HostPort": str}]),
    "Mounts": [MOUNT],
    "ConsoleSize": [int],
}
ENDPOINT = {
    "IPAMConfig": {"IPv4Address": str, "IPv6Address": str, "LinkLocalIPs": [str]},
    "Links": [str],
    "Aliases": [str],
    "MacAddress": str,
    "DriverOpts": Map(str),
    "GwPriority": int,
    "NetworkID": str,
}
CONTAINER = {
    **CONFIG,
    "HostConfig": HOST,
    "NetworkingConfig": {"EndpointsConfig": Map(ENDPOINT)},
}
EXEC = {
    **dict.fromkeys(("AttachStdin", "AttachStdout", "AttachStderr", "Tty", "Privileged"), bool),
    **dict.fromkeys(("DetachKeys", "User", "WorkingDir"), str),
    "ConsoleSize": [int],
    "Env": [str],
    "Cmd": WORDS,
}
EXEC_START = {"Detach": bool, "Tty": bool, "ConsoleSize": [int]}
LOGIN = dict.fromkeys(
    ("username", "password", "auth", "email", "serveraddress", "identitytoken", "registrytoken"),
    str,
)
VOLUME = {"Name": str, "Driver": str, "DriverOpts": Map(str), "Labels": Map(str)}
NETWORK = {
    **dict.fromkeys(("Name", "Driver", "Scope"), str),
    **dict.fromkeys(("CheckDuplicate", "Internal", "Attachable", "Ingress", "ConfigOnly"), bool),
    **dict.fromkeys(("EnableIPv4", "EnableIPv6"), bool),
    **dict.fromkeys(("Options", "Labels"), Map(str)),
    "ConfigFrom": {"Network": str},
    "IPAM": {
        "Driver": str,
        "Options": Map(str),
        "Config": [{"Subnet": str, "IPRange": str, "Gateway": str, "AuxiliaryAddresses": Map(str)}],
    },
}
CONNECTION = {"Container": str, "EndpointConfig": ENDPOINT}
DISCONNECTION = {"Container": str, "Force": bool}
