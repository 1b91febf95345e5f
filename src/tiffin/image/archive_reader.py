"""Reading image archives (see ``archive``): which images one has, and their layers in order."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from tiffin.errors import CorruptArchive, DigestMismatch, InvalidParameter, Unsupported
from tiffin.image.archive_members import Archive
from tiffin.image.config import ImageConfig
from tiffin.image.manifest import (
    INDEX_TYPES,
    LAYER_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Index,
    Manifest,
    Platform,
    parse_manifest,
)
from tiffin.image.reference import Reference, is_digest, is_image_id

__all__ = ["HasChain", "Ingest", "Known", "LoadedImage", "read_archive"]

_DOCUMENT_MAX = 32 << 20
_DEPTH_MAX = 4
_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"


class HasChain(Protocol):
    """A layer of the store, as far as reading an archive needs to know."""

    @property
    def chain_id(self) -> str: ...


Ingest = Callable[[BinaryIO, str | None, str], HasChain]
"""Takes a layer's tar (maybe compressed), the chain ID below it and its diff ID; it verifies the
diff ID. The stream has a ``size`` and a ``name``."""

Known = Callable[[str | None, str], HasChain | None]
"""The layer of that diff ID upon that chain ID, if the store has it."""


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image whose layers are in the store."""

    config: ImageConfig
    names: list[str]
    """Canonical references with a tag."""
    top: str | None
    """The chain ID of all its layers; None if it has none."""


@dataclass(frozen=True, slots=True)
class _Blob:
    member: str
    digest: str | None
    """What the member's bytes hash to, where the archive says so."""


@dataclass(frozen=True, slots=True)
class _Listed:
    config: ImageConfig
    names: list[str]
    layers: list[_Blob]


def read_archive(
    file: BinaryIO | str | Path,
    ingest: Ingest,
    *,
    spool: Path,
    known: Known | None = None,
    platform: Platform | None = None,
) -> list[LoadedImage]:
    """Brings the layers of all images of an archive into the store.

    ``file`` is a path, or a stream, which is copied into the folder ``spool`` unless it is a plain
    tar in a file; only images for ``platform`` are read, if it is given; if not, this machine's
    decides where an OCI layout has a choice.
    All documents are read and checked before the first layer is. Raises CorruptArchive,
    DigestMismatch, StorageFull or Unsupported naming the member, and what ``ingest`` raises; what
    has been ingested until then is the caller's to collect.
    """
    with Archive(file, spool) as archive:
        if "manifest.json" in archive:
            listed: Iterable[_Listed] = _read_docker(archive)
        elif "index.json" in archive:
            listed = _read_layout(archive, platform or Platform.of_host(), any_single=not platform)
        elif "repositories" in archive:
            raise Unsupported(
                "invalid archive: it is in the image format before Docker 1.10 (repositories, but"
                " no manifest.json): load it into a Docker of versions 1.10 to 24 and save it again"
            )
        else:
            raise CorruptArchive(
                "invalid archive: "
                + (
                    "it is an empty tar"
                    if archive.is_empty
                    else "it has neither manifest.json nor index.json; the tar of a root file"
                    " system is read by import, not by load"
                )
            )
        merged: dict[str, _Listed] = {}
        listed = [image for image in listed if platform is None or _is_for(image, platform)]
        if platform is not None and not listed:
            raise _nothing_for(platform)
        for image in listed:
            if first := merged.get(image.config.id):
                first.names.extend(name for name in image.names if name not in first.names)
            else:
                merged[image.config.id] = image
        return [_load(archive, image, ingest, known) for image in merged.values()]


def _is_for(image: _Listed, platform: Platform) -> bool:
    config = image.config
    return bool(platform.runs(Platform(config.os, config.architecture, config.variant)))


def _nothing_for(platform: Platform) -> InvalidParameter:
    return InvalidParameter(
        f"invalid archive: it has no image for the platform {platform}; name another with"
        " --platform"
    )


def _load(archive: Archive, image: _Listed, ingest: Ingest, known: Known | None) -> LoadedImage:
    top: str | None = None
    for diff_id, blob in zip(image.config.diff_ids, image.layers, strict=True):
        layer = known(top, diff_id) if known else None
        if layer is None:
            layer = _read_layer(archive, blob, ingest, top, diff_id)
        top = layer.chain_id
    return LoadedImage(image.config, image.names, top)


def _read_layer(
    archive: Archive, blob: _Blob, ingest: Ingest, parent: str | None, diff_id: str
) -> HasChain:
    try:
        if blob.digest is None or blob.digest == diff_id:
            # Nothing but the diff ID to verify, and that is ingest's.
            return ingest(cast(BinaryIO, archive.open(blob.member)), parent, diff_id)
        stream = archive.open_verified(blob.member, blob.digest)
        layer = ingest(cast(BinaryIO, stream), parent, diff_id)
        stream.verify()
        return layer
    except (CorruptArchive, DigestMismatch) as error:
        if blob.member in error.message:
            raise
        raise type(error)(f"{blob.member}: {error.message}") from error


def _read_docker(archive: Archive) -> list[_Listed]:
    """The images that ``manifest.json`` lists."""
    try:
        entries = json.loads(archive.read("manifest.json", _DOCUMENT_MAX))
    except (ValueError, RecursionError) as error:
        raise CorruptArchive(f"invalid archive: manifest.json is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise CorruptArchive("invalid archive: manifest.json must be a list")
    images = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("Config"), str):
            raise CorruptArchive("invalid archive: manifest.json has an image without Config")
        layers = _strings(entry, "Layers")
        config_member = entry["Config"]
        config_digest = _digest_in_name(config_member)
        if config_digest:
            raw = archive.read_verified(config_member, config_digest, _DOCUMENT_MAX)
        else:
            raw = archive.read(config_member, _DOCUMENT_MAX)
        config = _parse_config(raw, config_member)
        blobs = [_Blob(layer, _digest_in_path(layer)) for layer in layers]
        names = [_tagged(name) for name in _strings(entry, "RepoTags")]
        images.append(_listed(config, names, blobs, config_member))
    return images


def _read_layout(archive: Archive, platform: Platform, *, any_single: bool) -> Iterator[_Listed]:
    """The images that an OCI layout's ``index.json`` lists, one for each name or entry.

    ``any_single``: a name's only image is taken whatever platform it is for, as people do load
    foreign images.
    """
    if "oci-layout" in archive:
        _check_layout(archive.read("oci-layout", _DOCUMENT_MAX))
    index = _parse_manifest(archive.read("index.json", _DOCUMENT_MAX), "index.json")
    if not isinstance(index, Index):
        raise CorruptArchive("invalid archive: index.json must be an index")
    groups: dict[str, list[Descriptor]] = {}
    for place, entry in enumerate(index.manifests):
        # The same name for several platforms is one image; without a name each is its own.
        groups.setdefault(_name_in(entry) or f"#{place}", []).append(entry)
    found = False
    for key, entries in groups.items():
        single = any_single and len(entries) == 1 and entries[0].media_type in MANIFEST_TYPES
        manifest = _choose(archive, entries, platform, _DEPTH_MAX, only=single)
        if manifest is None:
            continue
        found = True
        yield _of_manifest(archive, manifest, [] if key.startswith("#") else [key])
    if not found and index.manifests:
        raise _nothing_for(platform)


def _choose(
    archive: Archive,
    entries: list[Descriptor],
    platform: Platform,
    depth: int,
    *,
    only: bool = False,
) -> Manifest | None:
    """The best image manifest among the entries that the archive has; ``only``: there is but one,
    and it is meant."""
    if not depth:
        raise CorruptArchive("invalid archive: its indexes are nested too deeply")
    index = Index(b"", "", {}, tuple(entries))
    present = False
    for entry in entries if only else index.best_first(platform):
        if entry.media_type not in MANIFEST_TYPES | INDEX_TYPES:
            continue
        member = _member_of(entry)
        # Saved images of several platforms may lack the blobs of those that were not pulled.
        if member not in archive and len(entries) > 1:
            continue
        present = True
        raw = archive.read_verified(member, entry.digest, _DOCUMENT_MAX)
        document = _parse_manifest(raw, member, entry.media_type)
        if isinstance(document, Manifest):
            if document.is_image:
                return document
        else:
            chosen = _choose(archive, list(document.manifests), platform, depth - 1)
            if chosen is not None:
                return chosen
    if present and only:
        raise InvalidParameter(
            f"invalid archive: {entries[0].digest} is no container image, but some other artifact"
        )
    return None


def _of_manifest(archive: Archive, manifest: Manifest, names: list[str]) -> _Listed:
    member = _member_of(manifest.config)
    raw = archive.read_verified(member, manifest.config.digest, _DOCUMENT_MAX)
    config = _parse_config(raw, member)
    blobs = []
    for layer in manifest.layers:
        if layer.media_type not in LAYER_TYPES:
            raise Unsupported(
                f"{layer.digest}: layers of the media type {layer.media_type} are not supported"
            )
        blobs.append(_Blob(_member_of(layer), layer.digest))
    return _listed(config, names, blobs, member)


def _listed(config: ImageConfig, names: list[str], layers: list[_Blob], member: str) -> _Listed:
    if len(config.diff_ids) != len(layers):
        raise CorruptArchive(
            f"invalid manifest, layers length mismatch: expected {len(config.diff_ids)}, got"
            f" {len(layers)}: {member} has another number of diff IDs than there are layers"
        )
    return _Listed(config, names, layers)


def _parse_config(raw: bytes, member: str) -> ImageConfig:
    try:
        return ImageConfig.parse(raw)
    except InvalidParameter as error:
        raise CorruptArchive(f"{error.message} ({member})") from error


def _parse_manifest(raw: bytes, member: str, media_type: str | None = None) -> Manifest | Index:
    try:
        return parse_manifest(raw, media_type)
    except Unsupported:
        raise
    except InvalidParameter as error:
        raise CorruptArchive(f"{error.message} ({member})") from error


def _check_layout(raw: bytes) -> None:
    try:
        version = json.loads(raw).get("imageLayoutVersion")
    except (ValueError, RecursionError, AttributeError) as error:
        raise CorruptArchive(f"invalid archive: oci-layout is no layout file: {error}") from error
    if not isinstance(version, str) or not version.startswith("1."):
        raise Unsupported(f"OCI layouts of the version {version} are not supported, only 1.x")


def _strings(entry: dict[str, Any], name: str) -> list[str]:
    value = entry.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CorruptArchive(f"invalid archive: {name} in manifest.json must be a list of strings")
    return value


def _tagged(name: str) -> str:
    try:
        return Reference.parse(name).without_digest().with_default_tag().canonical
    except InvalidParameter as error:
        raise CorruptArchive(f"invalid tag {name!r} in the archive: {error.message}") from error


def _name_in(entry: Descriptor) -> str | None:
    """The image's name as the annotations have it; a bare tag is no name."""
    name = entry.annotations.get(_NAME)
    if name is None:
        name = entry.annotations.get(_REF_NAME, "")
        if "/" not in name and ":" not in name:
            return None
    return _tagged(name)


def _member_of(descriptor: Descriptor) -> str:
    algorithm, _, hexadecimal = descriptor.digest.partition(":")
    return f"blobs/{algorithm}/{hexadecimal}"


def _digest_in_path(member: str) -> str | None:
    """The digest of ``blobs/sha256/<hex>``."""
    blobs, _, rest = posixpath.normpath(member).partition("/")
    digest = rest.replace("/", ":", 1)
    return digest if blobs == "blobs" and is_digest(digest) else None


def _digest_in_name(member: str) -> str | None:
    """The digest that a config's member is named by: ``<hex>.json``, or as a blob."""
    name = posixpath.basename(member).removesuffix(".json").removeprefix("sha256:")
    return f"sha256:{name}" if is_image_id(name) else _digest_in_path(member)
