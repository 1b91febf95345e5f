"""The rows of ``ps``: which containers, in what order, with what sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tiffin.engine import filters as filtering
from tiffin.engine import health, inspection
from tiffin.engine.container import Container
from tiffin.engine.images import Images
from tiffin.engine.lifecycle import Lifecycle
from tiffin.engine.roster import Roster
from tiffin.errors import InvalidParameter, NotFound
from tiffin.layer.store import LayerStore
from tiffin.network.ports import PROTOCOLS, parse_range

Rows = list[dict[str, Any]]

_FILTERS = {
    "ancestor", "before", "exited", "health", "id", "is-task", "label", "name", "network",
    "publish", "expose", "since", "status", "volume", "isolation",
}  # fmt: skip
_STATUSES = {"created", "running", "paused", "restarting", "removing", "exited", "dead"}


class Listing:
    """Lists the containers of a root."""

    def __init__(
        self, roster: Roster, images: Images, layers: LayerStore, lifecycle: Lifecycle
    ) -> None:
        self._roster = roster
        self._images = images
        self._layers = layers
        self._lifecycle = lifecycle

    def sizes(
        self, container: Container, known: dict[str | None, int] | None = None
    ) -> tuple[int, int]:
        """Bytes of its own files, and of these and its image's together; ``known`` are sizes of
        images by their top layers, and grows."""
        known = {} if known is None else known
        base = container.base
        if base not in known:
            known[base] = self._layers.size(base)
        own = self._lifecycle.measure(container)
        return own, own + known[base]

    def rows(
        self,
        all: bool = False,
        limit: int = 0,
        size: bool = False,
        filters: filtering.Filters | None = None,
    ) -> Rows:
        """The rows of ``ps``, the newest first."""
        filters = filters or {}
        filtering.check(filters, _FILTERS)
        for value in filters.get("exited", ()):
            if not value.removeprefix("-").isdigit():
                raise InvalidParameter(
                    f"invalid filter 'exited={value}': strconv.Atoi: parsing \"{value}\": "
                    "invalid syntax"
                )
        wanted = set(filters.get("status", ()))
        if wanted - _STATUSES:
            raise InvalidParameter(f"invalid filter 'status={', '.join(wanted - _STATUSES)}'")
        for value in set(filters.get("health", ())) - set(health.STATUSES):
            raise InvalidParameter(f"Unrecognised filter value for health: {value}")
        tasks = filtering.boolean(filters, "is-task", False)
        isolated = set(filters.get("isolation", ())) - {"", "default"}
        wanted_ports = {
            (key, port) for key in ("publish", "expose") for port in _ports(filters, key)
        }
        everything = all or limit > 0 or bool(wanted) or "exited" in filters
        bounds = {
            key: self._roster.get(filters[key][0]).created
            for key in ("before", "since")
            if filters.get(key)
        }
        ancestors = self._ancestors(filters.get("ancestor", ()))
        rows: Rows = []
        names: dict[str, str | None] = {}
        known: dict[str | None, int] = {}
        sandboxes = self._lifecycle.sandboxes
        links = sandboxes.links.names()
        for container in reversed(self._roster.all()):
            if (
                (everything or container.active)
                # No container is a task of a swarm, or isolated in one of Windows' ways.
                and not (tasks or isolated)
                and (not wanted or inspection.status(container) in wanted)
                and (not wanted_ports or bool(wanted_ports & set(self._ports(container))))
                and ("before" not in bounds or container.created < bounds["before"])
                and ("since" not in bounds or container.created > bounds["since"])
                and (ancestors is None or container.image in ancestors)
                and self._matches(container, filters)
            ):
                sizes = self.sizes(container, known) if size else None
                shown = self._shown(container, names)
                called = links.get(container.id, ())
                rows.append(inspection.summary(container, sizes, shown, sandboxes.views, called))
                if 0 < limit <= len(rows):
                    break
        return rows

    def _shown(self, container: Container, names: dict[str, str | None]) -> str:
        """What ``ps`` calls the container's image: the name that it was created from, unless that
        has gone to another image since, or altogether. ``names`` are those looked up already."""
        name = container.spec.image_name
        if name not in names:
            try:
                names[name] = self._images.find(name).id
            except (NotFound, InvalidParameter):
                names[name] = None
        return name if names[name] == container.image else container.image

    def _ports(self, container: Container) -> Iterator[tuple[str, tuple[int, str]]]:
        for row in self._lifecycle.sandboxes.views.ports_view(container):
            yield "expose", (row["PrivatePort"], row["Type"])
            if "PublicPort" in row:
                yield "publish", (row["PublicPort"], row["Type"])

    def _ancestors(self, names: Any) -> set[str] | None:
        if not names:
            return None
        found: set[str] = set()
        for name in names:
            try:
                found |= self._images.descendants(self._images.find(name))
            except NotFound:
                # Nothing rests on what is not there.
                continue
        return found

    def _matches(self, container: Container, filters: filtering.Filters) -> bool:
        exited = filters.get("exited")
        volumes = filters.get("volume")
        targets = {value for p in container.spec.mounts for value in (p.name, p.source, p.target)}
        ids = filters.get("id")
        names = filters.get("name")
        return (
            filtering.labels(filters, container.labels)
            and (
                not names
                or filtering.pattern(filters, "name", [container.name, f"/{container.name}"])
            )
            and (not ids or any(container.id.startswith(value) for value in ids))
            and (
                not exited
                or (container.state.status == "exited" and str(container.state.exit_code) in exited)
            )
            and (not filters.get("health") or health.status(container) in filters["health"])
            and (not volumes or bool(targets & set(volumes)))
            and (
                not filters.get("network")
                or self._lifecycle.sandboxes.uses(container, filters["network"])
            )
        )


def _ports(filters: filtering.Filters, key: str) -> Iterator[tuple[int, str]]:
    """The ports that a filter names: ``80``, ``80/udp``, ``8000-8010/tcp``."""
    for value in filters.get(key, ()):
        if ":" in value:
            raise InvalidParameter(f"filter for '{key}' should not contain ':': {value}")
        numbers, slash, protocol = value.partition("/")
        protocol = protocol.lower() if slash else "tcp"
        if protocol not in PROTOCOLS:
            raise InvalidParameter(
                f"error while looking up for {key} {value}: invalid protocol: {protocol}"
            )
        first, last = parse_range(numbers)
        if not first:
            raise InvalidParameter(f"error while looking up for {key} {value}: no port is named")
        for number in range(first, last + 1):
            yield number, protocol
