"""The published OCI schemas, as functions that check a document."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft4Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

SCHEMAS = Path(__file__).parent.parent / "spec" / "oci-image"


@pytest.fixture(scope="session")
def conforms() -> Callable[[str, Any], None]:
    """``conforms("image-manifest", document)`` raises if the document breaks the schema."""
    resources = {}
    for path in SCHEMAS.glob("*.json"):
        contents = json.loads(path.read_text())
        resource = Resource.from_contents(contents, default_specification=DRAFT4)
        resources[path.name] = resource
        resources[contents.get("id", path.name)] = resource

    # The schemas name each other relative to ids that are no addresses of these files.
    def retrieve(uri: str) -> Resource[Any]:
        return resources[uri.rpartition("/")[2]]

    registry = Registry(retrieve=retrieve)  # type: ignore[call-arg]

    def check(schema: str, document: Any) -> None:
        contents = json.loads((SCHEMAS / f"{schema}-schema.json").read_text())
        Draft4Validator(contents, registry=registry).validate(document)

    return check
