"""A command: what it is called, which flags it takes, what it does, and its help text.

A command's function gets an ``Invocation`` (its options, its arguments, the client of the daemon)
and returns the exit code. Wrong flags end with 125, a wrong number of arguments with 1, as docker's
do; everything else that goes wrong is raised as a TiffinError and ends with the command's own
code.
"""

from __future__ import annotations

import sys

from tiffin.cli.flags import BOOL, Flag, FlagError, FlagSet, HelpWanted, Options
from tiffin.errors import TiffinError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tiffin.client.connection import Client
    from tiffin.client.endpoint import Endpoint


class CommandError(TiffinError):
    """A command can't do what was asked; carries the exit code to end with."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Invocation:
    """One run of a command."""

    __slots__ = ("_client", "arguments", "endpoint", "name", "options")

    def __init__(
        self, name: str, options: Options, arguments: list[str], endpoint: Endpoint
    ) -> None:
        self.name = name
        self.options = options
        self.arguments = arguments
        self.endpoint = endpoint
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The connection to the daemon; the first use connects, starting a daemon if need be."""
        if self._client is None:
            from tiffin.client.connection import Client

            self._client = Client(self.endpoint)
        return self._client

    def each(self, action: Callable[[str], None]) -> int:
        """Does ``action`` for each argument; one that fails is reported and the rest goes on."""
        code = 0
        for argument in self.arguments:
            try:
                action(argument)
            except TiffinError as error:
                report(error.message)
                code = 1
        return code


class Command:
    """A command of the table; ``usage`` is the line after its name (``[OPTIONS] CONTAINER``)."""

    __slots__ = ("flags", "interspersed", "maximum", "minimum", "notes", "run", "short", "usage")

    def __init__(
        self,
        run: Callable[[Invocation], int],
        short: str,
        usage: str,
        flags: tuple[Flag, ...] = (),
        *,
        minimum: int = 0,
        maximum: int | None = None,
        interspersed: bool = True,
        notes: str = "",
    ) -> None:
        self.run = run
        self.short = short
        self.usage = usage
        self.flags = flags
        self.minimum = minimum
        self.maximum = maximum
        self.interspersed = interspersed
        self.notes = notes

    def invoke(self, name: str, words: Sequence[str], endpoint: Endpoint) -> int:
        """Parses the words that follow the command's name and runs it."""
        usage = f"Usage:  {name} {self.usage}".rstrip()
        try:
            options, arguments = FlagSet(self.flags, interspersed=self.interspersed).parse(words)
        except HelpWanted:
            sys.stdout.write(self.help(name))
            return 0
        except FlagError as error:
            report(f"{error}\n\n{usage}\n\nRun '{name} --help' for more information")
            return 125
        wrong = self._wrong_count(name, len(arguments))
        if wrong:
            report(f"tiffin: {wrong}\n\n{usage}\n\nRun '{name} --help' for more information")
            return 1
        return self.run(Invocation(name, options, arguments, endpoint))

    def _wrong_count(self, name: str, count: int) -> str:
        if self.minimum <= count and (self.maximum is None or count <= self.maximum):
            return ""
        if self.maximum == 0:
            return f"'{name}' accepts no arguments"
        if self.maximum == self.minimum:
            return f"'{name}' requires {_arguments(self.minimum)}"
        if count < self.minimum:
            return f"'{name}' requires at least {_arguments(self.minimum)}"
        return f"'{name}' requires at most {_arguments(self.maximum or 0)}"

    def help(self, name: str) -> str:
        """The help text: what the command does, how it is called, and its flags."""
        parts = [f"Usage:  {name} {self.usage}".rstrip(), "", self.short]
        if self.notes:
            parts += ["", self.notes]
        if self.flags:
            parts += ["", "Options:", *flag_lines(self.flags)]
        return "\n".join(parts) + "\n"


def _arguments(count: int) -> str:
    return f"{count} argument" if count == 1 else f"{count} arguments"


def flag_lines(flags: Sequence[Flag]) -> list[str]:
    """The two columns of a help text that list the flags."""
    from shutil import get_terminal_size
    from textwrap import wrap

    rows = []
    for flag in sorted(flags, key=lambda flag: flag.name):
        start = f"  -{flag.short}, " if flag.short else "      "
        text = flag.help
        if flag.kind is BOOL and flag.default:
            text += " (default true)"
        elif flag.kind is not BOOL and flag.default not in (None, ""):
            text += f" (default {flag.default})"
        rows.append((f"{start}--{flag.name} {flag.kind.name}".rstrip(), text))
    indent = max(len(start) for start, _ in rows) + 3
    width = max(get_terminal_size().columns, indent + 24)
    lines = []
    for start, text in rows:
        wrapped = wrap(text, width - indent) or [""]
        lines.append(f"{start:<{indent}}{wrapped[0]}".rstrip())
        lines.extend(" " * indent + more for more in wrapped[1:])
    return lines


def report(message: str) -> None:
    """A message for the person, on stderr."""
    sys.stdout.flush()
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
