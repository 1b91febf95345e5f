"""What each instruction changes in an image's configuration: pure functions.

The builder uses them for its steps, ``commit --change`` and ``import --change`` for theirs. Also
what the history says of a step: BuildKit's form, ``RUN /bin/sh -c make /app``,
``CMD ["/bin/sh" "-c" "python /app/app.py"]``, without its closing comment.
"""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Iterable, Sequence

from tiffin.build import instructions as dockerfile
from tiffin.build.instructions import Instruction
from tiffin.build.stages import single
from tiffin.build.substitution import quoted
from tiffin.errors import InvalidParameter
from tiffin.image.config import ImageConfig

DEFAULT_SHELL = ("/bin/sh", "-c")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_CHANGES = (
    "CMD",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "HEALTHCHECK",
    "LABEL",
    "ONBUILD",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
)
_PORT = re.compile(r"(\d+)(?:-(\d+))?(?:/([a-zA-Z]*))?")


def apply_changes(config: ImageConfig, changes: Sequence[str]) -> ImageConfig:
    """A configuration with ``--change`` instructions applied, in order.

    Raises InvalidParameter for what is no instruction, or not one that changes a configuration.
    """
    cmd_set = False
    for change in changes:
        name = change.strip().partition(" ")[0]
        if name.upper() not in _CHANGES:
            raise InvalidParameter(
                f"{name.lower()} is not a valid change command (these are: {', '.join(_CHANGES)})"
            )
        instruction = single(change)
        instruction = instruction.substituted(environment(config))
        config = apply(config, instruction, cmd_set=cmd_set)
        cmd_set = cmd_set or instruction.name == "CMD"
    return config


def environment(config: ImageConfig) -> dict[str, str]:
    """The configuration's variables by name."""
    pairs = (item.partition("=") for item in config.env)
    return {name: value for name, _, value in pairs}


def with_path(config: ImageConfig) -> ImageConfig:
    """With Docker's default PATH, if the configuration has none: a stage starts with one, so that
    ``ENV PATH=$PATH:/more`` means something."""
    return config if "PATH" in environment(config) else config.with_env("PATH", DEFAULT_PATH)


def apply(config: ImageConfig, instruction: Instruction, *, cmd_set: bool = False) -> ImageConfig:
    """The configuration after an instruction whose variables are replaced.

    RUN, COPY, ADD and ARG change nothing in it. ``cmd_set`` says whether this stage has had a CMD:
    an ENTRYPOINT drops an inherited one. Raises InvalidParameter with the line.
    """
    match instruction:
        case dockerfile.Env():
            for name, value in instruction.pairs:
                config = config.with_env(name, value)
        case dockerfile.Label():
            config = config.with_labels(dict(instruction.pairs))
        case dockerfile.Workdir():
            config = config.with_working_dir(working_directory(config, instruction.path))
        case dockerfile.User():
            config = config.with_user(instruction.user)
        case dockerfile.Cmd():
            config = config.with_cmd(instruction.resolved(shell(config)))
        case dockerfile.Entrypoint():
            config = config.with_entrypoint(instruction.resolved(shell(config)) or None)
            if not cmd_set:
                config = config.with_cmd(None)
        case dockerfile.Shell():
            config = config.with_shell(instruction.command)
        case dockerfile.Expose():
            config = config.with_exposed_ports(*ports(instruction))
        case dockerfile.Volume():
            config = config.with_volumes(*instruction.paths)
        case dockerfile.StopSignal():
            config = config.with_stop_signal(_checked_signal(instruction))
        case dockerfile.Healthcheck():
            config = config.with_healthcheck(_healthcheck(instruction))
        case dockerfile.OnBuild():
            config = config.with_on_build(instruction.expression)
        case dockerfile.Maintainer():
            config = config.with_author(instruction.author)
        case _:
            pass
    return config


def shell(config: ImageConfig) -> Sequence[str]:
    """What the shell form of a command is handed to."""
    return config.shell or DEFAULT_SHELL


def working_directory(config: ImageConfig, path: str) -> str:
    """Where a WORKDIR of ``path`` leads."""
    joined = posixpath.join("/", config.working_dir, path)
    return posixpath.normpath(joined).replace("//", "/")


def ports(instruction: dockerfile.Expose) -> list[str]:
    """``80/tcp`` for each port of an EXPOSE, ranges taken apart. Raises InvalidParameter."""
    found: list[str] = []
    for text in instruction.ports:
        # Docker takes what `run -p` takes, and uses the container's side of it.
        spec = text.rpartition(":")[2]
        match = _PORT.fullmatch(spec)
        if match is None:
            raise InvalidParameter(f"invalid containerPort: {text} in {instruction.text}")
        first, last = int(match[1]), int(match[2] or match[1])
        protocol = (match[3] or "tcp").lower()
        if protocol not in ("tcp", "udp", "sctp"):
            raise InvalidParameter(f"invalid proto: {match[3]} in {instruction.text}")
        if not 0 < first <= last < 65536:
            raise InvalidParameter(f"invalid containerPort: {text} in {instruction.text}")
        found += [f"{port}/{protocol}" for port in range(first, last + 1)]
    return found


def _checked_signal(instruction: dockerfile.StopSignal) -> str:
    text = instruction.signal
    name = text.upper().removeprefix("SIG")
    known = {each.name.removeprefix("SIG") for each in signal.Signals}
    real_time = re.fullmatch(r"RTM(?:IN(?:\+\d+)?|AX(?:-\d+)?)", name)
    if name in known or real_time or (text.isdecimal() and 0 < int(text) <= 64):
        return text
    raise InvalidParameter(f"Invalid signal: {text} (write it as SIGTERM, or 15)")


def _healthcheck(instruction: dockerfile.Healthcheck) -> dict[str, object]:
    members: dict[str, object] = {
        "Test": list(instruction.test),
        "Interval": instruction.interval,
        "Timeout": instruction.timeout,
        "StartPeriod": instruction.start_period,
        "StartInterval": instruction.start_interval,
        "Retries": instruction.retries,
    }
    return {name: value for name, value in members.items() if value}


def created_by(config: ImageConfig, instruction: Instruction, arguments: Iterable[str] = ()) -> str:
    """What the history says of a step; ``arguments`` (``NAME=value``) are what a RUN sees.

    ``config`` is the configuration after the step.
    """
    name = instruction.name
    match instruction:
        case dockerfile.Run():
            given = list(arguments)
            counted = [f"|{len(given)}", *given] if given else []
            return " ".join([name, *counted, *instruction.resolved(shell(config))])
        case dockerfile.Cmd() | dockerfile.Entrypoint():
            words = " ".join(quoted(word) for word in instruction.resolved(shell(config)))
            return f"{name} [{words}]"
        case dockerfile.Copy():
            return " ".join(
                [
                    name,
                    *_copy_flags(instruction),
                    *instruction.sources,
                    *(f"<<{heredoc.name}" for heredoc in instruction.heredocs),
                    instruction.destination,
                ]
            )
        case dockerfile.Env() | dockerfile.Label():
            return " ".join([name, *(f"{key}={value}" for key, value in instruction.pairs)])
        case dockerfile.Arg():
            words = " ".join(
                key if value is None else f"{key}={value}" for key, value in instruction.arguments
            )
            return f"{name} {words}"
        case dockerfile.Workdir():
            return f"{name} {config.working_dir}"
        case dockerfile.User():
            return f"{name} {instruction.user}"
        case dockerfile.Expose():
            return f"{name} {' '.join(instruction.ports)}"
        case dockerfile.Volume():
            return f"{name} [{' '.join(instruction.paths)}]"
        case dockerfile.Shell():
            return f"{name} [{' '.join(instruction.command)}]"
        case dockerfile.StopSignal():
            return f"{name} {instruction.signal}"
        case dockerfile.OnBuild():
            return f"{name} {instruction.expression}"
        case dockerfile.Maintainer():
            return f"{name} {instruction.author}"
        case _:
            return instruction.text


def _copy_flags(instruction: dockerfile.Copy) -> list[str]:
    flags = [
        f"--{flag}={value}"
        for flag, value in (
            ("from", instruction.source_stage),
            ("chown", instruction.chown),
            ("chmod", instruction.chmod),
        )
        if value
    ]
    flags += [f"--exclude={pattern}" for pattern in instruction.excludes]
    flags += ["--link"] if instruction.link else []
    flags += ["--parents"] if instruction.parents else []
    if isinstance(instruction, dockerfile.Add):
        flags += ["--keep-git-dir"] if instruction.keep_git_dir else []
        flags += [f"--checksum={instruction.checksum}"] if instruction.checksum else []
        if instruction.unpack is not None:
            flags.append(f"--unpack={str(instruction.unpack).lower()}")
    return flags
