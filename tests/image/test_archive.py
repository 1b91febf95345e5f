"""Image archives: every shape is read, from anything."""

from __future__ import annotations

import bz2
import io
import json
import lzma
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from image.archives import Load, Members, Store, Tarball, blob, digest, gzipped, layout, stored
from tiffin.errors import InvalidParameter
from tiffin.image.archive import read_archive
from tiffin.image.config import HistoryEntry, ImageConfig
from tiffin.image.manifest import (
    DOCKER_LAYER_GZIP,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
    Index,
    Platform,
)


def test_old_docker_archive(
    load: Load, store: Store, tarball: Tarball, old: Members, config: ImageConfig, layers: Any
) -> None:
    (image,) = load(tarball(old))
    assert image.config.id == config.id
    assert image.names == ["docker.io/library/busybox:1", "host:5000/a/b:2"]
    assert image.top == config.chain_id
    assert stored(store, image) == layers


@pytest.mark.parametrize("hard", [False, True])
def test_repeated_layer_may_be_a_link_to_the_first(
    load: Load, store: Store, tarball: Tarball, old: Members, hard: bool
) -> None:
    layer = old["0/layer.tar"]
    assert isinstance(layer, bytes)
    config = ImageConfig.scratch()
    for _ in range(2):
        config = config.with_layer(digest(layer), HistoryEntry())
    members: Members = {
        "0/layer.tar": layer,
        "1/layer.tar": "0/layer.tar" if hard else "../0/layer.tar",
        "c.json": config.to_bytes(),
        "manifest.json": json.dumps(
            [{"Config": "c.json", "RepoTags": None, "Layers": ["0/layer.tar", "1/layer.tar"]}]
        ).encode(),
    }
    (image,) = load(tarball(members, hard=hard))
    assert image.names == []
    assert stored(store, image) == [layer, layer]


@pytest.mark.parametrize(
    ("layer_type", "compress", "docker"),
    [
        (OCI_LAYER, bytes, False),
        (OCI_LAYER_GZIP, gzipped, False),
        (OCI_LAYER_ZSTD, zstandard.compress, False),
        (DOCKER_LAYER_GZIP, gzipped, True),
    ],
)
def test_oci_layout(
    load: Load,
    store: Store,
    tarball: Tarball,
    config: ImageConfig,
    layers: list[bytes],
    layer_type: str,
    compress: Callable[[bytes], bytes],
    docker: bool,
) -> None:
    members, _ = layout(config, layers, layer_type, compress, docker=docker)
    (image,) = load(tarball(members))
    assert image.config.id == config.id
    assert image.names == []
    assert stored(store, image) == layers


@pytest.mark.parametrize(
    ("annotations", "names"),
    [
        ({"io.containerd.image.name": "docker.io/library/a:1"}, ["docker.io/library/a:1"]),
        (
            {
                "io.containerd.image.name": "docker.io/library/a:1",
                "org.opencontainers.image.ref.name": "1",
            },
            ["docker.io/library/a:1"],
        ),
        ({"org.opencontainers.image.ref.name": "b:2"}, ["docker.io/library/b:2"]),
        ({"org.opencontainers.image.ref.name": "localhost/b"}, ["localhost/b:latest"]),
        ({"org.opencontainers.image.ref.name": "latest"}, []),
    ],
)
def test_names_of_a_layout_are_in_its_annotations(
    load: Load,
    tarball: Tarball,
    config: ImageConfig,
    layers: list[bytes],
    annotations: dict[str, str],
    names: list[str],
) -> None:
    members, _ = layout(config, layers, annotations=annotations)
    (image,) = load(tarball(members))
    assert image.names == names


def test_layout_with_a_choice_of_platforms(
    load: Load, tarball: Tarball, config: ImageConfig, layers: list[bytes]
) -> None:
    members: Members = {}
    entries = []
    for architecture in ("amd64", "arm64", "s390x"):
        part, manifest = layout(config.with_field("architecture", architecture), layers)
        if architecture != "s390x":
            members |= part
        plain = manifest.descriptor
        platform = Platform("linux", architecture)
        entries.append(Descriptor(plain.media_type, plain.digest, plain.size, {}, platform))
    nested = Index.make(entries)
    members[blob(nested.raw)] = nested.raw
    members["index.json"] = Index.make([nested.descriptor]).raw
    (image,) = load(tarball(members), Platform("linux", "arm64", "v8"))
    assert image.config.architecture == "arm64"
    (image,) = load(tarball(members), Platform("linux", "amd64"))
    assert image.config.architecture == "amd64"
    for absent in ("s390x", "riscv64"):
        with pytest.raises(InvalidParameter, match=f"no image for the platform linux/{absent}"):
            load(tarball(members), Platform("linux", absent))


COMPRESSIONS: list[Callable[[bytes], bytes]] = [
    bytes,
    gzipped,
    zstandard.compress,
    lzma.compress,
    bz2.compress,
]


@pytest.mark.parametrize("compress", COMPRESSIONS)
@pytest.mark.parametrize("source", ["path", "file", "memory", "pipe"])
def test_archive_is_read_from_anything(
    tmp_path: Path,
    store: Store,
    tarball: Tarball,
    old: Members,
    layers: list[bytes],
    compress: Callable[[bytes], bytes],
    source: str,
) -> None:
    packed = compress(tarball(old))
    spool = tmp_path / "spool"
    spool.mkdir()
    path = tmp_path / "archive"
    path.write_bytes(packed)
    if source == "path":
        (image,) = read_archive(path, store.ingest, spool=spool)
    elif source == "file":
        with path.open("rb") as file:
            (image,) = read_archive(file, store.ingest, spool=spool)
            assert not file.closed
    elif source == "memory":
        (image,) = read_archive(io.BytesIO(packed), store.ingest, spool=spool)
    else:
        end, other = os.pipe()

        def feed() -> None:
            with open(other, "wb") as pipe:
                pipe.write(packed)

        writer = threading.Thread(target=feed)
        writer.start()
        with open(end, "rb") as pipe:
            (image,) = read_archive(pipe, store.ingest, spool=spool)
        writer.join()
    assert stored(store, image) == layers
    assert not list(spool.iterdir())


def test_names_in_the_tar_may_have_a_leading_dot_or_slash(
    load: Load, tarball: Tarball, old: Members
) -> None:
    for prefix in ("./", "/"):
        (image,) = load(tarball({prefix + name: content for name, content in old.items()}))
        assert image.names


def test_known_layers_are_not_read(
    tmp_path: Path, store: Store, tarball: Tarball, old: Members, layers: list[bytes]
) -> None:
    store.ingest(io.BytesIO(layers[0]), None, digest(layers[0]))
    store.read.clear()
    old["0/layer.tar"] = b"no longer a layer"
    tar = io.BytesIO(tarball(old))
    (image,) = read_archive(tar, store.ingest, spool=tmp_path, known=store.known)
    assert store.read == [digest(layer) for layer in layers[1:]]
    assert image.top == image.config.chain_id
