"""Image archives: every shape is read, what is written reads back, what is broken is refused."""

from __future__ import annotations

import bz2
import functools
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiffin.errors import (
    CorruptArchive,
    DigestMismatch,
    InvalidParameter,
    StorageFull,
    TiffinError,
    Unsupported,
)
from tiffin.image.archive import LoadedImage, SavedImage, SavedLayer, read_archive, write_archive
from tiffin.image.config import HistoryEntry, ImageConfig
from tiffin.image.manifest import (
    DOCKER_CONFIG,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    Platform,
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


gzipped = functools.partial(gzip.compress, mtime=0)


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def blob(content: bytes) -> str:
    return "blobs/" + digest(content).replace(":", "/")


@pytest.fixture
def layers(tarball: Tarball) -> list[bytes]:
    return [tarball({"a": b"one"}), tarball({"b": b"two" * 5000}), tarball({"c": None})]


@pytest.fixture
def config(layers: list[bytes]) -> ImageConfig:
    config = ImageConfig.scratch(created=0).with_cmd(["sh"])
    for number, layer in enumerate(layers):
        config = config.with_layer(digest(layer), HistoryEntry(created_by=f"step {number}"))
    return config


@pytest.fixture
def old(layers: list[bytes], config: ImageConfig) -> Members:
    """As Docker before 25 writes it."""
    members: Members = {f"{n}/layer.tar": layer for n, layer in enumerate(layers)}
    members |= {f"{n}/VERSION": b"1.0" for n in range(len(layers))}
    name = config.id.removeprefix("sha256:") + ".json"
    members[name] = config.to_bytes()
    paths = [f"{n}/layer.tar" for n in range(len(layers))]
    entry = {"Config": name, "RepoTags": ["busybox:1", "host:5000/a/b:2"], "Layers": paths}
    members["manifest.json"] = json.dumps([entry]).encode()
    members["repositories"] = b"{}"
    return members


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


@pytest.fixture
def load(tmp_path: Path, store: Store) -> Callable[..., list[LoadedImage]]:
    """Reads an archive, given as bytes, out of a file."""

    def load(tar: bytes, platform: Platform | None = None) -> list[LoadedImage]:
        path = tmp_path / "archive"
        path.write_bytes(tar)
        return read_archive(path, store.ingest, spool=tmp_path, platform=platform)

    return load


Load = Callable[..., list[LoadedImage]]


def stored(store: Store, image: LoadedImage) -> list[bytes]:
    return [store.tars[chain] for chain in image.config.chain_ids]


# -- shapes


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


# -- writing


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


# -- what is broken


def test_legacy_archive_is_refused_by_name(load: Load, tarball: Tarball) -> None:
    with pytest.raises(Unsupported, match=r"before Docker 1\.10"):
        load(tarball({"repositories": b"{}", "x/layer.tar": b"", "x/json": b"{}"}))


def test_root_file_system_is_sent_to_import(load: Load, tarball: Tarball) -> None:
    with pytest.raises(CorruptArchive, match="read by import, not by load"):
        load(tarball({"bin/sh": b"x"}))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8bhello", b"x" * 5000])
def test_what_is_no_tar_is_refused(load: Load, content: bytes) -> None:
    with pytest.raises(CorruptArchive):
        load(content)


def test_empty_tar_is_refused(load: Load, tarball: Tarball) -> None:
    with pytest.raises(CorruptArchive, match="empty"):
        load(tarball({}))


def test_changed_config_is_refused(load: Load, tarball: Tarball, old: Members) -> None:
    (name,) = (name for name in old if name.endswith(".json") and name != "manifest.json")
    content = old[name]
    assert isinstance(content, bytes)
    old[name] = content.replace(b"sh", b"su")
    with pytest.raises(DigestMismatch, match=name):
        load(tarball(old))


def test_changed_blob_is_refused_by_member(
    load: Load, store: Store, tarball: Tarball, config: ImageConfig, layers: list[bytes]
) -> None:
    members, manifest = layout(config, layers)
    for name in (blob(manifest.raw), blob(config.to_bytes()), blob(gzipped(layers[1]))):
        content = members[name]
        assert isinstance(content, bytes)
        # The documents stay good JSON that says the same, so that only the digest can tell.
        is_json = content.startswith(b"{")
        changed = content.replace(b",", b", ", 1) if is_json else content[:-1] + b"!"
        with pytest.raises(DigestMismatch if is_json else CorruptArchive) as refused:
            load(tarball({**members, name: changed}))
        assert name in refused.value.message


def test_blob_with_something_after_the_layer_is_refused(
    load: Load, tarball: Tarball, config: ImageConfig, layers: list[bytes]
) -> None:
    # The layer itself is as it should be, so that only the blob's digest can tell.
    members, _ = layout(config, layers, OCI_LAYER_ZSTD, zstandard.compress)
    name = blob(zstandard.compress(layers[2]))
    content = members[name]
    assert isinstance(content, bytes)
    empty_frame = zstandard.compress(b"")
    with pytest.raises(DigestMismatch, match=name):
        load(tarball({**members, name: content + empty_frame}))


def test_layer_that_is_another_one_is_refused(
    load: Load, tarball: Tarball, old: Members, layers: list[bytes]
) -> None:
    old["1/layer.tar"] = layers[0]
    with pytest.raises(DigestMismatch, match=r"1/layer\.tar"):
        load(tarball(old))


def test_nothing_is_ingested_before_all_documents_are_right(
    load: Load, store: Store, tarball: Tarball, old: Members
) -> None:
    good = json.loads(old["manifest.json"] or b"")
    old["manifest.json"] = json.dumps([*good, {"Config": "missing.json"}]).encode()
    with pytest.raises(CorruptArchive, match=r"missing\.json is missing"):
        load(tarball(old))
    assert not store.read


@pytest.mark.parametrize(
    ("manifest", "what"),
    [
        (b"{", "manifest.json is not JSON"),
        (b"[" * 50_000, "manifest.json is not JSON"),
        (b"{}", "manifest.json must be a list"),
        (b"[{}]", "without Config"),
        (b'[{"Config":"c.json","Layers":"x"}]', "Layers in manifest.json must be a list"),
        (b'[{"Config":"c.json","Layers":[]}]', "layers length mismatch: expected 3, got 0"),
        (b'[{"Config":"0","Layers":[]}]', "0 is no regular file"),
        (b'[{"Config":"../../../etc/passwd","Layers":[]}]', "etc/passwd is missing"),
        (b'[{"Config":"/etc/passwd","Layers":[]}]', "/etc/passwd is missing"),
        (b'[{"Config":"out","Layers":[]}]', "etc/passwd, which out links to, is missing"),
        (b'[{"Config":"loop","Layers":[]}]', "loop is a link that leads nowhere"),
        (b'[{"Config":"bad.json","Layers":[]}]', "bad.json"),
        (b'[{"Config":"c.json","RepoTags":["UPPER:x"],"Layers":[]}]', "invalid tag 'UPPER:x'"),
    ],
)
def test_broken_docker_archive_is_refused_by_member(
    load: Load, tarball: Tarball, old: Members, config: ImageConfig, manifest: bytes, what: str
) -> None:
    old["manifest.json"] = manifest
    old["c.json"] = config.to_bytes()
    old["bad.json"] = b"[]"
    old["0"] = None
    old["out"] = "../../../etc/passwd"
    old["loop"] = "loop"
    with pytest.raises(CorruptArchive) as refused:
        load(tarball(old))
    assert what in refused.value.message


def test_broken_layout_is_refused(
    load: Load, tarball: Tarball, config: ImageConfig, layers: list[bytes]
) -> None:
    members, manifest = layout(config, layers)

    def refusal(changed: Members) -> str:
        with pytest.raises(TiffinError) as refused:
            load(tarball({**members, **changed}))
        return refused.value.message

    assert "index.json must be an index" in refusal({"index.json": manifest.raw})
    assert "oci-layout" in refusal({"oci-layout": b"[]"})
    assert "version 2.0.0" in refusal({"oci-layout": b'{"imageLayoutVersion":"2.0.0"}'})
    artifact = Manifest.make(Descriptor.of(b"{}", "application/vnd.oci.empty.v1+json"), [])
    message = refusal(
        {blob(artifact.raw): artifact.raw, "index.json": Index.make([artifact.descriptor]).raw}
    )
    assert "no container image" in message
    short = Manifest.make(manifest.config, manifest.layers[:1])
    message = refusal(
        {blob(short.raw): short.raw, "index.json": Index.make([short.descriptor]).raw}
    )
    assert "layers length mismatch: expected 3, got 1" in message
    odd = Manifest.make(
        manifest.config,
        [Descriptor("application/x-squashfs", each.digest, 1) for each in manifest.layers],
    )
    message = refusal({blob(odd.raw): odd.raw, "index.json": Index.make([odd.descriptor]).raw})
    assert "application/x-squashfs" in message
    del members[blob(config.to_bytes())]
    assert f"{blob(config.to_bytes())} is missing" in refusal({})


def test_indexes_that_lead_to_each_other_end(load: Load, tarball: Tarball) -> None:
    members: Members = {}
    inner = Index.make([])
    for _ in range(10):
        members[blob(inner.raw)] = inner.raw
        inner = Index.make([inner.descriptor])
    members["index.json"] = inner.raw
    with pytest.raises(CorruptArchive, match="nested too deeply"):
        load(tarball(members))


def test_truncated_archive_is_refused_before_anything_is_read(
    load: Load, store: Store, tarball: Tarball, old: Members
) -> None:
    # The documents come first, so that only the last layer is cut.
    documents = {name: old[name] for name in old if name.endswith(".json")}
    big = {"0/layer.tar": old["0/layer.tar"], "2/layer.tar": old["2/layer.tar"]}
    tar = tarball({**documents, **big, "1/layer.tar": old["1/layer.tar"]})
    with pytest.raises(CorruptArchive, match=r"truncated: 1/layer\.tar ends after"):
        load(tar[: tar.rindex(b"two")])
    assert not store.read


@given(st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_truncation_or_damage_is_an_error_or_harmless(
    tmp_path: Path,
    store: Store,
    tarball: Tarball,
    old: Members,
    config: ImageConfig,
    layers: list[bytes],
    data: st.DataObject,
) -> None:
    oci, _ = layout(config, layers, OCI_LAYER_ZSTD, zstandard.compress)
    whole = tarball(data.draw(st.sampled_from([old, oci])))
    broken = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, max(0, len(broken) - 1)), max_size=3)):
        if broken:
            broken[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "archive"
    path.write_bytes(broken)
    try:
        images = read_archive(path, store.ingest, spool=tmp_path)
    except TiffinError:
        return
    for image in images:
        assert [digest(each) for each in stored(store, image)] == list(image.config.diff_ids)


@pytest.mark.root
def test_spool_that_does_not_fit_is_storage_full(
    store: Store, tarball: Tarball, old: Members, tiny_file_system: Path
) -> None:
    old["big"] = os.urandom(4 << 20)
    with pytest.raises(StorageFull, match="temporary copy of the archive"):
        read_archive(io.BytesIO(gzipped(tarball(old))), store.ingest, spool=tiny_file_system)
    assert not list(tiny_file_system.iterdir())
