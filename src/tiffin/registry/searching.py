"""Searching: Docker's ``/v1/search`` where there is one, else the list of repositories."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from tiffin.registry.answers import failure
from tiffin.registry.client import Patience, Registry
from tiffin.registry.credentials import Credentials
from tiffin.registry.endpoints import Endpoint

_HUB = "docker.io"
_HUB_INDEX = "index.docker.io"


def search(
    endpoint: Endpoint,
    term: str,
    limit: int,
    credentials: Credentials | None = None,
    patience: Patience | None = None,
) -> list[dict[str, Any]]:
    """Rows of ``name``, ``description``, ``star_count``, ``is_official``, ``is_automated``."""
    if endpoint.domain == _HUB:
        # The registry of Docker Hub can't search; its index can.
        endpoint = replace(endpoint, host=_HUB_INDEX)
    with Registry(endpoint, credentials, patience=patience) as registry:
        query = urlencode({"q": term, "n": limit})
        answer = registry.transport.request("GET", f"/v1/search?{query}")
        if answer.status == 200:
            found = json.loads(answer.whole()).get("results") or []
            return [_row(entry) for entry in found if isinstance(entry, dict)]
        if answer.status not in (404, 405):
            raise failure(answer, f"search for {term}")
        answer.close()
        names = [name for name in registry.catalog() if term in name]
        return [_row({"name": name}) for name in names[:limit]]


def _row(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": str(entry.get("name") or ""),
        "description": str(entry.get("description") or ""),
        "star_count": int(entry.get("star_count") or 0),
        "is_official": bool(entry.get("is_official")),
        "is_automated": False,
    }
