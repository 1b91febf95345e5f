"""``build --check``: what is questionable in a Dockerfile, without building it.

The rules are in :mod:`tiffin.build.rules`; here each is tested, in one pass over the stages that
follows what a build would do with variables. ``# check=skip=A,B;error=true`` in the file leaves
rules out (``all`` for every one), or makes findings fail; ``experimental=`` lets experimental ones
in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tiffin.build import instructions as dockerfile
from tiffin.build.arguments import PREDEFINED, Arguments
from tiffin.build.dockerignore import Ignore
from tiffin.build.excerpt import excerpt
from tiffin.build.instructions import Arg, Copy, From, Instruction
from tiffin.build.parser import Dockerfile, Node
from tiffin.build.remote import is_git, is_url
from tiffin.build.rules import RULES, Rule
from tiffin.build.stages import typed
from tiffin.build.suggestion import nearest
from tiffin.build.wildcards import has_wildcards
from tiffin.errors import InvalidParameter
from tiffin.image.reference import Reference

_RESERVED = ("context", "scratch")
_SECRET = re.compile(
    r"(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)", re.I
)
_PUBLIC = re.compile(r"(?:_|^)public(?:_|$)", re.I)
_ONCE = ("CMD", "ENTRYPOINT", "HEALTHCHECK")
_SKIP_ALL = "all"

BaseEnvironment = Callable[[str], Mapping[str, str] | None]
"""The variables of a base image by its name; None if it is not here."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a rule objects to."""

    rule: Rule
    message: str
    line: int
    last_line: int
    column: int

    def shown(self, name: str, lines: tuple[str, ...]) -> str:
        """With the source, as it is printed."""
        where = excerpt(name, lines, self.line, self.last_line, self.column)
        return f"WARNING: {self.rule.name} - {self.rule.url}\n{self.message}\n{where}"

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            "rule": self.rule.name,
            "url": self.rule.url,
            "message": self.message,
            "line": self.line,
            "lastLine": self.last_line,
            "column": self.column,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What a check has found."""

    findings: tuple[Finding, ...]
    is_error: bool
    """Whether the file says that findings fail a build."""


@dataclass(slots=True)
class _Settings:
    skip: set[str] = field(default_factory=set)
    experimental: set[str] = field(default_factory=set)
    error: bool = False

    @classmethod
    def of(cls, directive: str) -> _Settings:
        found = cls()
        for part in directive.split(";"):
            name, _, value = part.strip().partition("=")
            names = {each.strip() for each in value.split(",") if each.strip()}
            match name.strip().lower():
                case "skip":
                    found.skip |= names
                case "experimental":
                    found.experimental |= names
                case "error":
                    if value.strip().lower() not in ("true", "false"):
                        raise InvalidParameter(f"invalid check directive: error={value.strip()}")
                    found.error = value.strip().lower() == "true"
                case "":
                    pass
                case other:
                    known = ("skip", "error", "experimental")
                    raise InvalidParameter(f"unknown check option {other!r}{nearest(other, known)}")
        for name in (found.skip | found.experimental) - {_SKIP_ALL} - set(RULES):
            raise InvalidParameter(f"unknown check {name!r}{nearest(name, RULES)}")
        return found

    def wants(self, rule: Rule) -> bool:
        if rule.experimental and not self.experimental & {_SKIP_ALL, rule.name}:
            return False
        return not self.skip & {_SKIP_ALL, rule.name}


def check(
    file: Dockerfile,
    *,
    ignore: Ignore | None = None,
    environment: BaseEnvironment = lambda name: None,
    build_args: Mapping[str, str | None] | None = None,
) -> Report:
    """Test every rule; raises InvalidParameter for a file that can't be typed."""
    settings = _Settings.of(file.directives.get("check", ""))
    checker = _Checker(file, ignore, environment, build_args or {})
    findings = [each for each in checker.run() if settings.wants(each.rule)]
    findings.sort(key=lambda each: (each.line, each.column, each.rule.name))
    return Report(tuple(findings), settings.error)


class _Noted(Mapping[str, str]):
    """Variables, and which ones were asked for that are not there."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self.missing: list[str] = []

    def __getitem__(self, name: str) -> str:
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def get(self, name: str, default: Any = None) -> Any:
        # Where a default is at hand nobody is surprised: `${name:-…}` asks without one.
        if default is not None and name not in self._variables and name not in self.missing:
            self.missing.append(name)
        return self._variables.get(name, default)


@dataclass(slots=True)
class _StageSoFar:
    node: Node
    base: From
    arguments: Arguments
    environment: dict[str, str]
    knows_base: bool
    workdir: bool = False
    shell: bool = False
    once: dict[str, Node] = field(default_factory=dict)


class _Checker:
    def __init__(
        self,
        file: Dockerfile,
        ignore: Ignore | None,
        environment: BaseEnvironment,
        build_args: Mapping[str, str | None],
    ) -> None:
        self._file = file
        self._ignore = ignore
        self._environment = environment
        self._found: list[Finding] = []
        self._arguments = Arguments(build_args)
        self._defaults = Arguments({})
        self._stages: dict[str, _StageSoFar] = {}
        self._stage: _StageSoFar | None = None
        self._names: set[str] = set()
        self._declared: set[str] = set()

    def run(self) -> list[Finding]:
        self._casing()
        for node in self._file.nodes:
            instruction = typed(node)
            if node.has_gaps:
                self._say("NoEmptyContinuation", "Empty continuation line", node)
            self._description(node, instruction)
            if isinstance(instruction, From):
                self._from(node, instruction)
            elif self._stage is None:
                if isinstance(instruction, Arg):
                    self._global(node, instruction)
            else:
                self._step(self._stage, node, instruction)
        return self._found

    def _say(self, name: str, message: str, node: Node, word: str = "") -> None:
        line, column = self._place(node, word)
        self._found.append(Finding(RULES[name], message, line, max(line, node.last_line), column))

    def _place(self, node: Node, word: str) -> tuple[int, int]:
        """Where a word of an instruction stands; the instruction's own place for none."""
        for number in range(node.line, node.last_line + 1):
            text = self._file.lines[number - 1]
            if word and word in text:
                return number, text.index(word) + 1
        text = self._file.lines[node.line - 1]
        return node.line, len(text) - len(text.lstrip()) + 1

    # -- the file as a whole

    def _casing(self) -> None:
        nodes = self._file.nodes
        lower = sum(node.name.islower() for node in nodes)
        upper = sum(node.name.isupper() for node in nodes)
        case = "lowercase" if lower > upper else "uppercase"
        for node in nodes:
            if not (node.name.islower() if lower > upper else node.name.isupper()):
                self._say(
                    "ConsistentInstructionCasing",
                    f"Command '{node.name}' should match the case of the command majority ({case})",
                    node,
                )

    def _description(self, node: Node, instruction: Instruction) -> None:
        name = ""
        if isinstance(instruction, From):
            name = node.arguments[2] if len(node.arguments) == 3 else ""
        elif isinstance(instruction, Arg) and len(instruction.arguments) == 1:
            name = instruction.arguments[0][0]
        above = self._file.lines[node.line - 2].strip() if node.line > 1 else ""
        comment = above.lstrip("#").strip()
        if not name or not above.startswith("#") or not comment:
            return
        if node.line - 1 <= len(self._file.directives) or comment.split()[0] == name:
            return
        self._say(
            "InvalidDefinitionDescription",
            f"Comment for {instruction.name} should follow the format: `# {name} <description>`",
            node,
        )

    # -- above and at FROM

    def _global(self, node: Node, instruction: Arg) -> None:
        self._secrets(node, instruction)
        self._declared |= {name for name, _ in instruction.arguments}
        noted = _Noted({**self._arguments.globals, **_proxies()})
        declared = instruction.substituted(noted, self._file.escape)
        self._undefined(node, noted)
        self._arguments.declare_global(declared)
        self._defaults.declare_global(
            instruction.substituted(self._defaults.globals, self._file.escape)
        )

    def _from(self, node: Node, written: From) -> None:
        words = node.arguments
        if len(words) == 3:
            self._stage_name(node, words[2])
            if (
                words[1].isupper() != node.name.isupper()
                or words[1].islower() != node.name.islower()
            ):
                self._say(
                    "FromAsCasing",
                    f"'{words[1]}' and '{node.name}' keywords' casing do not match",
                    node,
                    f" {words[1]} ",
                )
        noted = _Noted(self._arguments.globals)
        try:
            base = written.substituted(noted, self._file.escape)
        except InvalidParameter:
            base = written
        for name in noted.missing:
            if name in self._declared:
                continue
            hint = nearest(name, self._arguments.globals)
            self._say(
                "UndefinedArgInFrom", f"FROM argument '{name}' is not declared{hint}", node, name
            )
        self._defaults_make_a_name(node, written)
        self._platform(node, written)
        self._begin_stage(node, base)

    def _stage_name(self, node: Node, name: str) -> None:
        if name != name.lower():
            self._say("StageNameCasing", f"Stage name '{name}' should be lowercase", node, name)
        if name.lower() in self._names:
            self._say(
                "DuplicateStageName",
                f'Duplicate stage name "{name}", stage names should be unique',
                node,
                name,
            )
        if name.lower() in _RESERVED:
            self._say(
                "ReservedStageName",
                f'Stage name should not use the same name as reserved stage "{name}"',
                node,
                name,
            )
        self._names.add(name.lower())

    def _defaults_make_a_name(self, node: Node, written: From) -> None:
        if "$" not in written.image:
            return
        noted = _Noted(self._defaults.globals)
        try:
            name = written.substituted(noted, self._file.escape).image
            Reference.parse(name)
        except InvalidParameter:
            if set(noted.missing) - self._declared - set(self._arguments.globals):
                return  # it is not declared at all: said already
            self._say(
                "InvalidDefaultArgInFrom",
                f"Default value for ARG {written.image} results in empty or invalid base image "
                "name",
                node,
                written.image,
            )

    def _platform(self, node: Node, written: From) -> None:
        platform = written.platform
        if platform in ("$TARGETPLATFORM", "${TARGETPLATFORM}"):
            self._say(
                "RedundantTargetPlatform",
                f"Setting platform to predefined {platform} in FROM is redundant as this is the "
                "default behavior",
                node,
                "--platform",
            )
        elif platform and "$" not in platform:
            self._say(
                "FromPlatformFlagConstDisallowed",
                f'FROM --platform flag should not use constant value "{platform}"',
                node,
                "--platform",
            )

    def _begin_stage(self, node: Node, base: From) -> None:
        earlier = self._stages.get(base.image.lower())
        arguments = self._arguments.of_stage(base.stage or "default")
        if earlier is not None:
            arguments = self._arguments.of_stage(base.stage or "default", earlier.arguments)
            stage = _StageSoFar(
                node,
                base,
                arguments,
                dict(earlier.environment),
                earlier.knows_base,
                earlier.workdir,
                earlier.shell,
            )
        else:
            known = {} if base.image == "scratch" else self._environment(base.image)
            stage = _StageSoFar(
                node, base, arguments, {"PATH": "", **(known or {})}, known is not None
            )
        self._stage = stage
        if base.stage:
            self._stages[base.stage] = stage
        self._stages[str(len({id(each) for each in self._stages.values()}) - 1)] = stage

    def _json(self, node: Node) -> None:
        self._say(
            "JSONArgsRecommended",
            f"JSON arguments recommended for {node.name.upper()} to prevent unintended behavior "
            "related to OS signals",
            node,
        )

    # -- steps

    def _step(self, stage: _StageSoFar, node: Node, written: Instruction) -> None:
        noted = _Noted({**stage.arguments.visible(stage.environment), **_proxies()})
        instruction = written.substituted(noted, self._file.escape)
        if stage.knows_base:
            self._undefined(node, noted)
        kind = instruction.name
        if kind in _ONCE:
            before = stage.once.get(kind)
            if before is not None:
                self._say(
                    "MultipleInstructionsDisallowed",
                    f"Multiple {kind} instructions should not be used in the same stage because "
                    "only the last one will be used",
                    before,
                )
            stage.once[kind] = node
        is_shell = kind in ("CMD", "ENTRYPOINT") and not node.is_json and bool(node.arguments)
        if is_shell and not stage.shell:
            self._json(node)
        match instruction:
            case Arg():
                self._secrets(node, instruction)
                stage.arguments.declare(instruction)
            case dockerfile.Env():
                self._legacy(node)
                for name, value in instruction.pairs:
                    self._secret(node, "ENV", name)
                    stage.environment[name] = value
            case dockerfile.Label():
                self._legacy(node)
            case dockerfile.Maintainer():
                self._say(
                    "MaintainerDeprecated",
                    "Maintainer instruction is deprecated in favor of using label",
                    node,
                )
            case dockerfile.Shell():
                stage.shell = True
            case dockerfile.Workdir():
                self._workdir(stage, node, instruction.path)
            case dockerfile.Expose():
                self._expose(node, instruction)
            case Copy():
                self._copy(node, instruction)
            case _:
                pass

    def _undefined(self, node: Node, noted: _Noted) -> None:
        for name in noted.missing:
            hint = nearest(name, noted)
            hint = hint.replace("(did you mean ", "(did you mean $")
            self._say("UndefinedVar", f"Usage of undefined variable '${name}'{hint}", node, name)

    def _secrets(self, node: Node, instruction: Arg) -> None:
        for name, _ in instruction.arguments:
            self._secret(node, "ARG", name)

    def _secret(self, node: Node, kind: str, name: str) -> None:
        if _SECRET.search(name) and not _PUBLIC.search(name):
            self._say(
                "SecretsUsedInArgOrEnv",
                f'Do not use ARG or ENV instructions for sensitive data ({kind} "{name}")',
                node,
                name,
            )

    def _legacy(self, node: Node) -> None:
        if node.is_legacy:
            name = node.name.upper()
            self._say(
                "LegacyKeyValueFormat",
                f'"{name} key=value" should be used instead of legacy "{name} key value" format',
                node,
            )

    def _workdir(self, stage: _StageSoFar, node: Node, path: str) -> None:
        if path.startswith("/"):
            stage.workdir = True
        elif not stage.workdir:
            self._say(
                "WorkdirRelativePath",
                f'Relative workdir "{path}" can have unexpected results if the base image changes',
                node,
                path,
            )

    def _expose(self, node: Node, instruction: dockerfile.Expose) -> None:
        for port in instruction.ports:
            protocol = port.partition("/")[2]
            if protocol != protocol.lower():
                self._say(
                    "ExposeProtoCasing",
                    f"Defined protocol '{port}' in EXPOSE instruction should be lowercase",
                    node,
                    port,
                )
            if ":" in port:
                self._say(
                    "ExposeInvalidFormat",
                    "EXPOSE instruction should not define an IP address or host-port mapping, "
                    f"found '{port}'",
                    node,
                    port,
                )

    def _copy(self, node: Node, instruction: Copy) -> None:
        if self._ignore is None or instruction.source_stage:
            return
        for source in instruction.sources:
            if is_url(source) or is_git(source) or has_wildcards(source):
                continue
            path = "/".join(part for part in source.split("/") if part not in ("", "."))
            if path and self._ignore.excludes(path):
                self._say(
                    "CopyIgnoredFile",
                    f'Attempting to {instruction.name} file "{source}" that is excluded by '
                    ".dockerignore",
                    node,
                    source,
                )


def _proxies() -> dict[str, str]:
    return dict.fromkeys(PREDEFINED, "")
