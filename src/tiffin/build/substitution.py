r"""Variables in a Dockerfile's words: ``$a``, ``${a:-b}`` and the other forms, quotes, escapes.

Forms: ``$a`` ``${a}``; ``${a:-w}`` (w if a is unset or empty), ``${a:+w}`` (w if it is neither),
``${a:?w}`` (an error saying w); the same without the colon, where empty counts as set;
``${a#p}`` ``${a##p}`` ``${a%p}`` ``${a%%p}`` (the shortest or longest match of p taken off the
front or the end); ``${a/p/r}`` ``${a//p/r}`` (the first match, or all of them, replaced). In a
pattern ``*`` and ``?`` are wild. The word after a modifier may hold variables itself.

Quotes group and vanish; between single quotes nothing is special. The escape character (a
backslash, or as ``# escape=`` says) takes the specialness from the next character.

Which instructions are substituted, and in which parts, is said in
:mod:`tiffin.build.instructions`.

Source: the Dockerfile reference, "Environment replacement".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from tiffin.errors import InvalidParameter

_SPECIAL_PARAMETERS = "@*#?-$!0"
_NAME = re.compile(r"[0-9]+|[^\W\d]\w*")
_END = ""


def quoted(text: str) -> str:
    """A text in double quotes, with what is special inside escaped."""
    return json.dumps(text, ensure_ascii=False)


def substitute(text: str, variables: Mapping[str, str], escape: str = "\\") -> str:
    """One word in, one word out: variables replaced, quotes and escapes removed.

    Raises InvalidParameter with the word and what is wrong with it.
    """
    if "$" not in text and "'" not in text and '"' not in text and escape not in text:
        return text
    return _Scanner(text, variables, escape).run()[0]


def substitute_words(text: str, variables: Mapping[str, str], escape: str = "\\") -> list[str]:
    """As :func:`substitute`, then split at blanks, also those that a variable brought in."""
    return _Scanner(text, variables, escape).run()[1]


def substitute_text(text: str, variables: Mapping[str, str]) -> str:
    """A heredoc's text with its variables replaced; quotes mean nothing, a backslash hides the
    character after it. Raises InvalidParameter."""
    if "$" not in text and "\\" not in text:
        return text
    return _Scanner(text, variables, "\\", quotes=False).run()[0]


class _Words:
    """Splits what is fed to it at blanks; quoted text is fed as one piece."""

    def __init__(self) -> None:
        self.finished: list[str] = []
        self._current: list[str] = []

    def split(self, text: str) -> None:
        for character in text:
            if character.isspace():
                self.end()
            else:
                self._current.append(character)

    def whole(self, text: str) -> None:
        self._current.append(text)

    def end(self) -> None:
        word = "".join(self._current)
        if word:
            self.finished.append(word)
        self._current.clear()


class _Scanner:
    def __init__(
        self, source: str, variables: Mapping[str, str], escape: str, *, quotes: bool = True
    ) -> None:
        self._quotes = quotes
        self._source = source
        self._position = 0
        self._variables = variables
        self._escape = escape

    def run(self) -> tuple[str, list[str]]:
        words = _Words()
        try:
            result = self._until(_END, False, words)
        except _Malformed as error:
            raise InvalidParameter(f"failed to process {quoted(self._source)}: {error}") from None
        words.end()
        return result, words.finished

    def _peek(self) -> str:
        return self._source[self._position : self._position + 1]

    def _next(self) -> str:
        character = self._peek()
        self._position += 1
        return character

    def _until(self, stop: str, keep_escapes: bool, words: _Words | None = None) -> str:
        """Read up to and with ``stop`` (to the end of the text for _END)."""
        words = words if words is not None else _Words()
        result: list[str] = []
        while (character := self._peek()) != _END:
            if stop and character == stop:
                self._next()
                return "".join(result)
            if character == "$":
                value = self._variable()
                words.split(value)
            elif character == "'" and self._quotes:
                value = self._single_quotes()
                words.whole(value)
            elif character == '"' and self._quotes:
                value = self._double_quotes(keep_escapes)
                words.whole(value)
            elif character == self._escape:
                self._next()
                value = (self._escape if keep_escapes else "") + self._next()
                words.whole(value)
            else:
                value = self._next()
                words.split(value)
            result.append(value)
        if stop:
            raise _Unfinished(f"unexpected end of statement while looking for matching {stop}")
        return "".join(result)

    def _single_quotes(self) -> str:
        end = self._source.find("'", self._position + 1)
        if end < 0:
            raise _Malformed("unexpected end of statement while looking for matching single-quote")
        text = self._source[self._position + 1 : end]
        self._position = end + 1
        return text

    def _double_quotes(self, keep_escapes: bool) -> str:
        self._next()
        result: list[str] = []
        while True:
            character = self._peek()
            if character == _END:
                raise _Malformed(
                    "unexpected end of statement while looking for matching double-quote"
                )
            if character == '"':
                self._next()
                return "".join(result)
            if character == "$":
                result.append(self._variable())
                continue
            self._next()
            if character == self._escape:
                if keep_escapes:
                    result.append(character)
                # Between double quotes only these can be escaped; otherwise it stays as it is.
                if self._peek() in ('"', "$", self._escape):
                    character = self._next()
                elif self._peek() == _END:
                    continue
            result.append(character)

    def _name(self) -> str:
        match = _NAME.match(self._source, self._position)
        first = self._peek()
        if first and first in _SPECIAL_PARAMETERS and first != "0":
            self._next()
            return first
        if match is None:
            return ""
        self._position = match.end()
        return match.group()

    def _variable(self) -> str:
        self._next()
        if self._peek() != "{":
            name = self._name()
            return self._variables.get(name, "") if name else "$"
        self._next()
        if self._peek() == _END:
            raise _Malformed("syntax error: missing '}'")
        if self._peek() in "{}:":
            raise _Malformed("syntax error: bad substitution")
        name = self._name()
        value = self._variables.get(name)
        operator = self._next()
        if operator == "}":
            return self._variables.get(name, "")
        if operator == "/":
            return self._replace(value or "")
        empty_is_unset = operator == ":"
        if empty_is_unset:
            operator = self._next()
        if operator == _END:
            raise _Malformed("syntax error: missing '}'")
        if operator not in "-+?#%" or (empty_is_unset and operator in "#%"):
            sign = ":" + operator if empty_is_unset else operator
            raise _Malformed(f"unsupported modifier ({sign}) in substitution")
        word = self._argument("}", keep_escapes=operator in "#%")
        present = value is not None and not (empty_is_unset and value == "")
        if operator == "-":
            return (value or "") if present else word
        if operator == "+":
            return word if present else ""
        if operator == "?":
            if not present:
                state = "unset" if value is None else "empty"
                raise _Malformed(f"{name}: {word or f'is not allowed to be {state}'}")
            return value or ""
        longest = word.startswith(operator)
        return _trimmed(value or "", word[1:] if longest else word, operator == "%", longest)

    def _argument(self, stop: str, keep_escapes: bool) -> str:
        try:
            return self._until(stop, keep_escapes)
        except _Unfinished:
            where = " in ${}" if stop == "/" else ""
            raise _Malformed(f"syntax error: missing '{stop}'{where}") from None

    def _replace(self, value: str) -> str:
        every = self._peek() == "/"
        if every:
            self._next()
        expression = re.compile(_pattern(self._argument("/", keep_escapes=True)))
        replacement = self._argument("}", keep_escapes=True)
        pieces: list[str] = []
        done = 0
        last_end = -1
        for match in expression.finditer(value):
            if match.end() == match.start() == last_end:
                continue  # nothing, right behind a match, is no match of its own
            pieces += [value[done : match.start()], replacement]
            done = last_end = match.end()
            if not every:
                break
        return "".join(pieces) + value[done:]


class _Malformed(Exception):
    pass


class _Unfinished(_Malformed):
    pass


def _trimmed(value: str, pattern: str, from_end: bool, longest: bool) -> str:
    """``value`` without the match of ``pattern`` at its front, or its end."""
    expression = re.compile(_pattern(pattern))
    lengths = range(len(value) + 1)
    for length in reversed(lengths) if longest else lengths:
        piece = value[len(value) - length :] if from_end else value[:length]
        if expression.fullmatch(piece):
            return value[: len(value) - length] if from_end else value[length:]
    return value


def _pattern(pattern: str) -> str:
    """The regular expression of a shell pattern with ``*`` and ``?`` (brackets are literal)."""
    parts: list[str] = []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        position += 1
        if character == "*":
            parts.append(".*")
        elif character == "?":
            parts.append(".")
        elif character == "\\":
            following = pattern[position : position + 1]
            if following in ("}", "/"):
                continue  # escaped for the sake of ${…}; the character itself comes next
            if following not in ("*", "?", "\\"):
                raise _Malformed(
                    f"invalid pattern ({pattern}) in substitution: invalid escape '\\{following}'"
                )
            parts.append(re.escape(following))
            position += 1
        else:
            parts.append(re.escape(character))
    return "".join(parts)
