"""The operations on the container's namespaces and what is set in them, and the table of all.

What an operation is, :mod:`tiffin.runtime.operation` says. Planners and executors take every
operation from here.
"""

from __future__ import annotations

from tiffin.linux import syscalls
from tiffin.runtime.file_operations import (
    Device,
    HostDevices,
    MakeDirectory,
    OwnFilesAs,
    Symlink,
    Terminal,
)
from tiffin.runtime.mount_operations import (
    Bind,
    BindBelow,
    BindGroups,
    BorrowTree,
    ChangeRoot,
    CopyTree,
    EnterRoot,
    Isolate,
    MapTree,
    Mask,
    Mount,
    MountRoot,
    MountTree,
    PivotRoot,
    Propagate,
    Protect,
    SetReadOnly,
    ShowBelow,
)
from tiffin.runtime.operation import Operation

TYPE_CHECKING = False  # typing itself would cost the keeper more than all the rest
if TYPE_CHECKING:
    from typing import Any

    from tiffin.linux.kernel import Kernel

__all__ = [
    "OPERATIONS",
    "Bind",
    "BindBelow",
    "BindGroups",
    "BorrowTree",
    "ChangeRoot",
    "CopyTree",
    "Device",
    "Domainname",
    "EnterRoot",
    "EnterUserNamespace",
    "HostDevices",
    "Hostname",
    "Isolate",
    "JoinNamespace",
    "MakeDirectory",
    "MapTree",
    "Mask",
    "Mount",
    "MountRoot",
    "MountTree",
    "Operation",
    "OwnFilesAs",
    "PivotRoot",
    "Propagate",
    "Protect",
    "RaiseInterface",
    "SetReadOnly",
    "ShowBelow",
    "Symlink",
    "Sysctl",
    "Terminal",
    "UnshareCgroup",
    "load",
]

_NAMESPACES = {
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "ipc": syscalls.CLONE_NEWIPC,
    "mount": syscalls.CLONE_NEWNS,
    "network": syscalls.CLONE_NEWNET,
    "uts": syscalls.CLONE_NEWUTS,
}


class JoinNamespace(Operation):
    """Join the namespace that a path names."""

    fields = ("kind", "path")
    __slots__ = fields
    name = "join"

    def __init__(self, kind: str, path: str) -> None:
        self.kind = kind
        self.path = path

    def describe(self) -> str:
        return f"join {self.kind} namespace {self.path}"

    def execute(self, kernel: Kernel) -> None:
        kernel.join_namespace(self.path, _NAMESPACES[self.kind])


class UnshareCgroup(Operation):
    """A new cgroup namespace, its root where the process has been placed."""

    __slots__ = ()
    name = "unshare-cgroup"

    def describe(self) -> str:
        return "unshare cgroup namespace"

    def execute(self, kernel: Kernel) -> None:
        kernel.unshare(syscalls.CLONE_NEWCGROUP)


class EnterUserNamespace(Operation):
    """Become the root of the container's user namespace."""

    __slots__ = ()
    name = "enter-user-namespace"

    def describe(self) -> str:
        return "enter the user namespace"

    def execute(self, kernel: Kernel) -> None:
        kernel.enter_user_namespace()


class Sysctl(Operation):
    """Set a kernel parameter of the container's namespaces."""

    fields = ("key", "value")
    __slots__ = fields
    name = "sysctl"

    def __init__(self, key: str, value: str) -> None:
        self.key = key
        self.value = value

    def describe(self) -> str:
        return f"sysctl {self.key}={self.value}"

    def execute(self, kernel: Kernel) -> None:
        kernel.write_parameter(self.key.replace(".", "/"), self.value)


class Hostname(Operation):
    """Set the host name."""

    fields = ("hostname",)
    __slots__ = fields
    name = "hostname"

    def __init__(self, hostname: str) -> None:
        self.hostname = hostname

    def describe(self) -> str:
        return f"hostname {self.hostname}"

    def execute(self, kernel: Kernel) -> None:
        kernel.set_hostname(self.hostname)


class Domainname(Operation):
    """Set the NIS domain name."""

    fields = ("domainname",)
    __slots__ = fields
    name = "domainname"

    def __init__(self, domainname: str) -> None:
        self.domainname = domainname

    def describe(self) -> str:
        return f"domain name {self.domainname}"

    def execute(self, kernel: Kernel) -> None:
        kernel.set_domainname(self.domainname)


class RaiseInterface(Operation):
    """Bring a network interface up."""

    fields = ("interface",)
    __slots__ = fields
    name = "interface"

    def __init__(self, interface: str) -> None:
        self.interface = interface

    def describe(self) -> str:
        return f"bring {self.interface} up"

    def execute(self, kernel: Kernel) -> None:
        kernel.raise_interface(self.interface)


OPERATIONS: dict[str, type[Operation]] = {
    kind.name: kind
    for kind in (
        JoinNamespace,
        UnshareCgroup,
        CopyTree,
        BorrowTree,
        MapTree,
        OwnFilesAs,
        EnterUserNamespace,
        Isolate,
        Propagate,
        MountRoot,
        EnterRoot,
        Mount,
        MountTree,
        Bind,
        BindBelow,
        ShowBelow,
        BindGroups,
        Device,
        HostDevices,
        Symlink,
        MakeDirectory,
        SetReadOnly,
        Protect,
        Mask,
        Sysctl,
        Hostname,
        Domainname,
        RaiseInterface,
        Terminal,
        PivotRoot,
        ChangeRoot,
    )
}


def load(item: list[Any]) -> Operation:
    """The operation of a JSON form. Raises KeyError or TypeError for what is none."""
    return OPERATIONS[item[0]](*item[1:])
