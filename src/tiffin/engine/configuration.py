"""What was asked of a container, checked: the body of ``POST /containers/create``.

A field that tiffin does not act on yet is refused by its name when it asks for something; clients
send many fields with a value that asks for nothing, and these pass. The image's own configuration
fills in what was not said, as Docker does it.

Source: Docker Engine API v1.50, ``ContainerConfig`` and ``HostConfig``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any

from tiffin.engine import security
from tiffin.errors import InvalidParameter, Unsupported
from tiffin.runtime.settings import READONLY_PATHS

JSON = dict[str, Any]

# Fields of HostConfig that the engine acts on.
_ACTED_ON = frozenset(
    """Binds ContainerIDFile LogConfig NetworkMode AutoRemove VolumesFrom CapAdd CapDrop Dns
    DnsOptions DnsSearch ExtraHosts GroupAdd IpcMode OomScoreAdj PidMode Privileged
    ReadonlyRootfs SecurityOpt Tmpfs UTSMode ShmSize Sysctls Runtime CpuShares Memory
    CpuPeriod CpuQuota CpusetCpus CpusetMems MemoryReservation MemorySwap NanoCpus Init
    PidsLimit Ulimits Mounts MaskedPaths ReadonlyPaths RestartPolicy ConsoleSize CgroupnsMode
    Devices DeviceCgroupRules UsernsMode Annotations""".split()
)
# Values of other fields that ask for nothing: what clients send by default.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "MemorySwappiness": (-1,),
    "Isolation": ("default",),
    "Cgroup": (),
}
REMAPPED = ("private", "remap")
"""Modes of ``--userns`` that give a container a user namespace of its own."""
_DEVICE_RULE = re.compile(r"[acb] (\d+|\*):(\d+|\*) [rwm]{1,3}")
_CONFIG_REFUSED: Mapping[str, str] = {"Healthcheck": "health checks", "MacAddress": "--mac-address"}


def normalise(body: JSON) -> tuple[JSON, JSON, JSON]:
    """Split a create request into (Config, HostConfig, NetworkingConfig), with defaults filled in.

    Raises InvalidParameter for what makes no sense and Unsupported for what is not done yet.
    """
    host = {**_host_defaults(), **(body.get("HostConfig") or {})}
    networking = body.get("NetworkingConfig") or {}
    config = {
        key: value
        for key, value in body.items()
        if key not in ("HostConfig", "NetworkingConfig", "name", "platform")
    }
    for key in ("Cmd", "Entrypoint", "Shell"):
        if isinstance(config.get(key), str):
            config[key] = [config[key]]
    _check_config(config)
    _check_host(host)
    return config, host, networking


def _host_defaults() -> JSON:
    return {
        "Binds": None,
        "ContainerIDFile": "",
        "LogConfig": {"Type": "json-file", "Config": {}},
        "NetworkMode": "default",
        "PortBindings": {},
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": False,
        "VolumeDriver": "",
        "VolumesFrom": None,
        "CapAdd": None,
        "CapDrop": None,
        "CgroupnsMode": "private",
        "Dns": [],
        "DnsOptions": [],
        "DnsSearch": [],
        "ExtraHosts": None,
        "GroupAdd": None,
        "IpcMode": "private",
        "OomScoreAdj": 0,
        "PidMode": "",
        "Privileged": False,
        "ReadonlyRootfs": False,
        "SecurityOpt": None,
        "UTSMode": "",
        "ShmSize": 64 * 1024 * 1024,
        "Runtime": "native",
    }


def _check_config(config: JSON) -> None:
    for key, what in _CONFIG_REFUSED.items():
        value = config.get(key)
        if (
            value and value.get("Test") not in (None, [], ["NONE"])
            if key == "Healthcheck"
            else value
        ):
            raise Unsupported(f"{key}: {what} can't be used yet")
    directory = config.get("WorkingDir") or ""
    if directory and not directory.startswith("/"):
        raise InvalidParameter(
            f"the working directory '{directory}' is invalid, it needs to be an absolute path"
        )
    for variable in config.get("Env") or []:
        if variable.startswith("=") or not variable:
            raise InvalidParameter(f"invalid environment variable: {variable}")


def _check_host(host: JSON) -> None:
    for key, value in host.items():
        if key in _ACTED_ON or not value or value in _NEUTRAL.get(key, ()):
            continue
        if isinstance(value, dict) and not any(value.values()):
            continue
        raise Unsupported(f"HostConfig.{key} can't be used yet (it was {value!r})")
    if not host.get("ShmSize"):
        host["ShmSize"] = 64 * 1024 * 1024
    restart = (host.get("RestartPolicy") or {}).get("Name") or "no"
    if restart != "no":
        raise Unsupported(f"the restart policy '{restart}' can't be used yet: leave it out")
    host["RestartPolicy"] = {"Name": "no", "MaximumRetryCount": 0}
    log = host.get("LogConfig") or {}
    if log.get("Type", "") not in ("", "json-file", "none", "local"):
        raise InvalidParameter(
            f'error looking up logging plugin {log["Type"]}: plugin "{log["Type"]}" not found: '
            "json-file, local and none are there"
        )
    host["LogConfig"] = {"Type": log.get("Type") or "json-file", "Config": log.get("Config") or {}}
    for option in host["LogConfig"]["Config"]:
        if option not in ("max-size", "max-file"):
            raise Unsupported(f"the log option '{option}' can't be used yet: max-size, max-file")
    if host.get("Runtime") not in (None, "", "native", "runc"):
        raise InvalidParameter(f"unknown or invalid runtime name: {host['Runtime']}")
    host["Runtime"] = "native"
    _check_modes(host)
    _check_users(host)
    for rule in host.get("DeviceCgroupRules") or []:
        if not _DEVICE_RULE.fullmatch(rule):
            raise InvalidParameter(f"invalid device cgroup rule format: '{rule}'")
    if not -1000 <= (host.get("OomScoreAdj") or 0) <= 1000:
        raise InvalidParameter(
            f"Invalid value {host['OomScoreAdj']}, range for oom score adj is [-1000, 1000]"
        )
    security.check(host)
    if host.get("NanoCpus") and (host.get("CpuQuota") or host.get("CpuPeriod")):
        raise InvalidParameter("Conflicting options: Nano CPUs and CPU Period cannot both be set")
    memory = host.get("Memory") or 0
    if 0 < memory < 6 * 1024 * 1024:
        raise InvalidParameter("Minimum memory limit allowed is 6MB")
    swap = host.get("MemorySwap") or 0
    if swap > 0 and memory == 0:
        raise InvalidParameter(
            "You should always set the Memory limit when using Memoryswap limit, see usage"
        )
    if memory and not swap:
        # Docker's default: as much swap as memory.
        host["MemorySwap"] = 2 * memory
    if 0 < swap < memory:
        raise InvalidParameter(
            "Minimum memoryswap limit should be larger than memory limit, see usage"
        )


def _check_modes(host: JSON) -> None:
    network = host.get("NetworkMode") or "default"
    if network not in ("default", "none", "host"):
        raise Unsupported(
            f"the network '{network}' can't be used yet: --network none or --network host"
        )
    host["NetworkMode"] = network
    for key, default in (("IpcMode", "private"), ("CgroupnsMode", "private")):
        host[key] = host.get(key) or default
    privileged = bool(host.get("Privileged"))
    for key, paths in (("MaskedPaths", security.masked_paths()), ("ReadonlyPaths", READONLY_PATHS)):
        if host.get(key) is None:
            host[key] = None if privileged else list(paths)
    for key, what, allowed in (
        ("IpcMode", "IPC", ("", "private", "shareable", "host", "none")),
        ("PidMode", "PID", ("", "host")),
        ("UTSMode", "UTS", ("", "host")),
        ("CgroupnsMode", "cgroup NS", ("", "private", "host")),
        ("UsernsMode", "user NS", ("", "host", *REMAPPED)),
    ):
        mode = host.get(key) or ""
        joins = key in ("IpcMode", "PidMode") and mode.startswith("container:")
        if joins and not mode.partition(":")[2]:
            raise InvalidParameter(f"invalid {what} mode: {mode}")
        if mode not in allowed and not joins:
            raise InvalidParameter(f"invalid {what} mode: {mode}")


def _check_users(host: JSON) -> None:
    """What belongs to the host can't be shared with a user namespace of the container's own."""
    if host.get("UsernsMode") not in REMAPPED:
        return
    if host.get("Privileged"):
        raise InvalidParameter(
            "privileged mode is incompatible with user namespaces. You must run the container in "
            "the host namespace when running privileged mode"
        )
    if host["NetworkMode"] == "host":
        raise InvalidParameter(
            "cannot share the host's network namespace when user namespaces are enabled"
        )
    if host.get("PidMode") == "host":
        raise InvalidParameter(
            "cannot share the host PID namespace when user namespaces are enabled"
        )
    for key in ("IpcMode", "UTSMode", "PidMode"):
        if host.get(key) == "host" or (host.get(key) or "").startswith("container:"):
            raise InvalidParameter(
                f"HostConfig.{key} '{host[key]}' can't be used with a user namespace of its own"
            )


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)i?b?", re.IGNORECASE)


def parse_size(text: str) -> int | None:
    """Bytes of a size such as ``10m`` (units are powers of 1024); None for ``-1``, no limit."""
    if text == "-1":
        return None
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise InvalidParameter(f"invalid size: '{text}': write it as 10m or 1g")
    return int(float(match[1]) * 1024 ** " kmgtp".index(match[2].lower() or " "))


def merge(config: JSON, image: Mapping[str, Any]) -> JSON:
    """The container's configuration with the image's filled in where the user said nothing.

    ``image`` is the ``config`` object of the image's configuration. Raises InvalidParameter where
    no command is left to run.
    """
    merged = dict(config)
    for key in ("User", "WorkingDir", "StopSignal"):
        merged[key] = config.get(key) or image.get(key) or ""
    for key in ("Labels", "ExposedPorts", "Volumes"):
        merged[key] = {**(image.get(key) or {}), **(config.get(key) or {})} or None
    merged["Labels"] = merged["Labels"] or {}
    own = list(config.get("Env") or [])
    named = {variable.partition("=")[0] for variable in own}
    merged["Env"] = own + [
        variable for variable in image.get("Env") or [] if variable.partition("=")[0] not in named
    ]
    # A name without "=" asks for the variable to be taken away.
    merged["Env"] = [variable for variable in merged["Env"] if "=" in variable]
    entrypoint, command = config.get("Entrypoint"), config.get("Cmd")
    if entrypoint is None:
        if not command:
            command = image.get("Cmd")
        entrypoint = image.get("Entrypoint")
    elif entrypoint in ([], [""]):
        entrypoint = None
    merged["Entrypoint"], merged["Cmd"] = entrypoint, command
    if not (entrypoint or command):
        raise InvalidParameter("no command specified")
    if merged["WorkingDir"]:
        merged["WorkingDir"] = posixpath.normpath(merged["WorkingDir"])
    for key, default in (
        ("Hostname", ""),
        ("Domainname", ""),
        ("AttachStdin", False),
        ("AttachStdout", False),
        ("AttachStderr", False),
        ("Tty", False),
        ("OpenStdin", False),
        ("StdinOnce", False),
        ("OnBuild", None),
    ):
        merged.setdefault(key, default)
    return merged
