"""One image goes out: what the registry has is not sent, the rest is packed on the way.

An image that was pulled or pushed before goes out as it was, byte for byte, if each of its layers
is there, can be mounted from another repository, or can be packed to the same bytes again: then
its digest stays. Otherwise its layers get the forms that the registry has, or new ones, and the
image a new manifest.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, cast

from tiffin.engine.blobs import BlobMemory, KnownBlob
from tiffin.errors import DigestMismatch, TiffinError
from tiffin.image.config import ImageConfig
from tiffin.image.manifest import (
    DOCKER_FOREIGN,
    DOCKER_LAYER,
    OCI_CONFIG,
    OCI_FOREIGN,
    OCI_LAYER,
    Descriptor,
    Manifest,
    is_distributable,
)
from tiffin.layer.store import Layer, LayerStore
from tiffin.registry.client import Cancelled, Registry
from tiffin.registry.packing import Compression
from tiffin.registry.upload import Forgotten, Upload

JSON = dict[str, Any]
Say = Callable[[JSON], None]

PARALLEL = 3
_INTERVAL = 0.1


class Push:
    """See the module's text."""

    def __init__(
        self,
        layers: LayerStore,
        memory: BlobMemory,
        client: Registry,
        domain: str,
        repository: str,
        compression: Compression,
        say: Say,
        annotations: Mapping[str, str] = {},
    ) -> None:
        """``annotations`` are those of the image that a build was asked for."""
        self._annotations = annotations
        self._layers = layers
        self._memory = memory
        self._client = client
        self._domain = domain
        self._repository = repository
        self._compression = compression
        self._mutex = threading.Lock()
        self._say = say
        self._stopped = threading.Event()

    def say(self, status: str, layer: Layer, **detail: Any) -> None:
        """Tell something about one layer."""
        name = layer.diff_id.partition(":")[2][:12]
        with self._mutex:
            self._say({"status": status, "progressDetail": detail, "id": name})

    def run(self, image: str, config: ImageConfig, stack: Sequence[Layer], tag: str) -> Manifest:
        """Push an image, and let a tag name it; its manifest. Call it under a lease."""
        for layer in reversed(stack):
            self.say("Preparing", layer)
        manifest = self._as_it_was(image, stack)
        if manifest is None:
            foreign = self._foreign(image, stack)
            for place in foreign:
                self.say("Skipped foreign layer", stack[place])
            descriptors = self._parallel(
                lambda place: foreign.get(place) or self._layer(stack[place]), len(stack)
            )
            raw = config.to_bytes()
            self._client.put_blob(self._repository, raw)
            manifest = Manifest.make(
                Descriptor.of(raw, OCI_CONFIG), descriptors, annotations=self._annotations
            )
        else:
            self._client.put_blob(self._repository, config.to_bytes())
        self._client.put_manifest(self._repository, tag, manifest.raw, manifest.media_type)
        self._memory.remember_manifest(image, manifest)
        return manifest

    def _parallel(self, work: Callable[[int], Any], count: int) -> list[Any]:
        if not count:
            return []
        with ThreadPoolExecutor(min(PARALLEL, count), "push") as pool:
            futures = [pool.submit(work, place) for place in range(count)]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self._stopped.set()
                for future in futures:
                    future.cancel()
                raise

    # As it was.

    def _as_it_was(self, image: str, stack: Sequence[Layer]) -> Manifest | None:
        for manifest in self._memory.manifests(image):
            if len(manifest.layers) != len(stack):
                continue
            if self._annotations and dict(manifest.annotations) != dict(self._annotations):
                continue
            forms = self._forms(manifest, stack)
            if not all(self._fits(form) for form in forms):
                continue
            if self._restore(forms, stack):
                return manifest
        return None

    def _foreign(self, image: str, stack: Sequence[Layer]) -> dict[int, Descriptor]:
        """The layers that must not be pushed, by their place in the image: as it came with them."""
        for manifest in self._memory.manifests(image):
            if len(manifest.layers) == len(stack):
                return {
                    place: _oci(entry)
                    for place, entry in enumerate(manifest.layers)
                    if not is_distributable(entry.media_type)
                }
        return {}

    def _fits(self, form: KnownBlob) -> bool:
        return self._compression.accepts(_oci(form.descriptor).media_type, form.recipe)

    def _forms(self, manifest: Manifest, stack: Sequence[Layer]) -> list[KnownBlob]:
        """What is known of a manifest's layers."""
        forms = []
        for entry, layer in zip(manifest.layers, stack, strict=True):
            recipes = [
                known.recipe
                for known in self._memory.forms(layer.diff_id)
                if known.descriptor.digest == entry.digest
            ]
            recipe = recipes[0] if recipes else None
            if entry.digest == layer.diff_id:
                recipe = "none"
            forms.append(KnownBlob(entry, recipe))
        return forms

    def _restore(self, forms: Sequence[KnownBlob], stack: Sequence[Layer]) -> bool:
        """Have the very layers of a manifest in the repository; whether that could be done."""
        found = self._parallel(lambda place: self._find(forms[place], stack[place]), len(stack))
        missing = [place for place, there in enumerate(found) if not there]
        made = [Compression.of_recipe(forms[place].recipe or "") for place in missing]
        if not all(forms[place].recipe for place in missing) or not all(made):
            return False

        def send(number: int) -> bool:
            place, compression = missing[number], made[number]
            assert compression is not None
            sent = self._upload(stack[place], compression, forms[place].descriptor)
            return sent.digest == forms[place].descriptor.digest

        return all(self._parallel(send, len(missing)))

    def _find(self, form: KnownBlob, layer: Layer) -> bool:
        """Whether a form of a layer is in the repository, or can be mounted there."""
        digest = form.descriptor.digest
        if not is_distributable(form.descriptor.media_type):
            self.say("Skipped foreign layer", layer)
            return True
        if self._client.find_blob(self._repository, digest, push=True) is not None:
            self._remember(layer, form.descriptor, form.recipe)
            self.say("Layer already exists", layer)
            return True
        for source in self._memory.repositories(digest, self._domain):
            if source == self._repository:
                continue
            upload = self._client.begin_upload(self._repository, mount=digest, source=source)
            if upload is None:
                self._remember(layer, form.descriptor, form.recipe)
                self.say(f"Mounted from {source}", layer)
                return True
            upload.cancel()
            self._memory.forget_place(digest, self._domain, source)
        return False

    def _remember(self, layer: Layer, descriptor: Descriptor, recipe: str | None) -> None:
        self._memory.remember(layer.diff_id, descriptor, self._domain, self._repository, recipe)

    # Anew.

    def _layer(self, layer: Layer) -> Descriptor:
        recipe = self._compression.recipe
        for form in self._memory.forms(layer.diff_id):
            if not is_distributable(form.descriptor.media_type):
                # Where else it is, only the manifest says that it came with.
                continue
            if self._fits(form) and self._find(form, layer):
                return _oci(form.descriptor)
        expected = None
        for form in self._memory.forms(layer.diff_id):
            if form.recipe == recipe:
                expected = form.descriptor
        return self._upload(layer, self._compression, expected)

    def _upload(
        self, layer: Layer, compression: Compression, expected: Descriptor | None
    ) -> Descriptor:
        media_type = compression.media_type if expected is None else expected.media_type
        attempts = self._client.transport.patience.attempts
        while True:
            attempts -= 1
            try:
                descriptor = self._send(layer, compression, media_type)
                break
            except Forgotten:
                # Where a connection broke, some registries give up what they have.
                if not attempts:
                    raise
        self._remember(layer, descriptor, compression.recipe)
        self.say("Pushed", layer)
        return descriptor

    def _send(self, layer: Layer, compression: Compression, media_type: str) -> Descriptor:
        upload = self._client.begin_upload(self._repository)
        assert upload is not None
        packing = _Packing(self, layer, compression, upload)
        try:
            self._layers.write_tar(layer, cast(BinaryIO, packing))
            return packing.finish(media_type)
        except BaseException:
            upload.cancel()
            raise

    @property
    def stopped(self) -> bool:
        """Whether another layer has failed."""
        return self._stopped.is_set()


def _oci(descriptor: Descriptor) -> Descriptor:
    """A layer that an image here was pulled with, for a manifest of OCI's."""
    for docker, oci in (
        (DOCKER_LAYER, OCI_LAYER),
        (DOCKER_FOREIGN, OCI_FOREIGN),
    ):
        if descriptor.media_type.startswith(docker):
            rest = descriptor.media_type.removeprefix(docker).replace(".", "+")
            return Descriptor(oci + rest, descriptor.digest, descriptor.size, urls=descriptor.urls)
    return descriptor


class _Packing:
    """What a layer's tar is written to: packs, hashes and sends it."""

    def __init__(self, push: Push, layer: Layer, compression: Compression, upload: Upload) -> None:
        self._push = push
        self._layer = layer
        self._packer = compression.packer()
        self._upload = upload
        self._hash = hashlib.sha256()
        self._size = 0
        self._parts: list[bytes] = []
        self._waiting = 0
        self._written = 0
        self._said = 0.0

    def write(self, data: memoryview) -> int:
        if self._push.stopped:
            raise Cancelled("another layer could not be pushed")
        self._add(self._packer.compress(data))
        self._written += len(data)
        now = time.monotonic()
        if now - self._said >= _INTERVAL:
            self._said = now
            self._push.say(
                "Pushing", self._layer, current=self._written, total=self._layer.tar_size
            )
        if self._waiting >= self._upload.chunk:
            self._upload.send(self._take())
        return len(data)

    def _add(self, packed: bytes) -> None:
        if packed:
            self._hash.update(packed)
            self._size += len(packed)
            self._waiting += len(packed)
            self._parts.append(packed)

    def _take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts, self._waiting = [], 0
        return data

    def finish(self, media_type: str) -> Descriptor:
        """Send the rest; the blob's descriptor."""
        self._add(self._packer.flush())
        digest = f"sha256:{self._hash.hexdigest()}"
        try:
            self._upload.finish(digest, self._take())
        except DigestMismatch as error:
            raise TiffinError(
                f"layer {self._layer.diff_id} was damaged on its way: {error.message}"
            ) from error
        return Descriptor(media_type, digest, self._size)
