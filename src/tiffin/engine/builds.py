"""The verbs on builds."""

from __future__ import annotations

import os
import secrets as tokens
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from tiffin.build import builder, remotecontext
from tiffin.build.backend import Cancelled, RunStep
from tiffin.build.cache import BuildCache
from tiffin.build.changes import environment
from tiffin.build.check import Report, check
from tiffin.build.context import BuildContext, from_folder, from_stream
from tiffin.build.digests import DigestCache
from tiffin.build.export import write_tree
from tiffin.build.folders import CacheFolders
from tiffin.build.options import BuildOptions
from tiffin.build.parser import parse
from tiffin.build.tree import EmptyTree
from tiffin.build.turns import Turns
from tiffin.build.verification import difference
from tiffin.engine.buildcache import Cache
from tiffin.engine.buildsite import BuildSite
from tiffin.engine.container import Container
from tiffin.engine.images import Images
from tiffin.engine.lifecycle import Lifecycle
from tiffin.engine.loans import Lender
from tiffin.engine.registries import Registries
from tiffin.engine.root import Root
from tiffin.engine.roster import Roster
from tiffin.engine.steps import Steps
from tiffin.errors import NotFound, TiffinError
from tiffin.image.config import ImageConfig
from tiffin.layer.store import LayerStore
from tiffin.store.database import Database

__all__ = ["BuildOptions", "Builds"]

JSON = dict[str, Any]

_SECRETS_KEPT = 64
"""Sets of secrets that wait for their builds; the oldest one goes when there are more."""


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
        registries: Registries,
    ) -> None:
        self.database = database
        self.layers = layers
        self.turns = Turns()
        self._root = root
        self.images = images
        self._roster = roster
        self.registries = registries
        self.known = BuildCache(database)
        self._folders = CacheFolders(self.known, root.path / "build-cache", self.turns)
        self.records = Cache(self.known, self._folders, root.path, images.collect)
        lender = Lender(layers, self._folders, root.work, root.mark)
        self.steps = Steps(root, layers, lifecycle, lender, self._keep_container)
        self.digests = DigestCache(path=root.path / "digests")
        self._secrets: dict[str, dict[str, bytes]] = {}
        self._folders.sweep()
        lender.sweep()

    @property
    def work(self) -> Path:
        """Where temporary files go."""
        return self._root.work

    def _keep_container(self, container: Container, step: RunStep) -> None:
        """Make the container of a failed step an ordinary one, whose program is a shell."""
        assert step.keep is not None
        image = self.images.add(step.keep, step.top)
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
        say = send or (lambda message: None)
        try:
            with self._context(options, context) as opened:
                with (
                    self.records.used_by_build() as keys,
                    BuildSite(self, options, say, cancelled) as site,
                ):
                    image = builder.build(
                        site, options, opened, say, cancelled=cancelled, keys=keys
                    )
                self.records.after_build(
                    lambda line: None if options.quiet else say({"stream": f"{line}\n"})
                )
                return image
        finally:
            self.digests.save()

    def close(self) -> None:
        """Write down what the next engine of this root may want to know."""
        self.digests.save(all=True)

    def keep_secrets(self, secrets: Mapping[str, bytes]) -> str:
        """Keep secrets, in memory, for the one build that names the identifier given back."""
        identifier = tokens.token_hex(16)
        self._secrets[identifier] = dict(secrets)
        while len(self._secrets) > _SECRETS_KEPT:
            self._secrets.pop(next(iter(self._secrets)))
        return identifier

    def take_secrets(self, identifier: str) -> dict[str, bytes]:
        """What :meth:`keep_secrets` kept; it is kept no longer. Raises NotFound."""
        try:
            return self._secrets.pop(identifier)
        except KeyError:
            raise NotFound(f"no secrets {identifier}: they are kept for one build only") from None

    def check(
        self, options: BuildOptions, context: BinaryIO | str | os.PathLike[str]
    ) -> tuple[Report, str]:
        """What is questionable in a Dockerfile, and as text. Raises InvalidParameter."""
        with self._context(options, context) as opened:
            file = parse(opened.dockerfile)
            report = check(
                file,
                ignore=opened.ignore,
                environment=self._base_environment,
                build_args=options.build_args,
            )
            name = opened.dockerfile_name
            shown = "\n\n".join(each.shown(name, file.lines) for each in report.findings)
            return report, shown

    def _base_environment(self, name: str) -> dict[str, str] | None:
        try:
            return environment(self.images.find(name).config)
        except TiffinError:
            return None  # nothing is said of what is not known

    def why(self, reference: str, step: str) -> list[JSON]:
        """Why steps of an image were made anew when they were: each step with its number among the
        image's history, its text and its reason.

        ``step`` is a number, a part of a step's text, or empty for all. Raises NotFound.
        """
        image = self.images.find(reference)
        found: list[JSON] = []
        for number, entry in enumerate(image.config.history, 1):
            if step and step != str(number) and (step.isdecimal() or step not in entry.created_by):
                continue
            found.append(
                {
                    "Step": number,
                    "Text": entry.created_by,
                    "Why": self._reason(image.config, number),
                }
            )
        if not found:
            raise NotFound(f"{reference} has no step {step!r} (history has them all)")
        return found

    def _reason(self, config: ImageConfig, number: int) -> str | None:
        """Why a step was made; empty if nothing like it was cached, None if that is not known."""
        wanted = config.history[:number]
        for record in self.known.steps(wanted[-1].created_by):
            if not record.config:
                continue
            after = ImageConfig.parse(record.config)
            if after.history == wanted:
                return self.known.reason(record.key)
        return None

    def verify(
        self,
        options: BuildOptions,
        context: BinaryIO | str | os.PathLike[str],
        first: str,
        *,
        cancelled: Cancelled = lambda: False,
    ) -> str:
        """Build once more, without the cache; what differs first from the image ``first``.

        Empty if the two are the same, byte for byte. Raises as :meth:`build`.
        """
        again = replace(options, tags=(), no_cache=True, quiet=True)
        second = self.build(again, context, cancelled=cancelled)
        if second == first:
            return ""
        return difference(
            self.images.find(first).config,
            self.images.find(second).config,
            self.layers.lower,
        )

    def rootfs(self, reference: str, output: BinaryIO) -> None:
        """Write the files of an image as one tar, in order, without what containers add."""
        top = self.images.find(reference).top
        write_tree(self.layers.lower(top) if top else EmptyTree(), output)

    def _context(
        self, options: BuildOptions, context: BinaryIO | str | os.PathLike[str]
    ) -> BuildContext:
        named = options.dockerfile if options.dockerfile != "Dockerfile" else None
        if options.remote:
            given = None
            if named == "-":
                assert not isinstance(context, (str, os.PathLike))
                given, named = context.read(), None
            return remotecontext.opened(
                options.remote,
                self.work,
                dockerfile=named,
                content=given,
                agent=options.ssh.get("default", ""),
            )
        if isinstance(context, (str, os.PathLike)):
            return from_folder(Path(context), self.digests, dockerfile=named)
        return from_stream(context, self._root.work, dockerfile=options.dockerfile)

    def cache(self) -> list[JSON]:
        """Docker's view of the build cache's records."""
        return self.records.list()
