"""Manifest lists in the making: what ``manifest create`` begins and ``manifest push`` ends.

A list is kept as one JSON file in the user's ``.docker/manifests-tiffin`` until it is pushed: the
descriptor of each manifest, with the platform that it or its user says, and where it came from.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tiffin.errors import Conflict, InvalidParameter, NotFound
from tiffin.image.config import ImageConfig
from tiffin.image.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    Descriptor,
    Index,
    Manifest,
)
from tiffin.image.reference import Reference
from tiffin.registry.client import Registry


class ManifestLists:
    """The lists of a user."""

    def __init__(self, folder: Path | None = None) -> None:
        home = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
        self._folder = folder or Path(home) / "manifests-tiffin"

    def _path(self, name: Reference) -> Path:
        return self._folder / f"{quote(name.canonical, safe='')}.json"

    def has(self, name: Reference) -> bool:
        """Whether a list was begun."""
        return self._path(name).exists()

    def load(self, name: Reference) -> list[dict[str, Any]]:
        """The entries of a list; raises NotFound."""
        try:
            entries: list[dict[str, Any]] = json.loads(self._path(name).read_bytes())
        except FileNotFoundError:
            raise NotFound(f"No such manifest: {name.familiar}") from None
        return entries

    def _save(self, name: Reference, entries: list[dict[str, Any]]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path(name)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(entries))
        os.rename(temporary, path)

    def create(self, name: Reference, entries: list[dict[str, Any]], *, amend: bool) -> None:
        """Begin a list, or add to one. Raises Conflict."""
        known: list[dict[str, Any]] = []
        if self._path(name).exists():
            if not amend:
                raise Conflict("refusing to amend an existing manifest list with no --amend flag")
            known = self.load(name)
        digests = {entry["digest"] for entry in entries}
        self._save(name, [e for e in known if e["digest"] not in digests] + entries)

    def annotate(self, name: Reference, digest: str, **platform: str) -> None:
        """Say what platform a manifest of the list is for; raises NotFound."""
        entries = self.load(name)
        for entry in entries:
            if entry["digest"] == digest:
                changed = {key: value for key, value in platform.items() if value}
                entry["platform"] = {**entry.get("platform", {}), **changed}
                self._save(name, entries)
                return
        raise NotFound(f"manifest {digest} is not in the list {name.familiar}")

    def remove(self, name: Reference) -> None:
        """Forget a list; raises NotFound."""
        self.load(name)
        self._path(name).unlink()

    def document(self, name: Reference) -> tuple[bytes, str]:
        """The list as it is pushed, and its media type."""
        entries = self.load(name)
        if not entries:
            raise InvalidParameter(f"the list {name.familiar} is empty")
        docker = all(entry["mediaType"] == DOCKER_MANIFEST for entry in entries)
        media_type = DOCKER_INDEX if docker else OCI_INDEX
        manifests = [
            {key: entry[key] for key in ("mediaType", "size", "digest", "platform") if key in entry}
            for entry in entries
        ]
        document = {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}
        return json.dumps(document, indent=3).encode(), media_type


def entries_of(reference: Reference, client: Registry) -> list[dict[str, Any]]:
    """What a manifest of a registry adds to a list; an index adds all that it names."""
    found = client.manifest(reference.path, reference.digest or reference.tag or "latest")
    if isinstance(found, Index):
        return [{**entry.to_document(), "source": reference.canonical} for entry in found.manifests]
    return [{**_described(reference, found, client).to_document(), "source": reference.canonical}]


def _described(reference: Reference, manifest: Manifest, client: Registry) -> Descriptor:
    from tiffin.image.manifest import Platform

    platform = None
    if manifest.is_image:
        config = ImageConfig.parse(client.read_blob(reference.path, manifest.config))
        platform = Platform(config.os or "linux", config.architecture, config.variant)
    return Descriptor(manifest.media_type, manifest.digest, len(manifest.raw), {}, platform)
