"""Containers: everything that is one request and one JSON answer; ``streams`` has the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiffin.api import query, shapes, versions
from tiffin.api.exchange import Request, Response
from tiffin.api.routes.streams import Crossing
from tiffin.api.routing import Router

if TYPE_CHECKING:
    from tiffin.engine import Engine


class ContainerRoutes:
    """``/containers`` and ``/commit``."""

    def __init__(self, engine: Engine, attaching: Crossing) -> None:
        self._engine = engine
        self._attaching = attaching

    def register(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/containers/json", self.list)
        router.add("POST", "/containers/create", self.create)
        router.add("POST", "/containers/prune", self.prune)
        router.add("GET", "/containers/{name:.*}/json", self.inspect)
        router.add("GET", "/containers/{name:.*}/top", self.top)
        router.add("GET", "/containers/{name:.*}/changes", self.changes)
        router.add("POST", "/containers/{name:.*}/start", self.start)
        router.add("POST", "/containers/{name:.*}/stop", self.stop)
        router.add("POST", "/containers/{name:.*}/restart", self.restart)
        router.add("POST", "/containers/{name:.*}/kill", self.kill)
        router.add("POST", "/containers/{name:.*}/pause", self.pause)
        router.add("POST", "/containers/{name:.*}/unpause", self.unpause)
        router.add("POST", "/containers/{name:.*}/rename", self.rename)
        router.add("POST", "/containers/{name:.*}/update", self.update)
        router.add("POST", "/containers/{name:.*}/resize", self.resize)
        router.add("DELETE", "/containers/{name:.*}", self.remove)
        router.add("POST", "/commit", self.commit)

    def list(self, request: Request, response: Response) -> None:
        rows = self._engine.containers.list(
            all=query.boolean(request, "all"),
            limit=query.integer(request, "limit", 0) or 0,
            size=query.boolean(request, "size"),
            filters=query.filters(request),
        )
        response.json(rows)

    def create(self, request: Request, response: Response) -> None:
        body = request.json_object(shapes.CONTAINER)
        versions.container_wanted(body, request.version)
        made = self._engine.containers.create(
            body,
            query.text(request, "name") or None,
            platform=query.text(request, "platform") if request.version >= (1, 41) else "",
            readonly_recursive=versions.readonly_is_recursive(request.version),
        )
        response.json(made, 201)

    def prune(self, request: Request, response: Response) -> None:
        response.json(self._engine.containers.prune(query.filters(request)))

    def inspect(self, request: Request, response: Response) -> None:
        size = query.boolean(request, "size")
        view = self._engine.containers.inspect(request.names["name"], size=size)
        versions.container_shown(view, request.version)
        response.json(view)

    def top(self, request: Request, response: Response) -> None:
        arguments = query.text(request, "ps_args", "-ef")
        response.json(self._engine.containers.top(request.names["name"], arguments))

    def changes(self, request: Request, response: Response) -> None:
        # Docker answers null where nothing changed, and its clients take both.
        response.json(self._engine.containers.changes(request.names["name"]) or None)

    def start(self, request: Request, response: Response) -> None:
        keys = query.text(request, "detachKeys") or None
        self._attaching.wait()
        self._engine.containers.start(request.names["name"], detach_keys=keys)
        response.empty()

    def stop(self, request: Request, response: Response) -> None:
        self._engine.containers.stop(
            request.names["name"],
            timeout=query.integer(request, "t"),
            signal=query.text(request, "signal") or None,
        )
        response.empty()

    def restart(self, request: Request, response: Response) -> None:
        self._attaching.wait()
        self._engine.containers.restart(
            request.names["name"],
            timeout=query.integer(request, "t"),
            signal=query.text(request, "signal") or None,
        )
        response.empty()

    def kill(self, request: Request, response: Response) -> None:
        signal = query.text(request, "signal") or "SIGKILL"
        self._engine.containers.kill(request.names["name"], signal)
        response.empty()

    def pause(self, request: Request, response: Response) -> None:
        self._engine.containers.pause(request.names["name"])
        response.empty()

    def unpause(self, request: Request, response: Response) -> None:
        self._engine.containers.unpause(request.names["name"])
        response.empty()

    def rename(self, request: Request, response: Response) -> None:
        self._engine.containers.rename(request.names["name"], query.text(request, "name"))
        response.empty()

    def update(self, request: Request, response: Response) -> None:
        body = request.json_object(shapes.RESOURCES)
        response.json(self._engine.containers.update(request.names["name"], body))

    def resize(self, request: Request, response: Response) -> None:
        height, width = query.size(request)
        self._engine.containers.resize(request.names["name"], height, width)
        response.empty(200)

    def remove(self, request: Request, response: Response) -> None:
        self._engine.containers.remove(
            request.names["name"],
            force=query.boolean(request, "force"),
            volumes=query.boolean(request, "v"),
            link=query.boolean(request, "link"),
        )
        response.empty()

    def commit(self, request: Request, response: Response) -> None:
        config = shapes.checked(request.json(), shapes.CONFIG)
        made = self._engine.containers.commit(
            query.text(request, "container"),
            query.text(request, "repo"),
            query.text(request, "tag"),
            comment=query.text(request, "comment"),
            author=query.text(request, "author"),
            pause=query.boolean(request, "pause", True),
            changes=query.texts(request, "changes"),
            config=config,
        )
        response.json(made, 201)
