"""Checks JSON answers against the published description of the Docker Engine API.

``tests/spec/docker-engine-v1.50.yaml`` is Swagger 2.0; its definitions are nearly JSON schemas.
Turned here: ``x-nullable`` allows null; so does every list and map, since Go writes an absent one
as null and Docker's own answers are full of them; and members that the description does not know
are an error (they would be typing mistakes).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

SPEC = Path(__file__).parent / "spec" / "docker-engine-v1.50.yaml"

JSON = dict[str, Any]


class ApiSchema:
    """The answers that the API describes."""

    def __init__(self, text: str) -> None:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        document: JSON = yaml.load(text, loader)
        self._paths: JSON = document["paths"]
        parts = set(_combined(document["definitions"]))
        self._definitions = {
            name: _schema(definition, combined=name in parts)
            for name, definition in document["definitions"].items()
        }

    def operations(self) -> list[tuple[str, str]]:
        """Every (method, path)."""
        return [
            (method.upper(), path) for path, methods in self._paths.items() for method in methods
        ]

    def parameters(self, method: str, path: str, where: str = "query") -> list[str]:
        """The names that may stand in the query (or in the ``header``)."""
        known = self._paths[path][method.lower()].get("parameters", ())
        return [parameter["name"] for parameter in known if parameter["in"] == where]

    def statuses(self, method: str, path: str) -> set[int]:
        """The statuses that are described."""
        return set(self._paths[path][method.lower()]["responses"])

    def describes(self, method: str, path: str, status: int) -> bool:
        """Whether a body is described."""
        answer = self._paths[path][method.lower()]["responses"].get(status)
        return answer is not None and "schema" in answer

    def check(self, method: str, path: str, status: int, value: Any) -> None:
        """Raise AssertionError if ``value`` is not what ``method path`` answers with ``status``.

        ``path`` is the description's own, as in ``/containers/{id}/json``.
        """
        answer = self._paths[path][method.lower()]["responses"][status]
        assert "schema" in answer, f"{method} {path} describes no body for {status}"
        self._check(_schema(answer["schema"]), value, f"{method} {path} {status}")

    def check_definition(self, name: str, value: Any) -> None:
        """Raise AssertionError if ``value`` is not what the definition says."""
        self._check({"$ref": f"#/definitions/{name}"}, value, name)

    def _check(self, schema: JSON, value: Any, what: str) -> None:
        validator = jsonschema.Draft4Validator({**schema, "definitions": self._definitions})
        faults = [
            f"{'/'.join(map(str, error.absolute_path)) or '(the whole)'}: {error.message[:300]}"
            for error in validator.iter_errors(value)
        ]
        assert not faults, f"{what}:\n" + "\n".join(faults)


def _schema(part: Any, *, combined: bool = False) -> Any:
    """A part of the description as a JSON schema; ``combined``: it is one of an allOf."""
    if isinstance(part, list):
        return [_schema(item) for item in part]
    if not isinstance(part, dict):
        return part
    result: JSON = {}
    for key, value in part.items():
        if key in ("example", "description", "x-nullable", "default", "discriminator", "format"):
            continue
        if key == "properties":
            result[key] = {name: _schema(member) for name, member in value.items()}
        elif key == "allOf":
            result[key] = [_schema(item, combined=True) for item in value]
        elif key == "enum":
            # An absent value is an empty string in Go.
            result[key] = [*value, ""] if "" not in value else value
        else:
            result[key] = _schema(value)
    if "$ref" not in result and result.get("properties") and not combined:
        result.setdefault("additionalProperties", False)
    if part.get("x-nullable") or result.get("type") in ("array", "object"):
        return {"anyOf": [result, {"type": "null"}]}
    return result


def _combined(part: Any) -> Iterator[str]:
    """The names of the definitions that some allOf puts together with others."""
    if isinstance(part, dict):
        for item in part.get("allOf", ()):
            yield item.get("$ref", "").rpartition("/")[2]
        part = list(part.values())
    if isinstance(part, list):
        for item in part:
            yield from _combined(item)


@functools.cache
def api_schema() -> ApiSchema:
    """The description, read once."""
    return ApiSchema(SPEC.read_text())
