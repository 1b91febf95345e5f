"""The verbs on builds, and what the builder needs of the engine (:mod:`tiffin.build.backend`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from tiffin.build import builder
from tiffin.build.backend import Cancelled, Output, RunResult, RunStep
from tiffin.build.cache import BuildCache
from tiffin.build.context import BuildContext, from_folder, from_stream
from tiffin.build.digests import DigestCache
from tiffin.build.options import BuildOptions
from tiffin.engine import filters as filtering
from tiffin.engine import timestamps
from tiffin.engine.images import Image, Images
from tiffin.engine.lifecycle import Lifecycle
from tiffin.engine.registries import Registries
from tiffin.engine.root import Root
from tiffin.engine.steps import Steps
from tiffin.errors import NotFound, TiffinError
from tiffin.image.config import ImageConfig
from tiffin.image.reference import Reference
from tiffin.layer.store import LayerStore
from tiffin.store.database import Database

__all__ = ["BuildOptions", "Builds"]

JSON = dict[str, Any]


class Builds:
    """Builds images out of Dockerfiles."""

    def __init__(
        self,
        database: Database,
        root: Root,
        images: Images,
        layers: LayerStore,
        lifecycle: Lifecycle,
        registries: Registries,
    ) -> None:
        self.database = database
        self.layers = layers
        self._root = root
        self._images = images
        self._registries = registries
        self._steps = Steps(root, layers, lifecycle)
        self._cache = BuildCache(database)
        self._digests = DigestCache()

    # -- the builder's backend

    def image(self, reference: str, platform: str) -> ImageConfig:
        """The configuration of a base image, which is pulled if it is not here."""
        try:
            image = self._images.find(reference)
        except NotFound:
            image = self._pull(reference, platform)
        if platform:
            self._images.check_platform(image)
        if image.top:
            self.layers.keep(image.top)
        return image.config

    def _pull(self, reference: str, platform: str) -> Image:
        try:
            return self._registries.pull(reference, platform=platform)[0].image
        except TiffinError as error:
            raise type(error)(
                f"No such image: {reference}: {error.message}; an image can also come from load, "
                "import or image pack"
            ) from error

    def run_step(self, step: RunStep, output: Output, cancelled: Cancelled) -> RunResult:
        """Run a RUN."""
        return self._steps.run(step, output, cancelled)

    def save_image(self, config: ImageConfig, top: str | None, tags: list[str]) -> str:
        """Record what was built."""
        names = [Reference.parse(tag).with_default_tag() for tag in tags]
        return self._images.add(config, top, names).id

    # -- verbs

    def build(
        self,
        options: BuildOptions,
        context: BinaryIO | str | os.PathLike[str],
        send: Callable[[JSON], None] | None = None,
        *,
        cancelled: Cancelled = lambda: False,
    ) -> str:
        """Build an image; its ID.

        ``context`` is a folder, read in place, or a stream of a tar or a lone Dockerfile. The
        API's messages go to ``send``. Raises BuildFailure and what else is wrong with the input.
        """
        with self._context(options, context) as opened:
            return builder.build(
                self, options, opened, send or (lambda message: None), cancelled=cancelled
            )

    def _context(
        self, options: BuildOptions, context: BinaryIO | str | os.PathLike[str]
    ) -> BuildContext:
        if isinstance(context, (str, os.PathLike)):
            named = options.dockerfile if options.dockerfile != "Dockerfile" else None
            return from_folder(Path(context), self._digests, dockerfile=named)
        return from_stream(context, self._root.work, dockerfile=options.dockerfile)

    def cache(self) -> list[JSON]:
        """Docker's view of the build cache's records."""
        return [
            {
                "ID": record.key.removeprefix("sha256:")[:25],
                "Parents": [record.parent.removeprefix("sha256:")[:25]] if record.parent else None,
                "Type": "regular",
                "Description": record.step,
                "InUse": record.in_use,
                "Shared": record.in_use,
                "Size": record.size,
                "CreatedAt": timestamps.rfc3339(record.created),
                "LastUsedAt": timestamps.rfc3339(record.used),
                "UsageCount": record.uses,
            }
            for record in self._cache.records()
        ]

    def prune(
        self,
        all: bool = False,
        filters: filtering.Filters | None = None,
        keep_bytes: int = 0,
    ) -> JSON:
        """Remove cache records, and the layers that nothing else needs; ``keep_bytes`` stay."""
        filters = filters or {}
        filtering.check(filters, {"until", "unused-for"})
        until = filters.get("until") or filters.get("unused-for")
        before = self.layers.total_size()
        removed = self._cache.prune(
            everything=all,
            unused_since=timestamps.parse(until[0]) if until else None,
            keep_bytes=keep_bytes,
        )
        self._images.collect()
        return {
            "CachesDeleted": [record.key.removeprefix("sha256:")[:25] for record in removed],
            "SpaceReclaimed": max(0, before - self.layers.total_size()),
        }
