"""``commit``: a container's own layer becomes a layer of a new image.

Of a container that doesn't run, the layer is moved, not copied: the container gets a new, empty
one on top, and remembers (``frozen``) that what lies between its image and that is its own.
Of a running one the layer is copied while its processes are frozen.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from tiffin.engine import timestamps
from tiffin.engine.container import Container
from tiffin.engine.events import Events
from tiffin.engine.images import Images, name_of
from tiffin.engine.lifecycle import Lifecycle
from tiffin.engine.roster import Roster
from tiffin.errors import Conflict
from tiffin.image.config import HistoryEntry, ImageConfig
from tiffin.layer.space import room_set_aside, space_needed
from tiffin.layer.store import Layer, LayerStore
from tiffin.store.database import Database

JSON = dict[str, Any]

# Members of a container's configuration that an image's has too.
_IMAGE_MEMBERS = (
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels",
    "StopSignal", "Shell", "Healthcheck", "OnBuild",
)  # fmt: skip


class Commits:
    """Makes images out of containers."""

    def __init__(
        self,
        database: Database,
        roster: Roster,
        images: Images,
        layers: LayerStore,
        lifecycle: Lifecycle,
        events: Events,
    ) -> None:
        self._database = database
        self._roster = roster
        self._images = images
        self._layers = layers
        self._lifecycle = lifecycle
        self._events = events

    def commit(
        self,
        reference: str,
        repository: str = "",
        tag: str = "",
        *,
        comment: str = "",
        author: str = "",
        pause: bool = True,
        changes: Sequence[str] = (),
        config: JSON | None = None,
    ) -> JSON:
        """Make an image of a container: ``{"Id"}``. Raises NotFound, InvalidParameter."""
        container = self._roster.get(reference)
        name = name_of(repository, tag) if repository else None
        with self._layers.lease():
            base = self._images.by_id(container.image)
            document = base.config if base else self._rebuilt(container)
            if config:
                document = document.with_config(_image_part(config))
            else:
                document = document.with_config(_image_part(container.spec.config))
            if changes:
                # The Dockerfile's language is loaded by those who use it.
                from tiffin.build.changes import apply_changes

                document = apply_changes(document, changes)
            layers = self._layer(container, pause)
            now = timestamps.rfc3339(time.time_ns())
            if author:
                document = document.with_author(author)
            document = document.with_created(now)
            command = " ".join(container.arguments)
            for layer in layers:
                document = document.with_layer(
                    layer.diff_id,
                    HistoryEntry(created=now, created_by=command, author=author, comment=comment),
                )
            image = self._images.add(
                document, layers[-1].chain_id if layers else container.base, [name] if name else []
            )
        attributes = {**container.attributes(), "imageID": image.id, "comment": comment}
        if name:
            attributes["imageRef"] = name.familiar
        self._events.publish("container", "commit", container.id, **attributes)
        return {"Id": image.id}

    def _rebuilt(self, container: Container) -> ImageConfig:
        """The configuration of an image that is gone: its layers alone are known."""
        document = ImageConfig.scratch()
        for layer in self._layers.chain(container.base) if container.base else ():
            document = document.with_layer(layer.diff_id, HistoryEntry())
        return document

    def _layer(self, container: Container, pause: bool) -> list[Layer]:
        """The container's own files as layers on top of its image's, the lowest first."""
        with container.lock:
            if container.removing or container.removed:
                raise Conflict(f"container {container.id} is being removed: it can't be committed")
            running, top = container.running, container.top
            layer = None if running else self._move(container)
        if layer is None:
            # Not under the lock: ends, this container's too, must be noticed meanwhile.
            with self._lifecycle.frozen(container) if pause else nullcontext():
                layer = self._layers.commit_copy(container.snapshot, top)
        stack = self._layers.chain(layer.chain_id)
        return stack[len(self._layers.chain(container.base)) if container.base else 0 :]

    def _move(self, container: Container) -> Layer:
        # Once its files are moved, the container must get a layer again.
        root = self._layers.root
        with space_needed(root, "the container's new layer"), room_set_aside(root / "work"):
            layer = self._layers.commit(container.snapshot, container.top)
        container.frozen, container.size = layer.chain_id, None
        self._layers.prepare(
            container.snapshot, layer.chain_id, mountpoints=True, purpose="container"
        )
        return layer


def _image_part(config: JSON) -> JSON:
    return {key: config[key] for key in _IMAGE_MEMBERS if config.get(key)}
