"""Descriptors, manifests and indexes: how an image's parts name each other by digest.

Words: a *descriptor* points to bytes by media type, digest and size; a *manifest* is one image for
one platform (a config and layers, lowest first); an *index* (Docker: manifest list) is a choice of
manifests. Docker's schema 2 and OCI's documents differ in their media types only.

Rules: the bytes that a document came with are kept, so that its digest never changes; documents
made here are deterministic. Docker's schema 1 is refused by name.

Source: OCI image specification, ``descriptor.md``, ``manifest.md``, ``image-index.md``; Docker's
image manifest version 2, schema 2.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tiffin.errors import InvalidParameter, Unsupported
from tiffin.image.platforms import Platform
from tiffin.image.reference import is_digest

__all__ = [
    "CONFIG_TYPES",
    "DOCKER_CONFIG",
    "DOCKER_INDEX",
    "DOCKER_LAYER_GZIP",
    "DOCKER_MANIFEST",
    "INDEX_TYPES",
    "LAYER_TYPES",
    "MANIFEST_TYPES",
    "OCI_CONFIG",
    "OCI_INDEX",
    "OCI_LAYER",
    "OCI_LAYER_GZIP",
    "OCI_LAYER_ZSTD",
    "OCI_MANIFEST",
    "Descriptor",
    "Index",
    "Manifest",
    "Platform",
    "parse_manifest",
]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = OCI_LAYER + "+gzip"
OCI_LAYER_ZSTD = OCI_LAYER + "+zstd"
OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"

DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = DOCKER_LAYER + ".gzip"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_DOCKER_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
LAYER_TYPES: Mapping[str, str] = {
    OCI_LAYER: "",
    OCI_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
    OCI_FOREIGN: "",
    OCI_FOREIGN + "+gzip": "gzip",
    OCI_FOREIGN + "+zstd": "zstd",
    DOCKER_LAYER: "",
    DOCKER_LAYER_GZIP: "gzip",
    DOCKER_LAYER + ".zstd": "zstd",
    DOCKER_FOREIGN: "",
    DOCKER_FOREIGN + ".gzip": "gzip",
}
"""The media types of layers, and how each is compressed ("" for a plain tar)."""


def is_distributable(media_type: str) -> bool:
    """Whether registries may be given a layer of this type; others have it at URLs of their own."""
    return not media_type.startswith((OCI_FOREIGN, DOCKER_FOREIGN))


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to bytes elsewhere."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    """Where the bytes are too, of layers that registries must not distribute."""

    @classmethod
    def parse(cls, document: Any, where: str) -> Descriptor:
        """Raises InvalidParameter naming ``where`` if ``document`` is no descriptor."""
        if not isinstance(document, dict):
            raise InvalidParameter(f"invalid manifest: {where} must be a descriptor")
        digest, size = document.get("digest"), document.get("size")
        media_type, annotations = document.get("mediaType"), document.get("annotations") or {}
        if not isinstance(digest, str) or not is_digest(digest):
            raise InvalidParameter(f"invalid manifest: {where} has no digest")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidParameter(f"invalid manifest: {where} ({digest}) has no size")
        if not isinstance(media_type, str):
            raise InvalidParameter(f"invalid manifest: {where} ({digest}) has no media type")
        if not isinstance(annotations, dict) or not all(
            isinstance(value, str) for value in annotations.values()
        ):
            raise InvalidParameter(
                f"invalid manifest: annotations of {where} ({digest}) must be strings"
            )
        urls = document.get("urls")
        places = [url for url in urls if isinstance(url, str)] if isinstance(urls, list) else []
        platform = _platform(document.get("platform"))
        return cls(media_type, digest, size, annotations, platform, tuple(places))

    @classmethod
    def of(cls, content: bytes, media_type: str, annotations: Mapping[str, str] = {}) -> Descriptor:
        """The descriptor of bytes at hand."""
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        return cls(media_type, digest, len(content), annotations)

    def to_document(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.urls:
            document["urls"] = list(self.urls)
        if self.annotations:
            document["annotations"] = dict(sorted(self.annotations.items()))
        if self.platform is not None:
            document["platform"] = {
                "architecture": self.platform.architecture,
                "os": self.platform.os,
            }
            if self.platform.variant:
                document["platform"]["variant"] = self.platform.variant
        return document


@dataclass(frozen=True)
class _Document:
    raw: bytes
    """The document's bytes, which its digest is of."""
    media_type: str
    annotations: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        return "sha256:" + hashlib.sha256(self.raw).hexdigest()

    @property
    def descriptor(self) -> Descriptor:
        """Points to this document."""
        return Descriptor(self.media_type, self.digest, len(self.raw))


@dataclass(frozen=True)
class Manifest(_Document):
    """One image for one platform."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    """Lowest first."""

    @classmethod
    def make(
        cls,
        config: Descriptor,
        layers: Iterable[Descriptor],
        *,
        media_type: str = OCI_MANIFEST,
        annotations: Mapping[str, str] = {},
    ) -> Manifest:
        """A new manifest, deterministic in its parts."""
        layers = tuple(layers)
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": config.to_document(),
            "layers": [layer.to_document() for layer in layers],
        }
        return cls(_encoded(document, annotations), media_type, annotations, config, layers)

    @property
    def is_image(self) -> bool:
        """Whether this is a container image, and not a chart, a signature or an attestation."""
        return self.config.media_type in CONFIG_TYPES


@dataclass(frozen=True)
class Index(_Document):
    """A choice of manifests."""

    manifests: tuple[Descriptor, ...]

    @classmethod
    def make(
        cls,
        manifests: Iterable[Descriptor],
        *,
        media_type: str = OCI_INDEX,
        annotations: Mapping[str, str] = {},
    ) -> Index:
        """A new index, deterministic in its parts."""
        manifests = tuple(manifests)
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "manifests": [manifest.to_document() for manifest in manifests],
        }
        return cls(_encoded(document, annotations), media_type, annotations, manifests)

    def best_first(self, wanted: Platform | None = None) -> list[Descriptor]:
        """The manifests that run on ``wanted`` (this machine, if None), the best one first.

        Manifests that say no platform come last; those that are no image (attestations) are
        left out.
        """
        wanted = wanted or Platform.of_host()
        ranked = [
            (4 if entry.platform is None else 4 - wanted.runs(entry.platform), place, entry)
            for place, entry in enumerate(self.manifests)
            if "vnd.docker.reference.type" not in entry.annotations
            and (entry.platform is None or wanted.runs(entry.platform))
        ]
        return [entry for _, _, entry in sorted(ranked, key=lambda item: item[:2])]


def parse_manifest(raw: bytes, media_type: str | None = None) -> Manifest | Index:
    """The manifest or index that these bytes are.

    ``media_type`` is what the one who gave the bytes calls them; the document's own ``mediaType``
    must agree with it. Raises InvalidParameter if they are neither, and Unsupported for Docker's
    schema 1.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"invalid manifest: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidParameter("invalid manifest: must be an object")
    own_type = document.get("mediaType")
    if document.get("schemaVersion") == 1 or (media_type or "").startswith(_DOCKER_SCHEMA_1):
        raise Unsupported(
            "Docker image manifest version 2, schema 1 is not supported: push or save the image"
            " again with a Docker newer than 1.10"
        )
    if document.get("schemaVersion") != 2:
        raise InvalidParameter("invalid manifest: schemaVersion must be 2")
    if own_type and media_type and own_type != media_type:
        raise InvalidParameter(f"invalid manifest: its media type is {own_type}, not {media_type}")
    has_config = "config" in document
    kind = own_type or media_type or (OCI_MANIFEST if has_config else OCI_INDEX)
    annotations = document.get("annotations") or {}
    if kind in INDEX_TYPES:
        if has_config or "layers" in document:
            raise InvalidParameter("invalid manifest: an index has neither config nor layers")
        return Index(raw, kind, annotations, _descriptors(document, "manifests"))
    if kind in MANIFEST_TYPES:
        if "manifests" in document:
            raise InvalidParameter("invalid manifest: an image's manifest has no other manifests")
        config = Descriptor.parse(document.get("config"), "config")
        return Manifest(raw, kind, annotations, config, _descriptors(document, "layers"))
    raise InvalidParameter(f"invalid manifest: unknown media type {kind!r}")


def _descriptors(document: dict[str, Any], name: str) -> tuple[Descriptor, ...]:
    entries = document.get(name)
    if entries is None:
        entries = []
    if not isinstance(entries, list):
        raise InvalidParameter(f"invalid manifest: {name} must be a list")
    return tuple(Descriptor.parse(entry, f"{name}[{place}]") for place, entry in enumerate(entries))


def _platform(document: Any) -> Platform | None:
    if not isinstance(document, dict):
        return None
    parts = [document.get(name) or "" for name in ("os", "architecture", "variant")]
    if not all(isinstance(part, str) for part in parts):
        raise InvalidParameter("invalid manifest: a platform's fields must be strings")
    return Platform(*parts)


def _encoded(document: dict[str, Any], annotations: Mapping[str, str]) -> bytes:
    if annotations:
        document["annotations"] = dict(sorted(annotations.items()))
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
