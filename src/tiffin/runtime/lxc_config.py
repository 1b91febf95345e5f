"""The configuration that LXC makes a container of, from a plan of the native runtime.

A plan's operations fall into three parts (:func:`divide`): what is prepared on the root file system
before LXC is started, as the native runtime would (so that links are followed in the same safe
way); what LXC mounts, because it belongs to the container's namespaces; and what is finished in the
container before its program starts.

What LXC can't do is refused by name. Nothing here touches the system.

This module is part of the keeper: it imports next to nothing.

Source: lxc.container.conf(5) of LXC 5.0; fstab(5).
"""

from __future__ import annotations

from tiffin.errors import StartFailure, Unsupported
from tiffin.linux import capabilities, syscalls
from tiffin.linux.inside import may_cover
from tiffin.linux.mounts import ATTRIBUTES, describe_flags
from tiffin.runtime import operations as op
from tiffin.runtime.foreign import monitor_group

TYPE_CHECKING = False  # typing itself would cost the keeper more than all the rest
if TYPE_CHECKING:
    from typing import Any

    JSON = dict[str, Any]

_NAMESPACES = (
    ("pid", "pid", syscalls.CLONE_NEWPID),
    ("uts", "uts", syscalls.CLONE_NEWUTS),
    ("ipc", "ipc", syscalls.CLONE_NEWIPC),
    ("network", "net", syscalls.CLONE_NEWNET),
)
_OWN = ("proc", "sysfs", "mqueue")
"""File systems that show the namespaces of whoever mounts them."""
_LATE = (op.Terminal, op.Sysctl, op.Protect, op.Mask, op.SetReadOnly)
_BY_LXC = (op.JoinNamespace, op.UnshareCgroup, op.RaiseInterface, op.Hostname, op.PivotRoot)
_SPACES = str.maketrans({" ": "\\040", "\t": "\\011", "\n": "\\012", "\\": "\\134"})


class Parts:
    """A plan's operations: those ``before`` LXC is started, the ``entries`` that it mounts (lines
    of fstab), and those ``after``, in the container."""

    __slots__ = ("after", "before", "entries")

    def __init__(self) -> None:
        self.before: list[op.Operation] = []
        self.entries: list[str] = []
        self.after: list[op.Operation] = []


def divide(operations: list[list[Any]]) -> Parts:
    """Which operation is done by whom. Raises StartFailure, Unsupported."""
    parts = Parts()
    # LXC makes every mount a shared one.
    parts.after.append(op.Propagate(syscalls.MS_REC | syscalls.MS_SLAVE))
    for item in operations:
        operation = op.load(item)
        if isinstance(operation, _LATE):
            parts.after.append(operation)
        elif isinstance(operation, op.BindGroups):
            parts.entries += _groups(operation)
            if operation.attributes & syscalls.MOUNT_ATTR_RDONLY:
                parts.after.append(op.SetReadOnly(operation.root))
        elif isinstance(operation, op.Domainname):
            parts.after.append(op.Sysctl("kernel.domainname", operation.domainname))
        elif isinstance(operation, _BY_LXC):
            pass
        elif isinstance(operation, op.Mount) and operation.fstype == "devpts":
            # LXC takes away what is mounted there.
            parts.after.append(operation)
        elif isinstance(operation, (op.Mount, op.Bind)) and _is_late(operation):
            parts.entries.append(_entry(operation))
        else:
            if isinstance(operation, op.Bind) and operation.propagation & syscalls.MS_SHARED:
                raise Unsupported(
                    f"the mount at {operation.target}: shared propagation can't be used with the "
                    "runtime lxc: use native"
                )
            parts.before.append(operation)
    return parts


def _is_late(operation: op.Mount | op.Bind) -> bool:
    target = operation.target
    if isinstance(operation, op.Mount) and operation.fstype in _OWN:
        return True
    return target in ("/proc", "/sys") or target.startswith(("/proc/", "/sys/"))


def _entry(operation: op.Mount | op.Bind) -> str:
    target = operation.target
    if target.startswith("/proc/") and not may_cover(target):
        raise StartFailure(
            f"failed to start the container: {target} is inside /proc, where nothing can be mounted"
        )
    if isinstance(operation, op.Mount):
        options = describe_flags(operation.flags)
        if operation.data:
            options += f",{operation.data}"
        return _line(operation.source, target, operation.fstype, f"{options},create=dir")
    kind = "rbind" if operation.recursive else "bind"
    return _line(operation.source, target, "none", f"{kind}{_words(operation.attributes)}")


def _groups(operation: op.BindGroups) -> list[str]:
    root = operation.root
    lines = [_line("cgroup", root, "tmpfs", "nosuid,nodev,noexec,mode=755,create=dir")]
    sources = {name: source for name, source in operation.groups if not source.startswith("@")}
    for name, source in operation.groups:
        # The other names of a hierarchy are mounts here, not links.
        path = sources.get(source[1:], source)
        options = f"bind{_words(operation.attributes)},create=dir"
        lines.append(_line(path, f"{root}/{name}", "none", options))
    return lines


def _words(attributes: int) -> str:
    return "".join(f",{word}" for word, bit in ATTRIBUTES.items() if attributes & bit)


def _line(source: str, target: str, kind: str, options: str) -> str:
    source, inside = source.translate(_SPACES), target.lstrip("/").translate(_SPACES)
    return f"{source} {inside} {kind} {options} 0 0"


def configuration(
    plan: JSON,
    account: JSON,
    entries: list[str],
    devices_prefix: str,
    profile: str | None,
) -> str:
    """LXC's configuration.

    ``account`` has the numbers ``uid``, ``gid`` and ``groups``; ``entries`` are the mounts;
    ``devices_prefix`` is the key of the rules of devices (empty: there is no such group);
    ``profile`` is the path of the seccomp policy.
    """
    process, cgroup = plan["process"], plan["cgroup"]
    rows: list[tuple[str, object]] = [
        ("rootfs.path", f"dir:{plan['runtime']['mountpoint']}"),
        ("rootfs.managed", 0),
        ("autodev", 0),
        ("tty.max", 0),
        ("pty.max", 0),
        ("console.path", "none"),
        ("monitor.signal.pdeath", 0),
        ("hook.version", 1),
    ]
    rows += _namespace_rows(plan)
    if cgroup is not None:
        rows.append(("cgroup.dir.container", cgroup["name"]))
        rows.append(("cgroup.dir.monitor", monitor_group(cgroup["name"])))
        if cgroup["devices"] is not None and devices_prefix:
            rows.append((f"{devices_prefix}.deny", "a"))
            rows += [(f"{devices_prefix}.allow", rule) for rule in cgroup["devices"]]
    rows += [("mount.entry", entry) for entry in entries]
    rows += [
        ("init.uid", account["uid"]),
        ("init.gid", account["gid"]),
        ("init.cwd", process["cwd"]),
        ("no_new_privs", int(process["no_new_privileges"])),
        ("apparmor.profile", process["apparmor"] or "unconfined"),
    ]
    if account["groups"]:
        rows.append(("init.groups", ",".join(str(group) for group in account["groups"])))
    if process.get("selinux"):
        rows.append(("selinux.context", process["selinux"]))
    if process["capabilities"] >= 0:
        kept = " ".join(name.lower() for name in capabilities.names(process["capabilities"]))
        rows.append(("cap.keep", kept or "none"))
    for _, soft, hard, name in process["rlimits"]:
        words = ("unlimited" if value < 0 else str(value) for value in (soft, hard))
        rows.append((f"prlimit.{name.lower()}", ":".join(words)))
    if profile is not None:
        rows.append(("seccomp.profile", profile))
    for _, value in rows:
        if "\n" in str(value):
            raise Unsupported(f"a line break in {value!r} can't be used with the runtime lxc")
    return "".join(f"lxc.{key} = {value}\n" for key, value in rows)


def _namespace_rows(plan: JSON) -> list[tuple[str, object]]:
    joined, own_cgroup, name = {}, False, ""
    for item in plan["operations"]:
        operation = op.load(item)
        if isinstance(operation, op.JoinNamespace):
            joined[operation.kind] = operation.path
        elif isinstance(operation, op.UnshareCgroup):
            own_cgroup = True
        elif isinstance(operation, op.Hostname):
            name = operation.hostname
    if plan["pid_namespace"] is not None:
        joined["pid"] = plan["pid_namespace"]
    rows: list[tuple[str, object]] = []
    own = ["mnt", "cgroup"] if own_cgroup else ["mnt"]
    if name:
        rows.append(("uts.name", name))
    for kind, word, flag in _NAMESPACES:
        if kind in joined:
            rows.append((f"namespace.share.{word}", joined[kind]))
        elif plan["flags"] & flag:
            own.append(word)
    rows.append(("namespace.clone", " ".join(own)))
    if plan["flags"] & syscalls.CLONE_NEWNET:
        rows += [("net.0.type", "empty"), ("net.0.flags", "up")]
    return rows


_ACTIONS = {
    "SCMP_ACT_ALLOW": "allow",
    "SCMP_ACT_KILL": "kill",
    "SCMP_ACT_KILL_THREAD": "kill",
    "SCMP_ACT_TRAP": "trap",
}
_EPERM = 1


def seccomp_policy(profile: JSON) -> str:
    """LXC's form of a profile of the OCI's. Raises Unsupported, naming it, for what it lacks."""
    if profile.get("flags"):
        flags = ", ".join(profile["flags"])
        raise Unsupported(f"seccomp flags ({flags}) can't be used with the runtime lxc: use native")
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    kind = "denylist" if default == "allow" else "allowlist"
    lines = ["2", f"{kind} {default}", "[all]"]
    for rule in profile.get("syscalls") or []:
        action = _action(rule["action"], rule.get("errnoRet"))
        if action == default:
            continue
        arguments = [_argument(item) for item in rule.get("args") or []]
        indexes = {item["index"] for item in rule.get("args") or []}
        # One argument asked for twice: any of them will do.
        alternatives = [" ".join(arguments)] if len(indexes) == len(arguments) else list(arguments)
        for name in rule["names"]:
            lines += [f"{name} {action} {text}".rstrip() for text in alternatives]
    return "\n".join(lines) + "\n"


def _action(name: str, number: int | None) -> str:
    if name == "SCMP_ACT_ERRNO":
        return f"errno {_EPERM if number is None else number}"
    if name not in _ACTIONS:
        raise Unsupported(
            f"the seccomp action {name} can't be used with the runtime lxc: use native"
        )
    return _ACTIONS[name]


def _argument(item: JSON) -> str:
    operation = item["op"] if item["op"].startswith("SCMP_CMP_") else f"SCMP_CMP_{item['op']}"
    value, second = item.get("value", 0), item.get("valueTwo", 0)
    if operation == "SCMP_CMP_MASKED_EQ":
        return f"[{item['index']},{second},{operation},{value}]"
    return f"[{item['index']},{value},{operation}]"
