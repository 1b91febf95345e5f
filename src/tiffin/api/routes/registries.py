"""Registries: pull, push, login, search, and what a registry says of an image.

Credentials come in ``X-Registry-Auth`` with each request, and are neither kept nor logged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tiffin.api import query, shapes
from tiffin.api.exchange import Request, Response
from tiffin.api.progress import reported
from tiffin.api.routes.images import ImageRoutes
from tiffin.api.routing import Handler, Router
from tiffin.errors import (
    Forbidden,
    InvalidParameter,
    NotFound,
    TiffinError,
    TooManyRequests,
    Unauthorized,
    Unreachable,
)

if TYPE_CHECKING:
    from tiffin.engine import Engine

_HEADER = "x-registry-auth"


class RegistryRoutes:
    """``/images/create``, ``/images/{name}/push``, ``/images/search``, ``/auth``,
    ``/distribution``."""

    def __init__(self, engine: Engine, images: ImageRoutes) -> None:
        self._engine = engine
        self._images = images

    def register(self, router: Router) -> None:
        """Add the routes."""
        router.add("POST", "/images/create", _with_dockers_statuses(self.create))
        router.add("GET", "/images/search", _with_dockers_statuses(self.search))
        router.add("POST", "/images/{name:.*}/push", _with_dockers_statuses(self.push))
        router.add("GET", "/distribution/{name:.*}/json", _with_dockers_statuses(self.distribution))
        router.add("POST", "/auth", _with_dockers_statuses(self.auth))

    def create(self, request: Request, response: Response) -> None:
        name = query.text(request, "fromImage")
        if not name:
            self._images.import_image(request, response)
            return
        tag = query.text(request, "tag")
        if tag:
            # The CLI gives a digest in the place of the tag.
            name = f"{name}@{tag}" if ":" in tag else f"{_without_tag(name)}:{tag}"
        why = query.boolean(request, "why")
        try:
            with reported(response) as say:
                pulled = self._engine.registries.pull(
                    name,
                    platform=query.text(request, "platform"),
                    all_tags=_is_bare(name),
                    auth=self._auth(request),
                    progress=say,
                    cancelled=request.cancelled,
                )
                if why:
                    # tiffin's own: what was new, and what it cost.
                    for one in pulled:
                        say({"aux": {"Why": one.why()}})
        except (Unauthorized, Forbidden) as error:
            # As Docker: to 401 its client would answer by asking a person for a password.
            raise NotFound(error.message) from error

    @staticmethod
    def _auth(request: Request) -> Any:
        # Late: it pulls in nothing heavy, but most daemons never need it.
        from tiffin.engine.registries import credentials_of

        return credentials_of(request.headers.get(_HEADER))

    def push(self, request: Request, response: Response) -> None:
        level = query.integer(request, "compression-level")
        if platform := query.platform(request, (1, 46)):
            tag = query.text(request, "tag")
            name = request.names["name"]
            self._engine.images.find(f"{name}:{tag}" if tag else name, platform)
        with reported(response) as say:
            self._engine.registries.push(
                request.names["name"],
                query.text(request, "tag"),
                auth=self._auth(request),
                compression=query.text(request, "compression"),
                level=level,
                progress=say,
                cancelled=request.cancelled,
            )

    def search(self, request: Request, response: Response) -> None:
        filters = query.filters(request)
        for name in filters:
            if name not in ("is-official", "is-automated", "stars"):
                raise InvalidParameter(f"invalid filter '{name}'")
        official = None
        if filters.get("is-official"):
            official = filters["is-official"][0].lower() in ("1", "true")
        stars = filters.get("stars", ["0"])[0]
        if not stars.isdigit():
            raise InvalidParameter(f"invalid filter 'stars={stars}'")
        rows = self._engine.registries.search(
            query.text(request, "term"),
            query.integer(request, "limit") or 25,
            official=official,
            stars=int(stars),
            auth=self._auth(request),
        )
        if filters.get("is-automated", [""])[0].lower() in ("1", "true"):
            # Docker Hub has no such images any more, and Docker answers with none.
            rows = []
        response.json(rows)

    def distribution(self, request: Request, response: Response) -> None:
        found = self._engine.registries.distribution(request.names["name"], self._auth(request))
        response.json(found)

    def auth(self, request: Request, response: Response) -> None:
        from tiffin.engine.registries import credentials_in

        body = request.json_object(shapes.LOGIN)
        server = body.get("serveraddress") or ""
        response.json(self._engine.registries.login(server, credentials_in(body)))


def _with_dockers_statuses(handler: Handler) -> Handler:
    """A registry that fails is an error of the daemon's (500) to Docker's clients: 503 and 429
    would say that of the daemon itself."""

    def answer(request: Request, response: Response) -> None:
        try:
            handler(request, response)
        except (Unreachable, TooManyRequests) as error:
            raise TiffinError(error.message) from error

    return answer


def _is_bare(name: str) -> bool:
    """Whether a name has neither tag nor digest: Docker takes it for all tags."""
    return "@" not in name and ":" not in name.rpartition("/")[2]


def _without_tag(name: str) -> str:
    if "@" in name:
        return name.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"
