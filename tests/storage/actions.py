"""What the conformance suite does to snapshots, and how trees are mounted and compared.

An action is a function that changes a tree under a directory; the same one is run on a mounted
snapshot and on a plain directory, and the two must then be equal.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tiffin.linux import syscalls
from tiffin.storage.driver import Mount, StorageDriver
from tiffin.storage.mounting import mount_all

Action = Callable[[Path], None]


@contextmanager
def mounted(mounts: Sequence[Mount], target: Path) -> Iterator[Path]:
    """Mount on ``target`` as the runtime does; unmounted at the end in any case."""
    target.mkdir(exist_ok=True)
    done = 0
    before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for mount in mounts:
            mount_all([mount], str(target))
            done += 1
            os.fchdir(before)
        yield target
    finally:
        os.fchdir(before)
        os.close(before)
        for _ in range(done):
            syscalls.umount(str(target), syscalls.MNT_DETACH)


class Stack:
    """Layers of one driver put on each other, and what a test does with the next one."""

    def __init__(self, driver: StorageDriver, place: Path) -> None:
        self.driver = driver
        self.place = place
        self.layers: list[str] = []

    @property
    def parent(self) -> str | tuple[str, ...] | None:
        """What the next snapshot is prepared on."""
        if self.driver.layered:
            return tuple(self.layers)
        return self.layers[-1] if self.layers else None

    @contextmanager
    def writable(self, key: str = "container") -> Iterator[Path]:
        """A new snapshot on the stack, mounted; it stays after the block."""
        self.driver.prepare(key, self.parent)
        with self.mounted(key) as tree:
            yield tree

    @contextmanager
    def mounted(self, key: str) -> Iterator[Path]:
        """The tree of a snapshot."""
        with mounted(self.driver.mounts(key), self.place / f"mount-{key}") as tree:
            yield tree

    @contextmanager
    def viewed(self) -> Iterator[Path]:
        """The tree of the stack, read-only."""
        with mounted(self.driver.view(tuple(self.layers)), self.place / "view") as tree:
            yield tree

    def layer(self, *actions: Action) -> str:
        """Do the actions in a new snapshot and commit it as the next layer."""
        with self.writable("next") as tree:
            for action in actions:
                action(tree)
        name = f"layer{len(self.layers)}"
        self.driver.commit("next", name)
        self.layers.append(name)
        return name


def write(path: str, content: str = "", mode: int = 0o644) -> Action:
    """Write a file, its directories too."""

    def act(tree: Path) -> None:
        file = tree / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content or f"content of {path}")
        file.chmod(mode)

    return act


def append(path: str, content: str) -> Action:
    """Append to a file."""

    def act(tree: Path) -> None:
        with (tree / path).open("a") as file:
            file.write(content)

    return act


def make_directory(path: str, mode: int = 0o755) -> Action:
    """Make a directory, and those above it."""

    def act(tree: Path) -> None:
        (tree / path).mkdir(parents=True, exist_ok=True)
        (tree / path).chmod(mode)

    return act


def delete(path: str) -> Action:
    """Delete a file or a whole directory."""

    def act(tree: Path) -> None:
        target = tree / path
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink()

    return act


def symlink(path: str, text: str) -> Action:
    """Make a symlink."""

    def act(tree: Path) -> None:
        (tree / path).symlink_to(text)

    return act


def link(path: str, existing: str) -> Action:
    """Make a hard link."""

    def act(tree: Path) -> None:
        (tree / path).hardlink_to(tree / existing)

    return act


def move(source: str, target: str) -> Action:
    """Rename as mv does, which copies where the kernel says EXDEV."""

    def act(tree: Path) -> None:
        subprocess.run(["mv", "-T", tree / source, tree / target], check=True)

    return act


def rename(source: str, target: str) -> Action:
    """rename(2) of anything but a directory, which a layered driver may refuse with EXDEV."""

    def act(tree: Path) -> None:
        if (tree / source).is_dir() and not (tree / source).is_symlink():
            raise IsADirectoryError(errno.EISDIR, source)
        os.rename(tree / source, tree / target)

    return act


def change_mode(path: str, mode: int) -> Action:
    """Change permissions."""
    return lambda tree: (tree / path).chmod(mode)


def change_owner(path: str, uid: int, gid: int) -> Action:
    """Change the owner, of a symlink itself."""
    return lambda tree: os.chown(tree / path, uid, gid, follow_symlinks=False)


def set_xattr(path: str, name: str, value: bytes) -> Action:
    """Set an extended attribute."""
    return lambda tree: os.setxattr(tree / path, name, value)


def set_times(path: str, ns: int) -> Action:
    """Set both times, of a symlink itself."""
    return lambda tree: os.utime(tree / path, ns=(ns, ns), follow_symlinks=False)


def make_device(path: str, kind: int, major: int, minor: int) -> Action:
    """Make a device node, FIFO or socket."""
    return lambda tree: os.mknod(tree / path, kind | 0o640, os.makedev(major, minor))


def may_make_devices(place: Path) -> bool:
    """Whether device nodes can be made there, which only the host's root may."""
    try:
        make_device("trial", stat.S_IFCHR, 1, 3)(place)
    except PermissionError:
        return False
    (place / "trial").unlink()
    return True


def state(tree: Path, *, times: bool = False) -> dict[str, tuple[object, ...]]:
    """All that a user can see of a tree, to compare."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, directories, files in os.walk(tree):
        for name in [*directories, *files]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                content = status.st_rdev
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
                # XFS shows access control lists twice.
                if not key.startswith("trusted.SGI_ACL_")
            }
            found[os.path.relpath(path, tree)] = (
                oct(status.st_mode),
                status.st_uid,
                status.st_gid,
                content,
                tuple(sorted(xattrs.items())),
                status.st_mtime_ns if times else None,
            )
    return found
