"""Builds by the classic builder, and what tiffin adds to them: checks, reasons, exports."""

from __future__ import annotations

import base64
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from tiffin.api import query, shapes
from tiffin.api.exchange import Request, Response
from tiffin.api.progress import reported
from tiffin.api.routing import Router
from tiffin.api.source import source
from tiffin.errors import BuildFailure, InvalidParameter, TiffinError, Unsupported

if TYPE_CHECKING:
    from tiffin.engine import Engine
    from tiffin.engine.builds import BuildOptions


class BuildRoutes:
    """``/build``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def register(self, router: Router) -> None:
        """Add the routes."""
        router.add("POST", "/build", self.build)
        router.add("POST", "/build/prune", self.prune)
        router.add("POST", "/build/cancel", self.cancel)
        router.add("POST", "/build/secrets", self.secrets)
        router.add("GET", "/build/why", self.why)
        router.add("GET", "/build/rootfs", self.rootfs)

    def build(self, request: Request, response: Response) -> None:
        # Imported by the first build, not by every daemon's start.
        from tiffin.engine.builds import BuildOptions

        options = BuildOptions.from_query(request.query)
        if identifier := query.text(request, "secrets"):
            secrets = self._engine.builds.take_secrets(identifier)
            options = replace(options, secrets=secrets)
        if header := request.headers.get("x-registry-config"):
            from tiffin.engine.registries import credentials_by_host

            options = replace(options, credentials=credentials_by_host(header))
        place = source(request, folders=True)
        with contextlib.ExitStack() as stack:
            context: Path | BinaryIO = place or request.body
            if place is not None and not place.is_dir():
                context = stack.enter_context(open(place, "rb"))
            if query.boolean(request, "check"):
                self._check(response, options, context)
            else:
                self._build(request, response, options, context)

    def _build(
        self,
        request: Request,
        response: Response,
        options: BuildOptions,
        context: Path | BinaryIO,
    ) -> None:
        builds = self._engine.builds
        verify = query.boolean(request, "verify")
        if verify and not isinstance(context, Path):
            raise Unsupported("--verify needs a folder that the daemon can read twice")
        with reported(response) as say:
            try:
                image = builds.build(options, context, say, cancelled=request.cancelled)
                if verify:
                    say({"stream": "Building once more, without the cache\n"})
                    found = builds.verify(options, context, image, cancelled=request.cancelled)
                    if found:
                        raise BuildFailure(f"the second build gave another image: {found}")
                    say({"stream": "Verified: the second build gave the same image\n"})
            except TiffinError as error:
                if error.excerpt and query.boolean(request, "excerpt"):
                    error.args = (f"{error.message}\n{error.excerpt}", *error.args[1:])
                raise

    def _check(self, response: Response, options: BuildOptions, context: Path | BinaryIO) -> None:
        report, text = self._engine.builds.check(options, context)
        response.json(
            {
                "Findings": [each.document() for each in report.findings],
                "Text": text,
                "Error": report.is_error,
            }
        )

    def secrets(self, request: Request, response: Response) -> None:
        try:
            kept = {
                name: base64.b64decode(text, validate=True)
                for name, text in request.json_object(shapes.Map(str)).items()
            }
        except (ValueError, TypeError):
            raise InvalidParameter("secrets must be a JSON object of base64 texts") from None
        response.json({"ID": self._engine.builds.keep_secrets(kept)}, 201)

    def why(self, request: Request, response: Response) -> None:
        image, step = query.text(request, "image"), query.text(request, "step")
        response.json(self._engine.builds.why(image, step))

    def rootfs(self, request: Request, response: Response) -> None:
        image = self._engine.images.inspect(query.text(request, "image"))["Id"]
        output = response.stream("application/x-tar")
        self._engine.builds.rootfs(image, cast(BinaryIO, output))

    def prune(self, request: Request, response: Response) -> None:
        records = self._engine.builds.records
        dry = query.boolean(request, "dry-run")
        if query.boolean(request, "gc"):
            response.json(records.collect(dry=dry))
            return
        reserved = query.integer(request, "reserved-space")
        response.json(
            records.prune(
                everything=query.boolean(request, "all"),
                filters=query.filters(request),
                reserved=reserved or query.integer(request, "keep-storage") or 0,
                most=query.integer(request, "max-used-space") or 0,
                free=query.integer(request, "min-free-space") or 0,
                dry=dry,
            )
        )

    def cancel(self, request: Request, response: Response) -> None:
        # Only BuildKit's builds are cancelled by name; a classic one ends with its connection.
        response.empty(204)
