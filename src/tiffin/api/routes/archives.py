"""Files of containers in and out, as tars: ``cp`` and ``export``."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from tiffin.api import documents, query
from tiffin.api.exchange import Request, Response
from tiffin.api.routing import Router
from tiffin.errors import InvalidParameter

if TYPE_CHECKING:
    from tiffin.engine import Engine

_STAT_HEADER = "X-Docker-Container-Path-Stat"


class ArchiveRoutes:
    """``/containers/{name}/archive`` and ``/containers/{name}/export``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def register(self, router: Router) -> None:
        """Add the routes."""
        router.add("HEAD", "/containers/{name:.*}/archive", self.stat)
        router.add("GET", "/containers/{name:.*}/archive", self.get)
        router.add("PUT", "/containers/{name:.*}/archive", self.put)
        router.add("GET", "/containers/{name:.*}/export", self.export)

    def _path(self, request: Request) -> str:
        path = query.file_name(request, "path")
        if not path:
            raise InvalidParameter("path cannot be empty")
        return path

    def _stat(self, request: Request) -> tuple[str, str]:
        stat = self._engine.containers.archive_stat(request.names["name"], self._path(request))
        return _STAT_HEADER, base64.b64encode(documents.encode(stat)).decode("ascii")

    def stat(self, request: Request, response: Response) -> None:
        response.empty(200, [self._stat(request)])

    def get(self, request: Request, response: Response) -> None:
        headers = [self._stat(request)]
        output = response.stream("application/x-tar", headers=headers)
        self._engine.containers.archive_get(request.names["name"], self._path(request), output.file)

    def put(self, request: Request, response: Response) -> None:
        self._engine.containers.archive_put(
            request.names["name"],
            self._path(request),
            request.body,
            no_overwrite=query.boolean(request, "noOverwriteDirNonDir"),
            copy_uid_gid=query.boolean(request, "copyUIDGID"),
        )
        response.empty(200)

    def export(self, request: Request, response: Response) -> None:
        # A client that pipes the tar sees at once that it comes; errors before the first byte
        # still get a status of their own.
        output = response.stream("application/octet-stream")
        self._engine.containers.export(request.names["name"], output.file)
