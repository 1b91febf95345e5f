"""Networks: create, list, inspect, connect, disconnect, remove."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiffin.api import query, shapes
from tiffin.api.exchange import Request, Response
from tiffin.api.routing import Router
from tiffin.errors import InvalidParameter, NotFound

if TYPE_CHECKING:
    from tiffin.engine import Engine


class NetworkRoutes:
    """``/networks``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def register(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/networks", self.list)
        router.add("GET", "/networks/", self.list)
        router.add("POST", "/networks/create", self.create)
        router.add("POST", "/networks/prune", self.prune)
        router.add("POST", "/networks/{name:.*}/connect", self.connect)
        router.add("POST", "/networks/{name:.*}/disconnect", self.disconnect)
        router.add("GET", "/networks/{name:.*}", self.inspect)
        router.add("DELETE", "/networks/{name:.*}", self.remove)

    def list(self, request: Request, response: Response) -> None:
        # From 1.28 on the list is without the containers, which one inspect has.
        members = request.version < (1, 28)
        response.json(self._engine.networks.list(query.filters(request), members=members))

    def inspect(self, request: Request, response: Response) -> None:
        # It adds the services of a swarm, of which there are none.
        verbose = query.text(request, "verbose")
        if verbose.lower() not in ("", "0", "1", "f", "t", "false", "true"):
            raise InvalidParameter(f"invalid value for verbose: {verbose}")
        if query.text(request, "scope") not in ("", "local"):
            raise NotFound(f"network {request.names['name']} not found")
        response.json(self._engine.networks.inspect(request.names["name"]))

    def remove(self, request: Request, response: Response) -> None:
        self._engine.networks.remove(request.names["name"])
        response.empty()

    def create(self, request: Request, response: Response) -> None:
        response.json(self._engine.networks.create(request.json_object(shapes.NETWORK)), 201)

    def connect(self, request: Request, response: Response) -> None:
        body = request.json_object(shapes.CONNECTION)
        self._engine.networks.connect(
            request.names["name"], body.get("Container") or "", body.get("EndpointConfig")
        )
        response.empty(200)

    def disconnect(self, request: Request, response: Response) -> None:
        body = request.json_object(shapes.DISCONNECTION)
        self._engine.networks.disconnect(
            request.names["name"], body.get("Container") or "", bool(body.get("Force"))
        )
        response.empty(200)

    def prune(self, request: Request, response: Response) -> None:
        response.json(self._engine.networks.prune(query.filters(request)))
