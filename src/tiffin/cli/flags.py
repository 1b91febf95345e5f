"""Flags of a command line, in the grammar that docker's users know.

A *flag* has a name (``--name``), perhaps a shorthand (``-n``), and a *kind*, which says how its
text becomes a value. Rules of the grammar (that of the pflag library, which docker's CLI uses):

- ``--name value``, ``--name=value``; a boolean flag takes its value only after ``=``;
- shorthands bundle (``-it``) and take the rest of the word as their value (``-p80:80``, ``-n=5``);
- a lone ``-`` is an argument, ``--`` ends the flags;
- flags may follow arguments, except for commands that pass the rest on (run, exec, top);
- lists add up when a flag is given again, everything else is overwritten.

The table of a command is data, so help texts and parsing come from the same place. Nothing here
imports anything: this is on the start path of each command.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))


class FlagError(Exception):
    """The command line has a flag that does not exist, lacks its value or has a wrong one."""


class HelpWanted(Exception):
    """``--help`` was given."""


class Kind:
    """How the text of a flag becomes a value: ``convert`` raises ValueError with the reason."""

    __slots__ = ("convert", "many", "name")

    def __init__(self, name: str, convert: Callable[[str], Any], *, many: bool = False) -> None:
        self.name = name
        self.convert = convert
        self.many = many


def parse_bool(text: str) -> bool:
    """``true``, ``1``, ``f``…; raises ValueError for anything else."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f"strconv.ParseBool: parsing {quote(text)}: invalid syntax")


def parse_int(text: str) -> int:
    """A whole number in decimal, or in another base by its prefix; raises ValueError."""
    try:
        number = int(text, 0)
    except ValueError:
        raise ValueError(f"strconv.ParseInt: parsing {quote(text)}: invalid syntax") from None
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"strconv.ParseInt: parsing {quote(text)}: value out of range")
    return number


def quote(text: str) -> str:
    """``text`` in double quotes, as Go's %q shows it."""
    out = ['"']
    for char in text:
        if char in '"\\':
            out.append("\\" + char)
        elif char == "\n":
            out.append("\\n")
        elif char == "\t":
            out.append("\\t")
        elif char == "\r":
            out.append("\\r")
        elif not char.isprintable():
            out.append(f"\\x{ord(char):02x}" if ord(char) < 0x80 else f"\\u{ord(char):04x}")
        else:
            out.append(char)
    out.append('"')
    return "".join(out)


BOOL = Kind("", parse_bool)
STRING = Kind("string", str)
INT = Kind("int", parse_int)
LIST = Kind("list", str, many=True)


class Flag:
    """One flag of a command."""

    __slots__ = ("default", "help", "kind", "name", "short")

    def __init__(
        self, name: str, kind: Kind, help: str, *, short: str = "", default: Any = None
    ) -> None:
        self.name = name
        self.kind = kind
        self.help = help
        self.short = short
        if default is None:
            default = False if kind is BOOL else "" if kind is STRING else default
        self.default = default

    @property
    def title(self) -> str:
        """How messages name the flag: ``-n, --name``."""
        return f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"


class Options:
    """What the command line said: values by flag name, and which flags were given at all."""

    __slots__ = ("_values", "given")

    def __init__(self, values: dict[str, Any], given: set[str]) -> None:
        self._values = values
        self.given = given

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a flag that this command may not have."""
        return self._values.get(name, default)


class FlagSet:
    """The flags of one command, ready to parse with."""

    def __init__(self, flags: Iterable[Flag], *, interspersed: bool = True) -> None:
        self._long = {flag.name: flag for flag in flags}
        self._short = {flag.short: flag for flag in self._long.values() if flag.short}
        self._interspersed = interspersed

    def parse(self, words: Sequence[str]) -> tuple[Options, list[str]]:
        """Splits the words of a command line into options and arguments.

        Raises FlagError, whose text is pflag's own sentence for the case, and HelpWanted.
        """
        values: dict[str, Any] = {
            flag.name: [] if flag.kind.many else flag.default for flag in self._long.values()
        }
        given: set[str] = set()
        arguments: list[str] = []
        position = 0
        while position < len(words):
            word = words[position]
            position += 1
            if word == "--":
                arguments.extend(words[position:])
                break
            if len(word) < 2 or word[0] != "-":
                arguments.append(word)
                if not self._interspersed:
                    arguments.extend(words[position:])
                    break
                continue
            if word[1] == "-":
                position = self._long_flag(word, words, position, values, given)
            else:
                position = self._short_flags(word, words, position, values, given)
        return Options(values, given), arguments

    def _long_flag(
        self,
        word: str,
        words: Sequence[str],
        position: int,
        values: dict[str, Any],
        given: set[str],
    ) -> int:
        name, equals, text = word[2:].partition("=")
        if not name or name[0] == "-":
            raise FlagError(f"bad flag syntax: {word}")
        flag = self._long.get(name)
        if flag is None:
            if name == "help":
                raise HelpWanted
            raise FlagError(f"unknown flag: --{name}")
        if not equals:
            if flag.kind is BOOL:
                text = "true"
            elif position < len(words):
                text = words[position]
                position += 1
            else:
                raise FlagError(f"flag needs an argument: --{name}")
        self._set(flag, text, values, given)
        return position

    def _short_flags(
        self,
        word: str,
        words: Sequence[str],
        position: int,
        values: dict[str, Any],
        given: set[str],
    ) -> int:
        bundle = word[1:]
        while bundle:
            letter, rest = bundle[0], bundle[1:]
            flag = self._short.get(letter)
            if flag is None:
                if letter == "h":
                    raise HelpWanted
                raise FlagError(f"unknown shorthand flag: '{letter}' in -{bundle}")
            if len(rest) > 1 and rest[0] == "=":
                text, bundle = rest[1:], ""
            elif flag.kind is BOOL:
                text, bundle = "true", rest
            elif rest:
                text, bundle = rest, ""
            elif position < len(words):
                text, bundle = words[position], ""
                position += 1
            else:
                raise FlagError(f"flag needs an argument: '{letter}' in -{bundle}")
            self._set(flag, text, values, given)
        return position

    @staticmethod
    def _set(flag: Flag, text: str, values: dict[str, Any], given: set[str]) -> None:
        try:
            value = flag.kind.convert(text)
        except ValueError as error:
            raise FlagError(
                f'invalid argument {quote(text)} for "{flag.title}" flag: {error}'
            ) from None
        if flag.kind.many:
            values[flag.name].append(value)
        else:
            values[flag.name] = value
        given.add(flag.name)
