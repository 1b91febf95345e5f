"""The operations on files inside: devices, the terminal, links, directories, and who owns them."""

from __future__ import annotations

import stat

from tiffin.runtime.operation import Operation

TYPE_CHECKING = False  # typing itself would cost the keeper more than all the rest
if TYPE_CHECKING:
    from tiffin.linux.kernel import Kernel

_KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


class OwnFilesAs(Operation):
    """Let what is made from here on belong to the container's root."""

    fields = ("uid", "gid")
    __slots__ = fields
    name = "own-files-as"

    def __init__(self, uid: int, gid: int) -> None:
        self.uid = uid
        self.gid = gid

    def describe(self) -> str:
        return f"files belong to {self.uid}:{self.gid}"

    def execute(self, kernel: Kernel) -> None:
        kernel.own_files_as(self.uid, self.gid)


class Device(Operation):
    """Make a device node inside."""

    fields = ("path", "kind", "major", "minor", "mode", "uid", "gid")
    __slots__ = fields
    name = "device"

    def __init__(
        self, path: str, kind: str, major: int, minor: int, mode: int, uid: int, gid: int
    ) -> None:
        self.path = path
        self.kind = kind
        self.major = major
        self.minor = minor
        self.mode = mode
        self.uid = uid
        self.gid = gid

    def describe(self) -> str:
        return f"device {self.path} {self.kind} {self.major}:{self.minor} {self.mode:o}"

    def execute(self, kernel: Kernel) -> None:
        kind = _KINDS[self.kind]
        kernel.make_node(self.path, kind, self.major, self.minor, self.mode, self.uid, self.gid)


class HostDevices(Operation):
    """Make all of the host's device nodes inside (privileged containers)."""

    __slots__ = ()
    name = "host-devices"

    def describe(self) -> str:
        return "devices of the host"

    def execute(self, kernel: Kernel) -> None:
        kernel.copy_host_devices()


class Symlink(Operation):
    """Make a symbolic link inside."""

    fields = ("target", "path")
    __slots__ = fields
    name = "symlink"

    def __init__(self, target: str, path: str) -> None:
        self.target = target
        self.path = path

    def describe(self) -> str:
        return f"symlink {self.path} -> {self.target}"

    def execute(self, kernel: Kernel) -> None:
        kernel.make_symlink(self.target, self.path)


class MakeDirectory(Operation):
    """Make a directory inside, with its parents."""

    fields = ("path", "mode")
    __slots__ = fields
    name = "directory"

    def __init__(self, path: str, mode: int = 0o755) -> None:
        self.path = path
        self.mode = mode

    def describe(self) -> str:
        return f"directory {self.path}"

    def execute(self, kernel: Kernel) -> None:
        kernel.make_directory(self.path, self.mode)


class Terminal(Operation):
    """Open the container's terminal and put it on /dev/console."""

    fields = ("rows", "columns")
    __slots__ = fields
    name = "terminal"

    def __init__(self, rows: int, columns: int) -> None:
        self.rows = rows
        self.columns = columns

    def describe(self) -> str:
        return f"terminal {self.rows}x{self.columns} on /dev/console"

    def execute(self, kernel: Kernel) -> None:
        kernel.open_terminal(self.rows, self.columns)
