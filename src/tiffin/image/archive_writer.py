"""Writing image archives (see ``archive``): one tar that is a docker-archive and an OCI layout.

The documents come first, then the layers, each of them once and uncompressed, so that its blob's
digest is its diff ID. No clock, no owner and no order but the caller's goes into the bytes.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from tiffin.errors import TiffinError
from tiffin.image.config import ImageConfig
from tiffin.image.manifest import OCI_CONFIG, OCI_LAYER, Descriptor, Index, Manifest
from tiffin.image.reference import Reference

__all__ = ["SavedImage", "SavedLayer", "write_archive"]

_BLOCK = 512


@dataclass(frozen=True, slots=True)
class SavedLayer:
    """A layer to be written."""

    diff_id: str
    tar_size: int
    write: Callable[[BinaryIO], None]
    """Writes exactly ``tar_size`` bytes to the output; may use its descriptor, as the output has
    been flushed."""


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An image to be written."""

    config: ImageConfig
    names: Sequence[str]
    """References with a tag; any that has none is left out."""
    layers: Sequence[SavedLayer]
    """Lowest first."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """What the manifest says of the image."""
    index_annotations: Mapping[str, str] = field(default_factory=dict)
    """What the index says of the manifest."""


def write_archive(output: BinaryIO, images: Sequence[SavedImage]) -> None:
    """Writes the images; the same images give the same bytes.

    ``output`` need not be seekable, and is flushed but not closed. Raises TiffinError if a layer
    turns out to have another size, and what the layers' ``write`` raises.
    """
    blobs: dict[str, bytes] = {}
    layers: dict[str, SavedLayer] = {}
    entries: dict[str, dict[str, Any]] = {}
    manifests: dict[str, Manifest] = {}
    said: dict[str, Mapping[str, str]] = {}
    tags: dict[str, dict[str, Reference]] = {}
    for image in images:
        config = Descriptor.of(image.config.to_bytes(), OCI_CONFIG)
        descriptors = [Descriptor(OCI_LAYER, each.diff_id, each.tar_size) for each in image.layers]
        manifest = Manifest.make(config, descriptors, annotations=image.annotations)
        manifests[config.digest] = manifest
        said[config.digest] = image.index_annotations
        blobs[config.digest] = image.config.to_bytes()
        blobs[manifest.digest] = manifest.raw
        for layer in image.layers:
            layers.setdefault(layer.diff_id, layer)
        named = tags.setdefault(config.digest, {})
        for reference in map(Reference.parse, image.names):
            if reference.tag is not None:
                named[reference.without_digest().canonical] = reference.without_digest()
        entries[config.digest] = {
            "Config": _member(config.digest),
            "RepoTags": [reference.familiar for reference in named.values()] or None,
            "Layers": [_member(each.diff_id) for each in image.layers],
            "LayerSources": {each.digest: each.to_document() for each in descriptors},
        }
    documents = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _index(manifests, tags, said).raw,
        "manifest.json": _json(list(entries.values())),
    }
    if any(tags.values()):
        documents["repositories"] = _json(_repositories(manifests, tags))
    _write_header(output, "blobs", directory=True)
    _write_header(output, "blobs/sha256", directory=True)
    for name, content in documents.items():
        _write_file(output, name, content)
    for digest, content in blobs.items():
        _write_file(output, _member(digest), content)
    for diff_id, layer in layers.items():
        _write_layer(output, _member(diff_id), layer)
    _put(output, bytes(2 * _BLOCK))
    output.flush()


def _index(
    manifests: dict[str, Manifest],
    tags: dict[str, dict[str, Reference]],
    said: dict[str, Mapping[str, str]],
) -> Index:
    """One entry for each name, and one for each image that has none."""
    entries = []
    for config, manifest in manifests.items():
        plain = manifest.descriptor
        for name, reference in tags[config].items():
            annotations = {
                **said[config],
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": str(reference.tag),
            }
            entries.append(Descriptor(plain.media_type, plain.digest, plain.size, annotations))
        if not tags[config]:
            more = said[config]
            entries.append(Descriptor(plain.media_type, plain.digest, plain.size, more))
    return Index.make(entries)


def _repositories(
    manifests: dict[str, Manifest], tags: dict[str, dict[str, Reference]]
) -> dict[str, dict[str, str]]:
    """What readers before Docker 1.10 look names up in: a top layer by repository and tag."""
    repositories: dict[str, dict[str, str]] = {}
    for config, manifest in manifests.items():
        top = manifest.layers[-1].digest if manifest.layers else config
        for reference in tags[config].values():
            by_tag = repositories.setdefault(reference.familiar_name, {})
            by_tag[str(reference.tag)] = top.partition(":")[2]
    return repositories


def _write_layer(output: BinaryIO, name: str, layer: SavedLayer) -> None:
    _write_header(output, name, layer.tar_size)
    output.flush()
    start = output.tell() if output.seekable() else None
    layer.write(output)
    if start is not None and output.tell() != start + layer.tar_size:
        raise TiffinError(
            f"layer {layer.diff_id} gave {output.tell() - start} bytes instead of its"
            f" {layer.tar_size}: it is damaged in the store"
        )
    _pad(output, layer.tar_size)


def _write_file(output: BinaryIO, name: str, content: bytes) -> None:
    _write_header(output, name, len(content))
    _put(output, content)
    _pad(output, len(content))


def _write_header(output: BinaryIO, name: str, size: int = 0, *, directory: bool = False) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o755 if directory else 0o644
    info.type = tarfile.DIRTYPE if directory else tarfile.REGTYPE
    # PAX differs from ustar where a layer has 8 GiB or more, and only there.
    _put(output, info.tobuf(tarfile.PAX_FORMAT))


def _pad(output: BinaryIO, size: int) -> None:
    _put(output, bytes(-size % _BLOCK))


def _put(output: BinaryIO, data: bytes) -> None:
    # An unbuffered file or a socket may take a part only.
    view = memoryview(data)
    while view:
        view = view[output.write(view) :]


def _member(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/", 1)


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
