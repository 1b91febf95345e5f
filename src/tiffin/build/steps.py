"""One stage on its way: from its base, one step after the other, to its last state.

A step's life: its variables are replaced; its parts and so its key are found; if the cache has
the key, what is cached becomes the stage's state; if not, the step is made (a layer written, a
command run, or nothing but the configuration changed), and is recorded at once, so that a later
failure leaves what worked. Where another build is making the same step, it is waited for.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

from tiffin.build import changes, stages, transfer
from tiffin.build import instructions as dockerfile
from tiffin.build.arguments import SANDBOX_HOSTNAME, SOURCE_DATE_EPOCH
from tiffin.build.backend import RunStep
from tiffin.build.cache import Record
from tiffin.build.instructions import Copy, From, Instruction, Run, Workdir
from tiffin.build.lending import Loans
from tiffin.build.ownership import owner_of
from tiffin.build.parts import Parts
from tiffin.build.progress import StageProgress
from tiffin.build.session import Finished, Session, State
from tiffin.build.tree import Source, parent, resolve
from tiffin.errors import BuildFailure, StartFailure, TiffinError, Unsupported
from tiffin.image.config import HistoryEntry, ImageConfig
from tiffin.image.moment import format_moment
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.layer import Layer
from tiffin.layer.writer import LayerWriter

SCRATCH = "scratch"
_NAMED = 20
"""How many files ``--why`` names."""
INSECURE = "security.insecure"
HOST_NETWORK = "network.host"


@dataclass(frozen=True, slots=True)
class Made:
    """What making a step gave: the configuration, without history yet, and its layer."""

    config: ImageConfig
    layer: Layer | None


class StageBuild:
    """The building of one stage. Use once."""

    def __init__(self, session: Session, index: int, progress: StageProgress) -> None:
        self._session = session
        self._index = index
        self._progress = progress
        self._base = session.bases[index]
        self._escape = session.plan.escape
        name = session.plan.stages[index].base.stage or "default"
        self._name = name
        self._arguments = session.arguments.of_stage(name)
        self._fresh = session.options.no_cache or name in session.options.no_cache_filter
        """Whether nothing is taken from the cache."""

    def build(self) -> Finished:
        """Build it, in a slot; raises what is wrong with the stage."""
        stage = self._session.plan.stages[self._index]
        with self._session.slot():
            self._session.check()
            self._progress.step(stage.base.text)
            with located(stage.base):
                state = self._start()
            # As dockerd: of a FROM with triggers, the image after the last one is told.
            self._progress.done(state.image_id, told=not state.config.on_build)
            state = self._triggers(state, stage.base)
            for instruction in stage.instructions:
                self._progress.step(instruction.text)
                state = self._step(state, instruction)
                self._progress.done(state.image_id)
        return Finished(state, self._arguments)

    def end(self) -> None:
        """Let the next stage have its say."""
        self._progress.end()

    def _start(self) -> State:
        session, base = self._session, self._base
        earlier = None if base.image.isdecimal() else session.stage_before(base.image, self._index)
        if earlier is not None:
            finished = session.finished(earlier)
            self._arguments = session.arguments.of_stage(self._name, finished.arguments)
            return replace(finished.state, steps=0, cmd_set=False)
        platform = base.platform or session.options.platform
        named = session.named_image(base.image)
        if named == base.image and session.named_context(base.image) is not None:
            return self._context_as_base(base)
        if named == SCRATCH:
            return _from_scratch()
        config = session.backend.image(named, platform, pull=session.options.pull)
        if config.chain_id is not None:
            session.hold(config.chain_id)
            session.base_chains.update(config.chain_ids)
        return State(
            changes.with_path(config), config, config.id, config.chain_id, base=config.chain_id
        )

    def _context_as_base(self, base: From) -> State:
        """A stage on the files of a named context: as if they were copied into scratch."""
        context = self._session.named_context(base.image)
        assert context is not None
        state = _from_scratch()
        instruction = Copy(f"COPY . / (context {base.image})", base.line, (".",), "/")
        return self._transfer(state, instruction, context.source)

    def _triggers(self, state: State, base: From) -> State:
        triggers = state.config.on_build
        if not triggers:
            return state
        state = replace(state, config=state.config.without_on_build())
        plural = "s" if len(triggers) > 1 else ""
        self._progress.line(f"# Executing {len(triggers)} build trigger{plural}")
        for number, text in enumerate(triggers, 1):
            with located(base):
                instruction = stages.single(text)
            self._progress.trigger(text)
            state = self._step(state, replace(instruction, line=base.line))
            self._progress.done(state.image_id, told=number == len(triggers))
        return state

    # -- steps

    def _step(self, state: State, written: Instruction) -> State:
        self._session.check()
        with located(written):
            environment = changes.environment(state.config)
            variables = self._arguments.visible(environment)
            instruction = written.substituted(variables, self._escape)
            match instruction:
                case Run():
                    return self._run(state, instruction, environment)
                case Copy():
                    source = transfer.source_named(
                        self._session,
                        instruction.source_stage,
                        self._index,
                        self._base.platform or self._session.options.platform,
                    )
                    return self._transfer(state, instruction, source)
                case Workdir():
                    return self._workdir(state, instruction)
                case dockerfile.Arg():
                    self._arguments.declare(instruction)
                case dockerfile.Healthcheck():
                    self._note_healthcheck(state.config)
            config = changes.apply(state.config, instruction, cmd_set=state.cmd_set)
            step = changes.created_by(config, instruction)
            state = self._cached(state, self._parts(state, step), lambda: Made(config, None))
            return replace(state, cmd_set=state.cmd_set or instruction.name == "CMD")

    def _note_healthcheck(self, config: ImageConfig) -> None:
        """Say that an earlier health check, perhaps the base image's, gives way."""
        earlier = (config.healthcheck or {}).get("Test") or ["NONE"]
        if earlier[0] != "NONE":
            self._progress.line(f"Note: overriding previous HEALTHCHECK: [{' '.join(earlier)}]")

    def _parts(self, state: State, step: str) -> Parts:
        parts = Parts(step)
        parts.add("parent" if state.steps else "base", state.key)
        parts.add("instruction", step)
        if self._session.epoch is not None:
            parts.add(SOURCE_DATE_EPOCH, str(self._session.epoch))
        return parts

    def _cached(
        self,
        state: State,
        parts: Parts,
        make: Callable[[], Made],
        *,
        identify: Callable[[], None] | None = None,
    ) -> State:
        """The state after a step: found in the cache, or made and recorded.

        ``identify`` completes the parts, at a price: where no key can be found, it is called
        after the step is made.
        """
        session = self._session
        if self._fresh:
            return self._make(state, parts, make, identify, look=False)
        kind = parts.step.partition(" ")[0]
        turn = parts.key
        with session.backend.turns.held(turn, self._given_up):
            look = (
                identify is None
                or bool(session.elsewhere)
                or session.cache.may_have(state.key, kind)
            )
            if look and identify is not None:
                identify()
                identify = None
            found = self._find(state, parts) if look else None
            if found is not None:
                return found
            return self._make(state, parts, make, identify, look=True)

    def _excluded(self, path: str) -> bool:
        ignore = self._session.context.ignore
        return ignore is not None and ignore.excludes(path)

    def _given_up(self) -> bool:
        self._session.check()
        return False

    def _make(
        self,
        state: State,
        parts: Parts,
        make: Callable[[], Made],
        identify: Callable[[], None] | None,
        *,
        look: bool,
    ) -> State:
        session = self._session
        why = ""
        if look and session.options.why:
            why = session.cache.why(parts, most=_NAMED, excluded=self._excluded) or (
                f"{' '.join(parts.step.split())}: nothing like it is in the cache"
            )
        elif look:
            why = session.cache.why(parts, excluded=self._excluded)
        else:
            why = f"{' '.join(parts.step.split())}: it was asked for anew (--no-cache)"
        if why and (look or session.options.why):
            self._progress.missed(why)
        made = make()
        if identify is not None:
            identify()
        record = self._record(state, parts, made, why)
        session.keys.append(record.key)
        config = ImageConfig.parse(record.config)
        return State(
            config, config, parts.key, record.top, state.steps + 1, state.cmd_set, state.base
        )

    def _record(self, state: State, parts: Parts, made: Made, why: str) -> Record:
        session = self._session
        now = time.time_ns() if session.latest is None else session.latest
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
        with session.backend.database.transaction():
            record = session.cache.store(
                parts, config.to_bytes(), top, size, replace=self._fresh, why=why
            )
            if record.top is not None:
                session.hold(record.top)
        return record

    def _find(self, state: State, parts: Parts) -> State | None:
        session = self._session
        record = session.found(parts.key)
        if record is None:
            return None
        self._progress.using_cache()
        session.used.append(record.key)
        session.keys.append(record.key)
        config = ImageConfig.parse(record.config)
        return State(
            config, config, record.key, record.top, state.steps + 1, state.cmd_set, state.base
        )

    # -- RUN

    def _run(self, state: State, instruction: Run, environment: Mapping[str, str]) -> State:
        given = self._arguments.of_run(environment)
        pairs = [f"{name}={value}" for name, value in given.items()]
        directory = state.config.working_dir or "/"
        loans = Loans(self._session, instruction, self._index, directory)
        parts = self._parts(state, changes.created_by(state.config, instruction, pairs))
        for name, value in given.items():
            parts.add(f"argument {name}", value)
        loans.describe(parts)
        proxies = self._arguments.proxies(environment)
        env = [*state.config.env, *pairs, *(f"{name}={proxies[name]}" for name in proxies)]
        args = instruction.resolved(changes.shell(state.config))
        if instruction.program:
            args = args[-1:]
        network = self._network(instruction)
        insecure = self._is_insecure(instruction)

        def make() -> Made:
            mounts, variables, hidden = loans.ready()
            options = self._session.options
            step = RunStep(
                container_id=secrets.token_hex(32),
                top=state.top,
                args=args,
                env=[*env, *(f"{name}={value}" for name, value in variables.items())],
                working_directory=directory,
                user=state.config.user,
                network_mode=network,
                mounts=tuple(mounts),
                host=options.host,
                insecure=insecure,
                hostname=options.build_args.get(SANDBOX_HOSTNAME) or "",
                latest=self._session.latest,
                keep=state.config if options.debug else None,
                terminal=options.debug == "tty",
                secrets=hidden,
            )
            return Made(state.config, self._execute(step))

        return self._cached(state, parts, make)

    def _network(self, instruction: Run) -> str:
        options = self._session.options
        if instruction.network in ("", "default"):
            return options.network_mode
        if instruction.network == "host" and "host" not in (
            options.network_mode,
            *(each.removeprefix("network.") for each in options.allow),
        ):
            raise Unsupported(
                f"RUN --network=host needs to be allowed: build with --allow {HOST_NETWORK}, or "
                "with --network host"
            )
        return instruction.network

    def _is_insecure(self, instruction: Run) -> bool:
        if instruction.security != "insecure":
            return False
        if INSECURE not in self._session.options.allow:
            raise Unsupported(
                f"RUN --security=insecure needs to be allowed: build with --allow {INSECURE}"
            )
        return True

    def _execute(self, step: RunStep) -> Layer:
        self._progress.running(step.container_id)
        command = " ".join(step.args)
        session = self._session
        try:
            result = session.backend.run_step(step, self._progress.output, session.cancelled)
        except StartFailure as error:
            _command_failed(command, error.exit_code, f": {error.message}", error)
        session.check()
        if result.exit_code or result.layer is None:
            if result.kept:
                session.progress.message({"aux": {"Failed": result.kept}})
            _command_failed(command, result.exit_code, "", None)
        self._progress.removed(step.container_id)
        return result.layer

    # -- steps that write files

    def _workdir(self, state: State, instruction: Workdir) -> State:
        config = changes.apply(state.config, instruction)
        parts = self._parts(state, changes.created_by(config, instruction))
        session = self._session

        def make() -> Made:
            lower = session.lower(state.top)
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
            mtime = session.latest or 0
            # What is above is said too, so that the layer is the same with every storage driver.
            above = [entry]
            while path := parent(path):
                here = lower.entry(path)
                if here is not None:
                    above.insert(0, here)

            def fill(writer: LayerWriter) -> None:
                for each_above in above:
                    if each_above.path:
                        writer.add(each_above)
                for each in missing:
                    writer.add(Entry(each, Kind.DIRECTORY, 0o755, uid, gid, mtime))

            return Made(config, session.backend.layers.write(state.top, fill))

        return self._cached(state, parts, make)

    def _transfer(self, state: State, instruction: Copy, source: Source) -> State:
        with transfer.opened(self._session, state, instruction, source) as moved:
            parts = self._parts(state, changes.created_by(state.config, instruction))
            moved.describe(parts)
            identify: Callable[[], None] | None = partial(moved.identify, parts)
            if instruction.link and not self._fresh:
                # The layer of the same files on another parent will do.
                moved.identify(parts)
                identify = None

            def make() -> Made:
                shared = self._linked(state, instruction, parts)
                model = None if self._fresh else self._session.cache.latest_layer(parts.step)
                return Made(state.config, shared or moved.make(model))

            return self._cached(state, parts, make, identify=identify)

    def _linked(self, state: State, instruction: Copy, parts: Parts) -> Layer | None:
        """The layer of the same COPY --link on another parent, if it can be put on this one."""
        if not instruction.link or self._fresh or not parts.files:
            return None
        session = self._session
        for top in session.cache.same_but_parent(parts):
            layer = session.backend.layers.get(top)
            known = session.backend.layers.known(state.top, layer.diff_id)
            if known is not None:
                return known
        return None


def _from_scratch() -> State:
    """Where a stage on nothing begins: as BuildKit has it, with a PATH and in ``/``."""
    config = changes.with_path(ImageConfig.scratch()).with_working_dir("/")
    return State(config, None, SCRATCH, None)


def _command_failed(command: str, code: int, more: str, cause: Exception | None) -> NoReturn:
    raise BuildFailure(
        f"The command '{command}' returned a non-zero code: {code}{more}", code or 1
    ) from cause


@contextmanager
def located(instruction: Instruction) -> Iterator[None]:
    """Add the instruction and its line to what is raised inside."""
    try:
        yield
    except TiffinError as error:
        if "Dockerfile line " not in error.message and "parse error on line" not in error.message:
            where = f"(Dockerfile line {instruction.line}: {instruction.text})"
            error.args = (f"{error.message} {where}", *error.args[1:])
        raise
