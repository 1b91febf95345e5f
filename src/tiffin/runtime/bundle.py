"""From an OCI bundle to a plan of the native runtime: what ``tiffin-runtime`` makes containers of.

The configuration is taken as it is: its mounts, in its order, and nothing that Docker's defaults
would add but the devices that the specification demands. What can't be done is refused by name.

Source: OCI runtime specification 1.2, ``config.md``, ``config-linux.md``.
"""

from __future__ import annotations

import binascii
import os
import posixpath
from typing import Any

from tiffin.errors import InvalidParameter, Unsupported
from tiffin.linux import capabilities, syscalls
from tiffin.linux.cgroups import DEFAULT_DEVICES, Hierarchy
from tiffin.linux.mounts import ATTRIBUTES, PROPAGATIONS, mountinfo, parse_options
from tiffin.runtime import operations as op
from tiffin.runtime import seccomp
from tiffin.runtime.native import (
    CLONED,
    DEVICES,
    OF_USER_NAMESPACE,
    SYMLINKS,
    bind_groups,
    labelled,
)
from tiffin.runtime.settings import ULIMITS

JSON = dict[str, Any]

_NOT_DATA = ("tmpcopyup", "copy-symlink", "rro", "rrw", "rnosuid", "rnodev", "rnoexec")
_RLIMITS = {**ULIMITS, "as": 9}
"""The specification has one that Docker's ``--ulimit`` doesn't."""
_INFINITY = (1 << 63) - 1


def check(config: JSON) -> None:
    """Raise InvalidParameter where the configuration lacks what it must have."""
    if not str(config.get("ociVersion", "")).startswith("1."):
        raise InvalidParameter(f"unsupported ociVersion {config.get('ociVersion')!r}: 1.x")
    if not config.get("root", {}).get("path"):
        raise InvalidParameter("the configuration has no root.path")
    if config.get("process") is not None:
        process = config["process"]
        if not str(process.get("cwd", "")).startswith("/"):
            raise InvalidParameter("Cwd must be an absolute path")
        if not process.get("args"):
            raise InvalidParameter("args must not be empty")


def cgroup_name(config: JSON, name: str) -> str:
    """The cgroup's name below the root of each hierarchy."""
    path = str((config.get("linux") or {}).get("cgroupsPath") or f"/tiffin/{name}")
    if path.count(":") == 2 and "/" not in path:
        # systemd's way to write it; the group is made where systemd would make it.
        group, prefix, own = path.split(":")
        return f"{group or 'system.slice'}/{prefix}-{own}.scope"
    return posixpath.normpath("/" + path).strip("/")


def mount_namespace(config: JSON) -> str | None:
    """The mount namespace that the container is in with others, by a path; None: its own."""
    for item in (config.get("linux") or {}).get("namespaces") or []:
        if item["type"] == "mount":
            return item.get("path") or None
    return "/proc/self/ns/mnt"


def root_path(config: JSON, bundle: str) -> str:
    """The root file system on the host."""
    return os.path.realpath(os.path.join(bundle, config["root"]["path"]))


def plan(config: JSON, bundle: str, name: str, hierarchy: Hierarchy) -> JSON:
    """The plan, in its JSON form. Raises InvalidParameter, Unsupported."""
    check(config)
    linux = config.get("linux") or {}
    namespaces: dict[str, str | None] = {}
    for item in linux.get("namespaces") or []:
        if item["type"] in namespaces:
            raise InvalidParameter(f"malformed spec file: duplicated ns {item}")
        namespaces[item["type"]] = item.get("path") or None
    if namespaces.get("user") is not None or "time" in namespaces:
        raise Unsupported("a user namespace of another process, or a time namespace, can't be used")
    flags = 0
    for kind, flag in CLONED.items():
        if kind in namespaces and namespaces[kind] is None:
            flags |= flag
    users, root_ids = None, (0, 0)
    if "user" in namespaces:
        uids, gids = (
            [[row["containerID"], row["hostID"], row["size"]] for row in linux.get(key) or []]
            for key in ("uidMappings", "gidMappings")
        )
        users = {"uids": uids, "gids": gids, "flags": flags & OF_USER_NAMESPACE}
        flags &= ~OF_USER_NAMESPACE
        root_ids = (_outside(uids), _outside(gids))
    steps: list[op.Operation] = [
        op.JoinNamespace(kind, path)
        for kind in ("uts", "ipc", "network", "cgroup", "mount")
        if (path := namespaces.get(kind)) is not None
    ]
    if "cgroup" in namespaces and namespaces["cgroup"] is None:
        steps.append(op.UnshareCgroup())
    if "network" in namespaces and namespaces["network"] is None:
        steps.append(op.RaiseInterface("lo"))
    for key, kind_of in (("hostname", op.Hostname), ("domainname", op.Domainname)):
        if config.get(key):
            if "uts" not in namespaces:
                raise InvalidParameter(f"unable to set {key} without a private UTS namespace")
            steps.append(kind_of(config[key]))
    group = cgroup_name(config, name)
    own = mount_namespace(config) is None
    if users is not None and not own:
        raise InvalidParameter("a user namespace needs a mount namespace of its own")
    steps += _file_systems(config, bundle, hierarchy, group, root_ids if users else None, own)
    if users is not None:
        steps.append(op.EnterUserNamespace())
    resources, devices = _resources(linux.get("resources") or {})
    return {
        "id": name,
        "flags": flags,
        "pid_namespace": namespaces.get("pid"),
        "user_namespace": users,
        "cgroup": {
            "name": group,
            "entrances": hierarchy.entrances(group),
            "resources": resources,
            "devices": devices,
        },
        "operations": [step.dump() for step in steps],
        "process": process_plan(
            config.get("process") or {"args": ["/"], "cwd": "/"},
            linux.get("seccomp"),
            root_ids if users else None,
        ),
        "init": False,
    }


def _outside(mapping: list[list[int]]) -> int:
    for inside, outside, _ in mapping:
        if inside == 0:
            return outside
    raise InvalidParameter("the user namespace maps no root")


def with_capabilities(process: JSON, names: list[str]) -> JSON:
    """A process's capabilities and these, as ``exec --cap`` adds them."""
    held = dict(process.get("capabilities") or {})
    for kind in ("bounding", "effective", "permitted"):
        held[kind] = [*held.get(kind, []), *names]
    return held


def process_plan(process: JSON, filters: JSON | None, remapped: tuple[int, int] | None) -> JSON:
    """The JSON form of a process of the specification. Raises InvalidParameter, Unsupported."""
    user = process.get("user") or {}
    held = process.get("capabilities") or {}
    masks = {
        kind: capabilities.mask(
            [name for name in held.get(kind) or [] if capabilities.canonical(name)]
        )
        for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")
    }
    rlimits = []
    for item in process.get("rlimits") or []:
        short = str(item.get("type", "")).removeprefix("RLIMIT_").lower()
        if short not in _RLIMITS or not str(item["type"]).startswith("RLIMIT_"):
            raise InvalidParameter(f"invalid rlimit type: {item.get('type')}")
        soft, hard = (-1 if value > _INFINITY else value for value in (item["soft"], item["hard"]))
        rlimits.append([_RLIMITS[short], soft, hard, short])
    program = None
    if filters is not None:
        program = [
            binascii.b2a_base64(seccomp.compile_filter(filters), newline=False).decode(),
            seccomp.flags(filters),
        ]
    size = process.get("consoleSize") or {}
    uid, gid = user.get("uid", 0), user.get("gid", 0)
    return {
        "args": list(process["args"]),
        "env": list(process.get("env") or []),
        "cwd": process["cwd"],
        "user": "",
        "groups": [],
        "account": [uid, gid, user.get("additionalGids") or []],
        "umask": user.get("umask", 0o022),
        "terminal": bool(process.get("terminal")),
        "size": [size.get("height", 0), size.get("width", 0)],
        "capabilities": masks["bounding"],
        "sets": masks,
        "no_new_privileges": bool(process.get("noNewPrivileges")),
        "rlimits": rlimits,
        "oom_score_adj": process.get("oomScoreAdj"),
        "remapped": None if remapped is None else list(remapped),
        "apparmor": process.get("apparmorProfile") or None,
        "selinux": (process.get("selinuxLabel") or "") if _has_labels() else "",
        "seccomp": program,
    }


def _file_systems(
    config: JSON,
    bundle: str,
    hierarchy: Hierarchy,
    group: str,
    owner: tuple[int, int] | None,
    own: bool,
) -> list[op.Operation]:
    """``own``: in a mount namespace of its own, which the root can be pivoted in."""
    linux = config.get("linux") or {}
    path = root_path(config, bundle)
    mounts = [
        {**item, "options": list(item.get("options") or [])} for item in config.get("mounts") or []
    ]
    steps: list[op.Operation] = []
    for number, item in enumerate(mounts):
        if _is_bind(item):
            item["source"] = os.path.join(bundle, item["source"])
            options = parse_options(item["options"])
            peers = options.propagation & (syscalls.MS_SHARED | syscalls.MS_SLAVE)
            if peers and own and _has_peers(item["source"]):
                item["key"] = str(number)
                steps.append(op.CopyTree(item["source"], _recursive(item), item["key"]))
    if own:
        steps.append(op.Isolate())
    if owner is not None:
        steps.append(op.OwnFilesAs(*owner))
    steps.append(op.MountRoot("bind", path, path, syscalls.MS_BIND | syscalls.MS_REC, "", None))
    steps.append(op.EnterRoot(path))
    label = (linux.get("mountLabel") or "") if _has_labels() else ""
    for item in mounts:
        steps.append(_mount(item, hierarchy, group, label))
    if not any(_is_bind(item) and item["destination"] == "/dev" for item in mounts):
        steps += [op.Device(place, "c", a, b, 0o666, 0, 0) for place, a, b in DEVICES]
        for device in linux.get("devices") or []:
            steps.append(
                op.Device(
                    device["path"],
                    device["type"],
                    device.get("major", 0),
                    device.get("minor", 0),
                    device.get("fileMode", 0o666) & 0o7777,
                    device.get("uid", 0),
                    device.get("gid", 0),
                )
            )
        steps += [op.Symlink(target, place) for target, place in SYMLINKS]
    process = config.get("process") or {}
    if process.get("terminal"):
        size = process.get("consoleSize") or {}
        steps.append(op.Terminal(size.get("height", 0), size.get("width", 0)))
    steps += [op.Sysctl(key, str(value)) for key, value in (linux.get("sysctl") or {}).items()]
    steps += [op.Protect(place) for place in linux.get("readonlyPaths") or []]
    steps += [op.Mask(place, label) for place in linux.get("maskedPaths") or []]
    cwd = posixpath.normpath(process.get("cwd") or "/")
    if cwd.strip("/"):
        steps.append(op.MakeDirectory(cwd))
    if config["root"].get("readonly"):
        steps.append(op.SetReadOnly("/"))
    steps.append(op.PivotRoot() if own else op.ChangeRoot())
    if wanted := linux.get("rootfsPropagation"):
        if wanted not in PROPAGATIONS:
            raise InvalidParameter(f"rootfsPropagation={wanted} is not known")
        if own:
            steps.append(op.Propagate(PROPAGATIONS[wanted]))
    return steps


def _is_bind(item: JSON) -> bool:
    return item.get("type") == "bind" or bool({"bind", "rbind"} & set(item.get("options") or ()))


def _has_peers(path: str) -> bool:
    """Whether mounts of others can show at a host path, or its own at others'."""
    real = os.path.realpath(path)
    at, found = "", False
    for entry in mountinfo():
        point = entry.mount_point.rstrip("/")
        if real == point or real.startswith(f"{point}/"):
            if len(point) >= len(at):
                at, found = point, bool(entry.propagation)
        elif point.startswith(f"{real}/") and entry.propagation:
            return True
    return found


def _recursive(item: JSON) -> bool:
    return "rbind" in item["options"]


def _mount(item: JSON, hierarchy: Hierarchy, group: str, label: str) -> op.Operation:
    target = posixpath.normpath("/" + item["destination"].lstrip("/"))
    kind, options = item.get("type") or "none", item["options"]
    if {"idmap", "ridmap"} & set(options) or item.get("uidMappings"):
        raise Unsupported(f"the mount at {target}: owners can't be mapped for one mount")
    attributes = 0
    for option in options:
        attributes |= ATTRIBUTES.get("ro" if option == "rro" else option, 0)
    if _is_bind(item):
        propagation = parse_options(options).propagation
        return op.Bind(
            item["source"],
            target,
            recursive=_recursive(item),
            attributes=attributes,
            attributes_recursive="rro" in options,
            propagation=0 if propagation & syscalls.MS_PRIVATE else propagation,
            key=item.get("key"),
        )
    if kind in ("cgroup", "cgroup2"):
        if hierarchy.version == "2":
            source = f"{hierarchy.unified}/{group}"
            return op.Bind(source, target, recursive=False, attributes=attributes)
        return op.BindGroups(target, bind_groups(hierarchy, group), attributes)
    parsed = parse_options([option for option in options if option not in _NOT_DATA])
    data = labelled(parsed.data, label if kind in _LABELLED else "")
    return op.Mount(kind, item.get("source") or kind, target, parsed.flags, data)


def _has_labels() -> bool:
    """Whether the kernel enforces SELinux labels; elsewhere they are passed over."""
    return os.path.exists("/sys/fs/selinux/enforce")


_LABELLED = ("tmpfs", "devpts", "ramfs", "overlay")
_RESOURCES = (
    ("memory", "limit", "memory"),
    ("memory", "swap", "memory_swap"),
    ("memory", "reservation", "memory_reservation"),
    ("cpu", "shares", "cpu_shares"),
    ("cpu", "quota", "cpu_quota"),
    ("cpu", "period", "cpu_period"),
    ("cpu", "cpus", "cpuset_cpus"),
    ("cpu", "mems", "cpuset_mems"),
    ("pids", "limit", "pids_limit"),
    ("memory", "swappiness", "memory_swappiness"),
    ("memory", "disableOOMKiller", "oom_kill_disable"),
    ("blockIO", "weight", "blkio_weight"),
)
_DEVICE_LIMITS = (
    ("weightDevice", "weight", "blkio_weight_device"),
    ("throttleReadBpsDevice", "rate", "device_read_bps"),
    ("throttleWriteBpsDevice", "rate", "device_write_bps"),
    ("throttleReadIOPSDevice", "rate", "device_read_iops"),
    ("throttleWriteIOPSDevice", "rate", "device_write_iops"),
)


def limits(resources: JSON) -> dict[str, int | str]:
    """The limits of the specification's ``resources``, as :meth:`Hierarchy.limit` takes them."""
    found: dict[str, int | str] = {}
    for section, key, field in _RESOURCES:
        value = (resources.get(section) or {}).get(key)
        if value or (key == "swappiness" and value == 0):
            found[field] = value
    block = resources.get("blockIO") or {}
    for key, number, field in _DEVICE_LIMITS:
        rows = [
            f"{row['major']}:{row['minor']} {row[number]}"
            for row in block.get(key) or []
            if row.get(number) is not None
        ]
        if rows:
            found[field] = "\n".join(rows)
    return found


def _resources(resources: JSON) -> tuple[dict[str, int | str], list[str] | None]:
    """Limits, and the rules of allowed devices; None where everything is."""
    rules: list[str] | None = None
    for item in resources.get("devices") or []:
        kind, access = item.get("type") or "a", item.get("access") or "rwm"
        numbers = [item.get(name) for name in ("major", "minor")]
        major, minor = ("*" if number in (None, -1) else str(number) for number in numbers)
        if kind == "a" and (major, minor) == ("*", "*"):
            rules = None if item.get("allow") else list(DEFAULT_DEVICES)
        elif item.get("allow") and rules is not None:
            kinds = ("c", "b") if kind == "a" else (kind,)
            rules += [f"{one} {major}:{minor} {access}" for one in kinds]
        elif not item.get("allow") and rules is not None:
            refused = f"{kind} {major}:{minor} {access}"
            rules = [rule for rule in rules if rule != refused]
    return limits(resources), rules
