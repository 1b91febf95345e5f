"""Go's Printf verbs, as far as format strings of people use them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_INTEGERS = {"d": "d", "x": "x", "X": "X", "o": "o", "b": "b"}
_FLOATS = frozenset("feEgGF")


def sprintf(form: str, values: Sequence[Any], show: Callable[[Any], str]) -> str:
    """Formats ``values``; what does not fit is shown as Go shows it (``%!d(string=x)``).

    ``show`` prints a value for %v and %s.
    """
    out: list[str] = []
    position, used = 0, 0
    while position < len(form):
        percent = form.find("%", position)
        if percent < 0:
            out.append(form[position:])
            break
        out.append(form[position:percent])
        position = percent + 1
        flags = ""
        while position < len(form) and form[position] in "-+# 0":
            flags += form[position]
            position += 1
        digits = ""
        while position < len(form) and (form[position].isdigit() or form[position] in ".*"):
            if form[position] == "*":
                width = values[used] if used < len(values) else 0
                digits += str(width)
                used += 1
            else:
                digits += form[position]
            position += 1
        if position >= len(form):
            out.append("%!(NOVERB)")
            break
        verb = form[position]
        position += 1
        if verb == "%":
            out.append("%")
            continue
        if used >= len(values):
            out.append(f"%!{verb}(MISSING)")
            continue
        out.append(_verb(verb, flags, digits, values[used], show))
        used += 1
    if used < len(values):
        rest = ", ".join(f"{_kind(value)}={show(value)}" for value in values[used:])
        out.append(f"%!(EXTRA {rest})")
    return "".join(out)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    return {str: "string", int: "int", float: "float64"}.get(type(value), type(value).__name__)


def _verb(verb: str, flags: str, digits: str, value: Any, show: Callable[[Any], str]) -> str:
    width, dot, precision = digits.partition(".")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if verb in "vs":
        text = show(value)
        if dot and isinstance(value, str):
            text = text[: int(precision or 0)]
    elif verb == "q" and isinstance(value, str):
        from tiffin.cli.flags import quote

        text = quote(value)
    elif verb == "q" and isinstance(value, list):
        from tiffin.cli.flags import quote

        text = "[" + " ".join(quote(str(item)) for item in value) + "]"
    elif verb == "t" and isinstance(value, bool):
        text = show(value)
    elif verb in _INTEGERS and isinstance(value, int) and not isinstance(value, bool):
        return _aligned(format(value, _sign(flags) + _INTEGERS[verb]), flags, width, number)
    elif verb in "xX" and isinstance(value, str):
        text = value.encode().hex()
        text = text.upper() if verb == "X" else text
    elif verb == "c" and isinstance(value, int):
        text = chr(value)
    elif verb == "T":
        text = _kind(value)
    elif verb in _FLOATS and isinstance(value, float):
        places = f".{precision or 0}" if dot else ".6" if verb in "feEF" else ""
        text = format(value, f"{_sign(flags)}{places}{verb}")
    else:
        return f"%!{verb}({_kind(value)}={show(value)})"
    return _aligned(text, flags, width, number)


def _sign(flags: str) -> str:
    return "+" if "+" in flags else " " if " " in flags else ""


def _aligned(text: str, flags: str, width: str, number: bool) -> str:
    size = int(width or 0)
    if "-" in flags:
        return text.ljust(size)
    if "0" in flags and number:
        return text.zfill(size)
    return text.rjust(size)
