"""A registry that is a cache of another one: what it lacks it gets there, and keeps.

A tag is looked up there each time it is asked for, and is what it was before where the other
registry can't be reached. What is asked for by digest comes from there once. A blob is sent on
while it arrives; whoever asks for it meanwhile waits for the whole.
"""

from __future__ import annotations

import contextlib
import json

from tiffin.errors import NotFound, TiffinError, TooManyRequests, Unreachable
from tiffin.image.manifest import Descriptor
from tiffin.image.reference import is_digest
from tiffin.layer.locks import KeyedLocks
from tiffin.registry.client import Registry
from tiffin.registry.exchange import Exchange
from tiffin.registry.faults import Fault
from tiffin.registry.storage import Storage, media_type_of


class Upstream:
    """The other registry, and the storage that it is cached in."""

    def __init__(self, registry: Registry, storage: Storage) -> None:
        self._registry = registry
        self._storage = storage
        self._locks = KeyedLocks()

    def refresh(self, name: str, reference: str) -> None:
        """Have the manifest of a tag or digest here, as new as can be had."""
        storage = self._storage
        known = storage.resolve(name, reference)
        if known is not None and not storage.is_linked(name, "_manifests", known):
            known = None
        if known is not None and is_digest(reference):
            return
        with self._locks.held(f"{name}:{reference}"):
            try:
                found = self._registry.find_manifest(name, reference)
                if found is None:
                    return
                if found.digest == known:
                    return
                raw, said = self._registry.raw_manifest(name, reference)
            except (Unreachable, TooManyRequests):
                if known is None:
                    raise
                return
            except NotFound:
                return
            document = json.loads(raw)
            digest = Descriptor.of(raw, said).digest
            if is_digest(reference):
                digest = reference
            tags = [] if is_digest(reference) else [reference]
            media_type = media_type_of(document, said)
            storage.put_manifest(name, digest, raw, media_type, tags, document, check=False)

    def tags(self, name: str) -> list[str]:
        """The tags there; those known here where it can't be reached."""
        try:
            return sorted(self._registry.tags(name))
        except (Unreachable, TooManyRequests):
            return self._storage.tags(name)

    def send_blob(self, request: Exchange, name: str, digest: str, headers: dict[str, str]) -> None:
        """Answer with a blob that is not here (yet)."""
        storage = self._storage
        size = self._registry.find_blob(name, digest)
        if size is None:
            raise Fault("BLOB_UNKNOWN", "blob unknown to registry", digest=digest)
        if request.command == "HEAD":
            request.begin(200, headers, size)
            return
        with self._locks.held(digest):
            if not storage.mount(name, digest, None):
                streaming = "Range" not in request.headers and size >= 0
                self._fetch(request if streaming else None, name, digest, size, headers)
                if streaming:
                    return
        with storage.open_blob(name, digest) as file:
            request.file(file, file.seek(0, 2), headers)

    def _fetch(
        self, request: Exchange | None, name: str, digest: str, size: int, headers: dict[str, str]
    ) -> None:
        storage = self._storage
        upload = storage.begin(name)
        path = storage.upload_path(name, upload)
        try:
            if size < 0:
                raise TiffinError(f"blob {digest}: the registry does not say how large it is")
            descriptor = Descriptor("", digest, size)
            with self._registry.blob(name, descriptor, spool=path) as stream:
                if request is not None:
                    request.begin(200, headers, size)
                while data := stream.read():
                    if request is not None:
                        try:
                            request.wfile.write(data)
                        except OSError:
                            # The client is gone; the next one is glad to have it here.
                            request.close_connection = True
                            request = None
            with storage.lock() as hold:
                storage.place(path, digest)
                hold.assure()
                storage.adopt(name, digest)
        finally:
            with contextlib.suppress(Fault):
                storage.cancel(name, upload)
