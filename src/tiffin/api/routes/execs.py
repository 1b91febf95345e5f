"""Execs: further processes in a running container."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tiffin.api import query, shapes
from tiffin.api.exchange import Request, Response, media_type
from tiffin.api.routes.streams import frame
from tiffin.api.routing import Router
from tiffin.errors import InvalidParameter, TiffinError

if TYPE_CHECKING:
    from tiffin.engine import Engine

logger = logging.getLogger("tiffin.api")


class ExecRoutes:
    """``/containers/{name}/exec`` and ``/exec/{id}``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def register(self, router: Router) -> None:
        """Add the routes."""
        router.add("POST", "/containers/{name:.*}/exec", self.create)
        router.add("POST", "/exec/{name}/start", self.start)
        router.add("POST", "/exec/{name}/resize", self.resize)
        router.add("GET", "/exec/{name}/json", self.inspect)

    def create(self, request: Request, response: Response) -> None:
        made = self._engine.containers.exec_create(
            request.names["name"], request.json_object(shapes.EXEC)
        )
        response.json(made, 201)

    def start(self, request: Request, response: Response) -> None:
        engine = self._engine.containers
        exec_id = request.names["name"]
        body = shapes.checked(request.json(), shapes.EXEC_START) or {}
        tty = bool(body.get("Tty"))
        size = body.get("ConsoleSize") or None
        if size is not None and not (
            isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) for n in size)
        ):
            raise InvalidParameter("invalid ConsoleSize: expected [height, width]")
        console = (size[0], size[1]) if size else None
        if body.get("Detach"):
            engine.exec_start(exec_id, None, detach=True, tty=tty, size=console)
            response.empty(200)
            return
        # What can be refused with a status is refused before the connection stops being HTTP.
        engine.exec_inspect(exec_id)
        connection, initial = response.hijack(media_type(request, multiplexed=not tty))
        try:
            engine.exec_start(
                exec_id, connection, detach=False, tty=tty, initial=initial, size=console
            )
        except TiffinError as error:
            # Docker says it in the stream; the client gets the exit code by inspection.
            logger.info("exec %s did not start: %s", exec_id, error.message)
            text = f"{error.message}\r\n".encode()
            response.last_words(text if tty else frame("stdout", text))

    def resize(self, request: Request, response: Response) -> None:
        height, width = query.size(request)
        self._engine.containers.exec_resize(request.names["name"], height, width)
        response.empty(200)

    def inspect(self, request: Request, response: Response) -> None:
        response.json(self._engine.containers.exec_inspect(request.names["name"]))
