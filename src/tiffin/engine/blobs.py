"""What the engine remembers of registries: packed forms of layers, where they were seen, and the
manifests that images were pulled or pushed as.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from tiffin.image.manifest import Descriptor, Manifest, parse_manifest
from tiffin.store.database import Database


@dataclass(frozen=True, slots=True)
class KnownBlob:
    """A packed form of a layer."""

    descriptor: Descriptor
    recipe: str | None


class BlobMemory:
    """The tables ``blobs``, ``blob_places`` and ``manifests``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def sweep(self) -> None:
        """Forget the forms of layers that are gone."""
        with self._database.transaction():
            self._database.execute(
                "DELETE FROM blobs WHERE diff_id NOT IN (SELECT diff_id FROM layers)"
            )
            self._database.execute(
                "DELETE FROM blob_places WHERE digest NOT IN (SELECT digest FROM blobs)"
            )

    def remember(
        self,
        diff_id: str,
        descriptor: Descriptor,
        registry: str,
        repository: str,
        recipe: str | None = None,
    ) -> None:
        """A form of a layer, and a repository that has it."""
        now = time.time_ns()
        with self._database.transaction():
            self._database.execute(
                "INSERT INTO blobs VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (diff_id, digest)"
                " DO UPDATE SET recipe = coalesce(recipe, excluded.recipe)",
                (diff_id, descriptor.digest, descriptor.size, descriptor.media_type, recipe, now),
            )
            self._database.execute(
                "INSERT OR REPLACE INTO blob_places VALUES (?, ?, ?, ?)",
                (descriptor.digest, registry, repository, now),
            )

    def forget_place(self, digest: str, registry: str, repository: str) -> None:
        """The repository does not have it (any more)."""
        self._database.execute(
            "DELETE FROM blob_places WHERE digest = ? AND registry = ? AND repository = ?",
            (digest, registry, repository),
        )

    def forms(self, diff_id: str) -> list[KnownBlob]:
        """The known forms of a layer, the newest first."""
        return [
            KnownBlob(Descriptor(row["media_type"], row["digest"], row["size"]), row["recipe"])
            for row in self._database.all(
                "SELECT * FROM blobs WHERE diff_id = ? ORDER BY created DESC", (diff_id,)
            )
        ]

    def places(self, digest: str) -> list[tuple[str, str]]:
        """The registries and repositories that had a blob, the one seen last first."""
        rows = self._database.all(
            "SELECT registry, repository FROM blob_places WHERE digest = ? ORDER BY seen DESC",
            (digest,),
        )
        return [(row["registry"], row["repository"]) for row in rows]

    def repositories(self, digest: str, registry: str) -> list[str]:
        """The repositories of a registry that had a blob, the one seen last first."""
        rows = self._database.all(
            "SELECT repository FROM blob_places WHERE digest = ? AND registry = ?"
            " ORDER BY seen DESC LIMIT 3",
            (digest, registry),
        )
        return [row["repository"] for row in rows]

    def remember_manifest(self, image: str, manifest: Manifest) -> None:
        """What an image was pulled or pushed as."""
        self._database.execute(
            "INSERT OR REPLACE INTO manifests VALUES (?, ?, ?, ?, ?)",
            (manifest.digest, image, manifest.media_type, manifest.raw, time.time_ns()),
        )

    def manifests(self, image: str) -> list[Manifest]:
        """The manifests of an image, the newest first."""
        found = []
        for row in self._database.all(
            "SELECT * FROM manifests WHERE image = ? ORDER BY created DESC", (image,)
        ):
            parsed = parse_manifest(bytes(row["content"]), row["media_type"])
            if isinstance(parsed, Manifest):
                found.append(parsed)
        return found
