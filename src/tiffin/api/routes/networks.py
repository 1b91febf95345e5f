"""Networks: the two that there always are, ``none`` and ``host``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiffin.api import query, shapes
from tiffin.api.exchange import Request, Response
from tiffin.api.routing import Router
from tiffin.errors import Forbidden, Unsupported

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
        router.add("POST", "/networks/{name:.*}/disconnect", self.connect)
        router.add("GET", "/networks/{name:.*}", self.inspect)
        router.add("DELETE", "/networks/{name:.*}", self.remove)

    def list(self, request: Request, response: Response) -> None:
        response.json(self._engine.system.networks(query.filters(request)))

    def inspect(self, request: Request, response: Response) -> None:
        response.json(self._engine.system.network(request.names["name"]))

    def remove(self, request: Request, response: Response) -> None:
        network = self._engine.system.network(request.names["name"])
        raise Forbidden(f"{network['Name']} is a pre-defined network and cannot be removed")

    def create(self, request: Request, response: Response) -> None:
        request.json_object(shapes.NETWORK)
        raise Unsupported("networks cannot be created yet: use --network none or --network host")

    def connect(self, request: Request, response: Response) -> None:
        self._engine.system.network(request.names["name"])
        raise Unsupported("a container cannot change its network yet: choose it at create")

    def prune(self, request: Request, response: Response) -> None:
        # Built-in networks are never pruned, and there are no others.
        query.filters(request)
        response.json({"NetworksDeleted": []})
