"""The files of a container, opened as one tree, whether it runs or not."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tiffin.engine.container import Container
from tiffin.engine.hasty import HastyMounts
from tiffin.engine.mountpoints import MountPoint
from tiffin.engine.root import Root
from tiffin.errors import InvalidParameter, NotFound, TiffinError
from tiffin.layer.store import LayerStore
from tiffin.linux import syscalls
from tiffin.linux.mounttree import detached_tree, root_of
from tiffin.storage.driver import Mount
from tiffin.storage.mounting import mount_all

_END_SECONDS = 5.0
"""How long to wait for the keeper's word of a container whose process is gone."""


class Trees:
    """Opens the merged trees of containers and images."""

    def __init__(self, root: Root, layers: LayerStore) -> None:
        self._place = root.path / "mount"
        self._place.mkdir(exist_ok=True, mode=0o700)
        self._hasty = HastyMounts(root.path / "hasty")
        self._layers = layers

    def _mounted(self, mounts: Sequence[Mount], after: Callable[[str], None] | None = None) -> int:
        """The mounts as a descriptor of their tree."""
        place = str(self._place)

        def mount() -> None:
            mount_all(mounts, place)
            if after is not None:
                after(place)

        return detached_tree(place, mount)

    @contextmanager
    def image(self, chain_id: str) -> Iterator[int]:
        """A descriptor of the root of a stack of layers, read-only."""
        fd = self._mounted(self._layers.view(chain_id))
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def container(self, container: Container, *, volumes: bool = True) -> Iterator[int]:
        """A descriptor of the container's root, writable.

        Of a running container it is what its own processes see; with ``volumes`` false, and of a
        stopped one, the layers alone or with the volumes and binds mounted in their places.
        """
        fd = None
        while fd is None:
            if container.running:
                fd = _living(container, volumes)
                continue
            # Nobody starts it while its layers are being mounted here.
            with container.lock:
                if not container.running:
                    fd = self._resting(container, volumes)
        try:
            yield fd
        finally:
            os.close(fd)

    def _resting(self, container: Container, volumes: bool) -> int:
        mounts = self._layers.mounts(container.snapshot)
        after = (lambda place: _mount_volumes(container, place)) if volumes else None
        return self._hasty.mounted(mounts, lambda given: self._mounted(given, after))


def _living(container: Container, volumes: bool) -> int | None:
    """The root of a running container; None if it has ended meanwhile."""
    pid = container.state.pid
    try:
        if volumes:
            return os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return root_of(pid)
    except (FileNotFoundError, ProcessLookupError) as error:
        # Its process is gone; the keeper's word of it is on the way. Until then nobody may mount
        # the same layers a second time.
        with container.changed:
            if container.changed.wait_for(lambda: not container.running, _END_SECONDS):
                return None
        raise TiffinError(
            f"container {container.id} ended while its files were opened: try again"
        ) from error


def _mount_volumes(container: Container, place: str) -> None:
    root = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for point in container.spec.mounts:
            if point.kind in ("tmpfs", "image") or not os.path.exists(point.source):
                continue
            target = _mount_point(root, point.target, os.path.isdir(point.source))
            try:
                with _source(point) as source:
                    place_of_target = f"/proc/self/fd/{target}"
                    flags = syscalls.MS_BIND | syscalls.MS_REC
                    syscalls.mount(source, place_of_target, None, flags)
            finally:
                os.close(target)
    finally:
        os.close(root)


@contextmanager
def _source(point: MountPoint) -> Iterator[str]:
    """The host's path of what a mount point mounts; out of a volume no symlink leads."""
    if not point.subpath:
        yield point.source
        return
    directory = os.open(point.source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS
        found = syscalls.openat2(directory, point.subpath, os.O_PATH, 0, resolve)
    finally:
        os.close(directory)
    try:
        yield f"/proc/self/fd/{found}"
    finally:
        os.close(found)


def _mount_point(root: int, path: str, directory: bool) -> int:
    """Open where something is mounted; it is made where it is missing, as a start would."""
    try:
        return open_in(root, os.fsencode(path), os.O_PATH)
    except NotFound:
        pass
    above, name = posixpath.split(path)
    parent = _mount_point(root, above, True)
    try:
        if directory:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=parent))
    except FileExistsError:
        # A dangling symlink, which a start refuses too.
        raise InvalidParameter(
            f"{path} is a symlink that leads nowhere: nothing can be mounted"
        ) from None
    finally:
        os.close(parent)
    return open_in(root, os.fsencode(path), os.O_PATH)


def open_in(root: int, path: bytes, flags: int, mode: int = 0) -> int:
    """Open ``path`` as a process in the tree would, following symlinks inside it only.

    Raises NotFound, InvalidParameter (a file where a directory must be, a loop of symlinks).
    """
    try:
        return syscalls.openat2(root, path, flags, mode, syscalls.RESOLVE_IN_ROOT)
    except OSError as error:
        text = os.fsdecode(path)
        if error.errno == errno.ENOENT:
            raise NotFound(f"Could not find the file {text} in the container") from error
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise InvalidParameter(f"{text}: {os.strerror(error.errno)}") from error
        raise


def read_file(root: int, path: bytes, limit: int = 1 << 20) -> bytes:
    """The beginning of a regular file of the tree; empty where there is none."""
    try:
        fd = open_in(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except (NotFound, InvalidParameter):
        return b""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        return os.read(fd, limit)
    finally:
        os.close(fd)
