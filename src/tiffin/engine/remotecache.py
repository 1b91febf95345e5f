"""The cache of builds outside of the engine: in a registry, a folder, or an image's configuration.

The first two are an OCI artifact: its configuration is a document of steps (key, parts, the image's
configuration after the step, the diff IDs of its layers), its layers are those that steps have
made, each with its diff ID as an annotation. An *inline* cache is the same document, packed, as a
field of an image's configuration, and its layers are the image's. Layers of base images are in none
of them: who builds has the base image, or the first key would not be found.

Rules: what is read is trusted as little as any archive: a layer must hash to its diff ID, and a
step's parts to its key. What cannot be read is told and is no cache; the build goes on without.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from tiffin.build.backend import Layers
from tiffin.build.cache import BuildCache, Record
from tiffin.errors import CorruptArchive, DigestMismatch, InvalidParameter, NotFound, TiffinError
from tiffin.image.config import ImageConfig, chain_ids
from tiffin.image.manifest import Descriptor, Index, Manifest, parse_manifest
from tiffin.registry.packing import Compression
from tiffin.registry.places import Place

JSON = dict[str, Any]
Say = Callable[[str], None]

CACHE_CONFIG = "application/vnd.tiffin.buildcache.v1+json"
INLINE_FIELD = "tiffin.buildcache.v1"
_DIFF_ID = "tiffin.diff-id"
_VERSION = 1
_LARGEST = 256 << 20
_DEPTH = 3


class RemoteCache:
    """One cache to read."""

    def __init__(
        self,
        name: str,
        steps: Iterable[JSON],
        blobs: Mapping[str, Descriptor],
        place: Place | None,
        say: Say,
    ) -> None:
        """``blobs`` are the packed layers by diff ID; without a ``place`` they are in the store."""
        self._name = name
        self._steps = {str(step["key"]): step for step in steps}
        self._blobs = blobs
        self._place = place
        self._say = say
        self._lock = threading.Lock()
        self._failed = False
        self._told = False

    def __contains__(self, key: str) -> bool:
        return key in self._steps and not self._failed

    def take(self, key: str, cache: BuildCache, layers: Layers) -> Record | None:
        """Bring a step's layers and its record into the engine; None if that can't be done."""
        try:
            return self._take(self._steps[key], cache, layers)
        except TiffinError as error:
            with self._lock:
                told, self._told = self._told, True
                # What is damaged is this step; a place that fails would fail again.
                damage = isinstance(error, CorruptArchive | DigestMismatch)
                self._failed = self._failed or not damage
            if not told:
                self._say(f"[Warning] cache {self._name} can't be used: {error.message}")
            return None

    def _take(self, step: JSON, cache: BuildCache, layers: Layers) -> Record | None:
        parent: str | None = None
        size = 0
        try:
            for diff_id in step["diffs"]:
                known = layers.known(parent, diff_id)
                if known is None:
                    blob = self._blobs.get(diff_id)
                    if blob is None or self._place is None:
                        return None
                    with self._place.open(blob) as stream:
                        known = layers.ingest(stream, parent, diff_id=diff_id)
                parent, size = known.chain_id, known.size
            config = base64.b64decode(step["config"])
            parts = base64.b64decode(step["parts"])
            if ImageConfig.parse(config).chain_id != parent:
                raise CorruptArchive(f"it is damaged: {step['step']}")
            return cache.bring(
                step["key"],
                step["parent"],
                step["step"],
                parts,
                config,
                parent,
                size if step["own"] else 0,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptArchive(f"it is damaged: {error}") from error


def read(place: Place, reference: str, name: str, say: Say) -> RemoteCache | None:
    """The cache under a tag or digest, also one that is inline in an image; None if there is none.

    What is wrong is told, and is no error.
    """
    try:
        raw, media_type = place.manifest(reference)
        for _ in range(_DEPTH):
            found = parse_manifest(raw, media_type or None)
            if not isinstance(found, Index):
                break
            entries = found.best_first()
            if not entries:
                break
            raw, media_type = place.manifest(entries[0].digest)
        if not isinstance(found, Manifest):
            raise NotFound("nothing for this machine is there")
        with place.open(found.config) as stream:
            content = _whole(stream, found.config.size)
        if found.config.media_type == CACHE_CONFIG:
            blobs = {each.annotations.get(_DIFF_ID, ""): each for each in found.layers}
            return RemoteCache(name, _steps(content), blobs, place, say)
        config = ImageConfig.parse(content)
        steps = inline_steps(config)
        if not steps:
            raise NotFound("it holds no cache of tiffin's")
        packed = dict(zip(config.diff_ids, found.layers, strict=False))
        return RemoteCache(name, steps, packed, place, say)
    except (TiffinError, OSError) as error:
        reason = error.message if isinstance(error, TiffinError) else str(error)
        say(f"[Warning] no cache from {name}: {reason}")
        return None


def of_image(config: ImageConfig, name: str, say: Say) -> RemoteCache | None:
    """The cache that is inline in an image of the store; None without one."""
    steps = inline_steps(config)
    return RemoteCache(name, steps, {}, None, say) if steps else None


def inline_steps(config: ImageConfig) -> list[JSON]:
    """The steps that an image's configuration holds; raises CorruptArchive."""
    packed = json.loads(config.to_bytes()).get(INLINE_FIELD)
    if packed is None:
        return []
    try:
        content = zstandard.ZstdDecompressor().decompress(
            base64.b64decode(packed), max_output_size=_LARGEST
        )
    except (ValueError, TypeError, zstandard.ZstdError) as error:
        raise CorruptArchive(f"its inline cache is damaged: {error}") from error
    return _steps(content)


def with_inline(config: ImageConfig, steps: list[JSON]) -> ImageConfig:
    """The configuration with its cache inside."""
    packed = zstandard.compress(_document(steps), 3)
    return config.with_field(INLINE_FIELD, base64.b64encode(packed).decode())


def describe(keys: Iterable[str], cache: BuildCache) -> list[JSON]:
    """The steps of a build, for a document."""
    steps: list[JSON] = []
    for key in dict.fromkeys(keys):
        found = cache.with_parts(key)
        if found is None:
            continue
        record, parts = found
        steps.append(
            {
                "key": record.key,
                "parent": record.parent,
                "step": record.step,
                "parts": base64.b64encode(parts).decode(),
                "config": base64.b64encode(record.config).decode(),
                "diffs": list(ImageConfig.parse(record.config).diff_ids),
                "own": record.size > 0,
            }
        )
    return steps


def write(
    place: Place,
    reference: str,
    steps: list[JSON],
    layers: Layers,
    *,
    without: Collection[str],
    compression: Compression,
    known: Callable[[str], Iterable[Descriptor]],
    work: Path,
) -> Descriptor:
    """Store the steps and their layers under a tag; the manifest's descriptor.

    ``without`` are the chain IDs of base images, ``known`` gives packed forms of a layer that the
    place may have already.
    """
    chains = {
        diff_id: chain
        for step in steps
        for diff_id, chain in zip(step["diffs"], chain_ids(step["diffs"]), strict=True)
        if chain not in without
    }
    there = _there(place, reference)
    descriptors: list[Descriptor] = []
    for diff_id, chain in chains.items():
        forms = [there[diff_id]] if diff_id in there else []
        blob = next((each for each in [*forms, *known(diff_id)] if place.has(each)), None)
        if blob is None:
            blob = _pack(place, layers, chain, compression, work)
        annotations = {_DIFF_ID: diff_id}
        descriptors.append(Descriptor(blob.media_type, blob.digest, blob.size, annotations))
    content = _document(steps)
    config = Descriptor.of(content, CACHE_CONFIG)
    if not place.has(config):
        with tempfile.TemporaryFile(dir=work) as file:
            file.write(content)
            file.seek(0)
            place.put(config, cast(BinaryIO, file))
    manifest = Manifest.make(config, descriptors)
    place.put_manifest(manifest.raw, manifest.media_type, reference)
    return manifest.descriptor


def _there(place: Place, reference: str) -> dict[str, Descriptor]:
    """The layers of the cache that the tag names so far."""
    try:
        raw, media_type = place.manifest(reference)
        found = parse_manifest(raw, media_type or None)
    except (NotFound, InvalidParameter):
        return {}
    if not isinstance(found, Manifest):
        return {}
    named = [each for each in found.layers if _DIFF_ID in each.annotations]
    return {each.annotations[_DIFF_ID]: each for each in named}


def _pack(
    place: Place, layers: Layers, chain: str, compression: Compression, work: Path
) -> Descriptor:
    with tempfile.TemporaryFile(dir=work) as file:
        packing = _Packing(file, compression)
        layers.write_tar(layers.get(chain), cast(BinaryIO, packing))
        descriptor = packing.finish()
        file.seek(0)
        place.put(descriptor, cast(BinaryIO, file))
    return descriptor


class _Packing:
    """What a layer's tar is written to."""

    def __init__(self, file: Any, compression: Compression) -> None:
        self._file = file
        self._packer = compression.packer()
        self._media_type = compression.media_type
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: memoryview) -> int:
        self._add(self._packer.compress(data))
        return len(data)

    def _add(self, data: bytes) -> None:
        self._hash.update(data)
        self._size += len(data)
        self._file.write(data)

    def finish(self) -> Descriptor:
        self._add(self._packer.flush())
        return Descriptor(self._media_type, f"sha256:{self._hash.hexdigest()}", self._size)


def _document(steps: list[JSON]) -> bytes:
    return json.dumps({"version": _VERSION, "steps": steps}, separators=(",", ":")).encode()


def _steps(content: bytes) -> list[JSON]:
    try:
        document = json.loads(content)
        if document["version"] != _VERSION:
            raise InvalidParameter("it was written by another version of tiffin")
        return [step for step in document["steps"] if step["key"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptArchive(f"it is damaged: {error}") from error


def _whole(stream: BinaryIO, size: int) -> bytes:
    if size > _LARGEST:
        raise InvalidParameter(f"its document is longer than {_LARGEST} bytes")
    parts: list[bytes] = []
    while part := stream.read(1 << 20):
        parts.append(part)
    return b"".join(parts)
