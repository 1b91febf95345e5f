"""Files in and out of containers, running or not: what is copied, exported, looked at."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from tiffin.engine import files
from tiffin.engine.container import Container
from tiffin.engine.events import Events
from tiffin.engine.root import Root
from tiffin.engine.roster import Roster
from tiffin.engine.trees import Trees, read_file
from tiffin.errors import InvalidParameter, NotFound
from tiffin.layer.compression import decompressed
from tiffin.layer.space import space_needed
from tiffin.linux import accounts

JSON = dict[str, Any]


class Transfers:
    """Moves files between containers and tars."""

    def __init__(self, root: Root, roster: Roster, trees: Trees, events: Events) -> None:
        self._root = root
        self._roster = roster
        self._trees = trees
        self._events = events

    def archive_stat(self, reference: str, path: str) -> JSON:
        """What a path in a container is."""
        with self._tree(reference, path) as (_, root):
            return files.path_stat(root, path)

    def archive_get(self, reference: str, path: str, output: BinaryIO) -> None:
        """A path of a container, with all inside, as a tar."""
        with self._tree(reference, path) as (container, root):
            files.get(root, path, output)
        self._events.publish("container", "archive-path", container.id, **container.attributes())

    def archive_put(
        self,
        reference: str,
        path: str,
        tar: BinaryIO,
        no_overwrite: bool = False,
        copy_uid_gid: bool = False,
    ) -> None:
        """Unpack a tar into a folder of a container."""
        written = space_needed(self._root.path, f"all that goes to {path}", "a part of it is there")
        with written, self._tree(reference, path) as (container, root):
            if container.spec.host.get("ReadonlyRootfs") and not _on_a_mount(container, path):
                raise InvalidParameter("container rootfs is marked read-only")
            with container.lock:
                container.size = None

            def owner() -> tuple[int, int]:
                account = accounts.resolve(
                    container.spec.config.get("User") or "",
                    read_file(root, b"/etc/passwd"),
                    read_file(root, b"/etc/group"),
                )
                return account.uid, account.gid

            files.put(
                root,
                path,
                decompressed(tar),
                no_overwrite=no_overwrite,
                owner=owner if copy_uid_gid and container.spec.config.get("User") else None,
            )
        self._events.publish("container", "extract-to-dir", container.id, **container.attributes())

    @contextmanager
    def _tree(self, reference: str, path: str) -> Iterator[tuple[Container, int]]:
        container = self._roster.get(reference)
        try:
            with self._trees.container(container) as root:
                yield container, root
        except NotFound as error:
            raise NotFound(f"Could not find the file {path} in container {reference}") from error

    def export(self, reference: str, output: BinaryIO) -> None:
        """The container's whole tree, volumes aside, as a tar."""
        container = self._roster.get(reference)
        with self._trees.container(container, volumes=False) as root:
            files.export(root, output)
        self._events.publish("container", "export", container.id, **container.attributes())


def _on_a_mount(container: Container, path: str) -> bool:
    """Whether a path lies on a writable mount of the container."""
    place = posixpath.normpath("/" + path)
    return any(
        point.writable and (place + "/").startswith(point.target + "/")
        for point in container.spec.mounts
    )
