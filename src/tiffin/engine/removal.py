"""The removal of a container: its process, its row, its layer, its folder, in this order.

So a removal that a ``kill -9`` interrupts has either not happened, or leaves only what nobody owns,
and what the next start takes away. Two removals of one container don't meet:
``container.removing`` tells the second.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

from tiffin.engine.container import Container
from tiffin.engine.events import Events
from tiffin.engine.mountpoints import ANONYMOUS
from tiffin.engine.restarts import Restarts
from tiffin.engine.root import Root
from tiffin.engine.roster import Roster
from tiffin.engine.volumes import Volumes
from tiffin.errors import Conflict, NotFound
from tiffin.keeper.client import KeeperClient
from tiffin.layer.store import LayerStore
from tiffin.store.database import Database


class Removal:
    """Removes the containers of a root."""

    def __init__(
        self,
        database: Database,
        root: Root,
        roster: Roster,
        layers: LayerStore,
        volumes: Volumes,
        events: Events,
        keeper: KeeperClient,
        restarts: Restarts,
        end: Callable[[Container], None],
    ) -> None:
        """``end`` kills a container, and returns when its end is written down."""
        self._database = database
        self._root = root
        self._roster = roster
        self._layers = layers
        self._volumes = volumes
        self._events = events
        self._keeper = keeper
        self._restarts = restarts
        self._end = end
        self.collect: Callable[[], object] = lambda: None
        """Frees layers that nothing rests on; the images' verb, put here by the engine."""
        self.dropped: Callable[[Container], None] = lambda container: None
        """Told of each container that is gone."""

    def remove(self, container: Container, *, force: bool, volumes: bool) -> None:
        """Remove a container with its layer, its files and, if asked, its anonymous volumes."""
        with container.lock:
            if container.removed:
                raise NotFound(f"No such container: {container.id}")
            if container.removing:
                raise Conflict(f"removal of container {container.id} is already in progress")
            if container.active and not force:
                raise Conflict(
                    f'cannot remove container "{container.name}": container is '
                    f"{container.state.status}: stop the container before removing or force remove"
                )
            container.removing = True
            self._restarts.cancel(container)
            if container.state.status == "restarting":
                container.state.status = "exited"
                container.save_state(self._database)
        try:
            if container.running:
                self._end(container)
            self._keeper.forget(container.id)
            self._roster.drop(container)
            self.discard(container)
            if container.frozen or not self._database.one(
                "SELECT 1 FROM images WHERE id = ?", (container.image,)
            ):
                # It may have been the last to rest on some layers.
                self.collect()
        except BaseException:
            with container.lock:
                container.removing = False
            raise
        with container.changed:
            container.removed = True
            container.changed.notify_all()
        self.dropped(container)
        self._events.publish("container", "destroy", container.id, **container.attributes())
        if volumes:
            for point in container.spec.mounts:
                if point.kind == "volume" and point.mode == ANONYMOUS:
                    try:
                        self._volumes.remove(point.name, force=True)
                    except Conflict:
                        # Another container uses it by --volumes-from: it goes with the last one.
                        continue

    def discard(self, container: Container) -> None:
        """Remove what a container without a row has left on the disk."""
        self._layers.remove_snapshot(container.snapshot)
        # Moved first: an old log may just be being compressed, and must find no folder to write to.
        doomed = self._root.work / f"removed-{container.id}"
        try:
            os.rename(self._root.container(container.id), doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=False, onerror=_gone)


def _gone(function: Any, path: str, info: Any) -> None:
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]
