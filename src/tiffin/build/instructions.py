"""What the instructions of a Dockerfile are: typed, with their variables replaceable.

They are made, and checked, by :mod:`tiffin.build.stages`.

Variables are replaced in: ADD, COPY (also in their heredocs), ``RUN --mount``, ENV, EXPOSE, LABEL,
STOPSIGNAL, USER, VOLUME, WORKDIR and ARG, and, from the arguments above the first FROM alone, in
FROM. Not in RUN, CMD, ENTRYPOINT, SHELL and HEALTHCHECK (a shell does that), nor in ONBUILD (the
triggered instruction does) and MAINTAINER.

Source: the Dockerfile reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from tiffin.build.mounts import RunMount
from tiffin.build.parser import Heredoc, error_at, heredoc_of
from tiffin.build.substitution import substitute, substitute_text, substitute_words

Pair = tuple[str, str]

SCRIPTS = "/dev/pipes/"
"""Where a script with a ``#!`` line is found in the container."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, with where and how it was written."""

    name: ClassVar[str]
    flags: ClassVar[tuple[str, ...]] = ()
    """The flags that it takes."""
    switches: ClassVar[tuple[str, ...]] = ()
    """Those of them that may stand without a value."""
    repeated: ClassVar[tuple[str, ...]] = ()
    """Those of them that may be given several times."""
    later_flags: ClassVar[tuple[str, ...]] = ()
    """Flags that exist, and that tiffin does not support yet."""

    text: str = field(compare=False)
    """The instruction as written, on one line."""
    line: int = field(compare=False)

    def substituted(self, variables: Mapping[str, str], escape: str = "\\") -> Self:
        """The instruction with its variables replaced; raises InvalidParameter."""
        return self


@dataclass(frozen=True, slots=True)
class From(Instruction):
    """The start of a stage: the image, or earlier stage, that it builds on."""

    name = "FROM"
    flags = ("platform",)
    image: str = ""
    stage: str = ""
    """The stage's name, in lower case, or empty."""
    platform: str = ""

    def substituted(self, variables: Mapping[str, str], escape: str = "\\") -> Self:
        image = substitute(self.image, variables, escape)
        if not image:
            raise error_at(self.line, f"base name ({self.image}) should not be blank")
        platform = substitute(self.platform, variables, escape)
        return replace(self, image=image, platform=platform)


@dataclass(frozen=True, slots=True)
class ShellOrExec(Instruction):
    """A command, in shell or exec form."""

    command: tuple[str, ...] = ()
    shell: bool = True
    """Whether the command is one text for the shell (else a list, run as it is)."""

    def resolved(self, shell: Iterable[str]) -> list[str]:
        """The command as it is executed, given the stage's shell."""
        return [*shell, *self.command] if self.shell else list(self.command)


@dataclass(frozen=True, slots=True)
class Run(ShellOrExec):
    """A command whose changes to the file system become a layer."""

    name = "RUN"
    flags: ClassVar[tuple[str, ...]] = ("mount", "network", "security")
    repeated: ClassVar[tuple[str, ...]] = ("mount",)
    later_flags: ClassVar[tuple[str, ...]] = ("device",)
    mounts: tuple[RunMount, ...] = ()
    network: str = ""
    """``default``, ``none``, ``host``, or empty for what the build says."""
    security: str = ""
    """``sandbox``, ``insecure``, or empty."""
    heredocs: tuple[Heredoc, ...] = ()

    def substituted(self, variables: Mapping[str, str], escape: str = "\\") -> Self:
        if not self.mounts:
            return self
        return replace(
            self, mounts=tuple(mount.substituted(variables, escape) for mount in self.mounts)
        )

    @property
    def script(self) -> Heredoc | None:
        """The heredoc that is the whole command: ``RUN <<EOF``."""
        if not self.heredocs or not self.shell or heredoc_of(self.command[0]) is None:
            return None
        return self.heredocs[0]

    @property
    def program(self) -> str:
        """The file to put into the container and run, for a script with a ``#!`` line."""
        script = self.script
        return script.text if script is not None and script.text.startswith("#!") else ""

    def resolved(self, shell: Iterable[str]) -> list[str]:
        if not self.heredocs:
            return ShellOrExec.resolved(self, shell)
        script = self.script
        if script is None:
            # The shell reads the texts itself, so they go with the command.
            texts = (f"\n{each.content}{each.name}" for each in self.heredocs)
            return [*shell, "".join([self.command[0], *texts])]
        return [*shell, SCRIPTS + script.name if self.program else script.text]


@dataclass(frozen=True, slots=True)
class Cmd(ShellOrExec):
    """What a container runs, or the arguments of its entrypoint."""

    name = "CMD"


@dataclass(frozen=True, slots=True)
class Entrypoint(ShellOrExec):
    """What a container runs, with CMD as its arguments."""

    name = "ENTRYPOINT"


@dataclass(frozen=True, slots=True)
class Shell(Instruction):
    """What the shell form of RUN, CMD and ENTRYPOINT is handed to."""

    name = "SHELL"
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NamedValues(Instruction):
    """Names with values."""

    pairs: tuple[Pair, ...] = ()

    def substituted(self, variables: Mapping[str, str], escape: str = "\\") -> Self:
        return replace(
            self,
            pairs=tuple(
                (substitute(key, variables, escape), substitute(value, variables, escape))
                for key, value in self.pairs
            ),
        )


@dataclass(frozen=True, slots=True)
class Env(NamedValues):
    """Environment variables, for the following steps and for containers."""

    name = "ENV"


@dataclass(frozen=True, slots=True)
class Label(NamedValues):
    """The image's labels."""

    name = "LABEL"


@dataclass(frozen=True, slots=True)
class Arg(Instruction):
    """Variables of the build alone, which ``--build-arg`` may set."""

    name = "ARG"
    arguments: tuple[tuple[str, str | None], ...] = ()

    def substituted(self, variables: Mapping[str, str], escape: str = "\\") -> Self:
        # An argument's default may use the ones before it in the same instruction.
        known = dict(variables)
        arguments: list[tuple[str, str | None]] = []
        for key, value in self.arguments:
            key = substitute(key, known, escape)
            if value is not None:
                value = substitute(value, known, escape)
                known.setdefault(key, value)
            arguments.append((key, value))
        return replace(self, arguments=tuple(arguments))


@dataclass(frozen=True, slots=True)
class Workdir(Instruction):
    """The directory that the following steps and containers start in."""

    name = "WORKDIR"
    path: str = ""

    def substituted(self, variables: Mapping[str, str], escape: str = "\\") -> Self:
        return replace(self, path=substitute(self.path, variables, escape))


@dataclass(frozen=True, slots=True)
class User(Instruction):
    """Who the following steps and containers run as."""

    name = "USER"
    user: str = ""

    def substituted(self, variables: Mapping[str, str], escape: str = "\\") -> Self:
        return replace(self, user=substitute(self.user, variables, escape))


@dataclass(frozen=True, slots=True)
class Expose(Instruction):
    """Ports that the image's program listens on."""

    name = "EXPOSE"
    ports: tuple[str, ...] = ()

    def substituted(self, variables: Mapping[str, str], escape: str = "\\") -> Self:
        # The one instruction where a variable may bring in several words.
        ports = [port for word in self.ports for port in substitute_words(word, variables, escape)]
        return replace(self, ports=tuple(ports))


@dataclass(frozen=True, slots=True)
class Volume(Instruction):
    """Paths that containers keep in volumes."""

    name = "VOLUME"
    paths: tuple[str, ...] = ()

    def substituted(self, variables: Mapping[str, str], escape: str = "\\") -> Self:
        return replace(
            self, paths=tuple(substitute(path, variables, escape) for path in self.paths)
        )


@dataclass(frozen=True, slots=True)
class Copy(Instruction):
    """Files of the context, of another stage or of an image, copied into the stage."""

    name = "COPY"
    flags: ClassVar[tuple[str, ...]] = ("from", "chown", "chmod", "link", "exclude", "parents")
    switches: ClassVar[tuple[str, ...]] = ("link", "parents")
    repeated: ClassVar[tuple[str, ...]] = ("exclude",)
    sources: tuple[str, ...] = ()
    destination: str = ""
    source_stage: str = ""
    """A stage's name or number, a named context, or an image; empty for the build context."""
    chown: str = ""
    chmod: str = ""
    link: bool = False
    """Whether it takes no notice of what is in the image already."""
    excludes: tuple[str, ...] = ()
    parents: bool = False
    """Whether sources keep the directories that they are written with."""
    heredocs: tuple[Heredoc, ...] = ()
    """Files whose text is in the Dockerfile."""

    def substituted(self, variables: Mapping[str, str], escape: str = "\\") -> Self:
        return replace(
            self,
            sources=tuple(substitute(source, variables, escape) for source in self.sources),
            destination=substitute(self.destination, variables, escape),
            chown=substitute(self.chown, variables, escape),
            chmod=substitute(self.chmod, variables, escape),
            excludes=tuple(substitute(each, variables, escape) for each in self.excludes),
            heredocs=tuple(
                replace(each, content=substitute_text(each.text, variables), chomp=False)
                if each.expand
                else each
                for each in self.heredocs
            ),
        )


@dataclass(frozen=True, slots=True)
class Add(Copy):
    """As COPY, and local tar archives are unpacked, URLs and git repositories fetched."""

    name = "ADD"
    flags = ("chown", "chmod", "link", "exclude", "keep-git-dir", "checksum", "unpack")
    switches = ("link", "keep-git-dir", "unpack")
    keep_git_dir: bool = False
    checksum: str = ""
    unpack: bool | None = None
    """Whether archives are unpacked; None: local ones."""

    def substituted(self, variables: Mapping[str, str], escape: str = "\\") -> Self:
        # Not super(): a class with slots is another one than the one that its methods know.
        added = Copy.substituted(self, variables, escape)
        return replace(added, checksum=substitute(self.checksum, variables, escape))


@dataclass(frozen=True, slots=True)
class StopSignal(Instruction):
    """The signal that stops a container."""

    name = "STOPSIGNAL"
    signal: str = ""

    def substituted(self, variables: Mapping[str, str], escape: str = "\\") -> Self:
        return replace(self, signal=substitute(self.signal, variables, escape))


@dataclass(frozen=True, slots=True)
class Healthcheck(Instruction):
    """How to ask a container whether it is well; durations in nanoseconds, 0 for the default."""

    name = "HEALTHCHECK"
    flags = ("interval", "timeout", "start-period", "start-interval", "retries")
    test: tuple[str, ...] = ()
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class OnBuild(Instruction):
    """An instruction for the builds that start from this image."""

    name = "ONBUILD"
    expression: str = ""


@dataclass(frozen=True, slots=True)
class Maintainer(Instruction):
    """The image's author (LABEL does that better)."""

    name = "MAINTAINER"
    author: str = ""
