"""Images: list, look, name, remove, and archives in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tiffin.api import query, versions
from tiffin.api.exchange import Request, Response
from tiffin.api.progress import Progress, reported
from tiffin.api.routing import Router
from tiffin.api.source import source
from tiffin.errors import InvalidParameter, TiffinError, Unsupported

if TYPE_CHECKING:
    from tiffin.engine import Engine


class ImageRoutes:
    """``/images``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def register(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/images/json", self.list)
        router.add("GET", "/images/get", self.save)
        router.add("POST", "/images/load", self.load)
        router.add("POST", "/images/prune", self.prune)
        router.add("GET", "/images/{name:.*}/get", self.save)
        router.add("GET", "/images/{name:.*}/json", self.inspect)
        router.add("GET", "/images/{name:.*}/history", self.history)
        router.add("POST", "/images/{name:.*}/tag", self.tag)
        router.add("DELETE", "/images/{name:.*}", self.remove)

    def list(self, request: Request, response: Response) -> None:
        filters = query.filters(request)
        if request.version < (1, 41) and query.text(request, "filter"):
            filters.setdefault("reference", [query.text(request, "filter")])
        rows = self._engine.images.list(
            all=query.boolean(request, "all"),
            filters=filters,
            shared_size=query.boolean(request, "shared-size"),
            manifests=request.version >= (1, 47) and query.boolean(request, "manifests"),
        )
        for row in rows:
            versions.image_listed(row, request.version)
        response.json(rows)

    def inspect(self, request: Request, response: Response) -> None:
        manifests = request.version >= (1, 48) and query.boolean(request, "manifests")
        platform = query.platform(request, (1, 49))
        if manifests and platform:
            raise InvalidParameter(
                "conflicting options: manifests and platform options cannot both be set"
            )
        name = request.names["name"]
        self._engine.images.find(name, platform)
        view = self._engine.images.inspect(name, manifests=manifests)
        versions.image_shown(view, request.version)
        response.json(view)

    def history(self, request: Request, response: Response) -> None:
        name = request.names["name"]
        self._engine.images.find(name, query.platform(request, (1, 48)))
        response.json(self._engine.images.history(name))

    def tag(self, request: Request, response: Response) -> None:
        self._engine.images.tag(
            request.names["name"], query.text(request, "repo"), query.text(request, "tag")
        )
        response.empty(201)

    def remove(self, request: Request, response: Response) -> None:
        gone = self._engine.images.remove(
            request.names["name"],
            force=query.boolean(request, "force"),
            noprune=query.boolean(request, "noprune"),
            platform=query.platform(request, (1, 50), "platforms"),
        )
        response.json(gone)

    def prune(self, request: Request, response: Response) -> None:
        response.json(self._engine.images.prune(query.filters(request)))

    def save(self, request: Request, response: Response) -> None:
        name = request.names.get("name")
        names = [name] if name is not None else query.texts(request, "names")
        if not names:
            raise InvalidParameter("no images to save: give their names")
        if platform := query.platform(request, (1, 48)):
            for one in names:
                self._engine.images.find(one, platform)
        output = response.stream("application/x-tar")
        self._engine.images.save(names, output.file)

    def load(self, request: Request, response: Response) -> None:
        archive = source(request) or request.body
        platform = query.platform(request, (1, 48))
        quiet = query.boolean(request, "quiet")
        progress = Progress(response)

        def say(message: dict[str, Any]) -> None:
            if not quiet or "stream" in message:
                progress(message)

        try:
            self._engine.images.load(archive, say, platform)
        except TiffinError as error:
            # Docker has begun its answer by now, and clients look for the error inside it.
            progress.fail(error)

    def import_image(self, request: Request, response: Response) -> None:
        """``/images/create`` without an image to pull."""
        origin = query.text(request, "fromSrc")
        if not origin:
            raise InvalidParameter("either fromImage or fromSrc is needed")
        file = source(request)
        if origin != "-" and file is None:
            raise Unsupported(f"cannot import from {origin} yet: download it, and import the file")
        with reported(response) as say:
            self._engine.images.import_(
                file or request.body,
                query.text(request, "repo"),
                query.text(request, "tag"),
                query.text(request, "message"),
                query.texts(request, "changes"),
                query.text(request, "platform"),
                say,
                # Not Docker's: what `tiffin image pack` makes is the same image each time.
                created=query.integer(request, "created"),
            )
