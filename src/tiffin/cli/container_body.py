"""What ``run`` and ``create`` send: the body of POST /containers/create.

Only what was asked for is sent; what is missing has the API's own default.
"""

from __future__ import annotations

from tiffin.cli import ports, values
from tiffin.cli.mounts import tmpfs, volumes
from tiffin.errors import InvalidParameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tiffin.cli.flags import Options

_PLAIN_HOST = {
    "cgroup-parent": "CgroupParent",
    "cgroupns": "CgroupnsMode",
    "cpu-period": "CpuPeriod",
    "cpu-quota": "CpuQuota",
    "cpu-rt-period": "CpuRealtimePeriod",
    "cpu-rt-runtime": "CpuRealtimeRuntime",
    "cpu-shares": "CpuShares",
    "cpus": "NanoCpus",
    "cpuset-cpus": "CpusetCpus",
    "cpuset-mems": "CpusetMems",
    "memory": "Memory",
    "memory-reservation": "MemoryReservation",
    "memory-swap": "MemorySwap",
    "oom-kill-disable": "OomKillDisable",
    "pids-limit": "PidsLimit",
    "ulimit": "Ulimits",
    "blkio-weight": "BlkioWeight",
    "blkio-weight-device": "BlkioWeightDevice",
    "device-read-bps": "BlkioDeviceReadBps",
    "device-write-bps": "BlkioDeviceWriteBps",
    "device-read-iops": "BlkioDeviceReadIOps",
    "device-write-iops": "BlkioDeviceWriteIOps",
    "device-cgroup-rule": "DeviceCgroupRules",
    "add-host": "ExtraHosts",
    "dns": "Dns",
    "dns-search": "DnsSearch",
    "group-add": "GroupAdd",
    "init": "Init",
    "ipc": "IpcMode",
    "link": "Links",
    "mount": "Mounts",
    "oom-score-adj": "OomScoreAdj",
    "pid": "PidMode",
    "privileged": "Privileged",
    "publish-all": "PublishAllPorts",
    "read-only": "ReadonlyRootfs",
    "rm": "AutoRemove",
    "runtime": "Runtime",
    "shm-size": "ShmSize",
    "userns": "UsernsMode",
    "uts": "UTSMode",
    "volume-driver": "VolumeDriver",
    "volumes-from": "VolumesFrom",
}
"""Flags whose value goes into a field of HostConfig as it is."""

_PLAIN_CONFIG = {
    "domainname": "Domainname",
    "hostname": "Hostname",
    "stop-signal": "StopSignal",
    "stop-timeout": "StopTimeout",
    "user": "User",
    "workdir": "WorkingDir",
}

_MODES = {
    "pid": ("PID", ("", "host"), True),
    "uts": ("UTS", ("", "host"), False),
    "userns": ("USER", ("", "host", "private", "remap"), False),
    "cgroupns": ("CGROUP", ("", "host", "private"), False),
}


def create_body(
    options: Options, image: str, command: list[str], console: tuple[int, int]
) -> dict[str, Any]:
    """The body for these flags; ``console`` is the terminal's rows and columns.

    Raises InvalidParameter for flags that contradict each other or make no sense, and OSError for
    a file of variables, labels or a seccomp profile that can't be read.
    """
    _check(options)
    body: dict[str, Any] = {
        "Image": image,
        **streams(options),
        **{field: options[name] for name, field in _PLAIN_CONFIG.items() if name in options.given},
    }
    if command:
        body["Cmd"] = command
    if "entrypoint" in options.given:
        body["Entrypoint"] = [options["entrypoint"]]
    env = [line for path in options["env-file"] for line in values.read_lines(path)]
    env += options["env"]
    if env:
        body["Env"] = values.resolve_environment(env)
    labels = [line for path in options["label-file"] for line in values.read_lines(path)]
    labels += options["label"]
    if labels:
        body["Labels"] = values.pairs(labels)
    health = _health(options)
    if health:
        body["Healthcheck"] = health
    binds, anonymous = volumes(options["volume"])
    if anonymous:
        body["Volumes"] = anonymous
    bindings = ports.published(options["publish"])
    exposed = [*bindings, *ports.exposed(options["expose"])]
    if exposed:
        body["ExposedPorts"] = {port: {} for port in exposed}
    host = _host(options)
    if binds:
        host["Binds"] = binds
    if bindings:
        host["PortBindings"] = bindings
    if options["tty"]:
        host["ConsoleSize"] = list(console)
    body["HostConfig"] = host
    _network(options, body, host)
    return body


def streams(options: Options) -> dict[str, bool]:
    """Which streams are attached, and whether there is a stdin and a terminal."""
    attached = set(options["attach"])
    if not attached and not options.get("detach"):
        attached = {"stdout", "stderr"}
        if options["interactive"]:
            attached.add("stdin")
    return {
        "AttachStdin": "stdin" in attached,
        "AttachStdout": "stdout" in attached,
        "AttachStderr": "stderr" in attached,
        "Tty": options["tty"],
        "OpenStdin": options["interactive"],
        "StdinOnce": options["interactive"] and "stdin" in attached,
    }


def _check(options: Options) -> None:
    if options["rm"] and options["restart"] not in ("", "no"):
        raise InvalidParameter("conflicting options: cannot specify both --restart and --rm")
    for name, (title, allowed, containers) in _MODES.items():
        mode = options[name]
        joins = containers and mode.startswith("container:") and mode != "container:"
        if mode not in allowed and not joins:
            raise InvalidParameter(f"--{name}: invalid {title} mode")
    if not -1 <= options["memory-swappiness"] <= 100:
        raise InvalidParameter(
            f"invalid value: {options['memory-swappiness']}. Valid memory swappiness range is 0-100"
        )
    if options["no-healthcheck"] and any(
        name in options.given for name in ("health-cmd", "health-interval", "health-timeout")
    ):
        raise InvalidParameter("--no-healthcheck conflicts with --health-* options")
    if options["log-driver"] == "none" and options["log-opt"]:
        raise InvalidParameter("invalid logging opts for driver none")


def _host(options: Options) -> dict[str, Any]:
    host: dict[str, Any] = {
        field: options[name] for name, field in _PLAIN_HOST.items() if name in options.given
    }
    host["RestartPolicy"] = values.restart_policy(options["restart"])
    if options["memory-swappiness"] >= 0:
        host["MemorySwappiness"] = options["memory-swappiness"]
    if options["cidfile"]:
        host["ContainerIDFile"] = options["cidfile"]
    for name, field in (("cap-add", "CapAdd"), ("cap-drop", "CapDrop")):
        if options[name]:
            host[field] = values.capabilities(options[name])
    dns_options = options["dns-option"] + options["dns-opt"]
    if dns_options:
        host["DnsOptions"] = dns_options
    if options["sysctl"]:
        host["Sysctls"] = dict(options["sysctl"])
    if options["tmpfs"]:
        host["Tmpfs"] = tmpfs(options["tmpfs"])
    if options["device"]:
        host["Devices"] = [values.device(text) for text in options["device"]]
    if options["storage-opt"]:
        if any("=" not in text for text in options["storage-opt"]):
            raise InvalidParameter("invalid storage option")
        host["StorageOpt"] = values.pairs(options["storage-opt"])
    if options["log-driver"] or options["log-opt"]:
        host["LogConfig"] = {
            "Type": options["log-driver"],
            "Config": values.pairs(options["log-opt"]),
        }
    if options["security-opt"]:
        kept, unconfined = security_options(options["security-opt"])
        if unconfined:
            host["MaskedPaths"] = []
            host["ReadonlyPaths"] = []
        if kept:
            host["SecurityOpt"] = kept
    return host


def security_options(given: list[str]) -> tuple[list[str], bool]:
    """``--security-opt`` as the daemon takes it, and whether no path is hidden."""
    kept = []
    unconfined = False
    for text in given:
        if text == "systempaths=unconfined":
            unconfined = True
            continue
        name, separator, value = text.partition("=")
        if not separator:
            name, separator, value = text.partition(":")
        if not separator and name != "no-new-privileges":
            raise InvalidParameter(f'Invalid --security-opt: "{text}"')
        if name == "seccomp" and value not in ("unconfined", "builtin"):
            text = f"seccomp={_seccomp_profile(value)}"
        kept.append(text)
    return kept, unconfined


def _seccomp_profile(path: str) -> str:
    """The profile's own text: the daemon may not see this file."""
    from json import dumps, loads

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise InvalidParameter(
            f"opening seccomp profile ({path}) failed: open {path}: "
            f"{(error.strerror or str(error)).lower()}"
        ) from None
    try:
        return dumps(loads(text), separators=(",", ":"))
    except ValueError as error:
        raise InvalidParameter(
            f"compacting json for seccomp profile ({path}) failed: {error}"
        ) from None


def _health(options: Options) -> dict[str, Any]:
    if options["no-healthcheck"]:
        return {"Test": ["NONE"]}
    health: dict[str, Any] = {}
    if options["health-cmd"]:
        health["Test"] = ["CMD-SHELL", options["health-cmd"]]
    for name, field in (
        ("health-interval", "Interval"),
        ("health-timeout", "Timeout"),
        ("health-start-period", "StartPeriod"),
        ("health-start-interval", "StartInterval"),
        ("health-retries", "Retries"),
    ):
        if name in options.given:
            if options[name] < 0:
                raise InvalidParameter(f"--{name} cannot be negative")
            health[field] = options[name]
    return health


def _network(options: Options, body: dict[str, Any], host: dict[str, Any]) -> None:
    networks = [_network_fields(text) for text in options["network"] + options["net"]] or [
        ("default", {})
    ]
    host["NetworkMode"] = networks[0][0]
    first = networks[0][1]
    addresses = {
        field: options[name]
        for name, field in (
            ("ip", "IPv4Address"),
            ("ip6", "IPv6Address"),
            ("link-local-ip", "LinkLocalIPs"),
        )
        if options[name]
    }
    if addresses:
        first.setdefault("IPAMConfig", {}).update(addresses)
    if options["network-alias"]:
        if networks[0][0] in ("default", "bridge", "host", "none"):
            raise InvalidParameter(
                "network-scoped aliases are only supported for user-defined networks"
            )
        first["Aliases"] = first.get("Aliases", []) + options["network-alias"]
    if options["mac-address"]:
        first["MacAddress"] = _mac_address(options["mac-address"])
    if options["link"] and networks[0][0] not in ("default", "bridge", "host", "none"):
        first["Links"] = options["link"]
    endpoints = {name: fields for name, fields in networks if fields or len(networks) > 1}
    if endpoints:
        body["NetworkingConfig"] = {"EndpointsConfig": endpoints}


def endpoint_fields(options: Options) -> dict[str, Any]:
    """The API's EndpointSettings of ``network connect``'s flags."""
    fields: dict[str, Any] = {}
    for flag, field in (("alias", "Aliases"), ("link", "Links")):
        if options[flag]:
            fields[field] = options[flag]
    ipam = {
        field: options[flag]
        for flag, field in (
            ("ip", "IPv4Address"),
            ("ip6", "IPv6Address"),
            ("link-local-ip", "LinkLocalIPs"),
        )
        if options[flag]
    }
    if ipam:
        fields["IPAMConfig"] = ipam
    if options["driver-opt"]:
        fields["DriverOpts"] = values.pairs(options["driver-opt"])
    if options["gw-priority"]:
        fields["GwPriority"] = options["gw-priority"]
    return fields


def _network_fields(text: str) -> tuple[str, dict[str, Any]]:
    """A network's name alone, or ``name=…,alias=…,ip=…,driver-opt=…``."""
    if "=" not in text:
        if not text:
            raise InvalidParameter("no name set for network")
        return text, {}
    name = ""
    fields: dict[str, Any] = {}
    for field in text.split(","):
        key, _, value = field.partition("=")
        match key.strip().lower():
            case "name":
                name = value
            case "alias":
                fields.setdefault("Aliases", []).append(value)
            case "ip":
                fields.setdefault("IPAMConfig", {})["IPv4Address"] = value
            case "ip6":
                fields.setdefault("IPAMConfig", {})["IPv6Address"] = value
            case "link-local-ip":
                fields.setdefault("IPAMConfig", {}).setdefault("LinkLocalIPs", []).append(value)
            case "mac-address":
                fields["MacAddress"] = _mac_address(value)
            case "driver-opt":
                option, _, setting = value.partition("=")
                fields.setdefault("DriverOpts", {})[option] = setting
            case "gw-priority":
                fields["GwPriority"] = int(value)
            case _:
                raise InvalidParameter(f"invalid field key {key}")
    if not name:
        raise InvalidParameter("no name set for network")
    return name, fields


def _mac_address(text: str) -> str:
    parts = text.replace("-", ":").split(":")
    if len(parts) != 6 or not all(
        len(part) == 2 and not set(part.lower()) - set("0123456789abcdef") for part in parts
    ):
        raise InvalidParameter(f"{text} is not a valid mac address")
    return text
