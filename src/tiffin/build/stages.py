"""From a Dockerfile's nodes to stages of typed instructions, with everything checked.

Everything that can be known without a base image, a context or a variable's value is checked here:
names, flags, numbers of arguments. An error names the line; a flag that tiffin has no support for
yet is refused by its name.

Source: the Dockerfile reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tiffin.build import remote
from tiffin.build.instructions import (
    Add,
    Arg,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    Expose,
    From,
    Healthcheck,
    Instruction,
    Label,
    Maintainer,
    NamedValues,
    OnBuild,
    Run,
    Shell,
    ShellOrExec,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from tiffin.build.mounts import parse_mount
from tiffin.build.parser import Dockerfile, Node, error_at, heredoc_of, parse, unsupported_at
from tiffin.build.substitution import quoted
from tiffin.build.suggestion import nearest
from tiffin.errors import InvalidParameter
from tiffin.units import Malformed, parse_duration

_STAGE_NAME = re.compile(r"[a-z][a-z0-9_.-]*")


@dataclass(slots=True)
class Stage:
    """One FROM and what follows it."""

    base: From
    instructions: list[Instruction] = field(default_factory=list)


@dataclass(slots=True)
class Stages:
    """A Dockerfile as it is built."""

    arguments: list[Arg]
    """The ARGs above the first FROM."""
    stages: list[Stage]
    escape: str
    warnings: tuple[str, ...]

    def find(self, name: str) -> int | None:
        """A stage's index by its name, or by its number."""
        for index, stage in enumerate(self.stages):
            if stage.base.stage and stage.base.stage == name.lower():
                return index
        if name.isdecimal() and int(name) < len(self.stages):
            return int(name)
        return None


def read(dockerfile: Dockerfile) -> Stages:
    """Type and check everything; raises InvalidParameter or Unsupported, with the line."""
    arguments: list[Arg] = []
    found: list[Stage] = []
    names: set[str] = set()
    for node in dockerfile.nodes:
        instruction = typed(node)
        if isinstance(instruction, From):
            if instruction.stage and instruction.stage in names:
                raise error_at(node.line, f"duplicate name {instruction.stage}")
            names.add(instruction.stage)
            found.append(Stage(instruction))
        elif found:
            found[-1].instructions.append(instruction)
        elif isinstance(instruction, Arg):
            arguments.append(instruction)
        else:
            raise error_at(
                node.line,
                f"no build stage in current context: {instruction.name} stands before FROM, "
                "where only ARG may be",
            )
    if not found:
        raise error_at(dockerfile.nodes[-1].line, "no FROM: there is nothing to build on")
    return Stages(arguments, found, dockerfile.escape, dockerfile.warnings)


def single(text: str) -> Instruction:
    """One instruction out of a text: an ONBUILD trigger, or a change of ``commit --change``."""
    nodes = parse(text).nodes
    if len(nodes) != 1:
        raise InvalidParameter(f"{quoted(text)} should be a single instruction")
    return typed(nodes[0])


def typed(node: Node) -> Instruction:
    """What a node says; raises InvalidParameter or Unsupported, with the line."""
    name = node.name.upper()
    make = _MAKERS.get(name)
    if make is None:
        hint = nearest(node.name, _MAKERS)
        raise error_at(node.line, f"unknown instruction: {node.name}{hint}")
    try:
        return make(node)
    except _Wrong as error:
        raise error_at(node.line, str(error)) from None


class _Wrong(Exception):
    """What is wrong with an instruction; the line is added by who knows it."""


class _Flags:
    """The flags of one instruction, checked against those that it takes."""

    def __init__(self, node: Node, kind: type[Instruction]) -> None:
        self._kind = kind
        self._given: dict[str, list[str]] = {}
        for flag in node.flags:
            name, sign, value = flag.partition("=")
            bare = name[2:]
            if bare in kind.later_flags:
                supported = ", ".join(f"--{each}" for each in kind.flags) or "none"
                raise unsupported_at(
                    node.line,
                    f"{kind.name} {name} is not supported yet (flags of {kind.name} that are: "
                    f"{supported})",
                )
            if bare not in kind.flags:
                hint = nearest(bare, [*kind.flags, *kind.later_flags])
                raise _Wrong(f"unknown flag: {name}{hint}")
            if bare in self._given and bare not in kind.repeated:
                raise _Wrong(f"duplicate flag specified: {name}")
            if not sign and bare not in kind.switches:
                raise _Wrong(f"missing a value on flag: {name}")
            self._given.setdefault(bare, []).append(value if sign else "true")

    def get(self, name: str) -> str:
        """A flag's value; empty if it was not given."""
        return self._given.get(name, [""])[0]

    def all(self, name: str) -> tuple[str, ...]:
        """All values of a flag."""
        return tuple(self._given.get(name, ()))

    def on(self, name: str) -> bool | None:
        """Whether a switch is on; None if it was not given."""
        value = self.get(name)
        if not value:
            return None
        if value.lower() not in ("true", "false"):
            raise _Wrong(f"expecting boolean value for flag --{name}, not: {value}")
        return value.lower() == "true"


def _flags_of(node: Node, kind: type[Instruction]) -> _Flags:
    return _Flags(node, kind)


def _one(node: Node) -> str:
    if len(node.arguments) != 1:
        raise _Wrong(f"{node.name.upper()} requires exactly one argument")
    return node.arguments[0]


def _some(node: Node) -> tuple[str, ...]:
    if not node.arguments:
        raise _Wrong(f"{node.name.upper()} requires at least one argument")
    return node.arguments


def _from(node: Node) -> Instruction:
    words = node.arguments
    stage = ""
    if len(words) == 3 and words[1].lower() == "as":
        stage = words[2].lower()
        if not _STAGE_NAME.fullmatch(stage):
            raise _Wrong(
                f"invalid name for build stage: {quoted(words[2])}, name can't start with a "
                "number or contain symbols"
            )
    elif len(words) != 1:
        raise _Wrong("FROM requires either one or three arguments")
    flags = _flags_of(node, From)
    return From(node.text, node.line, words[0], stage, flags.get("platform"))


def _command(kind: type[ShellOrExec]) -> Callable[[Node], Instruction]:
    def make(node: Node) -> Instruction:
        _flags_of(node, kind)
        return kind(node.text, node.line, node.arguments, not node.is_json)

    return make


def _run(node: Node) -> Instruction:
    flags = _flags_of(node, Run)
    if not node.arguments:
        raise _Wrong("RUN requires at least one argument")
    try:
        mounts = tuple(parse_mount(text) for text in flags.all("mount"))
    except InvalidParameter as error:
        raise _Wrong(error.message) from None
    network, security = flags.get("network"), flags.get("security")
    for flag, value, known in (
        ("network", network, ("default", "none", "host")),
        ("security", security, ("sandbox", "insecure")),
    ):
        if value and value not in known:
            hint = nearest(value, known)
            raise _Wrong(f"--{flag}={value} is not valid: one of {', '.join(known)}{hint}")
    return Run(
        node.text,
        node.line,
        node.arguments,
        not node.is_json,
        mounts,
        network,
        security,
        () if node.is_json else node.heredocs,
    )


def _shell(node: Node) -> Instruction:
    _flags_of(node, Shell)
    _some(node)
    if not node.is_json:
        raise _Wrong("SHELL requires the arguments to be in JSON form")
    return Shell(node.text, node.line, node.arguments)


def _pairs(kind: type[NamedValues]) -> Callable[[Node], Instruction]:
    def make(node: Node) -> Instruction:
        _flags_of(node, kind)
        members = iter(_some(node))
        pairs = tuple(zip(members, members, strict=True))
        if any(not key for key, _ in pairs):
            raise _Wrong(f"{kind.name} names can not be blank")
        return kind(node.text, node.line, pairs)

    return make


def _arg(node: Node) -> Instruction:
    _flags_of(node, Arg)
    arguments: list[tuple[str, str | None]] = []
    for word in _some(node):
        key, sign, value = word.partition("=")
        if not key:
            raise _Wrong("ARG names can not be blank")
        arguments.append((key, value if sign else None))
    return Arg(node.text, node.line, tuple(arguments))


def _workdir(node: Node) -> Instruction:
    _flags_of(node, Workdir)
    return Workdir(node.text, node.line, _one(node))


def _user(node: Node) -> Instruction:
    _flags_of(node, User)
    return User(node.text, node.line, _one(node))


def _expose(node: Node) -> Instruction:
    _flags_of(node, Expose)
    return Expose(node.text, node.line, tuple(sorted(_some(node))))


def _volume(node: Node) -> Instruction:
    _flags_of(node, Volume)
    paths = tuple(path.strip() for path in _some(node))
    if not all(paths):
        raise _Wrong("VOLUME specified can not be an empty string")
    return Volume(node.text, node.line, paths)


def _copy(kind: type[Copy]) -> Callable[[Node], Instruction]:
    def make(node: Node) -> Instruction:
        if len(node.arguments) < 2:
            raise _Wrong(
                f"{kind.name} requires at least two arguments, but only "
                f"{'one was' if node.arguments else 'none were'} provided. Destination could "
                "not be determined"
            )
        flags = _flags_of(node, kind)
        *sources, destination = node.arguments
        if not node.is_json:
            if heredoc_of(destination) is not None:
                raise _Wrong(f"{kind.name} cannot accept a heredoc as a destination")
            sources = [each for each in sources if heredoc_of(each) is None]
        if kind is Copy:
            for source in sources:
                if remote.is_url(source):
                    raise _Wrong("source can't be a URL for COPY")
                if remote.is_git(source):
                    raise _Wrong("source can't be a git ref for COPY")
        copied = kind(
            node.text,
            node.line,
            tuple(sources),
            destination,
            flags.get("from"),
            flags.get("chown"),
            flags.get("chmod"),
            bool(flags.on("link")),
            flags.all("exclude"),
            bool(flags.on("parents")),
            () if node.is_json else node.heredocs,
        )
        if isinstance(copied, Add):
            copied = replace(
                copied,
                keep_git_dir=bool(flags.on("keep-git-dir")),
                checksum=flags.get("checksum"),
                unpack=flags.on("unpack"),
            )
            _check_checksum(copied)
        return copied

    return make


def _check_checksum(added: Add) -> None:
    if not added.checksum:
        return
    if len(added.sources) != 1 or added.heredocs:
        raise _Wrong("checksum can't be specified for multiple sources")
    source = added.sources[0]
    if "$" not in source and not remote.is_url(source) and not remote.is_git(source):
        raise _Wrong("checksum requires HTTP(S) or Git sources")


def _stop_signal(node: Node) -> Instruction:
    _flags_of(node, StopSignal)
    return StopSignal(node.text, node.line, _one(node))


def _healthcheck(node: Node) -> Instruction:
    kind, *command = _some(node)
    if kind.upper() == "NONE":
        if command:
            raise _Wrong("HEALTHCHECK NONE takes no arguments")
        return Healthcheck(node.text, node.line, ("NONE",))
    flags = _flags_of(node, Healthcheck)
    if kind.upper() != "CMD":
        raise _Wrong(f"Unknown type {quoted(kind.upper())} in HEALTHCHECK (try CMD)")
    if not command:
        raise _Wrong("Missing command after HEALTHCHECK CMD")
    retries = flags.get("retries") or "0"
    try:
        tries = int(retries)
    except ValueError:
        raise _Wrong(f"--retries must be a number, not {quoted(retries)}") from None
    if tries < 0:
        raise _Wrong(f"--retries cannot be negative ({tries})")
    return Healthcheck(
        node.text,
        node.line,
        ("CMD" if node.is_json else "CMD-SHELL", *command),
        interval=_interval("interval", flags.get("interval")),
        timeout=_interval("timeout", flags.get("timeout")),
        start_period=_interval("start-period", flags.get("start-period")),
        start_interval=_interval("start-interval", flags.get("start-interval")),
        retries=tries,
    )


def _interval(name: str, text: str) -> int:
    """A duration as Go writes it (``1m30s``), in nanoseconds."""
    if not text:
        return 0
    try:
        total = parse_duration(text)
    except Malformed:
        raise _Wrong(
            f"--{name}: invalid duration {quoted(text)} (write it as 30s, or 1m30s)"
        ) from None
    if total and total < 1_000_000:
        raise _Wrong(f"Interval {quoted(name)} cannot be less than 1ms")
    return total


def _onbuild(node: Node) -> Instruction:
    _flags_of(node, OnBuild)
    expression = _some(node)[0]
    trigger = node.child.name.upper() if node.child is not None else ""
    if trigger == "ONBUILD":
        raise _Wrong("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("FROM", "MAINTAINER"):
        raise _Wrong(f"{trigger} isn't allowed as an ONBUILD trigger")
    if node.child is not None:
        typed(node.child)  # an error in the trigger is an error here, where its line is known
    texts = (f"\n{each.content}{each.name}" for each in node.heredocs)
    return OnBuild(node.text, node.line, "".join([expression, *texts]))


def _maintainer(node: Node) -> Instruction:
    _flags_of(node, Maintainer)
    return Maintainer(node.text, node.line, _one(node))


_MAKERS: dict[str, Callable[[Node], Instruction]] = {
    "ADD": _copy(Add),
    "ARG": _arg,
    "CMD": _command(Cmd),
    "COPY": _copy(Copy),
    "ENTRYPOINT": _command(Entrypoint),
    "ENV": _pairs(Env),
    "EXPOSE": _expose,
    "FROM": _from,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _pairs(Label),
    "MAINTAINER": _maintainer,
    "ONBUILD": _onbuild,
    "RUN": _run,
    "SHELL": _shell,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
