"""What a build lends to a command, as mounts of its container; and taking it back.

A stack's tree is mounted as a container's is (on a snapshot that is thrown away, if the command may
write), a layer's files are bound from its own directory (a file's copy, if the command may write),
a cache is a folder (:mod:`tiffin.build.folders`), a file at hand lies in memory (``/dev/shm``), so
that a secret never reaches a disk; a socket is forwarded (:mod:`tiffin.engine.agents`).

A mount needs something to be mounted on. Where the image has nothing, the runtime makes it, and
:class:`Places` takes it away again before the command's changes become a layer.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from tiffin.build.backend import StepMount
from tiffin.build.folders import CacheFolders
from tiffin.build.tree import LowerTree, parent, resolve
from tiffin.engine import agents
from tiffin.engine.mountpoints import MountPoint
from tiffin.layer.entry import Kind
from tiffin.layer.store import LayerStore
from tiffin.storage import tree

_MEMORY = Path("/dev/shm")
_PREFIX = "tiffin-build-"
_FILESYSTEMS = ("/dev", "/proc", "/sys")
"""Where the container has file systems of its own, so that nothing reaches its layer."""


class Lender:
    """Makes the mounts of steps ready."""

    def __init__(self, layers: LayerStore, folders: CacheFolders, work: Path, mark: str) -> None:
        """``mark`` tells engines of one machine apart."""
        self._layers = layers
        self._folders = folders
        self._work = work
        self._prefix = f"{_PREFIX}{mark}-"

    def sweep(self) -> None:
        """At start-up: remove what a killed engine has left in memory."""
        if _MEMORY.is_dir():
            for left in _MEMORY.glob(f"{self._prefix}*"):
                shutil.rmtree(left)

    def lend(
        self,
        mounts: Iterable[StepMount],
        stack: ExitStack,
        given_up: Callable[[], bool],
    ) -> list[MountPoint]:
        """The mounts as a container's; everything behind them lives as long as ``stack``."""
        points: list[MountPoint] = []
        memory: Path | None = None
        for number, mount in enumerate(mounts):
            if mount.kind == "tmpfs":
                options = ["exec", "mode=1777", *([f"size={mount.size}"] if mount.size else [])]
                points.append(
                    MountPoint(
                        "tmpfs",
                        mount.target,
                        writable=not mount.readonly,
                        tmpfs_options=options,
                    )
                )
                continue
            if mount.kind == "tree":
                points.append(self._tree(mount, stack))
                continue
            if mount.kind == "layer":
                source = self._layer(mount, stack)
            elif mount.kind == "cache":
                source = stack.enter_context(
                    self._folders.used(
                        mount.id,
                        mount.sharing,
                        given_up,
                        lambda new, m=mount: self._fill(m, new),  # type: ignore[misc]
                    )
                )
            else:
                if memory is None:
                    memory = self._in_memory(stack)
                source = memory / str(number)
                if mount.kind == "socket":
                    stack.enter_context(
                        agents.forwarded(
                            mount.socket,
                            source,
                            mode=mount.mode or 0o600,
                            uid=mount.uid,
                            gid=mount.gid,
                        )
                    )
                else:
                    _write(source, mount)
            points.append(
                MountPoint(
                    "bind",
                    mount.target,
                    str(source),
                    writable=not mount.readonly,
                    recursive=False,
                )
            )
        return points

    def _in_memory(self, stack: ExitStack) -> Path:
        place = _MEMORY if _MEMORY.is_dir() else self._work
        folder = Path(tempfile.mkdtemp(prefix=self._prefix, dir=place))
        stack.callback(shutil.rmtree, folder)
        return folder

    def _tree(self, mount: StepMount, stack: ExitStack) -> MountPoint:
        assert mount.chain is not None
        point = MountPoint(
            "image",
            mount.target,
            "the build",
            writable=not mount.readonly,
            chain=mount.chain,
            subpath=os.fsdecode(mount.path),
        )
        if not mount.readonly:
            point.snapshot = f"m{secrets.token_hex(20)}"
            self._layers.prepare(point.snapshot, mount.chain)
            stack.callback(self._layers.remove_snapshot, point.snapshot)
        return point

    def _layer(self, mount: StepMount, stack: ExitStack) -> Path:
        assert mount.chain is not None
        layer = self._layers.get(mount.chain)
        own = stack.enter_context(self._layers.own_directory(layer.snapshot))
        if not mount.readonly:
            copied = Path(tempfile.mkdtemp(prefix="lent", dir=self._work))
            stack.callback(shutil.rmtree, copied)
            tree.copy(own, copied)
            own = copied
        return own / os.fsdecode(mount.path)

    def _fill(self, mount: StepMount, folder: Path) -> None:
        if mount.chain is not None:
            layer = self._layers.get(mount.chain)
            with self._layers.own_directory(layer.snapshot) as own:
                tree.copy(own, folder)
        os.chown(folder, mount.uid, mount.gid)
        os.chmod(folder, 0o755 if mount.mode is None else mount.mode)


def _write(path: Path, mount: StepMount) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(mount.content)
        os.fchown(fd, mount.uid, mount.gid)
        os.fchmod(fd, 0o400 if mount.mode is None else mount.mode)


class Places:
    """What the image lacks of the places that mounts need."""

    def __init__(self, mounts: Iterable[StepMount], lower: LowerTree) -> None:
        self._lower = lower
        self._missing: list[bytes] = []
        for mount in mounts:
            if mount.target.startswith(_FILESYSTEMS):
                continue
            path = resolve(lower, os.fsencode(mount.target))
            while path and lower.entry(path) is None:
                if path not in self._missing:
                    self._missing.append(path)
                path = parent(path)

    def take_out(self, directory: Path, *, layered: bool) -> None:
        """Take them out of the own directory of a snapshot, unless the command has used them."""
        for path in sorted(self._missing, key=lambda each: -each.count(b"/")):
            here = os.path.join(os.fsencode(directory), path)
            try:
                status = os.lstat(here)
                if stat.S_ISDIR(status.st_mode):
                    os.rmdir(here)
                elif stat.S_ISREG(status.st_mode) and not status.st_size:
                    os.unlink(here)
            except (FileNotFoundError, OSError):
                continue  # it has something in it: the command's own
            self._restore(directory, parent(path), layered)

    def _restore(self, directory: Path, path: bytes, layered: bool) -> None:
        """Make a directory that something was made in look as it did, if that is all."""
        below = self._lower.entry(path)
        if below is None or below.kind is not Kind.DIRECTORY:
            return
        here = os.path.join(os.fsencode(directory), path) if path else os.fsencode(directory)
        names = set(os.listdir(here))
        if layered and path and not names:
            # The stack below shows through again.
            os.rmdir(here)
            self._restore(directory, parent(path), layered)
            return
        unchanged = {entry.path.rpartition(b"/")[2] for entry in self._lower.children(path)}
        if names == (set() if layered else unchanged):
            os.utime(here, ns=(below.mtime_ns, below.mtime_ns))


def clamp(directory: Path, latest: int, base: Path | None) -> None:
    """Make nothing in a snapshot's own directory newer than ``latest`` (nanoseconds).

    ``base`` is the tree that it is a copy of, if it is one: what is as it was there stays so.
    """
    root = os.fsencode(directory)
    below = os.fsencode(base) if base is not None else None
    pending = [b""]
    while pending:
        path = pending.pop()
        with os.scandir(os.path.join(root, path)) as entries:
            for entry in entries:
                inside = os.path.join(path, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(inside)
                _clamp_one(entry.path, inside, latest, below)
    _clamp_one(root, b"", latest, below)


def _clamp_one(here: bytes, path: bytes, latest: int, below: bytes | None) -> None:
    found = os.lstat(here).st_mtime_ns
    if found <= latest:
        return
    if below is not None:
        try:
            if os.lstat(os.path.join(below, path)).st_mtime_ns == found:
                return
        except (FileNotFoundError, NotADirectoryError):
            pass  # it is new
    os.utime(here, ns=(latest, latest), follow_symlinks=False)
