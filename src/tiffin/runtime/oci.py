"""The OCI runtime configuration (config.json) of a container, for other runtimes and for a look.

Source: the OCI runtime specification 1.2, ``config.md`` and ``config-linux.md``.
"""

from __future__ import annotations

import posixpath
from typing import Any

from tiffin.linux import capabilities
from tiffin.linux.accounts import Account
from tiffin.runtime.native import DEVICES
from tiffin.runtime.settings import ContainerSettings, Device, MountPoint, Resources

VERSION = "1.2.0"


def oci_config(settings: ContainerSettings, account: Account | None = None) -> dict[str, Any]:
    """The configuration, valid by the specification's schema.

    The specification's user is made of numbers: ``account`` is the resolved one. Without it, a
    numeric user string is taken as it is, and a name becomes root, with the name as an annotation.
    The root's path is ``rootfs`` in the bundle, where whoever runs it mounts ``settings.rootfs``.
    """
    process = settings.process
    held = capabilities.names(capabilities.held()) if settings.privileged else process.capabilities
    names = [f"CAP_{capabilities.canonical(name) or name}" for name in held]
    user, annotations = _user(settings, account)
    config: dict[str, Any] = {
        "ociVersion": VERSION,
        "hostname": settings.hostname,
        "process": {
            "terminal": process.terminal,
            "user": user,
            "args": list(process.args),
            "env": list(process.env),
            "cwd": process.cwd or "/",
            "capabilities": {
                "bounding": names,
                "effective": names if user["uid"] == 0 else [],
                "permitted": names if user["uid"] == 0 else [],
            },
            "noNewPrivileges": process.no_new_privileges,
            "rlimits": [
                {
                    "type": f"RLIMIT_{name.upper().removeprefix('RLIMIT_')}",
                    "soft": _unlimited(soft),
                    "hard": _unlimited(hard),
                }
                for name, soft, hard in process.rlimits
            ],
        },
        "root": {"path": "rootfs", "readonly": settings.readonly_rootfs},
        "mounts": _mounts(settings),
        "annotations": {**settings.annotations, **annotations},
        "linux": {
            "namespaces": [
                {"type": kind} if path is None else {"type": kind, "path": path}
                for kind, path in settings.namespaces.items()
            ],
            "devices": [
                {
                    "path": device.path,
                    "type": device.kind,
                    "major": device.major,
                    "minor": device.minor,
                    "fileMode": device.mode,
                    "uid": device.uid,
                    "gid": device.gid,
                }
                for device in _devices(settings)
            ],
            "resources": _resources(settings),
            "cgroupsPath": "/" + settings.cgroup_name,
            "sysctl": settings.effective_sysctls,
            "maskedPaths": [] if settings.privileged else list(settings.masked_paths),
            "readonlyPaths": [] if settings.privileged else list(settings.readonly_paths),
        },
    }
    if process.apparmor is not None:
        config["process"]["apparmorProfile"] = process.apparmor
    if process.selinux:
        config["process"]["selinuxLabel"] = process.selinux
    if settings.mount_label:
        config["linux"]["mountLabel"] = settings.mount_label
    if settings.id_map is not None:
        first, size = settings.id_map
        mapping = [{"containerID": 0, "hostID": first, "size": size}]
        config["linux"]["namespaces"].append({"type": "user"})
        config["linux"].update(uidMappings=mapping, gidMappings=mapping)
    if "uts" not in settings.namespaces:
        # The specification has no name for a container that shares the host's.
        del config["hostname"]
    if settings.seccomp is not None:
        config["linux"]["seccomp"] = settings.seccomp
    if settings.domainname:
        config["domainname"] = settings.domainname
    if process.terminal and any(process.console_size):
        rows, columns = process.console_size
        config["process"]["consoleSize"] = {"height": rows, "width": columns}
    if process.oom_score_adj is not None:
        config["process"]["oomScoreAdj"] = process.oom_score_adj
    return config


_OWN_IN_DEV = frozenset(("pts", "shm", "fd", "mqueue", "console", "ptmx", ".lxc", ".lxd-mounts"))


def _devices(settings: ContainerSettings) -> list[Device]:
    """The device nodes to make: a privileged container has all of the host's."""
    if not settings.privileged:
        return settings.devices
    # The specification has the default ones made anyway.
    made = {path for path, _, _ in DEVICES} | {device.path for device in settings.devices}
    return settings.devices + [
        device
        for device in Device.of_host("/dev")
        if device.path not in made and device.path.split("/")[2] not in _OWN_IN_DEV
    ]


def _unlimited(value: int) -> int:
    return value if value >= 0 else (1 << 64) - 1


def _user(
    settings: ContainerSettings, account: Account | None
) -> tuple[dict[str, Any], dict[str, str]]:
    if account is not None:
        user: dict[str, Any] = {"uid": account.uid, "gid": account.gid}
        if account.groups:
            user["additionalGids"] = list(account.groups)
        return user, {}
    text = settings.process.user
    uid, _, gid = text.partition(":")
    if (uid or "0").isdigit() and (gid or "0").isdigit():
        return {"uid": int(uid or 0), "gid": int(gid or 0)}, {}
    return {"uid": 0, "gid": 0}, {"tiffin.user": text}


def _mounts(settings: ContainerSettings) -> list[dict[str, Any]]:
    quiet = ["nosuid", "noexec", "nodev"]
    readonly = [] if settings.privileged else ["ro"]
    shm = ["nosuid", "noexec", "nodev", "mode=1777", f"size={settings.shm_size}"]
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    dev = ["nosuid", "strictatime", "mode=755", "size=65536k"]
    rows = [
        ("/proc", "proc", "proc", quiet),
        ("/dev", "tmpfs", "tmpfs", dev),
        ("/dev/pts", "devpts", "devpts", pts),
        ("/sys", "sysfs", "sysfs", quiet + readonly),
        ("/sys/fs/cgroup", "cgroup", "cgroup", quiet + readonly),
        ("/dev/mqueue", "mqueue", "mqueue", quiet),
        ("/dev/shm", "tmpfs", "shm", shm),
    ]
    taken = {posixpath.normpath(item.target) for item in settings.mounts}
    if "ipc" not in settings.namespaces:
        rows[-1] = ("/dev/shm", "bind", "/dev/shm", ["rbind"])
    if not settings.shm_size:
        del rows[-1]
    result = [
        {"destination": target, "type": fstype, "source": source, "options": options}
        for target, fstype, source, options in rows
        if target not in taken
    ]
    return result + [_mount_point(item) for item in settings.mounts]


def _mount_point(item: MountPoint) -> dict[str, Any]:
    # Of the native runtime; other runtimes map owners by the mount's own fields.
    options = [option for option in item.options if option != "idmap"]
    if item.kind == "bind" and "bind" not in options and "rbind" not in options:
        options.insert(0, "rbind")
    source = item.source if item.kind == "bind" else "tmpfs"
    return {"destination": item.target, "type": item.kind, "source": source, "options": options}


def _resources(settings: ContainerSettings) -> dict[str, Any]:
    resources = settings.resources
    devices: list[dict[str, Any]] = [{"allow": settings.privileged, "access": "rwm"}]
    if not settings.privileged:
        devices += [
            {
                "allow": True,
                "type": device.kind,
                "major": device.major,
                "minor": device.minor,
                "access": device.access,
            }
            for device in settings.devices
        ]
        devices += [_device_rule(text) for text in settings.device_rules]
    memory = {
        "limit": resources.memory,
        "swap": resources.memory_swap,
        "reservation": resources.memory_reservation,
    }
    cpu = {
        "shares": resources.cpu_shares,
        "quota": resources.cpu_quota,
        "period": resources.cpu_period,
        "cpus": resources.cpuset_cpus,
        "mems": resources.cpuset_mems,
    }
    result: dict[str, Any] = {"devices": devices}
    set_memory = {key: value for key, value in memory.items() if value}
    if resources.memory_swappiness is not None:
        set_memory["swappiness"] = resources.memory_swappiness
    if resources.oom_kill_disable:
        set_memory["disableOOMKiller"] = True
    if set_memory:
        result["memory"] = set_memory
    if block := _block_io(resources):
        result["blockIO"] = block
    if set_cpu := {key: value for key, value in cpu.items() if value}:
        result["cpu"] = set_cpu
    if resources.pids_limit:
        result["pids"] = {"limit": resources.pids_limit}
    return result


def _device_rule(text: str) -> dict[str, Any]:
    kind, numbers, access = text.split(" ")
    rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
    for name, number in zip(("major", "minor"), numbers.split(":"), strict=True):
        if number != "*":
            rule[name] = int(number)
    return rule


def _block_io(resources: Resources) -> dict[str, Any]:
    block: dict[str, Any] = {"weight": resources.blkio_weight} if resources.blkio_weight else {}
    for key, value, number in (
        ("weightDevice", resources.blkio_weight_device, "weight"),
        ("throttleReadBpsDevice", resources.device_read_bps, "rate"),
        ("throttleWriteBpsDevice", resources.device_write_bps, "rate"),
        ("throttleReadIOPSDevice", resources.device_read_iops, "rate"),
        ("throttleWriteIOPSDevice", resources.device_write_iops, "rate"),
    ):
        rows = []
        for line in value.splitlines():
            device, _, text = line.partition(" ")
            major, _, minor = device.partition(":")
            rows.append({"major": int(major), "minor": int(minor), number: int(text)})
        if rows:
            block[key] = rows
    return block
