"""A registry that is a cache of another one: what it lacks it gets there, and keeps.

A tag is looked up there each time it is asked for. What is asked for by digest comes from there
once. A blob is sent on while it arrives; whoever asks for it meanwhile waits for the whole.

What is here is served whatever the other registry does: a tag is what it was before where the
other one can't be reached, fails, or does not give it any more. One that could not be reached is
not asked about what is here for ten seconds, so that nobody waits for it again and again. What is
not here is an error then: not 404, since nobody knows whether it exists.

Source: OCI distribution specification 1.1, "Registry Proxying".
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

from tiffin.errors import NotFound, TiffinError, TooManyRequests, Unreachable
from tiffin.image.manifest import Descriptor
from tiffin.image.reference import is_digest
from tiffin.layer.locks import KeyedLocks
from tiffin.registry.client import Registry
from tiffin.registry.exchange import Exchange
from tiffin.registry.faults import Fault
from tiffin.registry.storage import Storage, blob_references, media_type_of

_PAUSE = 10.0
"""Seconds that what is here is served for without asking, after the other could not be reached."""


class Upstream:
    """The other registry, and the storage that it is cached in. Any thread may use it."""

    def __init__(self, registry: Registry, storage: Storage) -> None:
        self._registry = registry
        self._storage = storage
        self._locks = KeyedLocks()
        self._away = 0.0

    @property
    def _resting(self) -> bool:
        return time.monotonic() < self._away

    def _failed(self, error: TiffinError) -> None:
        if isinstance(error, Unreachable | TooManyRequests):
            self._away = time.monotonic() + _PAUSE

    def refresh(self, name: str, reference: str) -> None:
        """Have the manifest of a tag or digest here, as new as can be had.

        Raises TiffinError if it is not here and can't be had.
        """
        known = self._known(name, reference)
        if known is not None and (is_digest(reference) or self._resting):
            return
        with self._locks.held(f"{name}:{reference}"):
            # Whoever held it may have got it, or have waited in vain.
            known = self._known(name, reference)
            if known is not None and (is_digest(reference) or self._resting):
                return
            try:
                self._fetch_manifest(name, reference, known)
            except NotFound:
                return
            except TiffinError as error:
                self._failed(error)
                if known is None:
                    raise

    def _known(self, name: str, reference: str) -> str | None:
        storage = self._storage
        known = storage.resolve(name, reference)
        return known if known and storage.is_linked(name, "_manifests", known) else None

    def _fetch_manifest(self, name: str, reference: str, known: str | None) -> None:
        found = self._registry.find_manifest(name, reference)
        if found is None or found.digest == known:
            return
        raw, said = self._registry.raw_manifest(name, reference)
        try:
            document = json.loads(raw)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise TiffinError(
                f"manifest {name}:{reference}: registry {self._registry.host} answers no manifest"
            )
        digest = reference if is_digest(reference) else Descriptor.of(raw, said).digest
        tags = [] if is_digest(reference) else [reference]
        media_type = media_type_of(document, said)
        self._storage.put_manifest(name, digest, raw, media_type, tags, document, check=False)

    def tags(self, name: str) -> list[str]:
        """The tags there; those known here where they can't be had. Raises TiffinError if neither
        is known."""
        try:
            return sorted(self._registry.tags(name))
        except NotFound as error:
            refusal: TiffinError = Fault("NAME_UNKNOWN", error.message, name=name)
        except TiffinError as error:
            refusal = error
        if self._storage.exists(name):
            return self._storage.tags(name)
        raise refusal

    def referrers(self, name: str, digest: str) -> list[dict[str, Any]]:
        """What refers to a digest there, in order of digest; what is known here where it can't be
        had. Raises TiffinError if nothing is."""
        try:
            found = self._registry.referrers(name, digest)
        except TiffinError:
            if known := self._storage.referrers(name, digest):
                return known
            raise
        return sorted(found, key=lambda entry: str(entry.get("digest")))

    def send_blob(self, request: Exchange, name: str, digest: str, headers: dict[str, str]) -> None:
        """Answer with a blob that is not here (yet)."""
        storage = self._storage
        try:
            size = self._registry.find_blob(name, digest)
        except TiffinError:
            if not self._adopted(name, digest):
                raise
            with storage.open_blob(name, digest) as file:
                request.file(file, file.seek(0, 2), headers)
            return
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

    def _adopted(self, name: str, digest: str) -> bool:
        """Whether the bytes are here, from another repository, and a manifest of this one that is
        here needs them: then they are its own, without asking."""
        storage = self._storage
        for manifest in storage.manifests(name):
            with contextlib.suppress(FileNotFoundError):
                if digest in blob_references(json.loads(storage.bytes_of(manifest))):
                    return storage.mount(name, digest, None)
        return False

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
