"""The verbs on builds, and what the builder needs of the engine (:mod:`tiffin.build.backend`)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from tiffin.build import builder
from tiffin.build.backend import Cancelled, Output, RunResult, RunStep
from tiffin.build.cache import MOUNT, BuildCache, Record
from tiffin.build.context import BuildContext, from_folder, from_stream
from tiffin.build.digests import DigestCache
from tiffin.build.folders import CacheFolders
from tiffin.build.options import BuildOptions
from tiffin.build.turns import Turns
from tiffin.engine import filters as filtering
from tiffin.engine import timestamps
from tiffin.engine.container import Container
from tiffin.engine.images import Images
from tiffin.engine.lifecycle import Lifecycle
from tiffin.engine.loans import Lender
from tiffin.engine.root import Root
from tiffin.engine.roster import Roster
from tiffin.engine.steps import Steps
from tiffin.errors import NotFound
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
        roster: Roster,
    ) -> None:
        self.database = database
        self.layers = layers
        self.turns = Turns()
        self._root = root
        self._images = images
        self._roster = roster
        self._cache = BuildCache(database)
        self._folders = CacheFolders(self._cache, root.path / "build-cache", self.turns)
        mark = hashlib.sha256(os.fsencode(root.path)).hexdigest()[:8]
        lender = Lender(layers, self._folders, root.work, mark)
        self._steps = Steps(root, layers, lifecycle, lender, self._keep_container)
        self._digests = DigestCache()
        self._secrets: dict[str, dict[str, bytes]] = {}
        self._folders.sweep()
        lender.sweep()

    @property
    def work(self) -> Path:
        """Where temporary files go."""
        return self._root.work

    def folder(self, path: str) -> BuildContext:
        """A folder as a named context."""
        return from_folder(Path(path), self._digests, content=b"FROM scratch")

    def _keep_container(self, container: Container, step: RunStep) -> None:
        """Make the container of a failed step an ordinary one, whose program is a shell."""
        assert step.keep is not None
        image = self._images.add(step.keep, step.top)
        config = container.spec.config
        shell = step.keep.shell or ("/bin/sh",)
        config["Cmd"], config["Entrypoint"] = list(shell[:1]), None
        config["Env"] = step.env
        config["Tty"] = step.terminal
        config["OpenStdin"] = config["StdinOnce"] = True
        config["AttachStdin"] = config["AttachStdout"] = config["AttachStderr"] = True
        container.image = image.id
        container.name = f"build-{container.id[:12]}"
        container.spec.image_name = image.id
        self._roster.add(container)

    # -- the builder's backend

    def image(self, reference: str, platform: str) -> ImageConfig:
        """The configuration of a base image that is here."""
        try:
            image = self._images.find(reference)
        except NotFound as error:
            raise NotFound(
                f"No such image: {reference}: tiffin can't ask a registry yet; bring it in with "
                "load or import, or make one with image pack"
            ) from error
        if platform:
            self._images.check_platform(image)
        if image.top:
            self.layers.keep(image.top)
        return image.config

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
        self._folders.measure()
        return [
            {
                "ID": _identifier(record),
                "Parents": [record.parent.removeprefix("sha256:")[:25]] if record.parent else None,
                "Type": record.type,
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
        self._folders.measure()
        filtering.check(
            filters, {"until", "unused-for", "id", "type", "description", "inuse", "shared"}
        )
        until = filters.get("until") or filters.get("unused-for")
        before = self.layers.total_size()
        removed = self._cache.prune(
            everything=all,
            unused_since=timestamps.parse(until[0]) if until else None,
            keep_bytes=keep_bytes,
            spared=self._folders.in_use(),
            wanted=lambda record: _fits(record, filters),
        )
        freed = self._folders.removed(removed)
        self._images.collect()
        return {
            "CachesDeleted": [_identifier(record) for record in removed],
            "SpaceReclaimed": max(0, before - self.layers.total_size()) + freed,
        }


def _identifier(record: Record) -> str:
    return record.key.removeprefix("sha256:").removeprefix(MOUNT)[:25]


def _fits(record: Record, filters: filtering.Filters) -> bool:
    """Whether a record is what all filters name."""

    def fits(name: str, value: str) -> bool:
        match name:
            case "id":
                return _identifier(record).startswith(value)
            case "type":
                return record.type == value
            case "description":
                return value in record.step
            case _:
                return record.in_use == (value.lower() in ("", "1", "true"))

    return all(
        any(fits(name, value) for value in filters[name])
        for name in ("id", "type", "description", "inuse", "shared")
        if name in filters
    )
