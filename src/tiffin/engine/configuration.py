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

from tiffin.engine import health, limits, logdrivers, networkmodes, security
from tiffin.errors import InvalidParameter, Unsupported
from tiffin.runtime import foreign
from tiffin.runtime.settings import READONLY_PATHS

JSON = dict[str, Any]

# Fields of HostConfig that the engine acts on.
_ACTED_ON = frozenset(
    """Binds ContainerIDFile LogConfig NetworkMode AutoRemove VolumesFrom CapAdd CapDrop Dns
    DnsOptions DnsSearch ExtraHosts GroupAdd IpcMode OomScoreAdj PidMode Privileged
    VolumeDriver ReadonlyRootfs SecurityOpt Tmpfs UTSMode ShmSize Sysctls Runtime Init
    Ulimits Mounts MaskedPaths ReadonlyPaths RestartPolicy ConsoleSize CgroupnsMode
    Devices DeviceCgroupRules UsernsMode StorageOpt Annotations PortBindings
    PublishAllPorts Links CgroupParent""".split()
)
# Values of other fields that ask for nothing: what clients send by default.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "Isolation": ("default",),
    "Cgroup": (),
}
NATIVE = "native"
"""The runtime that is this engine's own."""
REMAPPED = ("private", "remap")
"""Modes of ``--userns`` that give a container a user namespace of its own."""
_DEVICE_RULE = re.compile(r"[acb] (\d+|\*):(\d+|\*) [rwm]{1,3}")
_CONFIG_REFUSED: Mapping[str, str] = {}


def normalise(body: JSON) -> tuple[JSON, JSON, JSON]:
    """Split a create request into (Config, HostConfig, NetworkingConfig), with defaults filled in.

    Raises InvalidParameter for what makes no sense and Unsupported for what is not done yet.
    """
    given = body.get("HostConfig") or {}
    host = {**_host_defaults(), **given}
    if not given.get("Runtime"):
        # docker-py's low-level client names the runtime here.
        host["Runtime"] = body.get("Runtime")
    config = {
        key: value
        for key, value in body.items()
        if key not in ("HostConfig", "NetworkingConfig", "Runtime", "name", "platform")
    }
    for key in ("Cmd", "Entrypoint", "Shell"):
        if isinstance(config.get(key), str):
            config[key] = [config[key]]
    _check_config(config)
    _check_host(host)
    if config.get("Hostname") and host.get("UTSMode") == "host":
        raise InvalidParameter("conflicting options: hostname and the UTS mode")
    wanted = body.get("NetworkingConfig") or {}
    if config.get("NetworkDisabled"):
        host["NetworkMode"], wanted = "none", {}
    networks = networkmodes.normalise(config, host, wanted)
    return config, host, {"EndpointsConfig": networks}


def _host_defaults() -> JSON:
    return {
        "Binds": None,
        "ContainerIDFile": "",
        "LogConfig": {"Type": "json-file", "Config": {}},
        "NetworkMode": "bridge",
        "PortBindings": None,
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
        "Runtime": NATIVE,
    }


def _check_config(config: JSON) -> None:
    for key, what in _CONFIG_REFUSED.items():
        if config.get(key):
            raise Unsupported(f"{key}: {what} can't be used yet")
    health.validate(config.get("Healthcheck"))
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
        if key in _ACTED_ON or key in limits.FIELDS or not value or value in _NEUTRAL.get(key, ()):
            continue
        if isinstance(value, dict) and not any(value.values()):
            continue
        raise Unsupported(f"HostConfig.{key} can't be used yet (it was {value!r})")
    if not host.get("ShmSize"):
        host["ShmSize"] = 64 * 1024 * 1024
    host["RestartPolicy"] = restart_policy(host.get("RestartPolicy"))
    if host.get("AutoRemove") and host["RestartPolicy"]["Name"] != "no":
        raise InvalidParameter("can't create 'AutoRemove' container with restart policy")
    host["LogConfig"] = logdrivers.check(host.get("LogConfig") or {})
    host["Runtime"] = host.get("Runtime") or NATIVE
    if host["Runtime"] != NATIVE and foreign.find(host["Runtime"]) is None:
        raise InvalidParameter(f"unknown or invalid runtime name: {host['Runtime']}")
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


def restart_policy(policy: Mapping[str, Any] | None) -> JSON:
    """A restart policy, checked. Raises InvalidParameter, in Docker's words."""
    name = (policy or {}).get("Name") or "no"
    count = (policy or {}).get("MaximumRetryCount") or 0
    if name not in ("no", "always", "unless-stopped", "on-failure"):
        raise InvalidParameter(
            f"invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', "
            "'on-failure', or 'unless-stopped'"
        )
    if name != "on-failure" and count:
        negative = " and cannot be negative" if count < 0 else ""
        raise InvalidParameter(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'"
            f"{negative}"
        )
    if count < 0:
        raise InvalidParameter("invalid restart policy: maximum retry count cannot be negative")
    return {"Name": name, "MaximumRetryCount": count}


def _check_modes(host: JSON) -> None:
    if ".." in (host.get("CgroupParent") or "").split("/"):
        raise InvalidParameter(f"invalid cgroup parent '{host['CgroupParent']}': it may have no ..")
    network = host.get("NetworkMode") or "default"
    host["NetworkMode"] = "bridge" if network == "default" else network
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
    for key in ("ExposedPorts", "StopSignal"):
        if not merged[key]:
            del merged[key]
    own = list(config.get("Env") or [])
    named = {variable.partition("=")[0] for variable in own}
    merged["Env"] = own + [
        variable for variable in image.get("Env") or [] if variable.partition("=")[0] not in named
    ]
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
    check = health.merge(config.get("Healthcheck"), image.get("Healthcheck"))
    merged.pop("Healthcheck", None)
    if check:
        merged["Healthcheck"] = check
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
