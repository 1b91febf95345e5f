"""What the tests of image archives have in common: archives that are made by hand, and words."""

from __future__ import annotations

import functools
import gzip
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Protocol

from tiffin.image.archive import LoadedImage
from tiffin.image.config import ImageConfig
from tiffin.image.manifest import (
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
)

Conforms = Callable[[str, Any], None]

Members = dict[str, bytes | str | None]


class Tarball(Protocol):
    def __call__(
        self, members: Mapping[str, bytes | str | None], *, hard: bool = False
    ) -> bytes: ...


class Store(Protocol):
    tars: dict[str, bytes]
    read: list[str]

    def ingest(self, stream: BinaryIO, parent: str | None, diff_id: str) -> Any: ...
    def known(self, parent: str | None, diff_id: str) -> Any: ...


Load = Callable[..., list[LoadedImage]]

gzipped = functools.partial(gzip.compress, mtime=0)


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def blob(content: bytes) -> str:
    return "blobs/" + digest(content).replace(":", "/")


def layout(
    config: ImageConfig,
    layers: list[bytes],
    layer_type: str = OCI_LAYER_GZIP,
    compress: Callable[[bytes], bytes] = gzipped,
    *,
    docker: bool = False,
    annotations: Mapping[str, str] = {},
) -> tuple[Members, Manifest]:
    """An OCI layout of one image."""
    packed = [compress(layer) for layer in layers]
    manifest = Manifest.make(
        Descriptor.of(config.to_bytes(), DOCKER_CONFIG if docker else OCI_CONFIG),
        [Descriptor.of(each, layer_type) for each in packed],
        media_type=DOCKER_MANIFEST if docker else OCI_MANIFEST,
    )
    entry = Descriptor(manifest.media_type, manifest.digest, len(manifest.raw), annotations)
    members: Members = {blob(each): each for each in packed}
    members[blob(config.to_bytes())] = config.to_bytes()
    members[blob(manifest.raw)] = manifest.raw
    members["index.json"] = Index.make([entry]).raw
    members["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    return members, manifest


def stored(store: Store, image: LoadedImage) -> list[bytes]:
    return [store.tars[chain] for chain in image.config.chain_ids]
