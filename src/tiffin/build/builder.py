"""The builder: takes a Dockerfile's stages, side by side where they can be, to an image.

What is done is planned first: which stages the target needs, and how many steps they have. Stages
that the target does not need are not built. Each stage goes its own way (:mod:`tiffin.build.steps`)
in a thread; what they share is in :mod:`tiffin.build.session`.

Rules: a build holds a lease on every layer it makes or finds. An image is stored only at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from tiffin.build import instructions as dockerfile
from tiffin.build import squash, stages
from tiffin.build.arguments import SOURCE_DATE_EPOCH, Arguments
from tiffin.build.backend import Backend, Cancelled
from tiffin.build.context import BuildContext
from tiffin.build.excerpt import excerpt, line_of
from tiffin.build.instructions import Copy, From, Run
from tiffin.build.options import BuildOptions
from tiffin.build.parser import parse
from tiffin.build.progress import Messages, Progress
from tiffin.build.session import Session
from tiffin.build.stages import Stage, Stages
from tiffin.build.steps import StageBuild, located
from tiffin.build.suggestion import nearest
from tiffin.errors import BuildFailure, InvalidParameter, TiffinError
from tiffin.image.reference import Reference


def build(
    backend: Backend,
    options: BuildOptions,
    context: BuildContext,
    send: Messages,
    *,
    cancelled: Cancelled = lambda: False,
    keys: list[str] | None = None,
) -> str:
    """Build an image; its id. The messages of the API go to ``send``, the keys of the cache's
    records that are found or made to ``keys``, as they come.

    Raises InvalidParameter or Unsupported for the Dockerfile before anything is done; then
    BuildFailure, NotFound (a base image) and what the layer store raises. No image is left by a
    failure; the cache keeps the steps that worked.
    """
    return Builder(backend, options, context, send, cancelled, [] if keys is None else keys).build()


class Builder:
    """One build."""

    def __init__(
        self,
        backend: Backend,
        options: BuildOptions,
        context: BuildContext,
        send: Messages,
        cancelled: Cancelled,
        keys: list[str],
    ) -> None:
        self._keys = keys
        self._backend = backend
        self._options = options
        self._context = context
        self._progress = Progress(
            send, quiet=options.quiet, events=options.events, colour=options.as_docker
        )
        self._cancelled = cancelled
        self._arguments = Arguments(options.build_args)
        self._epoch = _epoch(options.build_args)

    def build(self) -> str:
        """See :func:`build`."""
        try:
            return self._build()
        except TiffinError as error:
            line = line_of(error.message)
            if line is not None and not error.excerpt:
                lines = self._context.dockerfile.decode("utf-8", "replace").splitlines()
                error.excerpt = excerpt(self._context.dockerfile_name, lines, line)
            raise

    def _build(self) -> str:
        plan = stages.read(parse(self._context.dockerfile))
        for warning in plan.warnings:
            self._progress.line(f"[WARNING]: {warning}")
        self._declare_globals(plan)
        bases = [self._base(plan, stage) for stage in plan.stages]
        target = self._target(plan)
        _add_labels(plan.stages[target], self._options.labels)
        session = Session(
            self._backend,
            self._options,
            self._context,
            plan,
            bases,
            self._arguments,
            self._progress,
            self._cancelled,
            self._epoch,
            self._keys,
        )
        needed = _needed(session, target)
        builds = self._begin(session, plan, needed)
        try:
            with self._backend.layers.lease():
                try:
                    self._run(session, builds)
                finally:
                    session.cache.finish(session.keys, session.used, session.began)
                return self._finish(session, target)
        finally:
            session.close()

    # -- what is to be built

    def _declare_globals(self, plan: Stages) -> None:
        for argument in plan.arguments:
            with located(argument):
                self._arguments.declare_global(
                    argument.substituted(self._arguments.globals, plan.escape)
                )

    def _base(self, plan: Stages, stage: Stage) -> From:
        with located(stage.base):
            return stage.base.substituted(self._arguments.globals, plan.escape)

    def _target(self, plan: Stages) -> int:
        if not self._options.target:
            return len(plan.stages) - 1
        found = plan.find(self._options.target)
        if found is None:
            names = [stage.base.stage for stage in plan.stages if stage.base.stage]
            hint = nearest(self._options.target, names)
            raise InvalidParameter(
                f'target stage "{self._options.target}" could not be found{hint}'
            )
        return found

    # -- building

    def _begin(
        self, session: Session, plan: Stages, needed: list[int]
    ) -> list[tuple[int, StageBuild]]:
        """The stages, ready to run, with their steps numbered through."""
        total = len(plan.arguments) + sum(
            1 + len(plan.stages[index].instructions) for index in needed
        )
        number = 0
        for argument in plan.arguments:
            number += 1
            self._progress.line(f"Step {number}/{total} : {argument.text}")
        builds: list[tuple[int, StageBuild]] = []
        for index in needed:
            progress = self._progress.stage(index, total, number + 1)
            builds.append((index, StageBuild(session, index, progress)))
            number += 1 + len(plan.stages[index].instructions)
        return builds

    def _run(self, session: Session, builds: list[tuple[int, StageBuild]]) -> None:
        if len(builds) == 1 or self._options.jobs == 1:
            for index, each in builds:
                session.finish(index, each.build())
                each.end()
            return

        def work(index: int, stage: StageBuild) -> None:
            try:
                session.finish(index, stage.build())
            except BaseException as error:
                session.fail(error)
            finally:
                stage.end()

        threads = [
            threading.Thread(target=work, args=each, name=f"build-{each[0]}", daemon=True)
            for each in builds
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if session.failure is not None:
            raise session.failure
        session.check()

    def _finish(self, session: Session, target: int) -> str:
        state = session.finished(target).state
        if state.recorded is None:
            raise BuildFailure("No image was generated. Is your Dockerfile empty?")
        config, top = state.recorded, state.top
        if self._options.squash:
            config, top = squash.squashed(session, state)
        references = [Reference.parse(tag) for tag in self._options.tags]
        names = [
            each.familiar if each.tag or each.digest else f"{each.familiar}:latest"
            for each in references
        ]
        final = session.cache.line(state.key) if self._options.cache_to else []
        if final and not self._options.squash:
            config = self._backend.inline_cache(config, final)
        image_id = self._backend.save_image(config, top, names)
        if final:
            self._backend.export_cache(session.keys, final, session.base_chains)
        unused = self._arguments.unused()
        if unused:
            listed = " ".join(unused)
            self._progress.line(f"[Warning] One or more build-args [{listed}] were not consumed")
        self._progress.built(image_id, names)
        return image_id


def _needed(session: Session, target: int) -> list[int]:
    """The stages that the target is made of, in the file's order."""
    needed: set[int] = set()
    pending = [target]
    while pending:
        index = pending.pop()
        if index in needed:
            continue
        needed.add(index)
        image = session.bases[index].image
        names = [image] if not image.isdecimal() else []
        for each in session.plan.stages[index].instructions:
            if isinstance(each, Copy) and each.source_stage:
                names.append(each.source_stage)
            elif isinstance(each, Run):
                names += [mount.source_stage for mount in each.mounts if mount.source_stage]
        found = (session.stage_before(name, index) for name in names)
        pending += [other for other in found if other is not None]
    return sorted(needed)


def _add_labels(stage: Stage, labels: Mapping[str, str]) -> None:
    for name, value in sorted(labels.items()):
        text = f"LABEL {name}={value}"
        line = stage.instructions[-1].line if stage.instructions else stage.base.line
        stage.instructions.append(_GivenLabel(text, line, ((name, value),)))


class _GivenLabel(dockerfile.Label):
    """A label given to the build, whose text is no Dockerfile's: nothing in it is replaced."""

    __slots__ = ()

    def substituted(self, variables: Mapping[str, str], escape: str = "\\") -> _GivenLabel:
        return self


def _epoch(given: Mapping[str, str | None]) -> int | None:
    text = given.get(SOURCE_DATE_EPOCH)
    if not text:
        return None
    if not text.isdecimal():
        raise InvalidParameter(f"invalid {SOURCE_DATE_EPOCH} {text!r}: seconds since 1970")
    return int(text)
