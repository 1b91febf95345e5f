"""Making containers.

Creation prepares everything that a start needs, in an order that survives kill -9: the layer's
snapshot and the folder first, the row last; what has no row is removed at the next start-up.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from tiffin.engine import configuration, limits, mountpoints, security
from tiffin.engine.container import Container, Spec, State
from tiffin.engine.events import Events
from tiffin.engine.images import Images
from tiffin.engine.lifecycle import Lifecycle
from tiffin.engine.mountpoints import ANONYMOUS, MountPoint
from tiffin.engine.names import check_name, numbered_name, random_name
from tiffin.engine.root import Root
from tiffin.engine.roster import Roster
from tiffin.engine.signals import parse_signal
from tiffin.engine.trees import Trees, open_in
from tiffin.engine.volumes import Volumes
from tiffin.errors import InvalidParameter, NotFound
from tiffin.layer.space import space_needed
from tiffin.layer.store import LayerStore
from tiffin.storage import tree

JSON = dict[str, Any]
Names = list[str]

_POINT_FIELDS = MountPoint.__struct_fields__


class Creation:
    """Makes containers."""

    def __init__(
        self,
        root: Root,
        roster: Roster,
        images: Images,
        layers: LayerStore,
        lifecycle: Lifecycle,
        volumes: Volumes,
        trees: Trees,
        events: Events,
    ) -> None:
        self._root = root
        self._roster = roster
        self._images = images
        self._layers = layers
        self._lifecycle = lifecycle
        self._volumes = volumes
        self._trees = trees
        self._events = events

    def create(
        self,
        body: JSON,
        name: str | None = None,
        *,
        platform: str = "",
        readonly_recursive: bool = True,
    ) -> JSON:
        """Make a container out of the body of ``POST /containers/create``.

        ``platform`` is what the image has to be for, if it was asked for; read-only binds are
        ``readonly_recursive`` unless they say otherwise.
        Gives ``{"Id", "Warnings"}``. Raises NotFound (no such image), Conflict (name taken),
        InvalidParameter, Unsupported.
        """
        config, host, networks = configuration.normalise(body)
        self._check_storage(host)
        warnings = limits.check(host)
        if name:
            name = check_name(name)
        if config.get("StopSignal"):
            parse_signal(config["StopSignal"])
        reference = config.get("Image") or ""
        with self._layers.lease():
            image = self._images.find(reference, platform)
            foreign = self._images.check_platform(image)
            if foreign and not platform:
                warnings = [*warnings, foreign]
            merged = configuration.merge(config, image.config.config)
            inherited = self._inherited(host.get("VolumesFrom") or [])
            points = mountpoints.mount_points(merged, host, inherited)
            if not readonly_recursive:
                mountpoints.leave_inner_writable(points)
            mountpoints.check_sources(points)
            container_id = secrets.token_hex(32)
            if not merged["Hostname"]:
                merged["Hostname"] = (
                    os.uname().nodename if host["NetworkMode"] == "host" else container_id[:12]
                )
            spec = Spec(merged, host, networks, points, reference)
            self._lifecycle.sandboxes.settle(spec)
            container = Container(
                container_id,
                name or random_name(),
                image.id,
                image.top,
                f"c{container_id[:40]}",
                spec,
                State(),
                time.time_ns(),
                size=0,
            )
            # Checked again when the row is written; here so that nothing is made in vain.
            if name and self._roster.name_taken(name):
                self._roster.add(container)
            with space_needed(self._root.path, "the container's files"):
                self._prepare(container, None if name else numbered_name)
        self._events.publish("container", "create", container.id, **container.attributes())
        return {"Id": container.id, "Warnings": [*warnings, *security.warnings(host)]}

    def _check_storage(self, host: JSON) -> None:
        for name in host.get("StorageOpt") or {}:
            if name.lower() != "size":
                raise InvalidParameter(f"Unknown option {name}: --storage-opt takes size")
        limits.storage_size(host)

    def _inherited(self, sources: Sequence[str]) -> list[MountPoint]:
        points = []
        for source in sources:
            reference, mode = mountpoints.parse_source(source)
            try:
                container = self._roster.get(reference)
            except NotFound as error:
                # Not found is the image to clients, which would pull it.
                raise InvalidParameter(error.message) from error
            for point in container.spec.mounts:
                copy = MountPoint(**{field: getattr(point, field) for field in _POINT_FIELDS})
                copy.writable = point.writable and not mode.startswith("ro")
                copy.mode = mode if point.mode == ANONYMOUS else point.mode
                points.append(copy)
        return points

    def _prepare(self, container: Container, another_name: Callable[[], str] | None) -> None:
        folder = self._root.container(container.id)
        made: Names = []
        try:
            self._layers.prepare(
                container.snapshot, container.base, mountpoints=True, purpose="container"
            )
            if size := limits.storage_size(container.spec.host):
                self._layers.limit(container.snapshot, size)
            folder.mkdir(mode=0o710)
            self._lifecycle.sandboxes.files.write(container)
            for point in container.spec.mounts:
                if point.kind == "volume":
                    self._use_volume(container, point, made)
                elif point.kind == "image":
                    image = self._images.find(point.source)
                    self._images.check_platform(image)
                    if image.top is None:
                        raise InvalidParameter(f"image {point.source} has no files to mount")
                    point.chain = image.top
                elif point.kind == "bind" and point.create_source:
                    os.makedirs(point.source, exist_ok=True) if not os.path.lexists(
                        point.source
                    ) else None
            self._roster.add(container, another_name)
        except BaseException:
            self._layers.remove_snapshot(container.snapshot)
            if folder.exists():
                self._lifecycle.removal.discard(container)
            for name in made:
                self._volumes.remove(name, force=True)
            raise

    def _use_volume(self, container: Container, point: MountPoint, made: Names) -> None:
        if not point.name:
            point.mode = ANONYMOUS
        fresh = not point.name or not self._volumes.exists(point.name)
        volume = self._volumes.create(point.name, point.driver, point.options, point.labels)
        point.name, point.source = volume["Name"], volume["Mountpoint"]
        if fresh:
            made.append(point.name)
        if point.copy and not point.subpath:
            with self._volumes.mounted(point.name):
                if not os.listdir(point.source):
                    self._fill_volume(container, point)

    def _fill_volume(self, container: Container, point: MountPoint) -> None:
        """A new volume starts with what the image has at its place, owners and modes included."""
        if container.base is None:
            return
        entry = self._layers.lookup(container.base, os.fsencode(point.target), follow=True)
        if entry is None or entry.kind != "d":
            return
        with self._trees.image(container.base) as root:
            source = open_in(root, os.fsencode(point.target), os.O_RDONLY | os.O_DIRECTORY)
            target = os.open(point.source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                tree.copy_open(source, target)
            finally:
                os.close(source)
                os.close(target)
