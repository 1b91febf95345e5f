"""The syntax of Go's text/template, as far as ``--format`` needs it: text to a tree.

A template is text with *actions* in double braces. An action is a pipeline of commands (a field, a
function with arguments, a literal…), a control structure (if, range, with … else … end), or a
variable that is set. A dash inside the braces (``{{-``, ``-}}``) eats the blanks beside it.

Nodes are tuples whose first item names them; ``gotemplate`` gives them their meaning:

- ("text", text)
- ("pipe", variable names, declares, [command, …], source): a pipeline whose value is printed
- ("if" | "with" | "range", pipe, body, other body)
- ("break",), ("continue",)

A command is a list of operands:

- ("field", [name, …]), ("variable", name, [name, …]), ("chain", pipe, [name, …])
- ("function", name), ("literal", value), ("dot",), ("nil",)

Every operand ends with its source text and its place, for messages; a function that is called has
the source of the whole call.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Node = tuple[Any, ...]

_BLANKS = " \t\r\n"
_ESCAPES = {
    "n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'",
    "a": "\a", "b": "\b", "f": "\f", "v": "\v",
}  # fmt: skip


class TemplateError(Exception):
    """The template makes no sense, or meets a value that it can't be used on."""


def _error(line: int, message: str) -> TemplateError:
    return TemplateError(f"template: :{line}: {message}")


class Action:
    """The inside of one pair of braces, cut into tokens."""

    def __init__(self, source: str, line: int, column: int) -> None:
        self.source = source
        self.line = line
        self.column = column
        self.tokens = list(self._tokens())
        self.position = 0

    def _tokens(self) -> Any:
        source, position, end = self.source, 0, len(self.source)
        while position < end:
            char = source[position]
            start = position
            if char in _BLANKS:
                while position < end and source[position] in _BLANKS:
                    position += 1
                yield "space", " ", start
                continue
            if char in "\"'`":
                position = self._string_end(position)
                yield "string", source[start:position], start
            elif char.isdigit() or (
                char in "+-" and position + 1 < end and source[position + 1].isdigit()
            ):
                position += 1
                while position < end and (source[position].isalnum() or source[position] in "._"):
                    position += 1
                yield "number", source[start:position], start
            elif source.startswith(":=", position):
                position += 2
                yield "assign", ":=", start
            elif char in "()|,=":
                position += 1
                yield char, char, start
            elif char in ".$" or char.isalpha() or char == "_":
                position += 1
                while position < end and (source[position].isalnum() or source[position] == "_"):
                    position += 1
                kind = "field" if char == "." else "variable" if char == "$" else "name"
                word = source[start:position]
                if char.isdigit() or (char == "." and word[1:2].isdigit()):
                    kind = "number"
                yield ("dot" if word == "." else kind), word, start
            else:
                raise _error(self.line, f"unexpected {char!r} in command")

    def _string_end(self, position: int) -> int:
        source, quote = self.source, self.source[position]
        position += 1
        while position < len(source):
            if source[position] == "\\" and quote != "`":
                position += 2
                continue
            if source[position] == quote:
                return position + 1
            position += 1
        kind = {"'": "character constant", "`": "raw quoted string"}.get(quote, "quoted string")
        raise _error(self.line, f"unterminated {kind}")

    def skip_space(self) -> bool:
        """Steps over blanks; says whether there were any."""
        skipped = False
        while self.peek() == "space":
            self.position += 1
            skipped = True
        return skipped

    def peek(self) -> str:
        """The kind of the next token, empty at the end."""
        return self.tokens[self.position][0] if self.position < len(self.tokens) else ""

    def take(self) -> tuple[str, str, int]:
        """The next token."""
        if self.position >= len(self.tokens):
            raise _error(self.line, "unexpected end of action")
        token: tuple[str, str, int] = self.tokens[self.position]
        self.position += 1
        return token

    def text_since(self, start: int) -> str:
        """The source from an offset up to the token that comes next."""
        end = (
            self.tokens[self.position][2] if self.position < len(self.tokens) else len(self.source)
        )
        return self.source[start:end].strip()


def unquote(token: str, line: int) -> str | int:
    """The value of a string or character constant."""
    quote, inside = token[0], token[1:-1]
    if quote == "`":
        return inside
    out: list[str] = []
    position = 0
    while position < len(inside):
        char = inside[position]
        position += 1
        if char != "\\":
            out.append(char)
            continue
        code = inside[position]
        position += 1
        if code in _ESCAPES:
            out.append(_ESCAPES[code])
            continue
        width = {"x": 2, "u": 4, "U": 8}.get(code, 0)
        digits = inside[position : position + width]
        try:
            if not width or len(digits) != width:
                raise ValueError
            out.append(chr(int(digits, 16)))
        except (ValueError, OverflowError):
            raise _error(line, "invalid syntax") from None
        position += width
    text = "".join(out)
    if quote == "'":
        if len(text) != 1:
            raise _error(line, f"malformed character constant: {token}")
        return ord(text)
    return text


class Parser:
    """Parses one template; ``functions`` are the names that may be called."""

    def __init__(self, text: str, functions: frozenset[str]) -> None:
        self._text = text
        self._functions = functions
        self._items = list(self._split())
        self._next = 0
        self._variables: list[set[str]] = [{"$"}]

    def parse(self) -> list[Node]:
        """The tree; raises TemplateError."""
        body, end = self._body()
        if end is not None:
            raise _error(end.line, f"unexpected {{{{{end.tokens[0][1]}}}}}")
        return body

    def _split(self) -> Any:
        text, position, line = self._text, 0, 1
        trim = False
        while True:
            start = text.find("{{", position)
            chunk = text[position:] if start < 0 else text[position:start]
            shown = chunk.lstrip(_BLANKS) if trim else chunk
            line += chunk.count("\n")
            if start < 0:
                if shown:
                    yield shown
                return
            inside = start + 2
            if text[inside : inside + 1] == "-" and text[inside + 1 : inside + 2] in _BLANKS:
                shown = shown.rstrip(_BLANKS)
                inside += 2
            if shown:
                yield shown
            comment = text[inside:].lstrip(_BLANKS).startswith("/*")
            end = self._action_end(inside, line, comment)
            stop = end
            trim = text[end - 1 : end] == "-" and text[end - 2 : end - 1] in tuple(_BLANKS)
            if trim:
                stop = end - 2
            if not comment:
                source = text[inside:stop]
                column = inside - text.rfind("\n", 0, inside) - 1
                yield Action(source.rstrip(_BLANKS), line, column)
            line += text.count("\n", inside, end)
            position = end + 2

    def _action_end(self, position: int, line: int, comment: bool) -> int:
        text = self._text
        if comment:
            close = text.find("*/", position)
            if close < 0:
                raise _error(line, "unclosed comment")
            end = text.find("}}", close)
            if end < 0:
                raise _error(line, "comment ends before closing delimiter")
            return end
        quote = ""
        while position < len(text):
            char = text[position]
            if quote:
                if char == "\\" and quote != "`":
                    position += 1
                elif char == quote:
                    quote = ""
            elif char in "\"'`":
                quote = char
            elif text.startswith("}}", position):
                return position
            position += 1
        raise _error(line, "unterminated quoted string" if quote else "unclosed action")

    def _body(self) -> tuple[list[Node], Action | None]:
        nodes: list[Node] = []
        while self._next < len(self._items):
            item = self._items[self._next]
            self._next += 1
            if isinstance(item, str):
                nodes.append(("text", item))
                continue
            action: Action = item
            action.skip_space()
            if not action.tokens or not action.peek():
                raise _error(action.line, "missing value for command")
            kind, word, _ = action.tokens[action.position]
            if kind == "name" and word in ("else", "end"):
                return nodes, action
            if kind == "name" and word in ("if", "with", "range"):
                nodes.append(self._control(word, action))
            elif kind == "name" and word in ("break", "continue"):
                nodes.append((word,))
            elif kind == "name" and word in ("define", "template", "block"):
                raise _error(action.line, f"{word} is not supported")
            else:
                nodes.append(self._pipe(action))
        return nodes, None

    def _control(self, word: str, action: Action) -> Node:
        action.take()
        self._variables.append(set(self._variables[-1]))
        pipe = self._pipe(action)
        body, end = self._body()
        other: list[Node] = []
        if end is None:
            raise _error(action.line, "unexpected EOF")
        if end.tokens[end.position][1] == "else":
            end.take()
            end.skip_space()
            if end.peek() == "name" and end.tokens[end.position][1] in ("if", "with"):
                other = [self._control(end.tokens[end.position][1], end)]
                self._variables.pop()
                return (word, pipe, body, other)
            other, end = self._body()
            if end is None:
                raise _error(action.line, "unexpected EOF")
            if end.tokens[end.position][1] == "else":
                raise _error(end.line, "expected end; found {{else}}")
        self._variables.pop()
        return (word, pipe, body, other)

    def _pipe(self, action: Action, closing: str = "") -> Node:
        action.skip_space()
        start = action.tokens[action.position][2] if action.peek() else len(action.source)
        names, declares = self._declaration(action)
        commands: list[list[Node]] = []
        while True:
            action.skip_space()
            command = self._command(action)
            if not command:
                raise _error(action.line, "missing value for command")
            commands.append(command)
            if action.peek() == "|":
                action.take()
                continue
            if action.peek() == closing:
                break
            _, word, _ = action.take()
            raise _error(action.line, f"unexpected {word!r} in operand")
        text = action.text_since(start)
        if closing:
            action.take()
        return ("pipe", names, declares, commands, (text, action.line, action.column + start))

    def _declaration(self, action: Action) -> tuple[list[str], bool]:
        """``$x :=``, ``$x =`` or ``$k, $v :=`` at the start of a pipeline."""
        saved = action.position
        names: list[str] = []
        while action.peek() == "variable":
            names.append(action.take()[1])
            action.skip_space()
            if action.peek() == ",":
                action.take()
                action.skip_space()
                continue
            if action.peek() in ("assign", "="):
                declares = action.take()[0] == "assign"
                if declares:
                    self._variables[-1].update(names)
                return names, declares
            break
        action.position = saved
        return [], False

    def _command(self, action: Action) -> list[Node]:
        operands: list[Node] = []
        action.skip_space()
        start = action.tokens[action.position][2] if action.peek() else len(action.source)
        while True:
            action.skip_space()
            if action.peek() in ("", "|", ")"):
                break
            operands.append(self._operand(action))
        if operands and operands[0][0] == "function":
            _, name, _, where = operands[0]
            operands[0] = ("function", name, action.text_since(start), where)
        return operands

    def _operand(self, action: Action) -> Node:
        kind, word, start = action.take()
        where = (action.line, action.column + start)
        if kind == "field":
            where = self._place(action, where)
            names = [word[1:], *self._fields(action)]
            return ("field", names, action.text_since(start), where)
        if kind == "variable":
            if word not in self._variables[-1]:
                raise _error(action.line, f'undefined variable "{word}"')
            where = self._place(action, where)
            return ("variable", word, self._fields(action), action.text_since(start), where)
        if kind == "(":
            pipe = self._pipe(action, ")")
            return ("chain", pipe, self._fields(action), action.text_since(start), where)
        if kind == "dot":
            return ("dot", ".", where)
        if kind == "string":
            return ("literal", unquote(word, action.line), word, where)
        if kind == "number":
            return ("literal", _number(word, action.line), word, where)
        if kind == "name":
            if word in ("true", "false"):
                return ("literal", word == "true", word, where)
            if word == "nil":
                return ("nil", word, where)
            if word not in self._functions:
                raise _error(action.line, f'function "{word}" not defined')
            return ("function", word, word, where)
        raise _error(action.line, f"unexpected {word!r} in operand")

    @staticmethod
    def _place(action: Action, where: tuple[int, int]) -> tuple[int, int]:
        """Where messages place a chain of fields: Go names the second one's column."""
        if action.peek() == "field":
            return (action.line, action.column + action.tokens[action.position][2])
        return where

    @staticmethod
    def _fields(action: Action) -> list[str]:
        names = []
        while action.peek() == "field":
            names.append(action.take()[1][1:])
        return names


def _number(word: str, line: int) -> int | float:
    for convert in (lambda: int(word, 0), lambda: int(word, 10), lambda: float(word)):
        try:
            return convert()
        except ValueError:
            continue
    raise _error(line, f"bad number syntax: {word!r}")
