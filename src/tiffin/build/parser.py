"""A Dockerfile's text, taken apart into lines that say something.

A *node* is one instruction as written: its name, its flags, its arguments, and the lines that it
stands on. Nothing is known here of what an instruction means, but for the form of its arguments:
some take the rest of the line, some words, some name and value pairs, some a JSON list.

Rules: a line that ends in the escape character (a backslash, or as ``# escape=`` at the top says)
goes on in the next line. Comment lines and empty lines within such a chain are skipped (the
latter with a warning). Blanks at the start of a line don't count, except on continuation lines.
The directives ``# syntax=``, ``# escape=`` and ``# check=`` count only above everything else.

RUN, COPY and ADD (also triggered by ONBUILD) may hold *heredocs*: words like ``<<EOF``, whose text
is in the following lines, up to one that is ``EOF`` alone. ``<<-EOF`` lets tabs at the start of
those lines fall away; quotes around the name say that nothing in the text is replaced. Several
words take their texts one after the other.

Lines may end in CR LF. In a heredoc the CR is a part of the text, as in BuildKit.

Source: the Dockerfile reference ("Format", "Parser directives", "Here-Documents").
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace

from tiffin.errors import InvalidParameter, Unsupported

_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*$")
_DIRECTIVES = ("syntax", "escape", "check")
_BLANK = re.compile(r"[\t\v\f\r ]+")

_HEREDOC = re.compile(r"(\d*)<<(-?)([^<]+)")
_LEADING_TABS = re.compile(r"^\t+", re.MULTILINE)

_JSON_OR_TEXT = ("CMD", "ENTRYPOINT", "RUN", "SHELL")
_JSON_OR_WORDS = ("ADD", "COPY", "VOLUME")
_WORDS = ("EXPOSE", "FROM")
_PAIRS = ("ENV", "LABEL")
_HEREDOCS = ("RUN", "COPY", "ADD")


@dataclass(frozen=True, slots=True)
class Heredoc:
    """A text in the Dockerfile itself."""

    name: str
    """What ends it; for a COPY also the file's name."""
    content: str = ""
    """The lines as written, each with its newline."""
    expand: bool = True
    """Whether variables in it are replaced: the name was written without quotes."""
    chomp: bool = False
    """Whether tabs at the start of lines fall away (``<<-``)."""
    descriptor: str = ""
    """The digits in front of ``<<``."""

    @property
    def text(self) -> str:
        """The content as it is used."""
        return _LEADING_TABS.sub("", self.content) if self.chomp else self.content


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
    heredocs: tuple[Heredoc, ...] = ()
    """In the order of their words; an ONBUILD has them too, not only its trigger."""
    is_legacy: bool = False
    """Whether an ENV or LABEL has the old form, ``name value``."""
    has_gaps: bool = False
    """Whether there are empty lines in its chain of lines."""


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """A parsed file."""

    nodes: tuple[Node, ...]
    escape: str = "\\"
    directives: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    """The file's lines, without their ends."""


def error_at(line: int, problem: str) -> InvalidParameter:
    """The error for something wrong in a Dockerfile."""
    return InvalidParameter(f"dockerfile parse error on line {line}: {problem}")


def unsupported_at(line: int, problem: str) -> Unsupported:
    """The error for something right that tiffin does not do yet."""
    return Unsupported(f"dockerfile parse error on line {line}: {problem}")


def parse(content: bytes | str) -> Dockerfile:
    """Take a Dockerfile apart; raises InvalidParameter with the line."""
    if isinstance(content, bytes):
        content = content.decode("utf-8", "surrogateescape")
    reader = _Lines(content.removeprefix("\ufeff").split("\n"))
    if reader.lines[-1] == "":
        reader.lines.pop()
    directives = reader.directives()
    escape = directives.get("escape", "\\")
    nodes: list[Node] = []
    warnings: list[str] = []
    while (found := reader.instruction(escape)) is not None:
        text, line, gaps = found
        node = _node(text, line, reader.position, escape)
        heredocs = [reader.heredoc(word, line) for word in _heredoc_words(node)]
        if heredocs:
            node = _with_heredocs(node, tuple(heredocs), reader.position)
        if gaps:
            node = replace(node, has_gaps=True)
            warnings.append(f"Empty continuation line found in: {text}")
        nodes.append(node)
    if not nodes:
        raise error_at(max(1, len(reader.lines)), "file with no instructions")
    return Dockerfile(tuple(nodes), escape, directives, tuple(warnings), tuple(reader.lines))


def heredoc_of(word: str) -> Heredoc | None:
    """The heredoc that a word begins, still without its content; None if it is no such word."""
    match = _HEREDOC.fullmatch(word)
    if match is None:
        return None
    descriptor, chomp, name = match.groups()
    bare = name.strip()
    plain = "".join(_words_unquoted(bare))
    if not plain or any(character.isspace() for character in plain):
        return None
    return Heredoc(plain, "", plain == bare, bool(chomp), descriptor)


def _words_unquoted(text: str) -> list[str]:
    """The text's characters without quotes and escapes; nothing if a quote has no end."""
    found: list[str] = []
    quote = ""
    characters = iter(text)
    for character in characters:
        if character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        elif character == "\\" and quote != "'":
            found.append(next(characters, ""))
        else:
            found.append(character)
    return [] if quote else found


def _heredoc_words(node: Node) -> list[Heredoc]:
    inner = node.child if node.child is not None else node
    if inner.name.upper() not in _HEREDOCS or "<<" not in node.text:
        return []
    # Always as a shell reads words: a heredoc is the shell's, whatever escapes lines here.
    found = (heredoc_of(word) for word in _words(node.text, "\\"))
    return [each for each in found if each is not None]


def _with_heredocs(node: Node, heredocs: tuple[Heredoc, ...], last_line: int) -> Node:
    child = node.child and replace(node.child, heredocs=heredocs, last_line=last_line)
    return replace(node, heredocs=heredocs, last_line=last_line, child=child)


class _Lines:
    """The file's lines, and how far they are read."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = [line.rstrip("\r") for line in lines]
        self._whole = lines
        """With carriage returns: they count in heredocs."""
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

    def instruction(self, escape: str) -> tuple[str, int, bool] | None:
        """The next instruction's joined text, its first line, and whether lines were empty."""
        mark = re.escape(escape)
        goes_on = re.compile(rf"(?:(?<=[^{mark}])|^){mark}[ \t]*$")
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
                return text, first, gaps
        return None

    def heredoc(self, started: Heredoc, line: int) -> Heredoc:
        """The heredoc with its content, which is in the lines that come next."""
        content: list[str] = []
        while self.position < len(self.lines):
            text = self.lines[self.position]
            whole = self._whole[self.position]
            self.position += 1
            if (text.lstrip("\t") if started.chomp else text) == started.name:
                return replace(started, content="".join(content))
            content.append(f"{whole}\n")
        raise error_at(line, f"unterminated heredoc: no line is {started.name} alone")


def _node(text: str, line: int, last_line: int, escape: str) -> Node:
    parts = _BLANK.split(text.strip(), maxsplit=1)
    name, rest = parts[0], parts[1] if len(parts) > 1 else ""
    flags, rest = _flags(rest, escape)
    rest = rest.strip()
    kind = name.upper()
    child: Node | None = None
    is_json = is_legacy = False
    arguments: tuple[str, ...]
    try:
        if kind == "ONBUILD":
            child = _node(rest, line, last_line, escape) if rest else None
            arguments = (rest,) if rest else ()
        elif kind in _PAIRS:
            arguments = _pairs(rest, kind, escape)
            words = _words(rest, escape)
            is_legacy = bool(words) and "=" not in words[0]
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
    return Node(
        name,
        tuple(flags),
        arguments,
        is_json,
        text.strip(),
        line,
        last_line,
        child,
        is_legacy=is_legacy,
    )


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
