"""The operations on mounts: of the root, inside it, and of which of them can be seen or written."""

from __future__ import annotations

from tiffin.linux import syscalls
from tiffin.runtime.operation import Operation

TYPE_CHECKING = False  # typing itself would cost the keeper more than all the rest
if TYPE_CHECKING:
    from tiffin.linux.kernel import Kernel


class CopyTree(Operation):
    """Keep a copy of a host mount before its propagation is cut."""

    fields = ("source", "recursive", "key")
    __slots__ = fields
    name = "copy-tree"

    def __init__(self, source: str, recursive: bool, key: str) -> None:
        self.source = source
        self.recursive = recursive
        self.key = key

    def describe(self) -> str:
        return f"copy mount {self.source}"

    def execute(self, kernel: Kernel) -> None:
        kernel.copy_tree(self.source, self.recursive, self.key)


class BorrowTree(Operation):
    """Keep a copy of a mount of another container, whose mount namespace a path names."""

    fields = ("namespace", "path", "key")
    __slots__ = fields
    name = "borrow-tree"

    def __init__(self, namespace: str, path: str, key: str) -> None:
        self.namespace = namespace
        self.path = path
        self.key = key

    def describe(self) -> str:
        return f"copy mount {self.path} of {self.namespace}"

    def execute(self, kernel: Kernel) -> None:
        kernel.borrow_tree(self.namespace, self.path, self.key)


class MapTree(Operation):
    """Show a host path with its owners mapped for the container's user namespace."""

    fields = ("path",)
    __slots__ = fields
    name = "map-tree"

    def __init__(self, path: str) -> None:
        self.path = path

    def describe(self) -> str:
        return f"map the owners of {self.path}"

    def execute(self, kernel: Kernel) -> None:
        kernel.map_tree(self.path)


class Isolate(Operation):
    """Cut the mount namespace off: nothing mounted here shows on the host, nor the reverse."""

    __slots__ = ()
    name = "isolate"

    def describe(self) -> str:
        return "make every mount private"

    def execute(self, kernel: Kernel) -> None:
        kernel.set_propagation("/", syscalls.MS_REC | syscalls.MS_PRIVATE)


class Propagate(Operation):
    """Change how the mounts from the root on propagate."""

    fields = ("flags",)
    __slots__ = fields
    name = "propagate"

    def __init__(self, flags: int) -> None:
        self.flags = flags

    def describe(self) -> str:
        return f"propagation of / {self.flags:#x}"

    def execute(self, kernel: Kernel) -> None:
        kernel.set_propagation("/", self.flags)


class MountRoot(Operation):
    """Mount (one of the mounts of) the root file system on a host path."""

    fields = ("fstype", "source", "target", "flags", "data", "directory")
    __slots__ = fields
    name = "mount-root"

    def __init__(
        self, fstype: str, source: str, target: str, flags: int, data: str, directory: str | None
    ) -> None:
        self.fstype = fstype
        self.source = source
        self.target = target
        self.flags = flags
        self.data = data
        self.directory = directory

    def describe(self) -> str:
        place = f" (from {self.directory})" if self.directory else ""
        options = f" {self.data}" if self.data else ""
        return f"mount {self.fstype} {self.source} on {self.target}{options}{place}"

    def execute(self, kernel: Kernel) -> None:
        kernel.mount_root(
            self.fstype, self.source, self.target, self.flags, self.data, self.directory
        )


class EnterRoot(Operation):
    """From here on, inside paths are looked up under this host path."""

    fields = ("path",)
    __slots__ = fields
    name = "enter-root"

    def __init__(self, path: str) -> None:
        self.path = path

    def describe(self) -> str:
        return f"root is {self.path}"

    def execute(self, kernel: Kernel) -> None:
        kernel.enter_root(self.path)


class Mount(Operation):
    """Mount a new file system inside."""

    fields = ("fstype", "source", "target", "flags", "data")
    __slots__ = fields
    name = "mount"

    def __init__(self, fstype: str, source: str, target: str, flags: int, data: str) -> None:
        self.fstype = fstype
        self.source = source
        self.target = target
        self.flags = flags
        self.data = data

    def describe(self) -> str:
        options = f" {self.data}" if self.data else ""
        return f"mount {self.fstype} on {self.target} flags {self.flags:#x}{options}"

    def execute(self, kernel: Kernel) -> None:
        kernel.mount(self.fstype, self.source, self.target, self.flags, self.data)


class MountTree(Operation):
    """Mount a file system inside whose options speak of names in a host's directory."""

    fields = ("fstype", "source", "target", "flags", "data", "directory")
    __slots__ = fields
    name = "mount-tree"

    def __init__(
        self, fstype: str, source: str, target: str, flags: int, data: str, directory: str | None
    ) -> None:
        self.fstype = fstype
        self.source = source
        self.target = target
        self.flags = flags
        self.data = data
        self.directory = directory

    def describe(self) -> str:
        place = f" (from {self.directory})" if self.directory else ""
        return f"mount {self.fstype} on {self.target} {self.data}{place}"

    def execute(self, kernel: Kernel) -> None:
        if self.directory is not None:
            kernel.change_directory(self.directory)
        kernel.mount(self.fstype, self.source, self.target, self.flags, self.data)


class Bind(Operation):
    """Bind a host path inside."""

    fields = (
        "source",
        "target",
        "recursive",
        "attributes",
        "attributes_recursive",
        "propagation",
        "key",
    )
    __slots__ = fields
    name = "bind"

    def __init__(
        self,
        source: str,
        target: str,
        recursive: bool = True,
        attributes: int = 0,
        attributes_recursive: bool = False,
        propagation: int = 0,
        key: str | None = None,
    ) -> None:
        self.source = source
        self.target = target
        self.recursive = recursive
        self.attributes = attributes
        self.attributes_recursive = attributes_recursive
        self.propagation = propagation
        self.key = key

    def describe(self) -> str:
        how = "ro" if self.attributes & syscalls.MOUNT_ATTR_RDONLY else "rw"
        return f"bind {self.source} on {self.target} {how}"

    def execute(self, kernel: Kernel) -> None:
        kernel.attach_tree(
            self.source,
            self.target,
            self.recursive,
            self.attributes,
            self.attributes_recursive,
            self.propagation,
            self.key,
        )


class ShowBelow(Operation):
    """Show a directory of the tree that was just mounted, and not all of it."""

    fields = ("target", "below")
    __slots__ = fields
    name = "show-below"

    def __init__(self, target: str, below: str) -> None:
        self.target = target
        self.below = below

    def describe(self) -> str:
        return f"show {self.below} of {self.target} only"

    def execute(self, kernel: Kernel) -> None:
        kernel.show_below(self.target, self.below)


class BindBelow(Operation):
    """Bind what is at ``below`` in a host directory that others may write to."""

    fields = ("source", "below", "target", "recursive", "attributes", "attributes_recursive")
    __slots__ = fields
    name = "bind-below"

    def __init__(
        self,
        source: str,
        below: str,
        target: str,
        recursive: bool = True,
        attributes: int = 0,
        attributes_recursive: bool = False,
    ) -> None:
        self.source = source
        self.below = below
        self.target = target
        self.recursive = recursive
        self.attributes = attributes
        self.attributes_recursive = attributes_recursive

    def describe(self) -> str:
        how = "ro" if self.attributes & syscalls.MOUNT_ATTR_RDONLY else "rw"
        return f"bind {self.below} in {self.source} on {self.target} {how}"

    def execute(self, kernel: Kernel) -> None:
        kernel.attach_below(
            self.source,
            self.below,
            self.target,
            self.recursive,
            self.attributes,
            self.attributes_recursive,
        )


class BindGroups(Operation):
    """A tmpfs at ``root`` with the container's groups, one of each hierarchy, bound in it.

    ``groups`` are pairs of a name below ``root`` and a source: a host path, or, starting with
    ``@``, the name that a symbolic link points to.
    """

    fields = ("root", "groups", "attributes")
    __slots__ = fields
    name = "bind-groups"

    def __init__(self, root: str, groups: list[list[str]], attributes: int) -> None:
        self.root = root
        self.groups = groups
        self.attributes = attributes

    def describe(self) -> str:
        how = "ro" if self.attributes & syscalls.MOUNT_ATTR_RDONLY else "rw"
        names = " ".join(name for name, _ in self.groups)
        return f"bind cgroups on {self.root} {how}: {names}"

    def execute(self, kernel: Kernel) -> None:
        kernel.bind_groups(self.root, self.groups, self.attributes)


class SetReadOnly(Operation):
    """Make a mount inside read-only."""

    fields = ("path",)
    __slots__ = fields
    name = "read-only"

    def __init__(self, path: str) -> None:
        self.path = path

    def describe(self) -> str:
        return f"read-only mount {self.path}"

    def execute(self, kernel: Kernel) -> None:
        kernel.set_read_only(self.path)


class Protect(Operation):
    """Make a path inside read-only, if it exists."""

    fields = ("path",)
    __slots__ = fields
    name = "protect"

    def __init__(self, path: str) -> None:
        self.path = path

    def describe(self) -> str:
        return f"read-only path {self.path}"

    def execute(self, kernel: Kernel) -> None:
        kernel.protect(self.path)


class Mask(Operation):
    """Hide a path inside, if it exists; ``label`` is the SELinux label of what hides a folder."""

    fields = ("path", "label")
    __slots__ = fields
    name = "mask"

    def __init__(self, path: str, label: str = "") -> None:
        self.path = path
        self.label = label

    def describe(self) -> str:
        return f"mask {self.path}"

    def execute(self, kernel: Kernel) -> None:
        kernel.mask(self.path, self.label)


class PivotRoot(Operation):
    """Leave the host's file systems."""

    __slots__ = ()
    name = "pivot-root"

    def describe(self) -> str:
        return "pivot root, detach the host's mounts"

    def execute(self, kernel: Kernel) -> None:
        kernel.pivot_root()


class ChangeRoot(Operation):
    """Make the root this process's own, in a mount namespace that is shared with others."""

    __slots__ = ()
    name = "change-root"

    def describe(self) -> str:
        return "change root"

    def execute(self, kernel: Kernel) -> None:
        kernel.change_root()
