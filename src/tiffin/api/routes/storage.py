"""Storage drivers: tiffin's own, beside Docker's API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiffin.api import query
from tiffin.api.exchange import Request, Response
from tiffin.api.progress import reported
from tiffin.api.routing import Router
from tiffin.errors import TiffinError

if TYPE_CHECKING:
    from tiffin.engine import Engine


class StorageRoutes:
    """``/storage/migrate``, ``/storage/check``, ``/storage/benchmark``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def register(self, router: Router) -> None:
        """Add the routes."""
        router.add("POST", "/storage/migrate", self.migrate)
        router.add("POST", "/storage/check", self.check)
        router.add("POST", "/storage/benchmark", self.benchmark)

    def migrate(self, request: Request, response: Response) -> None:
        to = query.text(request, "to")
        options = [text for text in query.text(request, "options").split(",") if text]
        with reported(response) as say:
            self._engine.storage.migrate(to, options, say)

    def check(self, request: Request, response: Response) -> None:
        repair = query.boolean(request, "repair")
        credentials = None
        if header := request.headers.get("x-registry-config"):
            from tiffin.engine.registries import credentials_by_host

            credentials = credentials_by_host(header)
        with reported(response) as say:
            found = self._engine.storage.check(repair=repair, credentials=credentials, say=say)
            if left := found["Problems"] - found["Repaired"]:
                raise TiffinError(f"{left} files of layers are not as they should be")

    def benchmark(self, request: Request, response: Response) -> None:
        short = query.boolean(request, "short")
        with reported(response) as say:
            self._engine.storage.benchmark(short=short, say=say)
