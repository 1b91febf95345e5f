"""The kernel seam's fake: it does nothing and remembers everything.

Tests run a plan's operations against a :class:`RecordingKernel` and look at :attr:`calls`, a list
of ``(method, *arguments)``, to check what would happen in which order, without root.
"""

from __future__ import annotations

from tiffin.linux.kernel import Kernel


class RecordingKernel(Kernel):
    """Records calls. Methods named in ``failures`` raise the given error instead."""

    def __init__(self, failures: dict[str, OSError] | None = None) -> None:
        super().__init__()
        self.calls: list[tuple[object, ...]] = []
        self._failures = failures or {}

    def _record(self, method: str, *arguments: object) -> None:
        self.calls.append((method, *arguments))
        if method in self._failures:
            raise self._failures[method]

    def join_namespace(self, path: str, kind: int) -> None:
        self._record("join_namespace", path, kind)

    def unshare(self, flags: int) -> None:
        self._record("unshare", flags)

    def set_hostname(self, name: str) -> None:
        self._record("set_hostname", name)

    def set_domainname(self, name: str) -> None:
        self._record("set_domainname", name)

    def raise_interface(self, name: str) -> None:
        self._record("raise_interface", name)

    def change_directory(self, path: str) -> None:
        self._record("change_directory", path)

    def set_propagation(self, path: str, flags: int) -> None:
        self._record("set_propagation", path, flags)

    def copy_tree(self, source: str, recursive: bool, key: str) -> None:
        self._record("copy_tree", source, recursive, key)

    def mount_root(
        self, fstype: str, source: str, target: str, flags: int, data: str, directory: str | None
    ) -> None:
        self._record("mount_root", fstype, source, target, flags, data, directory)

    def enter_root(self, path: str) -> None:
        self._record("enter_root", path)

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        self._record("make_directory", path, mode)

    def make_node(
        self, path: str, kind: int, major: int, minor: int, mode: int, uid: int, gid: int
    ) -> None:
        self._record("make_node", path, kind, major, minor, mode, uid, gid)

    def make_symlink(self, target: str, path: str) -> None:
        self._record("make_symlink", target, path)

    def mount(self, fstype: str, source: str, target: str, flags: int, data: str) -> None:
        self._record("mount", fstype, source, target, flags, data)

    def attach_tree(
        self,
        source: str,
        target: str,
        recursive: bool = True,
        attributes: int = 0,
        attributes_recursive: bool = False,
        propagation: int = 0,
        key: str | None = None,
    ) -> None:
        self._record(
            "attach_tree",
            source,
            target,
            recursive,
            attributes,
            attributes_recursive,
            propagation,
            key,
        )

    def show_below(self, path: str, below: str) -> None:
        self._record("show_below", path, below)

    def attach_below(
        self,
        source: str,
        below: str,
        target: str,
        recursive: bool = True,
        attributes: int = 0,
        attributes_recursive: bool = False,
    ) -> None:
        self._record(
            "attach_below", source, below, target, recursive, attributes, attributes_recursive
        )

    def bind_groups(self, root: str, groups: list[list[str]], attributes: int) -> None:
        self._record("bind_groups", root, groups, attributes)

    def set_read_only(self, path: str) -> None:
        self._record("set_read_only", path)

    def protect(self, path: str) -> None:
        self._record("protect", path)

    def mask(self, path: str, label: str = "") -> None:
        self._record("mask", path, label) if label else self._record("mask", path)

    def write_parameter(self, name: str, value: str) -> None:
        self._record("write_parameter", name, value)

    def borrow_tree(self, namespace: str, path: str, key: str) -> None:
        self._record("borrow_tree", namespace, path, key)

    def map_tree(self, path: str) -> None:
        self._record("map_tree", path)

    def own_files_as(self, uid: int, gid: int) -> None:
        self._record("own_files_as", uid, gid)

    def enter_user_namespace(self) -> None:
        self._record("enter_user_namespace")

    def open_terminal(self, rows: int, columns: int) -> None:
        self._record("open_terminal", rows, columns)

    def copy_host_devices(self) -> None:
        self._record("copy_host_devices")

    def change_root(self) -> None:
        self._record("change_root")

    def pivot_root(self) -> None:
        self._record("pivot_root")
