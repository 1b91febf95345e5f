"""Builds by the classic builder."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tiffin.api import query
from tiffin.api.exchange import Request, Response
from tiffin.api.progress import Progress
from tiffin.api.routing import Router
from tiffin.api.source import source
from tiffin.errors import TiffinError

if TYPE_CHECKING:
    from tiffin.engine import Engine


class BuildRoutes:
    """``/build``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def register(self, router: Router) -> None:
        """Add the routes."""
        router.add("POST", "/build", self.build)
        router.add("POST", "/build/prune", self.prune)
        router.add("POST", "/build/cancel", self.cancel)

    def build(self, request: Request, response: Response) -> None:
        # Imported by the first build, not by every daemon's start.
        from tiffin.engine.builds import BuildOptions

        options = BuildOptions.from_query(request.query)
        place = source(request, folders=True)
        progress = Progress(response)
        try:
            with contextlib.ExitStack() as stack:
                context: Path | BinaryIO = place or request.body
                if place is not None and not place.is_dir():
                    context = stack.enter_context(open(place, "rb"))
                self._engine.builds.build(options, context, progress, cancelled=request.cancelled)
        except TiffinError as error:
            if not progress.started:
                raise
            progress.fail(error)

    def prune(self, request: Request, response: Response) -> None:
        keep = query.integer(request, "reserved-space") or query.integer(request, "keep-storage")
        pruned = self._engine.builds.prune(
            all=query.boolean(request, "all"),
            filters=query.filters(request),
            keep_bytes=keep or 0,
        )
        response.json(pruned)

    def cancel(self, request: Request, response: Response) -> None:
        # Only BuildKit's builds are cancelled by name; a classic one ends with its connection.
        response.empty(204)
