"""Image archives that are written: both shapes at once, the same bytes each time, read back."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from image.archives import (
    Conforms,
    Load,
    Store,
    Tarball,
    blob,
    digest,
    stored,
)
from tiffin.errors import (
    TiffinError,
)
from tiffin.image.archive import SavedImage, SavedLayer, read_archive, write_archive
from tiffin.image.config import HistoryEntry, ImageConfig


def saved(
    config: ImageConfig, names: list[str], layers: list[bytes], written: list[str] | None = None
) -> SavedImage:
    def layer(content: bytes) -> SavedLayer:
        def write(output: BinaryIO) -> None:
            if written is not None:
                written.append(digest(content))
            output.write(content)

        return SavedLayer(digest(content), len(content), write)

    return SavedImage(config, names, [layer(content) for content in layers])


def test_written_archive_is_both_shapes_and_conforms(
    conforms: Conforms, config: ImageConfig, layers: list[bytes]
) -> None:
    output = io.BytesIO()
    write_archive(output, [saved(config, ["busybox:1", "host:5000/a/b:2"], layers)])
    output.seek(0)
    with tarfile.open(fileobj=output) as tar:
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}

        def read(name: str) -> Any:
            file = tar.extractfile(name)
            assert file is not None
            return json.load(file)

        conforms("image-layout", read("oci-layout"))
        index = read("index.json")
        conforms("image-index", index)
        assert [entry["annotations"] for entry in index["manifests"]] == [
            {
                "io.containerd.image.name": "docker.io/library/busybox:1",
                "org.opencontainers.image.ref.name": "1",
            },
            {
                "io.containerd.image.name": "host:5000/a/b:2",
                "org.opencontainers.image.ref.name": "2",
            },
        ]
        manifest = read("blobs/" + index["manifests"][0]["digest"].replace(":", "/"))
        conforms("image-manifest", manifest)
        assert [layer["digest"] for layer in manifest["layers"]] == list(config.diff_ids)
        (entry,) = read("manifest.json")
        assert entry["RepoTags"] == ["busybox:1", "host:5000/a/b:2"]
        assert entry["Layers"] == [blob(layer) for layer in layers]
        assert read(entry["Config"]) == config.to_document()
        top = config.diff_ids[-1].removeprefix("sha256:")
        assert read("repositories") == {"busybox": {"1": top}, "host:5000/a/b": {"2": top}}


@pytest.mark.parametrize("shape", ["docker", "oci"])
def test_written_archive_reads_back(
    load: Load,
    store: Store,
    tarball: Tarball,
    config: ImageConfig,
    layers: list[bytes],
    shape: str,
) -> None:
    child = config.with_layer(digest(layers[0]), HistoryEntry()).with_user("x")
    written: list[str] = []
    output = io.BytesIO()
    write_archive(
        output,
        [
            saved(config, ["a:1"], layers, written),
            saved(child, ["b:1", "b:2"], [*layers, layers[0]], written),
            saved(ImageConfig.scratch(), [], []),
            saved(config, ["a:2"], layers, written),
        ],
    )
    assert sorted(written) == sorted(map(digest, layers))
    tar = output.getvalue()
    if shape == "oci":
        tar = without(tar, "manifest.json", "repositories")
    images = load(tar)
    assert [image.config.id for image in images] == [
        config.id,
        child.id,
        ImageConfig.scratch().id,
    ]
    names = [[name.rpartition("/")[2] for name in image.names] for image in images]
    assert names == [["a:1", "a:2"], ["b:1", "b:2"], []]
    assert stored(store, images[1]) == [*layers, layers[0]]
    assert images[2].top is None


def without(tar: bytes, *names: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar)) as source, tarfile.open(fileobj=made, mode="w") as t:
        for member in source:
            if member.name not in names:
                t.addfile(member, source.extractfile(member) if member.isreg() else None)
    return made.getvalue()


def test_same_images_give_the_same_bytes(config: ImageConfig, layers: list[bytes]) -> None:
    one, two = io.BytesIO(), io.BytesIO()
    write_archive(one, [saved(config, ["a:1"], layers)])
    write_archive(two, [saved(ImageConfig.parse(config.to_bytes()), ["a:1"], layers)])
    assert one.getvalue() == two.getvalue()


def test_layer_may_be_written_past_the_buffer(
    tmp_path: Path, store: Store, config: ImageConfig, layers: list[bytes]
) -> None:
    # As sendfile does: through the descriptor that the buffered file is on.
    sources = {}
    for number, layer in enumerate(layers):
        (tmp_path / f"layer{number}").write_bytes(layer)
        sources[digest(layer)] = tmp_path / f"layer{number}"

    def layer_of(content: bytes) -> SavedLayer:
        def write(output: BinaryIO) -> None:
            with sources[digest(content)].open("rb") as file:
                os.sendfile(output.fileno(), file.fileno(), 0, len(content))

        return SavedLayer(digest(content), len(content), write)

    path = tmp_path / "archive"
    with path.open("wb") as output:
        write_archive(output, [SavedImage(config, ["a:1"], [layer_of(each) for each in layers])])
    (image,) = read_archive(path, store.ingest, spool=tmp_path)
    assert stored(store, image) == layers


def test_layer_of_another_size_than_announced_is_an_error(
    config: ImageConfig, layers: list[bytes]
) -> None:
    image = saved(config, [], layers)
    wrong = SavedLayer(image.layers[0].diff_id, image.layers[0].tar_size + 1, image.layers[0].write)
    with pytest.raises(TiffinError, match="damaged in the store"):
        write_archive(io.BytesIO(), [SavedImage(config, [], [wrong, *image.layers[1:]])])
