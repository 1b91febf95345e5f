"""Images are copied packed as they are: no byte of them changes, and so no digest.

An index is copied with all its manifests, or with one platform's; an artifact like an image. Blobs
that are at the destination are not read. Layers that must not be distributed are left out, as the
specification has it: their manifest says where they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tiffin.errors import InvalidParameter, NotFound, Unsupported
from tiffin.image.manifest import Descriptor, Index, Platform, is_distributable, parse_manifest
from tiffin.registry.places import Place
from tiffin.registry.storage import media_type_of
from tiffin.registry.upload import Forgotten

PARALLEL = 3
_DEPTH = 6
_ATTEMPTS = 5
"""Times that a blob is sent which the registry forgets."""

Say = Callable[[str], None]


class Copy:
    """One copy from a place to another."""

    def __init__(self, source: Place, target: Place, say: Say = lambda line: None) -> None:
        self._source = source
        self._target = target
        self._say = say
        self.copied = 0
        """Bytes of blobs that were copied."""
        self.skipped = 0
        """Bytes of blobs that were there."""

    def run(
        self,
        source: str,
        target: str,
        *,
        platform: Platform | None = None,
        referrers: bool = False,
    ) -> str:
        """Copy what ``source`` names (tag or digest), under the name ``target``; its digest.

        ``platform``: only the manifest for it, without its index. ``referrers``: with what refers
        to it (signatures, lists of contents). Raises NotFound, DigestMismatch, Unsupported.
        """
        raw, said = self._source.manifest(source)
        raw, media_type, document = _parsed(raw, said)
        if platform is not None:
            found = parse_manifest(raw, media_type)
            if isinstance(found, Index):
                entries = found.best_first(platform)
                if not entries:
                    raise NotFound(f"no matching manifest for {platform} in {source}")
                raw, said = self._source.manifest(entries[0].digest)
                raw, media_type, document = _parsed(raw, entries[0].media_type)
        self._content(document, _DEPTH)
        self._target.put_manifest(raw, media_type, target)
        digest = Descriptor.of(raw, media_type).digest
        if referrers:
            self._referrers(digest)
        return digest

    def _content(self, document: dict[str, Any], depth: int) -> None:
        """Copy what a manifest names."""
        if not depth:
            raise InvalidParameter("invalid manifest: its indexes are nested too deeply")
        for entry in document.get("manifests") or ():
            descriptor = Descriptor.parse(entry, "manifests")
            raw, _ = self._source.manifest(descriptor.digest)
            raw, media_type, inner = _parsed(raw, descriptor.media_type)
            self._content(inner, depth - 1)
            self._target.put_manifest(raw, media_type, descriptor.digest)
        blobs = {}
        for entry in [document.get("config"), *(document.get("layers") or ())]:
            if entry is None:
                continue
            descriptor = Descriptor.parse(entry, "layers")
            if not is_distributable(descriptor.media_type):
                self._say(f"{descriptor.digest}: not distributable, left out")
                continue
            blobs[descriptor.digest] = descriptor
        if blobs:
            with ThreadPoolExecutor(min(PARALLEL, len(blobs)), "copy") as pool:
                for descriptor, copied in zip(
                    blobs.values(), pool.map(self._blob, blobs.values()), strict=True
                ):
                    if copied:
                        self.copied += descriptor.size
                    else:
                        self.skipped += descriptor.size

    def _blob(self, descriptor: Descriptor) -> bool:
        if self._target.has(descriptor):
            self._say(f"{descriptor.digest}: exists")
            return False
        for last in (False,) * (_ATTEMPTS - 1) + (True,):
            try:
                with self._source.open(descriptor) as stream:
                    self._target.put(descriptor, stream)
                break
            except Forgotten:
                # Where a connection broke, some registries give up what they have.
                if last:
                    raise
        self._say(f"{descriptor.digest}: copied, {descriptor.size} bytes")
        return True

    def _referrers(self, digest: str) -> None:
        for entry in self._source.referrers(digest):
            descriptor = Descriptor.parse(entry, "referrers")
            raw, _ = self._source.manifest(descriptor.digest)
            raw, media_type, document = _parsed(raw, descriptor.media_type)
            self._content(document, _DEPTH)
            self._target.put_manifest(raw, media_type, descriptor.digest)
            self._referrers(descriptor.digest)


def _parsed(raw: bytes, said: str) -> tuple[bytes, str, dict[str, Any]]:
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise InvalidParameter(f"invalid manifest: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidParameter("invalid manifest: must be an object")
    if document.get("schemaVersion") == 1:
        raise Unsupported("Docker image manifest version 2, schema 1 is not supported")
    return raw, media_type_of(document, said), document
