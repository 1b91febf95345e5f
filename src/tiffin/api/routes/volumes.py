"""Volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiffin.api import query, shapes
from tiffin.api.exchange import Request, Response
from tiffin.api.routes.absent import NO_MANAGER
from tiffin.api.routing import Router
from tiffin.errors import Unreachable, Unsupported

if TYPE_CHECKING:
    from tiffin.engine import Engine


class VolumeRoutes:
    """``/volumes``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def register(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/volumes", self.list)
        router.add("POST", "/volumes/create", self.create)
        router.add("POST", "/volumes/prune", self.prune)
        router.add("GET", "/volumes/{name:.*}", self.inspect)
        router.add("DELETE", "/volumes/{name:.*}", self.remove)
        router.add("PUT", "/volumes/{name:.*}", self.update)

    def list(self, request: Request, response: Response) -> None:
        rows = self._engine.volumes.list(query.filters(request))
        response.json({"Volumes": rows, "Warnings": None})

    def create(self, request: Request, response: Response) -> None:
        body = request.json_object(shapes.VOLUME)
        if body.get("ClusterVolumeSpec") is not None:
            raise Unreachable(NO_MANAGER)
        made = self._engine.volumes.create(
            body.get("Name") or "",
            driver=body.get("Driver") or "local",
            options=body.get("DriverOpts") or None,
            labels=body.get("Labels") or None,
        )
        response.json(made, 201)

    def inspect(self, request: Request, response: Response) -> None:
        response.json(self._engine.volumes.inspect(request.names["name"]))

    def remove(self, request: Request, response: Response) -> None:
        force = query.boolean(request, "force")
        self._engine.volumes.remove(request.names["name"], force=force)
        response.empty()

    def prune(self, request: Request, response: Response) -> None:
        filters = query.filters(request)
        if request.version < (1, 42):
            # Before 1.42 a prune took named volumes too, without being told.
            filters.setdefault("all", ["true"])
        response.json(self._engine.volumes.prune(filters))

    def update(self, request: Request, response: Response) -> None:
        raise Unsupported("only cluster volumes can be updated, and there is no cluster here")
