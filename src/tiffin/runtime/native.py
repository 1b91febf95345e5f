"""The native runtime's planning: from settings to the list of operations that makes a container.

:func:`plan` is pure: it looks at nothing but its arguments. What it returns can be printed
(:meth:`Plan.describe`), tested, and sent to the keeper as JSON (:meth:`Plan.dump`), whose
:mod:`tiffin.runtime.launch` executes it.

The JSON form: ``id``; ``flags`` (namespaces for clone); ``pid_namespace`` (path to join, or
null); ``user_namespace`` {``uids``, ``gids``, ``flags``}, or null; ``cgroup`` {``name``,
``entrances``, ``resources``, ``devices``}, or null; ``operations`` (lists); ``process`` (as
:func:`process_plan` makes it, also for an exec); ``init``.
"""

from __future__ import annotations

import binascii
import posixpath
from dataclasses import dataclass
from typing import Any

from tiffin.errors import InvalidParameter
from tiffin.linux import capabilities, syscalls
from tiffin.linux.cgroups import DEFAULT_DEVICES, Hierarchy
from tiffin.linux.mounts import ATTRIBUTES, parse_options
from tiffin.runtime import operations as op
from tiffin.runtime.settings import ULIMITS, ContainerSettings, MountPoint, ProcessSettings

_SHM = "shm"
"""What a borrowed /dev/shm is kept under."""
CLONED = {
    "pid": syscalls.CLONE_NEWPID,
    "mount": syscalls.CLONE_NEWNS,
    "uts": syscalls.CLONE_NEWUTS,
    "ipc": syscalls.CLONE_NEWIPC,
    "network": syscalls.CLONE_NEWNET,
}
"""The namespaces that the clone makes; the cgroup's is made once the process is in its group."""
OF_USER_NAMESPACE = syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWNET
"""What a user namespace must own, and so is made with it."""
_NOSUID_NOEXEC_NODEV = syscalls.MS_NOSUID | syscalls.MS_NOEXEC | syscalls.MS_NODEV
_RO_ALL = (
    syscalls.MOUNT_ATTR_RDONLY
    | syscalls.MOUNT_ATTR_NOSUID
    | syscalls.MOUNT_ATTR_NODEV
    | syscalls.MOUNT_ATTR_NOEXEC
)

_IPC_SYSCTLS = frozenset(
    f"kernel.{name}"
    for name in (
        "msgmax",
        "msgmnb",
        "msgmni",
        "sem",
        "shmall",
        "shmmax",
        "shmmni",
        "shm_rmid_forced",
    )
)

DEVICES = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)
SYMLINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
    ("pts/ptmx", "/dev/ptmx"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a container will be made."""

    id: str
    flags: int
    pid_namespace: str | None
    user_namespace: dict[str, Any] | None
    cgroup: dict[str, Any] | None
    operations: list[op.Operation]
    process: dict[str, Any]
    init: bool

    def describe(self) -> str:
        """The plan for a person, one step a line."""
        new = [name for name, flag in CLONED.items() if self.flags & flag]
        lines = []
        if self.cgroup is not None:
            limits = ", ".join(f"{key}={value}" for key, value in self.cgroup["resources"].items())
            lines.append(f"cgroup {self.cgroup['name']}{f' ({limits})' if limits else ''}")
        lines.append(f"clone with new namespaces: {', '.join(new) or 'none'}")
        if self.user_namespace is not None:
            maps = ", ".join(f"{a} is {b} ({c})" for a, b, c in self.user_namespace["uids"])
            lines[-1] += f"; a user namespace, {maps}"
        if self.pid_namespace is not None:
            lines[-1] += f"; in pid namespace {self.pid_namespace}"
        lines += [item.describe() for item in self.operations]
        process = self.process
        kept = capabilities.names(process["capabilities"])
        lines.append(f"user {process['user'] or '0'}, capabilities {' '.join(kept) or 'none'}")
        if process["seccomp"] is not None:
            lines.append("seccomp filter")
        lines.append(f"exec {' '.join(process['args'])} in {process['cwd']}")
        if self.init:
            lines[-1] += " under an init"
        return "\n".join(lines) + "\n"

    def dump(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "id": self.id,
            "flags": self.flags,
            "pid_namespace": self.pid_namespace,
            "user_namespace": self.user_namespace,
            "cgroup": self.cgroup,
            "operations": [item.dump() for item in self.operations],
            "process": self.process,
            "init": self.init,
        }


def process_plan(process: ProcessSettings, privileged: bool = False) -> dict[str, Any]:
    """The JSON form of a process: what ``launch`` and ``enter`` take.

    Raises InvalidParameter for a capability or ulimit that does not exist, or empty arguments.
    """
    if not process.args:
        raise InvalidParameter("no command specified")
    if privileged:
        bits = -1
    else:
        unknown = [name for name in process.capabilities if capabilities.canonical(name) is None]
        if unknown:
            raise InvalidParameter(f'invalid CapAdd: unknown capability: "{unknown[0]}"')
        bits = capabilities.mask(process.capabilities)
    rlimits = []
    for name, soft, hard in process.rlimits:
        number = ULIMITS.get(name.lower().removeprefix("rlimit_"))
        if number is None:
            raise InvalidParameter(f"invalid ulimit type: {name}")
        rlimits.append([number, soft, hard, name])
    cwd = process.cwd or "/"
    if not cwd.startswith("/"):
        raise InvalidParameter(
            f"the working directory '{cwd}' is invalid, it needs to be an absolute path"
        )
    return {
        "args": list(process.args),
        "env": list(process.env),
        "cwd": cwd,
        "user": process.user,
        "groups": list(process.groups),
        "terminal": process.terminal,
        "size": list(process.console_size),
        "capabilities": bits,
        "no_new_privileges": process.no_new_privileges,
        "rlimits": rlimits,
        "oom_score_adj": process.oom_score_adj,
        "remapped": None if process.remapped is None else list(process.remapped),
        "apparmor": process.apparmor,
        "selinux": process.selinux,
        "seccomp": None
        if process.seccomp is None
        else [
            binascii.b2a_base64(process.seccomp[0], newline=False).decode(),
            process.seccomp[1],
        ],
    }


def plan(settings: ContainerSettings, mountpoint: str, hierarchy: Hierarchy | None = None) -> Plan:
    """Plan a container.

    ``mountpoint`` is an empty directory of the host (ROOT/keeper/rootfs), which the container's own
    mount namespace has its root file system on until it becomes the root. ``hierarchy`` is the
    machine's cgroups (None: no cgroup at all). Raises InvalidParameter.
    """
    namespaces = settings.namespaces
    unknown = set(namespaces) - set(CLONED) - {"cgroup"}
    if unknown:
        raise InvalidParameter(f"unknown namespace {', '.join(sorted(unknown))}")
    if "mount" not in namespaces or namespaces["mount"] is not None:
        raise InvalidParameter("a container needs a mount namespace of its own")
    if not settings.rootfs:
        raise InvalidParameter("a container needs a root file system")
    flags = 0
    for kind, flag in CLONED.items():
        if kind in namespaces and namespaces[kind] is None:
            flags |= flag
    user_namespace = None
    if settings.id_map is not None:
        mapping = [[0, *settings.id_map]]
        own = flags & OF_USER_NAMESPACE
        user_namespace = {"uids": mapping, "gids": mapping, "flags": own}
    steps: list[op.Operation] = []
    for kind in ("uts", "ipc", "network", "cgroup"):
        path = namespaces.get(kind)
        if path is not None:
            steps.append(op.JoinNamespace(kind, path))
    own_cgroup_namespace = "cgroup" in namespaces and namespaces["cgroup"] is None
    if own_cgroup_namespace:
        steps.append(op.UnshareCgroup())
    if flags & syscalls.CLONE_NEWNET:
        steps.append(op.RaiseInterface("lo"))
    if settings.hostname and "uts" in namespaces:
        steps.append(op.Hostname(settings.hostname))
    if settings.domainname and "uts" in namespaces:
        steps.append(op.Domainname(settings.domainname))
    steps += _file_systems(settings, mountpoint, hierarchy, own_cgroup_namespace)
    cgroup = None
    if hierarchy is not None and hierarchy.controllers:
        name = settings.cgroup_name
        cgroup = {
            "name": name,
            "entrances": hierarchy.entrances(name),
            "resources": settings.resources.as_dict(),
            "devices": None if settings.privileged else _device_rules(settings),
        }
    if user_namespace is not None:
        steps.append(op.EnterUserNamespace())
        flags &= ~OF_USER_NAMESPACE
    return Plan(
        id=settings.id,
        flags=flags,
        pid_namespace=namespaces.get("pid"),
        user_namespace=user_namespace,
        cgroup=cgroup,
        operations=steps,
        process=process_plan(settings.process, settings.privileged),
        init=settings.init,
    )


def _device_rules(settings: ContainerSettings) -> list[str]:
    own = [
        f"{device.kind} {device.major}:{device.minor} {device.access}"
        for device in settings.devices
    ]
    return [*DEFAULT_DEVICES, *own, *settings.device_rules]


def _file_systems(
    settings: ContainerSettings,
    mountpoint: str,
    hierarchy: Hierarchy | None,
    own_cgroup_namespace: bool,
) -> list[op.Operation]:
    """Everything about mounts, in order, up to the new root."""
    steps: list[op.Operation] = []
    binds = {}
    for number, item in enumerate(settings.mounts):
        if item.kind == "bind" and parse_options(item.options).propagation & (
            syscalls.MS_SHARED | syscalls.MS_SLAVE
        ):
            binds[item] = str(number)
            steps.append(op.CopyTree(item.source, "bind" not in item.options, str(number)))
    if settings.shm_from is not None:
        steps.append(op.BorrowTree(settings.shm_from, "/dev/shm", _SHM))
    steps.append(op.Isolate())
    if settings.id_map is not None:
        first = settings.id_map[0]
        places = {mount.directory or mount.source: None for mount in settings.rootfs}
        steps += [op.MapTree(place) for place in places]
        steps.append(op.OwnFilesAs(first, first))
    for mount in settings.rootfs:
        options = parse_options(mount.options, syscalls.MS_BIND if mount.fstype == "bind" else 0)
        steps.append(
            op.MountRoot(
                mount.fstype,
                mount.source,
                mountpoint,
                options.flags,
                labelled(options.data, settings.mount_label if mount.fstype != "bind" else ""),
                mount.directory,
            )
        )
    steps.append(op.EnterRoot(mountpoint))

    taken = {posixpath.normpath(item.target) for item in settings.mounts}
    steps += _defaults(settings, taken, hierarchy, own_cgroup_namespace)
    # Mounts closer to the root come first, so that none hides another; else the order given.
    for item in sorted(
        settings.mounts, key=lambda item: posixpath.normpath(item.target).count("/")
    ):
        steps.append(_mount_point(item, binds.get(item), settings))
        if item.kind == "tree" and item.below:
            steps.append(op.ShowBelow(posixpath.normpath(item.target), item.below))
    if settings.process.terminal:
        steps.append(op.Terminal(*settings.process.console_size))
    for key, value in settings.effective_sysctls.items():
        _check_sysctl(key, settings.namespaces)
        steps.append(op.Sysctl(key, value))
    if not settings.privileged:
        steps += [op.Protect(path) for path in settings.readonly_paths]
        steps += [op.Mask(path, settings.mount_label) for path in settings.masked_paths]
    cwd = posixpath.normpath(settings.process.cwd or "/")
    if cwd not in ("/", "//"):
        steps.append(op.MakeDirectory(cwd))
    if settings.readonly_rootfs:
        steps.append(op.SetReadOnly("/"))
    steps.append(op.PivotRoot())
    return steps


def _check_sysctl(key: str, namespaces: dict[str, str | None]) -> None:
    """Refuse what is not the container's own: it would change the host."""
    parts = key.split(".")
    if not all(parts) or any("/" in part for part in parts):
        raise InvalidParameter(f'invalid sysctl "{key}"')
    if parts[0] == "net":
        if "network" not in namespaces:
            raise InvalidParameter(f'sysctl "{key}" not allowed in host network namespace')
    elif key in _IPC_SYSCTLS or key.startswith("fs.mqueue."):
        if "ipc" not in namespaces:
            raise InvalidParameter(f'sysctl "{key}" not allowed in host ipc namespace')
    else:
        raise InvalidParameter(f'sysctl "{key}" is not in a separate kernel namespace')


def _mapped(data: str, id_map: tuple[int, int] | None) -> str:
    """The options of a tmpfs, whose owner is written as it is inside, as the host needs them."""
    if id_map is None or not data:
        return data
    parts = []
    for part in data.split(","):
        name, equals, value = part.partition("=")
        if name in ("uid", "gid") and value.isdigit():
            part = f"{name}{equals}{int(value) + id_map[0]}"
        parts.append(part)
    return ",".join(parts)


def labelled(data: str, label: str) -> str:
    """The options of a file system with the SELinux label of all that is in it."""
    if not label:
        return data
    context = f'context="{label}"'
    return f"{data},{context}" if data else context


def _mount_point(item: MountPoint, key: str | None, settings: ContainerSettings) -> op.Operation:
    id_map = settings.id_map
    target = posixpath.normpath("/" + item.target.lstrip("/"))
    if target == "/":
        raise InvalidParameter("invalid volume specification: destination can't be '/'")
    if item.kind == "tmpfs":
        options = parse_options(item.options, _NOSUID_NOEXEC_NODEV)
        data = labelled(_mapped(options.data, id_map), settings.mount_label)
        return op.Mount("tmpfs", "tmpfs", target, options.flags, data)
    if item.tree is not None and item.tree.fstype != "bind":
        options = parse_options(item.tree.options)
        return op.MountTree(
            item.tree.fstype,
            item.tree.source,
            target,
            options.flags | (0 if "rw" in item.options else syscalls.MS_RDONLY),
            options.data,
            item.tree.directory,
        )
    attributes = 0
    for option in item.options:
        if option != "idmap" or id_map is not None:
            attributes |= ATTRIBUTES.get("ro" if option == "rro" else option, 0)
    if item.below and item.kind == "bind":
        return op.BindBelow(
            item.source,
            item.below,
            target,
            "bind" not in item.options,
            attributes,
            "rro" in item.options,
        )
    propagation = parse_options(item.options).propagation
    return op.Bind(
        item.tree.source if item.tree is not None else item.source,
        target,
        recursive="bind" not in item.options,
        attributes=attributes,
        attributes_recursive="rro" in item.options,
        propagation=propagation if key is not None else 0,
        key=key,
    )


def _defaults(
    settings: ContainerSettings,
    taken: set[str],
    hierarchy: Hierarchy | None,
    own_cgroup_namespace: bool,
) -> list[op.Operation]:
    """The file systems that every container has, but those that a mount point replaces."""
    steps: list[op.Operation] = []
    privileged = settings.privileged
    if "/proc" not in taken:
        steps.append(op.Mount("proc", "proc", "/proc", _NOSUID_NOEXEC_NODEV, ""))
    if "/dev" not in taken:
        flags = syscalls.MS_NOSUID | syscalls.MS_STRICTATIME
        data = labelled("mode=755,size=65536k", settings.mount_label)
        steps.append(op.Mount("tmpfs", "tmpfs", "/dev", flags, data))
        steps += _devices(settings)
    if "/dev/pts" not in taken:
        steps.append(
            op.Mount(
                "devpts",
                "devpts",
                "/dev/pts",
                syscalls.MS_NOSUID | syscalls.MS_NOEXEC,
                labelled(
                    _mapped("newinstance,ptmxmode=0666,mode=0620,gid=5", settings.id_map),
                    settings.mount_label,
                ),
            )
        )
    ro = 0 if privileged else syscalls.MS_RDONLY
    if "/sys" not in taken:
        # A network namespace that is not of the user namespace can't be shown by a sysfs of it.
        joined = settings.id_map is not None and settings.namespaces.get("network") is not None
        if "network" in settings.namespaces and not joined:
            steps.append(op.Mount("sysfs", "sysfs", "/sys", _NOSUID_NOEXEC_NODEV | ro, ""))
        else:
            attributes = _RO_ALL if not privileged else _RO_ALL & ~syscalls.MOUNT_ATTR_RDONLY
            steps.append(op.Bind("/sys", "/sys", recursive=False, attributes=attributes))
        if hierarchy is not None and "/sys/fs/cgroup" not in taken:
            steps += _cgroups(settings, hierarchy, own_cgroup_namespace)
    if "/dev/mqueue" not in taken:
        steps.append(op.Mount("mqueue", "mqueue", "/dev/mqueue", _NOSUID_NOEXEC_NODEV, ""))
    if "/dev/shm" not in taken:
        if settings.shm_from is not None:
            steps.append(op.Bind("/dev/shm", "/dev/shm", key=_SHM))
        elif not settings.shm_size:
            pass
        elif "ipc" in settings.namespaces:
            data = labelled(f"mode=1777,size={settings.shm_size}", settings.mount_label)
            steps.append(op.Mount("tmpfs", "shm", "/dev/shm", _NOSUID_NOEXEC_NODEV, data))
        else:
            steps.append(op.Bind("/dev/shm", "/dev/shm"))
    return steps


def _devices(settings: ContainerSettings) -> list[op.Operation]:
    first = settings.id_map[0] if settings.id_map is not None else 0
    steps: list[op.Operation] = [
        op.Device(path, "c", major, minor, 0o666, 0, 0) for path, major, minor in DEVICES
    ]
    steps += [
        op.Device(
            device.path,
            device.kind,
            device.major,
            device.minor,
            device.mode,
            device.uid + first,
            device.gid + first,
        )
        for device in settings.devices
    ]
    steps += [op.Symlink(target, path) for target, path in SYMLINKS]
    if settings.privileged:
        steps.append(op.HostDevices())
    return steps


def _cgroups(
    settings: ContainerSettings, hierarchy: Hierarchy, own_namespace: bool
) -> list[op.Operation]:
    """The container's own groups at /sys/fs/cgroup; the whole version 2 tree where the cgroup
    namespace is the host's, since /proc/self/cgroup then speaks of the whole tree."""
    attributes = _RO_ALL if not settings.privileged else _RO_ALL & ~syscalls.MOUNT_ATTR_RDONLY
    name = settings.cgroup_name
    root = "/sys/fs/cgroup"
    if hierarchy.version == "2":
        source = hierarchy.unified or root
        if own_namespace:
            source = f"{source}/{name}"
        return [op.Bind(source, root, recursive=False, attributes=attributes)]
    if not hierarchy.controllers:
        return []
    return [op.BindGroups(root, bind_groups(hierarchy, name), attributes)]


def bind_groups(hierarchy: Hierarchy, name: str) -> list[list[str]]:
    """What :class:`~tiffin.runtime.operations.BindGroups` binds for a group: one row a hierarchy,
    and links for the controllers that share one."""
    groups: list[list[str]] = []
    for item in hierarchy.controllers:
        base = posixpath.basename(item.path)
        groups.append([base, f"{item.path}/{name}"])
        if len(item.names) > 1:
            groups += [[one, f"@{base}"] for one in item.names if one != base]
    return groups
