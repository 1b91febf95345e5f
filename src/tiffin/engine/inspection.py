"""Docker's views of a container: ``inspect`` and the rows of ``ps``.

Source: Docker Engine API v1.50, ``ContainerInspectResponse`` and ``ContainerSummary``.
"""

from __future__ import annotations

import posixpath
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiffin.engine import health, security, timestamps
from tiffin.engine.container import Container
from tiffin.engine.mountpoints import MountPoint
from tiffin.engine.networkviews import NetworkViews
from tiffin.engine.sandboxes import Sandboxes
from tiffin.storage.driver import Mount
from tiffin.units import human_duration

JSON = dict[str, Any]
Names = Sequence[str]


def status(container: Container) -> str:
    """``Status``: the state that is written down, or that the container is just going."""
    return "removing" if container.removing else container.state.status


def status_text(container: Container, now: float | None = None) -> str:
    """The STATUS column: ``Up 3 hours``, ``Exited (0) 2 minutes ago``, ``Created``."""
    state = container.state
    now = time.time() if now is None else now
    if container.removing:
        return "Removal In Progress"
    if state.status == "created":
        return "Created"
    if container.running:
        said = {"starting": "health: starting"}.get(health.status(container), "")
        said = said or (state.health.status if state.health else "")
        note = "Paused" if state.status == "paused" else said
        up = f"Up {human_duration(now - state.started / 1e9)}"
        return f"{up} ({note})" if note else up
    if state.status == "restarting":
        ago = human_duration(now - state.finished / 1e9)
        return f"Restarting ({state.exit_code}) {ago} ago"
    if state.status == "dead":
        return "Dead"
    finished = state.finished or container.created
    return f"Exited ({state.exit_code}) {human_duration(now - finished / 1e9)} ago"


def mount_view(point: MountPoint) -> JSON:
    """One element of ``Mounts``."""
    view: JSON = {"Type": point.kind}
    if point.kind == "volume":
        view.update(Name=point.name, Source=point.source, Driver=point.driver)
    else:
        view["Source"] = point.source
    mode = point.mode
    if point.kind == "volume" and mode in ("", "anonymous"):
        mode = "z" if mode == "" else ""
    view.update(
        Destination=point.target,
        Mode=mode,
        RW=point.writable,
        Propagation=point.propagation,
    )
    return view


def mounts(container: Container) -> list[JSON]:
    """``Mounts``: what ``--tmpfs`` asked for is not among them, as in Docker."""
    asked = container.spec.host.get("Tmpfs") or {}
    return [
        mount_view(point)
        for point in container.spec.mounts
        if point.kind != "tmpfs" or point.target not in asked
    ]


def summary(
    container: Container,
    sizes: tuple[int, int] | None,
    image: str,
    networks: NetworkViews,
    links: Names = (),
) -> JSON:
    """A row of ``ps``; ``sizes`` are (own, own and image) in bytes, if asked for; ``image`` is
    what the image is called, ``links`` what those that link to it call the container."""
    view: JSON = {
        "Id": container.id,
        "Names": [f"/{container.name}", *links],
        "Image": image,
        "ImageID": container.image,
        "Command": shlex.join(container.arguments)
        if any(" " in argument for argument in container.arguments)
        else " ".join(container.arguments),
        "Created": container.created // 10**9,
        "Ports": networks.ports_view(container),
        "Labels": container.labels,
        "State": status(container),
        "Status": status_text(container),
        "HostConfig": {"NetworkMode": container.spec.host["NetworkMode"]},
        "NetworkSettings": {"Networks": networks.networks_view(container)},
        "Mounts": mounts(container),
    }
    if sizes is not None:
        if sizes[0]:
            view["SizeRw"] = sizes[0]
        view["SizeRootFs"] = sizes[1]
    return view


def state_view(container: Container) -> JSON:
    """The ``State`` object."""
    state = container.state
    view: JSON = {
        "Status": status(container),
        "Running": container.active,
        "Paused": state.status == "paused",
        "Restarting": state.status == "restarting",
        "OOMKilled": state.oom_killed,
        "Dead": state.status == "dead",
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": timestamps.rfc3339(state.started),
        "FinishedAt": timestamps.rfc3339(state.finished),
    }
    if state.health is not None:
        view["Health"] = health.view(state.health)
    return view


_UNSAID: JSON = {
    **dict.fromkeys(("Cgroup", "CgroupParent", "CpusetCpus", "CpusetMems"), ""),
    **dict.fromkeys(("Isolation", "UsernsMode"), ""),
    **dict.fromkeys(("BlkioWeight", "CpuCount", "CpuPercent", "CpuPeriod", "CpuQuota"), 0),
    **dict.fromkeys(("CpuRealtimePeriod", "CpuRealtimeRuntime", "CpuShares", "NanoCpus"), 0),
    **dict.fromkeys(("IOMaximumBandwidth", "IOMaximumIOps"), 0),
    **dict.fromkeys(("Memory", "MemoryReservation", "MemorySwap"), 0),
    **dict.fromkeys(("BlkioDeviceReadBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteBps"), None),
    **dict.fromkeys(("BlkioDeviceWriteIOps", "BlkioWeightDevice", "DeviceCgroupRules"), None),
    **dict.fromkeys(("DeviceRequests", "Devices"), None),
    **dict.fromkeys(("PidsLimit", "Ulimits"), None),
    "ConsoleSize": [0, 0],
    "PublishAllPorts": False,
    "OomKillDisable": False,
}
"""Members of ``HostConfig`` that are there, in Docker's answers, though nobody asked for them."""


def graph_view(driver: str, mounts: Sequence[Mount], pid: int) -> JSON:
    """``GraphDriver``: where the parts of an overlay mount are. Merged they are seen by the
    container alone, so what says where is its process."""
    data: dict[str, str] = {}
    for mount in mounts:
        if mount.fstype != "overlay":
            continue
        for option in mount.options:
            key, _, value = option.partition("=")
            name = {"lowerdir": "LowerDir", "upperdir": "UpperDir", "workdir": "WorkDir"}.get(key)
            if name is not None:
                paths = [posixpath.join(mount.directory or "/", one) for one in value.split(":")]
                data[name] = ":".join(paths)
    if data and pid:
        data["MergedDir"] = f"/proc/{pid}/root"
    return {"Name": driver, "Data": data}


def inspect(
    container: Container,
    folder: Path,
    graph: JSON,
    sizes: tuple[int, int] | None,
    sandboxes: Sandboxes,
) -> JSON:
    """The whole of ``inspect``; ``graph`` is what :func:`graph_view` made."""
    arguments = container.arguments
    files = sandboxes.files.folder(container)
    log = container.log_path
    process_label, mount_label = security.labels(container.spec.host, container.id)
    view: JSON = {
        "Id": container.id,
        "Created": timestamps.rfc3339(container.created),
        "Path": arguments[0] if arguments else "",
        "Args": arguments[1:],
        "State": state_view(container),
        "Image": container.image,
        "ResolvConfPath": str(files / "resolv.conf"),
        "HostnamePath": str(files / "hostname"),
        "HostsPath": str(files / "hosts"),
        "LogPath": str(folder / log) if log and "/" not in log else "",
        "Name": f"/{container.name}",
        "RestartCount": container.state.restarts,
        "Driver": graph["Name"],
        "Platform": container.spec.platform,
        "MountLabel": mount_label,
        "ProcessLabel": process_label,
        "AppArmorProfile": security.apparmor_name(container.spec.host),
        "ExecIDs": sorted(container.execs) or None,
        "HostConfig": {
            **_UNSAID,
            **container.spec.host,
            "Links": sandboxes.links.view(container),
        },
        "GraphDriver": graph,
        "Mounts": mounts(container),
        "Config": container.spec.config,
        "NetworkSettings": sandboxes.views.settings_view(container),
    }
    if sizes is not None:
        view["SizeRw"], view["SizeRootFs"] = sizes
    return view
