"""A Dockerfile's text, taken apart into lines that say something.

A *node* is one instruction as written: its name, its flags, its arguments, and the lines that it
stands on. Nothing is known here of what an instruction means, but for the form of its arguments:
some take the rest of the line, some words, some name and value pairs, some a JSON list.

Rules: a line that ends in the escape character (a backslash, or as ``# escape=`` at the top says)
goes on in the next line. Comment lines and empty lines within such a chain are skipped (the
latter with a warning). Blanks at the start of a line don't count, except on continuation lines.
The directives ``# syntax=``, ``# escape=`` and ``# check=`` count only above everything else.

Source: the Dockerfile reference ("Format", "Parser directives").
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from tiffin.errors import InvalidParameter, Unsupported

_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*$")
_DIRECTIVES = ("syntax", "escape", "check")
_BLANK = re.compile(r"[\t\v\f\r ]+")
_HEREDOC = re.compile(r"\d*<<-?\s*(?:[A-Za-z_]\w*|'[^']+'|\"[^\"]+\")")

_JSON_OR_TEXT = ("CMD", "ENTRYPOINT", "RUN", "SHELL")
_JSON_OR_WORDS = ("ADD", "COPY", "VOLUME")
_WORDS = ("EXPOSE", "FROM")
_PAIRS = ("ENV", "LABEL")


@dataclass(frozen=True, slots=True)
class Node:
    """One instruction as written."""

    name: str
    """As written; instructions are known in any case."""
    flags: tuple[str, ...]
    """``--from=build``, quotes removed."""
    arguments: tuple[str, ...]
    """Depends on the instruction: the rest of the line as one text; words; the members of a JSON
    list; for ENV and LABEL name, value, name, value…; for HEALTHCHECK its type, then as for
    CMD. Quotes and variables are still in them (but for JSON)."""
    is_json: bool
    text: str
    """The whole instruction on one line."""
    line: int
    """The first line, counted from 1."""
    last_line: int
    child: Node | None = None
    """What an ONBUILD triggers."""


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """A parsed file."""

    nodes: tuple[Node, ...]
    escape: str = "\\"
    directives: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def error_at(line: int, problem: str) -> InvalidParameter:
    """The error for something wrong in a Dockerfile."""
    return InvalidParameter(f"dockerfile parse error on line {line}: {problem}")


def unsupported_at(line: int, problem: str) -> Unsupported:
    """The error for something right that tiffin does not do yet."""
    return Unsupported(f"dockerfile parse error on line {line}: {problem}")


def parse(content: bytes | str) -> Dockerfile:
    """Take a Dockerfile apart; raises InvalidParameter with the line, Unsupported for heredocs."""
    if isinstance(content, bytes):
        content = content.decode("utf-8", "surrogateescape")
    reader = _Lines(content.removeprefix("\ufeff").split("\n"))
    if reader.lines[-1] == "":
        reader.lines.pop()
    directives = reader.directives()
    escape = directives.get("escape", "\\")
    nodes: list[Node] = []
    warnings: list[str] = []
    for text, line, last_line, gaps in reader.instructions(escape):
        node = _node(text, line, last_line, escape)
        _refuse_heredoc(node)
        nodes.append(node)
        if gaps:
            warnings.append(f"Empty continuation line found in: {text}")
    if not nodes:
        raise error_at(max(1, len(reader.lines)), "file with no instructions")
    return Dockerfile(tuple(nodes), escape, directives, tuple(warnings))


class _Lines:
    """The file's lines, and how far they are read."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = [line.rstrip("\r") for line in lines]
        self.position = 0

    def directives(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for number, line in enumerate(self.lines, 1):
            match = _DIRECTIVE.match(line.lstrip())
            name = match.group(1).lower() if match else ""
            if match is None or name not in _DIRECTIVES:
                break
            if name in found:
                raise error_at(number, f"only one {name} parser directive can be used")
            value = match.group(2)
            if name == "escape" and value not in ("\\", "`"):
                raise error_at(number, f"invalid escape token '{value}' does not match ` or \\")
            found[name] = value
            self.position = number
        return found

    def instructions(self, escape: str) -> list[tuple[str, int, int, bool]]:
        """Each instruction's joined text, first and last line, and whether lines were empty."""
        mark = re.escape(escape)
        goes_on = re.compile(rf"(?:(?<=[^{mark}])|^){mark}[ \t]*$")
        found: list[tuple[str, int, int, bool]] = []
        while self.position < len(self.lines):
            first = self.position + 1
            line = self.lines[self.position].lstrip()
            self.position += 1
            if not line or line.startswith("#"):
                continue
            pieces, gaps = [], False
            while match := goes_on.search(line):
                pieces.append(line[: match.start()])
                line = ""
                while self.position < len(self.lines):
                    line = self.lines[self.position]
                    self.position += 1
                    stripped = line.lstrip()
                    if stripped and not stripped.startswith("#"):
                        break
                    gaps = gaps or not stripped
                    line = ""
            pieces.append(line)
            text = "".join(pieces)
            if text.strip():
                found.append((text, first, self.position, gaps))
        return found


def _node(text: str, line: int, last_line: int, escape: str) -> Node:
    parts = _BLANK.split(text.strip(), maxsplit=1)
    name, rest = parts[0], parts[1] if len(parts) > 1 else ""
    flags, rest = _flags(rest, escape)
    rest = rest.strip()
    kind = name.upper()
    child: Node | None = None
    is_json = False
    arguments: tuple[str, ...]
    try:
        if kind == "ONBUILD":
            child = _node(rest, line, last_line, escape) if rest else None
            arguments = (rest,) if rest else ()
        elif kind in _PAIRS:
            arguments = _pairs(rest, kind, escape)
        elif kind == "ARG":
            arguments = tuple(_words(rest, escape))
        elif kind in _WORDS:
            arguments = tuple(_BLANK.split(rest)) if rest else ()
        elif kind == "HEALTHCHECK":
            word, command = [*rest.split(maxsplit=1), "", ""][:2]
            arguments, is_json = _json_or(command, words=False)
            arguments = (word, *arguments) if word else ()
        elif kind in _JSON_OR_TEXT or kind in _JSON_OR_WORDS:
            arguments, is_json = _json_or(rest, words=kind in _JSON_OR_WORDS)
        else:
            arguments = (rest,) if rest else ()
    except ValueError as error:
        raise error_at(line, str(error)) from None
    return Node(name, tuple(flags), arguments, is_json, text.strip(), line, last_line, child)


def _flags(rest: str, escape: str) -> tuple[list[str], str]:
    """The ``--flags`` in front of the arguments, and what follows them; ``--`` ends them."""
    flags: list[str] = []
    position = 0
    while True:
        while position < len(rest) and rest[position].isspace():
            position += 1
        if not rest.startswith("--", position):
            return flags, rest[position:]
        word: list[str] = []
        quote = ""
        while position < len(rest) and (quote or not rest[position].isspace()):
            character = rest[position]
            position += 1
            if character == quote:
                quote = ""
            elif not quote and character in "'\"":
                quote = character
            elif character == escape:
                word.append(rest[position : position + 1])
                position += 1
            else:
                word.append(character)
        if word == ["-", "-"]:
            return flags, rest[position:]
        flags.append("".join(word))


def _words(rest: str, escape: str) -> list[str]:
    """Split at blanks outside of quotes; the quotes and escapes stay in the words."""
    words: list[str] = []
    current: list[str] = []
    quote = ""
    position = 0
    while position < len(rest):
        character = rest[position]
        position += 1
        if not quote and character.isspace():
            if current:
                words.append("".join(current))
            current = []
            continue
        if character == escape and quote != "'":
            if position >= len(rest):
                break  # at the very end it escapes nothing
            current += [character, rest[position]]
            position += 1
            continue
        if character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        current.append(character)
    if current:
        words.append("".join(current))
    return words


def _pairs(rest: str, kind: str, escape: str) -> tuple[str, ...]:
    """``a=1 b=2``, or the old form ``a the rest``."""
    words = _words(rest, escape)
    if not words:
        return ()
    if "=" not in words[0]:
        parts = _BLANK.split(rest, maxsplit=1)
        if len(parts) < 2:
            raise ValueError(f"{kind} must have two arguments")
        return (parts[0], parts[1])
    pairs: list[str] = []
    for word in words:
        name, sign, value = word.partition("=")
        if not sign:
            shown = json.dumps(word, ensure_ascii=False)
            raise ValueError(
                f"Syntax error - can't find = in {shown}. Must be of the form: name=value"
            )
        pairs += [name, value]
    return tuple(pairs)


def _json_or(rest: str, *, words: bool) -> tuple[tuple[str, ...], bool]:
    """A JSON list of strings if it is one, else the text, whole or in words."""
    if rest.startswith("["):
        try:
            members = json.loads(rest)
        except ValueError:
            pass  # not JSON after all: `RUN [ -f x ] && y` is a shell command
        else:
            if not all(isinstance(member, str) for member in members):
                raise ValueError(
                    "when using JSON array syntax, arrays must be comprised of strings only"
                )
            return tuple(members), True
    if not rest:
        return (), False
    return (tuple(_BLANK.split(rest)) if words else (rest,)), False


def _refuse_heredoc(node: Node) -> None:
    inner = node.child if node.child is not None else node
    if inner.name.upper() not in ("RUN", "COPY", "ADD") or inner.is_json or "<<" not in inner.text:
        return
    if any(_HEREDOC.fullmatch(word) for word in _words(inner.text, "\\")):
        raise unsupported_at(
            node.line,
            f"heredocs (<<EOF) in {inner.name.upper()} are not supported yet: "
            "put the text into a file and COPY it, or chain the commands with &&",
        )
