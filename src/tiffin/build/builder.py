"""The builder: takes a Dockerfile's stages, one step after the other, to an image.

A step's life: its variables are replaced; its parts and so its key are found; if the cache has
the key, what is cached becomes the stage's state; if not, the step is made (a layer written, a
command run, or nothing but the configuration changed), and is recorded at once, so that a later
failure leaves what worked. Stages that the target does not need are not built.

Rules: a build holds a lease on every layer it makes or finds. An image is stored only at the end.
Two builds never wait for each other; where both make the same step, the first to record it wins
and both go on from there.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from tiffin.build import changes, copying, stages
from tiffin.build import instructions as dockerfile
from tiffin.build.arguments import SOURCE_DATE_EPOCH, Arguments
from tiffin.build.backend import Backend, Cancelled, RunStep
from tiffin.build.cache import BuildCache, Parts
from tiffin.build.context import BuildContext
from tiffin.build.instructions import Copy, From, Instruction, Run, Workdir
from tiffin.build.options import BuildOptions
from tiffin.build.ownership import mode_of, owner_of
from tiffin.build.parser import parse
from tiffin.build.progress import Messages, Progress
from tiffin.build.stages import Stage
from tiffin.build.suggestion import nearest
from tiffin.build.tree import EmptyTree, LowerTree, Source, StageFiles, parent, resolve
from tiffin.errors import BuildFailure, InvalidParameter, NotFound, StartFailure, TiffinError
from tiffin.image.config import HistoryEntry, ImageConfig
from tiffin.image.moment import format_moment
from tiffin.image.reference import Reference
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.layer import Layer
from tiffin.layer.writer import LayerWriter

SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class State:
    """A stage after some of its steps."""

    config: ImageConfig
    """What the next step starts from."""
    recorded: ImageConfig | None
    """What the image is so far: None as long as nothing is built on ``scratch``. Differs from
    ``config`` where a stage's start changes something: the default PATH, triggers taken out."""
    key: str
    """The last step's key; before any, the base image's id, or ``scratch``."""
    top: str | None
    steps: int = 0
    cmd_set: bool = False

    @property
    def image_id(self) -> str:
        """The id that an image would have now; empty for none."""
        return self.recorded.id if self.recorded is not None else ""


@dataclass(frozen=True, slots=True)
class Made:
    """What making a step gave: the configuration, without history yet, and its layer."""

    config: ImageConfig
    layer: Layer | None


def build(
    backend: Backend,
    options: BuildOptions,
    context: BuildContext,
    send: Messages,
    *,
    cancelled: Cancelled = lambda: False,
) -> str:
    """Build an image; its id. The messages of the API go to ``send``.

    Raises InvalidParameter or Unsupported for the Dockerfile before anything is done; then
    BuildFailure, NotFound (a base image) and what the layer store raises. No image is left by a
    failure; the cache keeps the steps that worked.
    """
    return Builder(backend, options, context, send, cancelled).build()


class Builder:
    """One build."""

    def __init__(
        self,
        backend: Backend,
        options: BuildOptions,
        context: BuildContext,
        send: Messages,
        cancelled: Cancelled,
    ) -> None:
        self._backend = backend
        self._options = options
        self._context = context
        self._progress = Progress(send, quiet=options.quiet)
        self._cancelled = cancelled
        self._cache = BuildCache(backend.database)
        self._arguments = Arguments(options.build_args)
        self._epoch = _epoch(options.build_args)
        self._states: dict[int, State] = {}
        self._used: list[str] = []
        self._number = 0
        self._total = 0

    def build(self) -> str:
        """See :func:`build`."""
        plan = stages.read(parse(self._context.dockerfile))
        self._escape = plan.escape
        self._plan = plan
        for warning in plan.warnings:
            self._progress.line(f"[WARNING]: {warning}")
        self._declare_globals()
        bases = [self._base(stage) for stage in plan.stages]
        target = self._target()
        needed = self._needed(bases, target)
        self._add_labels(plan.stages[target])
        self._total = len(plan.arguments) + sum(
            1 + len(plan.stages[index].instructions) for index in needed
        )
        for argument in plan.arguments:
            self._announce(argument)
        with self._backend.layers.lease():
            for index in needed:
                self._states[index] = self._build_stage(index, bases[index])
            self._cache.touch(self._used)
            return self._finish(self._states[target])

    # -- what is to be built

    def _declare_globals(self) -> None:
        for argument in self._plan.arguments:
            with _located(argument):
                self._arguments.declare_global(
                    argument.substituted(self._arguments.globals, self._escape)
                )

    def _base(self, stage: Stage) -> From:
        with _located(stage.base):
            return stage.base.substituted(self._arguments.globals, self._escape)

    def _target(self) -> int:
        if not self._options.target:
            return len(self._plan.stages) - 1
        found = self._plan.find(self._options.target)
        if found is None:
            names = [stage.base.stage for stage in self._plan.stages if stage.base.stage]
            hint = nearest(self._options.target, names)
            raise InvalidParameter(
                f'target stage "{self._options.target}" could not be found{hint}'
            )
        return found

    def _needed(self, bases: list[From], target: int) -> list[int]:
        """The stages that the target is made of, in the file's order."""
        needed: set[int] = set()
        pending = [target]
        while pending:
            index = pending.pop()
            if index in needed:
                continue
            needed.add(index)
            names = [bases[index].image] if not bases[index].image.isdecimal() else []
            names += [
                each.source_stage
                for each in self._plan.stages[index].instructions
                if isinstance(each, Copy) and each.source_stage
            ]
            found = (self._stage_before(name, index) for name in names)
            pending += [other for other in found if other is not None]
        return sorted(needed)

    def _stage_before(self, name: str, index: int) -> int | None:
        found = self._plan.find(name)
        return found if found is not None and found < index else None

    def _add_labels(self, stage: Stage) -> None:
        for name, value in sorted(self._options.labels.items()):
            text = f"LABEL {name}={value}"
            line = stage.instructions[-1].line if stage.instructions else stage.base.line
            stage.instructions.append(_GivenLabel(text, line, ((name, value),)))

    def _announce(self, instruction: Instruction) -> None:
        self._number += 1
        self._progress.step(self._number, self._total, instruction.text)

    # -- stages

    def _build_stage(self, index: int, base: From) -> State:
        stage = self._plan.stages[index]
        self._announce(stage.base)
        self._arguments.enter_stage()
        with _located(stage.base):
            state = self._start(base, index)
        self._progress.done(state.image_id)
        state = self._triggers(state, stage.base)
        for instruction in stage.instructions:
            self._announce(instruction)
            state = self._step(state, instruction, index)
            self._progress.done(state.image_id)
        return state

    def _start(self, base: From, index: int) -> State:
        earlier = None if base.image.isdecimal() else self._stage_before(base.image, index)
        if earlier is not None:
            return replace(self._states[earlier], steps=0, cmd_set=False)
        platform = base.platform or self._options.platform
        if base.image == SCRATCH:
            return State(changes.with_path(ImageConfig.scratch()), None, SCRATCH, None)
        config = self._backend.image(base.image, platform)
        if config.chain_id is not None:
            self._hold(config.chain_id)
        return State(changes.with_path(config), config, config.id, config.chain_id)

    def _triggers(self, state: State, base: From) -> State:
        triggers = state.config.on_build
        if not triggers:
            return state
        state = replace(state, config=state.config.without_on_build())
        plural = "s" if len(triggers) > 1 else ""
        self._progress.line(f"# Executing {len(triggers)} build trigger{plural}")
        for text in triggers:
            with _located(base):
                instruction = stages.single(text)
            state = self._step(state, replace(instruction, line=base.line), 0)
            self._progress.done(state.image_id)
        return state

    def _finish(self, state: State) -> str:
        if state.recorded is None:
            raise BuildFailure("No image was generated. Is your Dockerfile empty?")
        references = [Reference.parse(tag) for tag in self._options.tags]
        names = [
            each.familiar if each.tag or each.digest else f"{each.familiar}:latest"
            for each in references
        ]
        image_id = self._backend.save_image(state.recorded, state.top, names)
        unused = self._arguments.unused()
        if unused:
            listed = " ".join(unused)
            self._progress.line(f"[Warning] One or more build-args [{listed}] were not consumed")
        self._progress.built(image_id, names)
        return image_id

    def _hold(self, chain: str) -> None:
        """Keep a layer that was found from being collected while the build lasts."""
        self._backend.layers.get(chain)
        self._backend.layers.keep(chain)

    # -- steps

    def _step(self, state: State, written: Instruction, stage: int) -> State:
        if self._cancelled():
            raise BuildFailure("Build cancelled")
        with _located(written):
            environment = changes.environment(state.config)
            variables = self._arguments.visible(environment)
            instruction = written.substituted(variables, self._escape)
            match instruction:
                case Run():
                    return self._run(state, instruction, environment)
                case Copy():
                    return self._copy(state, instruction, stage)
                case Workdir():
                    return self._workdir(state, instruction)
                case dockerfile.Arg():
                    self._arguments.declare(instruction)
            config = changes.apply(state.config, instruction, cmd_set=state.cmd_set)
            step = changes.created_by(config, instruction)
            state = self._cached(state, self._parts(state, step), lambda: Made(config, None))
            return replace(state, cmd_set=state.cmd_set or instruction.name == "CMD")

    def _parts(self, state: State, step: str) -> Parts:
        parts = Parts(step)
        parts.add("parent" if state.steps else "base", state.key)
        parts.add("instruction", step)
        if self._epoch is not None:
            parts.add(SOURCE_DATE_EPOCH, str(self._epoch))
        return parts

    def _cached(
        self,
        state: State,
        parts: Parts,
        make: Callable[[], Made],
        *,
        look: bool = True,
    ) -> State:
        """The state after a step: found in the cache, or made and recorded."""
        if look and not self._options.no_cache:
            found = self._find(state, parts)
            if found is not None:
                return found
        if not self._options.no_cache:
            why = self._cache.why(parts)
            if why:
                self._progress.missed(why)
        made = make()
        now = time.time_ns() if self._epoch is None else self._epoch * 1_000_000_000
        moment = format_moment(now)
        entry = HistoryEntry(
            created=moment,
            created_by=parts.step,
            author=made.config.author,
            empty_layer=made.layer is None,
        )
        config = made.config.with_created(moment)
        if made.layer is None:
            config = config.with_history(entry)
            top, size = state.top, 0
        else:
            config = config.with_layer(made.layer.diff_id, entry)
            top, size = made.layer.chain_id, made.layer.size
        with self._backend.database.transaction():
            record = self._cache.store(
                parts, config.to_bytes(), top, size, replace=self._options.no_cache
            )
            if record.top is not None:
                self._hold(record.top)
        if record.config != config.to_bytes():
            config, top = ImageConfig.parse(record.config), record.top
        return State(config, config, parts.key, top, state.steps + 1, state.cmd_set)

    def _find(self, state: State, parts: Parts) -> State | None:
        with self._backend.database.transaction():
            record = self._cache.find(parts.key)
            if record is None:
                return None
            if record.top is not None:
                self._hold(record.top)
        self._progress.using_cache()
        self._used.append(record.key)
        config = ImageConfig.parse(record.config)
        return State(config, config, record.key, record.top, state.steps + 1, state.cmd_set)

    def _lower(self, state: State) -> LowerTree:
        return EmptyTree() if state.top is None else self._backend.layers.lower(state.top)

    def _run(self, state: State, instruction: Run, environment: Mapping[str, str]) -> State:
        given = self._arguments.of_run(environment)
        pairs = [f"{name}={value}" for name, value in given.items()]
        parts = self._parts(state, changes.created_by(state.config, instruction, pairs))
        for name, value in given.items():
            parts.add(f"argument {name}", value)
        proxies = self._arguments.proxies(environment)
        env = [*state.config.env, *pairs, *(f"{name}={proxies[name]}" for name in proxies)]
        step = RunStep(
            container_id=secrets.token_hex(32),
            top=state.top,
            args=instruction.resolved(changes.shell(state.config)),
            env=env,
            working_directory=state.config.working_dir or "/",
            user=state.config.user,
            network_mode=self._options.network_mode,
        )
        return self._cached(state, parts, lambda: Made(state.config, self._execute(step)))

    def _execute(self, step: RunStep) -> Layer:
        self._progress.running(step.container_id)
        command = " ".join(step.args)
        try:
            result = self._backend.run_step(step, self._progress.output, self._cancelled)
        except StartFailure as error:
            _command_failed(command, error.exit_code, f": {error.message}", error)
        if self._cancelled():
            raise BuildFailure("Build cancelled")
        if result.exit_code or result.layer is None:
            _command_failed(command, result.exit_code, "", None)
        self._progress.removed(step.container_id)
        return result.layer

    def _workdir(self, state: State, instruction: Workdir) -> State:
        config = changes.apply(state.config, instruction)
        parts = self._parts(state, changes.created_by(config, instruction))

        def make() -> Made:
            lower = self._lower(state)
            path = resolve(lower, config.working_dir.encode("utf-8", "surrogateescape"))
            missing: list[bytes] = []
            while (entry := lower.entry(path)) is None:
                missing.insert(0, path)
                path = parent(path)
            if entry.kind is not Kind.DIRECTORY:
                raise BuildFailure(
                    f"cannot mkdir {config.working_dir}: /{path.decode('utf-8', 'replace')} is "
                    "not a directory"
                )
            if not missing:
                return Made(config, None)
            uid, gid = owner_of(config.user, lower) or (0, 0)
            mtime = (self._epoch or 0) * 1_000_000_000

            def fill(writer: LayerWriter) -> None:
                for each in missing:
                    writer.add(Entry(each, Kind.DIRECTORY, 0o755, uid, gid, mtime))

            return Made(config, self._backend.layers.write(state.top, fill))

        return self._cached(state, parts, make)

    def _source(self, instruction: Copy, stage: int) -> Source:
        name = instruction.source_stage
        if not name:
            return self._context.source
        earlier = self._stage_before(name, stage)
        if earlier is not None:
            return StageFiles(self._lower(self._states[earlier]))
        if self._plan.find(name) == stage:
            raise InvalidParameter(f"invalid from flag value {name}: refers to current build stage")
        try:
            config = self._backend.image(name, self._options.platform)
        except NotFound as error:
            raise NotFound(f"invalid from flag value {name}: {error.message}") from error
        if config.chain_id is None:
            return EmptyTree()
        self._hold(config.chain_id)
        return StageFiles(self._backend.layers.lower(config.chain_id))

    def _copy(self, state: State, instruction: Copy, stage: int) -> State:
        name, from_stage = instruction.name, bool(instruction.source_stage)
        source = self._source(instruction, stage)
        where = copying.destination(state.config.working_dir, instruction.destination)
        picks = copying.pick(source, instruction.sources, name, from_stage=from_stage)
        if len(picks) > 1 and not where.is_directory:
            raise BuildFailure(
                f"When using {name} with more than one source file, the destination must be a "
                "directory and end with a /"
            )
        files = copying.picked_files(source, picks)
        step = changes.created_by(state.config, instruction)
        parts = self._parts(state, step)
        for found in picks:
            if found.is_renamed:
                parts.add(f"source {found.name!r}", repr(found.entry.path))
        # Where no such step was ever made on this parent, no key can be found: the files are then
        # read once, while they are copied, instead of twice.
        look = not self._options.no_cache and self._cache.may_have(state.key, name)
        if look:
            for each in files:
                source.identify(each)
            parts.add_files(files)

        def make() -> Made:
            lower = self._lower(state)
            ownership = copying.Ownership(
                owner_of(instruction.chown, lower), mode_of(instruction.chmod)
            )
            placements: list[copying.Placement] = []

            def fill(writer: LayerWriter) -> None:
                placement = copying.Placement(
                    source, lower, writer, ownership, keep_owners=from_stage
                )
                placement.copy(picks, where, unpack=name == "ADD")
                placements.append(placement)

            layer = self._backend.layers.write(state.top, fill)
            for placement in placements:
                placement.verify()
            if not look:
                for each in files:
                    source.identify(each)
                parts.add_files(files)
            return Made(state.config, layer)

        return self._cached(state, parts, make, look=look)


class _GivenLabel(dockerfile.Label):
    """A label given to the build, whose text is no Dockerfile's: nothing in it is replaced."""

    __slots__ = ()

    def substituted(self, variables: Mapping[str, str], escape: str = "\\") -> _GivenLabel:
        return self


def _command_failed(command: str, code: int, more: str, cause: Exception | None) -> NoReturn:
    raise BuildFailure(
        f"The command '{command}' returned a non-zero code: {code}{more}", code or 1
    ) from cause


@contextmanager
def _located(instruction: Instruction) -> Any:
    """Add the instruction and its line to what is raised inside."""
    try:
        yield
    except TiffinError as error:
        if "Dockerfile line " not in error.message and "parse error on line" not in error.message:
            where = f"(Dockerfile line {instruction.line}: {instruction.text})"
            error.args = (f"{error.message} {where}", *error.args[1:])
        raise


def _epoch(given: Mapping[str, str | None]) -> int | None:
    text = given.get(SOURCE_DATE_EPOCH)
    if not text:
        return None
    if not text.isdecimal():
        raise InvalidParameter(f"invalid {SOURCE_DATE_EPOCH} {text!r}: seconds since 1970")
    return int(text)
