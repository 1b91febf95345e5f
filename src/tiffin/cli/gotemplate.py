"""Go's text/template over JSON values: what ``--format`` is written in.

Values are what JSON gives (dict, list, str, int, float, bool, None) and rows, objects with a
``template_field`` method whose fields are computed when asked for (the columns of ``ps``). Printing
follows Go: ``[a b]``, ``map[k:v]``, ``true``, ``<no value>``.

The messages are Go's, since scripts and people look for them.
"""

from __future__ import annotations

from tiffin.cli.template_syntax import Parser, TemplateError

__all__ = ["FUNCTIONS", "StringMap", "Template", "TemplateError", "json_of", "plain", "text_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Node = tuple[Any, ...]

_STRING_MAPS = frozenset(
    "Labels Options Config Annotations Sysctls Tmpfs StorageOpt Data DriverOpts".split()
)
"""Maps of text to text in Docker's own types: asking for a missing key is no mistake."""

_OPTIONAL = frozenset(("Health", "Healthcheck", "Error", "ContainerCount"))
"""Fields that Docker leaves out of JSON when there is nothing; asking for them is no mistake."""


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class StringMap(dict[str, str]):
    """A map of text to text: ``index`` gives an empty text for a key that is missing."""


def text_of(value: Any) -> str:
    """A value as Go's fmt prints it."""
    if value is None:
        return "<no value>"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{k}:{_inner(value[k])}" for k in sorted(value)) + "]"
    if isinstance(value, list):
        return "[" + " ".join(_inner(item) for item in value) + "]"
    if isinstance(value, float):
        text = f"{value:.6g}" if abs(value) < 1e21 else repr(value)
        return repr(value).removesuffix(".0") if float(text) != value else text
    return str(value)


def _inner(value: Any) -> str:
    return "<nil>" if value is None else text_of(value)


def json_of(value: Any) -> str:
    """A value as Go's JSON encoder writes it: compact, with <, > and & escaped."""
    from json import dumps

    text = dumps(value, separators=(",", ":"), ensure_ascii=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def truth(value: Any) -> bool:
    """Whether Go's ``if`` takes a value for true: not empty, not zero."""
    return bool(value)


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise ValueError("missing argument for comparison")
    for other in others:
        if isinstance(first, str) != isinstance(other, str) and None not in (first, other):
            raise ValueError("incompatible types for comparison")
        if first == other:
            return True
    return False


def _less(first: Any, second: Any) -> bool:
    if isinstance(first, str) != isinstance(second, str) or isinstance(first, (list, dict)):
        raise ValueError("incompatible types for comparison")
    return bool(first < second)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key, "" if isinstance(value, StringMap) else None)
        elif isinstance(value, (list, str)):
            if isinstance(key, bool) or not isinstance(key, int):
                raise ValueError(f"cannot index slice/array with type {type(key).__name__}")
            if not 0 <= key < len(value):
                raise ValueError(f"index out of range: {key}")
            value = ord(value[key]) if isinstance(value, str) else value[key]
        elif value is None:
            raise ValueError("index of untyped nil")
        else:
            raise ValueError(f"can't index item of type {_type_name(value)}")
    return value


def _slice(value: Any, *bounds: int) -> Any:
    if not isinstance(value, (list, str)):
        raise ValueError(f"can't slice item of type {_type_name(value)}")
    low = bounds[0] if bounds else 0
    high = bounds[1] if len(bounds) > 1 else len(value)
    if not 0 <= low <= high <= len(value):
        raise ValueError(f"index out of range: {high}")
    return value[low:high]


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    names = {str: "string", int: "int", float: "float64", list: "[]interface {}"}
    if isinstance(value, StringMap):
        return "map[string]string"
    if isinstance(value, dict):
        return "map[string]interface {}"
    return names.get(type(value), "nil")


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, (list, dict)):
        return len(value)
    raise ValueError(f"len of type {_type_name(value)}")


def _print(*values: Any) -> str:
    out = ""
    for position, value in enumerate(values):
        # Go's Print sets a blank between two values when neither is a text.
        if position and not isinstance(value, str) and not isinstance(values[position - 1], str):
            out += " "
        out += _inner(value)
    return out


def _println(*values: Any) -> str:
    return " ".join(map(_inner, values)) + "\n"


def _printf(form: str, *values: Any) -> str:
    from tiffin.cli.gofmt import sprintf

    return sprintf(form, values, _inner)


def _truncate(text: str, length: int) -> str:
    return text if len(text) < length else text[:length]


def _pad(text: str, before: int, after: int) -> str:
    return " " * before + text + " " * after if text else ""


def _title(text: str) -> str:
    out, start = [], True
    for char in text:
        out.append(char.upper() if start else char)
        start = not (char.isalnum() or char in "_'")
    return "".join(out)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": _equal,
    "ne": lambda first, second: not _equal(first, second),
    "lt": _less,
    "le": lambda first, second: _less(first, second) or first == second,
    "gt": lambda first, second: _less(second, first),
    "ge": lambda first, second: _less(second, first) or first == second,
    "not": lambda value: not truth(value),
    "len": _length,
    "index": _index,
    "slice": _slice,
    "print": _print,
    "printf": _printf,
    "println": _println,
    "json": json_of,
    "lower": str.lower,
    "upper": str.upper,
    "title": _title,
    "join": lambda items, separator: separator.join(map(text_of, items or ())),
    "split": lambda text, separator: text.split(separator) if separator else list(text),
    "truncate": _truncate,
    "pad": _pad,
}
_NAMES = frozenset(FUNCTIONS) | {"and", "or"}


class Template:
    """A parsed template."""

    def __init__(self, text: str) -> None:
        """Parses; raises TemplateError with Go's message."""
        self._tree = Parser(text, _NAMES).parse()

    def render(self, value: Any) -> str:
        """The text for one value; raises TemplateError where they don't fit."""
        out: list[str] = []
        _Run(value, out).body(self._tree, value)
        return "".join(out)


class _Run:
    """One execution of a template: the output and the variables."""

    def __init__(self, root: Any, out: list[str]) -> None:
        self._out = out
        self._scopes: list[dict[str, Any]] = [{"$": root}]

    def body(self, nodes: list[Node], dot: Any) -> None:
        for node in nodes:
            kind = node[0]
            if kind == "text":
                self._out.append(node[1])
            elif kind == "pipe":
                value = self._pipe(node, dot)
                if not node[1]:
                    self._out.append(_text(value))
            elif kind == "break":
                raise _Break
            elif kind == "continue":
                raise _Continue
            else:
                self._scopes.append({})
                try:
                    self._control(kind, node, dot)
                finally:
                    self._scopes.pop()

    def _control(self, kind: str, node: Node, dot: Any) -> None:
        _, pipe, body, other = node
        if kind == "range":
            self._range(pipe, body, other, dot)
            return
        value = self._pipe(pipe, dot)
        if truth(value):
            self.body(body, value if kind == "with" else dot)
        else:
            self.body(other, dot)

    def _range(self, pipe: Node, body: list[Node], other: list[Node], dot: Any) -> None:
        names = pipe[1]
        value = self._pipe(("pipe", [], False, *pipe[3:]), dot)
        items: list[tuple[Any, Any]]
        if isinstance(value, dict):
            items = [(key, value[key]) for key in sorted(value)]
        elif isinstance(value, list):
            items = list(enumerate(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            items = [(number, number) for number in range(value)]
        elif value is None:
            items = []
        else:
            raise _failure(pipe[4], f"range can't iterate over {_inner(value)}")
        for key, item in items:
            if len(names) == 2:
                self._scopes[-1][names[0]] = key
                self._scopes[-1][names[1]] = item
            elif names:
                self._scopes[-1][names[0]] = item
            self._scopes.append({})
            try:
                self.body(body, item)
            except _Break:
                break
            except _Continue:
                continue
            finally:
                self._scopes.pop()
        if not items:
            self.body(other, dot)

    def _pipe(self, node: Node, dot: Any) -> Any:
        _, names, declares, commands, _ = node
        value: Any = _NOTHING
        for command in commands:
            value = self._command(command, dot, value)
        for name in names:
            if declares:
                self._scopes[-1][name] = value
            else:
                next(scope for scope in reversed(self._scopes) if name in scope)[name] = value
        return value

    def _command(self, operands: list[Node], dot: Any, final: Any) -> Any:
        head = operands[0]
        if head[0] == "function":
            return self._call(head, operands[1:], dot, final)
        arguments = [self._operand(operand, dot) for operand in operands[1:]]
        if final is not _NOTHING:
            arguments.append(final)
        if head[0] in ("field", "variable", "chain"):
            return self._operand(head, dot, arguments)
        if arguments:
            raise _failure((head[-2], *head[-1]), f"can't give argument to non-function {head[-2]}")
        if head[0] == "nil":
            raise _failure((head[-2], *head[-1]), "nil is not a command")
        return self._operand(head, dot)

    def _call(self, head: Node, operands: list[Node], dot: Any, final: Any) -> Any:
        name = head[1]
        if name in ("and", "or"):
            return self._short_circuit(head, operands, dot, final)
        arguments = [self._operand(operand, dot) for operand in operands]
        if final is not _NOTHING:
            arguments.append(final)
        where = (name, *head[3])
        if name == "json" and len(arguments) == 1:
            arguments = [plain(arguments[0])]
        try:
            return FUNCTIONS[name](*arguments)
        except ValueError as error:
            raise _failure((head[2], *head[3]), f"error calling {name}: {error}") from None
        except (TypeError, AttributeError):
            shown = ", ".join(_type_name(item) for item in arguments)
            raise _failure(where, f"wrong number or type of args for {name}: ({shown})") from None

    def _short_circuit(self, head: Node, operands: list[Node], dot: Any, final: Any) -> Any:
        name = head[1]
        values: Iterator[Any] = (self._operand(operand, dot) for operand in operands)
        value: Any = _NOTHING
        for value in values:
            if truth(value) == (name == "or"):
                return value
        if final is not _NOTHING:
            return final
        if value is _NOTHING:
            raise _failure(
                (name, *head[3]), f"wrong number of args for {name}: want at least 1 got 0"
            )
        return value

    def _operand(self, node: Node, dot: Any, arguments: list[Any] | None = None) -> Any:
        kind = node[0]
        if kind == "dot":
            return dot
        if kind == "literal":
            return node[1]
        if kind == "nil":
            return None
        if kind == "function":
            return self._call(node, [], dot, _NOTHING)
        if kind == "field":
            value, names = dot, node[1]
        elif kind == "variable":
            value, names = self._variable(node[1]), node[2]
        else:
            value, names = self._pipe(node[1], dot), node[2]
        where = (node[-2], *node[-1])
        if arguments and not names:
            raise _failure(where, f"can't give argument to non-function {node[-2]}")
        for position, name in enumerate(names):
            last = position == len(names) - 1
            value = _field(value, name, arguments or [] if last else [], where)
        return value

    def _variable(self, name: str) -> Any:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        raise TemplateError(f"template: : undefined variable: {name}")


_NOTHING: Any = object()


def _text(value: Any) -> str:
    row = getattr(value, "template_text", None)
    return row() if row is not None else text_of(value)


def plain(value: Any) -> Any:
    """A row as the mapping of all its fields; anything else as it is."""
    everything = getattr(value, "template_fields", None)
    return everything() if everything is not None else value


def _failure(where: tuple[Any, ...], message: str) -> TemplateError:
    source, line, column = where
    return TemplateError(f'template: :{line}:{column}: executing "" at <{source}>: {message}')


def _field(value: Any, name: str, arguments: list[Any], where: tuple[Any, ...]) -> Any:
    row = getattr(value, "template_field", None)
    if row is not None:
        try:
            return row(name, arguments)
        except KeyError:
            raise _failure(
                where, f"can't evaluate field {name} in type {value.template_type}"
            ) from None
    if isinstance(value, dict):
        if arguments:
            raise _failure(where, f"{name} is not a method but has arguments")
        if name in value:
            found = value[name]
            if name in _STRING_MAPS and not isinstance(found, list):
                if found is None or found == {}:
                    return StringMap()
                if isinstance(found, dict) and all(isinstance(v, str) for v in found.values()):
                    return StringMap(found)
            return found
        if isinstance(value, StringMap) or name in _OPTIONAL:
            return None
        raise _failure(where, f'map has no entry for key "{name}"')
    if value is None:
        raise _failure(where, f'nil data; no entry for key "{name}"')
    raise _failure(where, f"can't evaluate field {name} in type {_type_name(value)}")
