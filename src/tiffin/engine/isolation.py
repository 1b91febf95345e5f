"""From what was asked of a container to the settings of its isolation.

This is where Docker's defaults are decided: capabilities, masked paths, namespaces, environment.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiffin.engine import configuration, limits, security, selinux
from tiffin.engine.container import Container
from tiffin.engine.mountpoints import MountPoint
from tiffin.errors import Conflict, InvalidParameter
from tiffin.linux import capabilities
from tiffin.runtime.seccomp import Filters
from tiffin.runtime.settings import (
    DEFAULT_PATH,
    READONLY_PATHS,
    ContainerSettings,
    Device,
    ProcessSettings,
)
from tiffin.runtime.settings import MountPoint as RuntimeMount
from tiffin.storage.driver import Mount


def capability_set(host: dict[str, Any]) -> list[str]:
    """The capabilities that a container's root has: Docker's default set, changed as asked.

    Raises InvalidParameter for a name that is no capability.
    """
    everything = _bounding_set()
    if host.get("Privileged"):
        return everything
    add, drop = (
        {_capability(name, key) for name in host.get(key) or []} for key in ("CapAdd", "CapDrop")
    )
    names = set(everything) if _ALL in add else set(capabilities.DEFAULT)
    if _ALL in drop:
        names = set()
    names = (names | add) - drop
    return [name for name in everything if name in names]


@functools.cache
def _bounding_set() -> list[str]:
    # Forty system calls; it can only shrink, and this process does not shrink it.
    return capabilities.names(capabilities.bounding())


_ALL = "ALL"


def _capability(name: str, key: str) -> str:
    if name.upper() in (_ALL, "CAP_ALL"):
        return _ALL
    full = capabilities.canonical(name)
    if full is None:
        raise InvalidParameter(f'invalid {key}: unknown capability: "{name}"')
    return full


def hostname(container: Container) -> str:
    """The host name inside the container."""
    if container.spec.config.get("Hostname"):
        return str(container.spec.config["Hostname"])
    if container.spec.host["NetworkMode"] == "host" or container.spec.host.get("UTSMode") == "host":
        return os.uname().nodename
    return container.id[:12]


def environment(container: Container) -> list[str]:
    """The environment of the container's processes, HOME aside (the runtime knows the user)."""
    variables = list(container.spec.config.get("Env") or [])
    named = {variable.partition("=")[0] for variable in variables}
    defaults = [f"PATH={DEFAULT_PATH}", f"HOSTNAME={hostname(container)}"]
    if container.tty:
        defaults.append("TERM=xterm")
    defaults = [default for default in defaults if default.partition("=")[0] not in named]
    # A name without "=" asks for the variable to be taken away.
    return defaults + [variable for variable in variables if "=" in variable]


ID_COUNT = 65536
"""How many IDs a user namespace has."""
_ID_SLOTS = range(16384, 65535)
"""Which multiples of ID_COUNT they may begin at: above what hosts hand out themselves."""

Peer = Callable[[str], Container]
"""Finds another container, which must run, by its name or ID. Raises NotFound, Conflict."""


def free_id_base(container_id: str, taken: Collection[int]) -> int:
    """Where the IDs of a container's user namespace begin: a range that no other one has."""
    start = int(container_id[:8], 16)
    for offset in range(len(_ID_SLOTS)):
        base = _ID_SLOTS[(start + offset) % len(_ID_SLOTS)] * ID_COUNT
        if base not in taken:
            return base
    raise Conflict("no range of IDs is left for a user namespace")


def _donor(mode: str, peer: Peer) -> Container | None:
    """The container of a mode ``container:NAME``."""
    kind, _, name = mode.partition(":")
    return peer(name) if kind == "container" else None


def _ipc_donor(container: Container, peer: Peer) -> Container | None:
    other = _donor(container.spec.host.get("IpcMode") or "", peer)
    if other is not None and other.spec.host.get("IpcMode") not in ("shareable", "host"):
        raise Conflict(
            f"cannot join IPC of container {other.id}: non-shareable IPC (hint: use "
            "IpcMode:shareable for the donor container)"
        )
    return other


def namespaces(
    container: Container, peer: Peer, network: str | None = None
) -> dict[str, str | None]:
    """Which namespaces are the container's own; a type that's missing is the host's.

    ``network`` is the path of the network namespace to join, None for a new and empty one.
    """
    host = container.spec.host
    result: dict[str, str | None] = {"mount": None}
    if host["NetworkMode"] != "host":
        result["network"] = network
    if host.get("PidMode") != "host":
        result["pid"] = None
    if host.get("IpcMode") != "host":
        result["ipc"] = None
    if host.get("UTSMode") != "host":
        result["uts"] = None
    for kind, other in (
        ("pid", _donor(host.get("PidMode") or "", peer)),
        ("ipc", _ipc_donor(container, peer)),
    ):
        if other is not None:
            result[kind] = f"/proc/{other.state.pid}/ns/{kind}"
    # As in Docker, a privileged container sees the host's cgroups unless it asks not to.
    if host.get("CgroupnsMode") != "host":
        result["cgroup"] = None
    return result


def _runtime_mount(point: MountPoint, tree: Mount | None) -> RuntimeMount:
    if point.kind == "image":
        how = "rw" if point.writable and point.snapshot else "ro"
        return RuntimeMount("tree", point.source, point.target, (how,), tree, point.subpath)
    if point.kind == "tmpfs":
        options = ["nosuid", "nodev", "noexec", *point.tmpfs_options]
        if not point.tmpfs_options:
            options.append(f"mode={point.permissions:o}")
            if point.size:
                options.append(f"size={point.size}")
            options += point.extra_options
        if not point.writable:
            options.append("ro")
        return RuntimeMount("tmpfs", "tmpfs", point.target, tuple(options))
    options = ["rbind" if point.recursive else "bind"]
    if point.writable:
        options.append("rw")
    else:
        options.append("rro" if point.recursive and point.readonly_recursive else "ro")
    options.append(point.propagation or "rprivate")
    if point.kind == "volume":
        # What is in a volume has the IDs that containers see, whatever those are outside.
        options.append("idmap")
    return RuntimeMount("bind", point.source, point.target, tuple(options), below=point.subpath)


def process_settings(
    container: Container,
    *,
    args: list[str],
    env: list[str],
    user: str,
    cwd: str,
    terminal: bool,
    filters: Filters,
    privileged: bool = False,
) -> ProcessSettings:
    """The settings of a container's process, its first one or an exec's.

    An exec has the container's own seccomp filter, also where it is privileged.
    """
    host = container.spec.host
    own = capability_set(host)
    filtered, profile = security.profile_of(host)
    return ProcessSettings(
        args=args,
        env=env,
        cwd=cwd or "/",
        user=user,
        groups=[str(group) for group in host.get("GroupAdd") or []],
        terminal=terminal,
        capabilities=capability_set({"Privileged": True}) if privileged else own,
        no_new_privileges=security.parse(host.get("SecurityOpt")).no_new_privileges,
        seccomp=filters.get(profile, own) if filtered else None,
        rlimits=[
            (limit["Name"], limit.get("Soft", 0), limit.get("Hard", 0))
            for limit in host.get("Ulimits") or []
        ],
        oom_score_adj=host.get("OomScoreAdj") or None,
        remapped=(container.state.id_base,) * 2 if container.state.id_base else None,
        apparmor=security.apparmor_profile(host),
        selinux=security.labels(host, container.id)[0],
    )


def container_settings(
    container: Container,
    folder: Path,
    rootfs: list[Mount],
    cgroup: str,
    filters: Filters,
    peer: Peer,
    network: str | None = None,
    variables: Sequence[str] = (),
    trees: Mapping[str, Mount] | None = None,
) -> ContainerSettings:
    """Everything that the runtime needs to isolate a container.

    ``folder`` has ``hosts``, ``hostname`` and ``resolv.conf`` in it; ``network`` is the path of
    the network namespace to join; ``variables`` come before the container's own environment.
    ``filters`` makes and keeps seccomp filters; ``peer`` finds the containers that this one joins;
    ``trees`` are what mounts the images among its mount points, by target.
    """
    config, host = container.spec.config, container.spec.host
    privileged = bool(host.get("Privileged"))
    _, mount_label = security.labels(host, container.id)
    for point in container.spec.mounts if mount_label else ():
        modes = point.mode.split(",")
        if point.kind in ("bind", "volume") and ("z" in modes or "Z" in modes):
            selinux.relabel(point.source, mount_label, shared="Z" not in modes)
    mounts = [
        _runtime_mount(point, (trees or {}).get(point.target)) for point in container.spec.mounts
    ]
    covered = {point.target for point in container.spec.mounts}
    for name in ("resolv.conf", "hostname", "hosts"):
        if f"/etc/{name}" not in covered:
            mounts.append(
                RuntimeMount(
                    "bind", str(folder / name), f"/etc/{name}", ("rbind", "rprivate", "idmap")
                )
            )
    base = container.state.id_base
    foreign = host.get("Runtime") != configuration.NATIVE
    filtered, profile = security.profile_of(host)
    donor = _ipc_donor(container, peer)
    masked, readonly = host.get("MaskedPaths"), host.get("ReadonlyPaths")
    return ContainerSettings(
        id=container.id,
        hostname=hostname(container),
        domainname=config.get("Domainname") or "",
        annotations=dict(host.get("Annotations") or {}),
        process=process_settings(
            container,
            args=container.arguments,
            env=[*variables, *environment(container)],
            user=config.get("User") or "",
            cwd=config.get("WorkingDir") or "/",
            terminal=container.tty,
            filters=filters,
        ),
        rootfs=rootfs,
        readonly_rootfs=bool(host.get("ReadonlyRootfs")),
        mounts=mounts,
        namespaces=namespaces(container, peer, network),
        id_map=(base, ID_COUNT) if base else None,
        devices=[
            node
            for device in host.get("Devices") or []
            for node in Device.of_host(
                device["PathOnHost"],
                device.get("PathInContainer") or None,
                device.get("CgroupPermissions") or "rwm",
            )
        ],
        device_rules=list(host.get("DeviceCgroupRules") or []),
        privileged=privileged,
        masked_paths=[]
        if privileged
        else list(security.masked_paths() if masked is None else masked),
        readonly_paths=[] if privileged else list(READONLY_PATHS if readonly is None else readonly),
        sysctls=host.get("Sysctls") or {},
        resources=limits.resources(host),
        shm_size=0 if host.get("IpcMode") == "none" else host.get("ShmSize") or 64 * 1024 * 1024,
        shm_from=None if donor is None else f"/proc/{donor.state.pid}/ns/mnt",
        mount_label=mount_label,
        cgroup=cgroup,
        seccomp=filters.resolved(profile, capability_set(host)) if filtered and foreign else None,
        init=bool(host.get("Init")),
    )
