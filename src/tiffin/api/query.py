"""What a request says in its query string, in the forms that Docker's clients use.

Booleans: absent, empty, ``0``, ``no``, ``false`` and ``none`` are false, everything else is true
(Docker's own rule, which never refuses one). Filters: a JSON map from a filter's name to its
values, as a list (``{"label": ["a=b"]}``) or, from older clients, as a map
(``{"label": {"a=b": true}}``). Times pass as they are: the engine knows all their forms.
"""

from __future__ import annotations

from typing import Any

from tiffin.api import documents
from tiffin.api.exchange import Request
from tiffin.errors import InvalidParameter

Filters = dict[str, list[str]]


def text(request: Request, name: str, default: str = "") -> str:
    """The first value of a parameter."""
    values = request.query.get(name)
    return _clean(values[0]) if values else default


def file_name(request: Request, name: str) -> str:
    """As :func:`text`, for the name of a file, which may hold any byte but 0."""
    values = request.query.get(name)
    return values[0] if values else ""


def _clean(value: str) -> str:
    """A value without the bytes that are no UTF-8."""
    return (
        value
        if value.isprintable()
        else value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    )


def texts(request: Request, name: str) -> list[str]:
    """All values of a parameter that may be given several times; empty ones are left out."""
    return [_clean(value) for value in request.query.get(name, ()) if value]


def boolean(request: Request, name: str, default: bool = False) -> bool:
    """A parameter's truth; the default if it is not there at all."""
    values = request.query.get(name)
    if values is None:
        return default
    return values[0].strip().lower() not in ("", "0", "no", "false", "none")


def integer(request: Request, name: str, default: int | None = None) -> int | None:
    """A whole number; the default if absent or empty. Raises InvalidParameter."""
    value = text(request, name)
    if not value:
        return default
    try:
        return int(value)
    except ValueError:
        raise InvalidParameter(f"invalid value {value!r} for {name}: not a whole number") from None


def size(request: Request) -> tuple[int, int]:
    """A terminal's height and width, from ``h`` and ``w``. Raises InvalidParameter."""
    height, width = integer(request, "h"), integer(request, "w")
    if height is None or width is None or not (0 <= height < 65536 and 0 <= width < 65536):
        raise InvalidParameter("a terminal's size needs h and w, each from 0 to 65535")
    return height, width


def mapping(request: Request, name: str) -> dict[str, Any]:
    """A parameter that holds a JSON object; empty if absent. Raises InvalidParameter."""
    value = text(request, name)
    if not value:
        return {}
    result = documents.decode(value.encode(), name)
    if result is None:
        return {}
    if not isinstance(result, dict):
        raise InvalidParameter(f"invalid JSON in {name}: expected an object")
    return result


def strings(request: Request, name: str) -> list[str]:
    """A parameter that holds a JSON list of strings; empty if absent. Raises InvalidParameter."""
    value = text(request, name)
    if not value:
        return []
    return documents.decode(value.encode(), name, list[str] | None) or []


def platform(request: Request, since: tuple[int, int], name: str = "platform") -> str:
    """A parameter as ``os/architecture[/variant]``, which the API has as a JSON object ``since`` a
    version; empty if absent, or asked for of an older one. Raises InvalidParameter."""
    if request.version < since:
        return ""
    values = texts(request, name)
    if len(values) > 1:
        raise InvalidParameter(f"multiple values of {name} are not supported: name one")
    value = mapping(request, name)
    parts = [value.get(key) or "" for key in ("os", "architecture", "variant")]
    if not all(isinstance(part, str) for part in parts) or (value and not all(parts[:2])):
        raise InvalidParameter("invalid platform: it needs an os and an architecture")
    return "/".join(filter(None, parts))


def filters(request: Request) -> Filters:
    """The ``filters`` parameter, in its one form. Raises InvalidParameter."""
    result: Filters = {}
    for name, values in mapping(request, "filters").items():
        if isinstance(values, dict):
            chosen = [value for value, wanted in values.items() if wanted]
        elif isinstance(values, list):
            chosen = values
        else:
            raise InvalidParameter(f"invalid filter {name!r}: its values must be a list")
        if not all(isinstance(value, str) for value in chosen):
            raise InvalidParameter(f"invalid filter {name!r}: its values must be strings")
        result[name] = chosen
    return result
