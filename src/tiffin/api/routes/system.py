"""The engine as a whole: ping, version, info, disk usage, events, shutdown."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tiffin.api import documents, query, versions
from tiffin.api.exchange import Request, Response
from tiffin.api.routing import Router
from tiffin.errors import InvalidParameter, NotFound, NotModified

if TYPE_CHECKING:
    from tiffin.engine import Engine

_PING_HEADERS = (
    # 1: the classic builder, so that a client without buildx uses it.
    ("Builder-Version", "1"),
    ("Swarm", "inactive"),
    ("Cache-Control", "no-cache, no-store, must-revalidate"),
    ("Pragma", "no-cache"),
)
_USAGE = {
    "container": ("Containers",),
    "image": ("LayersSize", "Images"),
    "volume": ("Volumes",),
    "build-cache": ("BuildCache", "BuilderSize"),
}


class SystemRoutes:
    """``/_ping``, ``/version``, ``/info``, ``/system/df``, ``/events``, ``/tiffin``."""

    def __init__(self, engine: Engine, shutdown: Callable[[bool], None]) -> None:
        self._engine = engine
        self._shutdown = shutdown

    def register(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/_ping", self.ping)
        router.add("HEAD", "/_ping", self.ping)
        router.add("GET", "/version", self.version)
        router.add("GET", "/info", self.info)
        router.add("GET", "/system/df", self.usage)
        router.add("GET", "/events", self.events)
        router.add("POST", "/tiffin/shutdown", self.shutdown)

    def ping(self, request: Request, response: Response) -> None:
        response.whole(b"OK", "text/plain; charset=utf-8", headers=_PING_HEADERS)

    def version(self, request: Request, response: Response) -> None:
        response.json(self._engine.system.version())

    def info(self, request: Request, response: Response) -> None:
        view = self._engine.system.info()
        versions.engine_shown(view, request.version)
        response.json(view)

    def usage(self, request: Request, response: Response) -> None:
        kinds = query.texts(request, "type")
        for kind in kinds:
            if kind not in _USAGE:
                raise InvalidParameter(f"unknown object type: {kind}")
        usage = self._engine.system.df()
        if kinds:
            wanted = {member for kind in kinds for member in _USAGE[kind]}
            usage = {member: value for member, value in usage.items() if member in wanted}
        versions.usage_shown(usage, request.version)
        response.json(usage)

    def events(self, request: Request, response: Response) -> None:
        from tiffin.engine import timestamps

        since, until = query.text(request, "since"), query.text(request, "until")
        start = timestamps.parse(since) if since else None
        end = timestamps.parse(until) if until else None
        wanted = EventFilter(query.filters(request))
        writer = response.stream("application/json")
        writer.flush()
        with self._engine.events.subscribe(start) as events:
            while not request.cancelled():
                left = 2.0 if end is None else min(2.0, (end - time.time_ns()) / 1e9)
                try:
                    # What was published before `until` is delivered even when that has passed.
                    event = events.get(timeout=left) if left > 0 else events.get_nowait()
                except queue.Empty:
                    if left <= 0:
                        return
                    continue
                if event is None:
                    # Far behind: it is cut off, so that the client sees that something is missing.
                    response.abandon()
                    return
                if end is not None and event["timeNano"] > end:
                    return
                if wanted.matches(event):
                    writer.write(documents.encode(event) + b"\n")
                    if events.empty():
                        writer.flush()

    def shutdown(self, request: Request, response: Response) -> None:
        # tiffin's own side door, for `tiffin system shutdown`: the daemon starts on demand, so
        # that there is no service manager to ask. `keeper=0` leaves the keeper (and with it all
        # running containers) alone; otherwise running containers are a conflict, unless `force`
        # says to stop them (`t` seconds each).
        keeper = query.boolean(request, "keeper", True)
        if keeper and query.boolean(request, "force"):
            self._stop_all(query.integer(request, "t"))
        self._shutdown(keeper)
        response.empty()

    def _stop_all(self, seconds: int | None) -> None:
        from concurrent.futures import ThreadPoolExecutor

        def stop(row: dict[str, Any]) -> None:
            try:
                self._engine.containers.stop(row["Id"], timeout=seconds)
            except (NotModified, NotFound):
                # It ended, or was removed, by itself.
                pass

        with ThreadPoolExecutor(32) as pool:
            list(pool.map(stop, self._engine.containers.list()))


class EventFilter:
    """The ``filters`` of events: values of one key are alternatives, all keys must hold."""

    _ACTORS = ("container", "image", "volume", "network", "daemon", "plugin", "service", "node")
    _KEYS = frozenset((*_ACTORS, "event", "label", "type", "scope", "secret", "config"))

    def __init__(self, filters: query.Filters) -> None:
        for key in filters:
            if key not in self._KEYS:
                raise InvalidParameter(f"invalid filter '{key}'")
        self._filters = filters

    def matches(self, event: dict[str, Any]) -> bool:
        """Whether the event is wanted."""
        return all(
            any(self._holds(key, value, event) for value in values)
            for key, values in self._filters.items()
            if values
        )

    def _holds(self, key: str, value: str, event: dict[str, Any]) -> bool:
        actor = event["Actor"]
        attributes = actor.get("Attributes") or {}
        if key == "event":
            # The command of an exec is part of the action: "exec_start: ls -l".
            return bool(event["Action"] == value or event["Action"].startswith(f"{value}:"))
        if key == "type":
            return bool(event["Type"] == value)
        if key == "scope":
            return bool(event.get("scope") == value)
        if key == "label":
            name, equals, wanted = value.partition("=")
            return name in attributes and (not equals or attributes[name] == wanted)
        if key == "image" and event["Type"] == "container":
            names = {attributes.get("image", "")}
        elif event["Type"] == key:
            names = {attributes.get("name", ""), actor["ID"]}
            if actor["ID"].startswith(value):
                return True
        else:
            return False
        return any(value in (name, name.rpartition(":")[0]) for name in names if name)
