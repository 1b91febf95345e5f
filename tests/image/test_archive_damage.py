"""Image archives that are broken, or none: each is refused, by what is wrong with it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image.archives import Load, Members, Store, Tarball, blob, digest, gzipped, layout, stored
from tiffin.errors import (
    CorruptArchive,
    DigestMismatch,
    StorageFull,
    TiffinError,
    Unsupported,
)
from tiffin.image.archive import read_archive
from tiffin.image.config import ImageConfig
from tiffin.image.manifest import (
    OCI_LAYER_ZSTD,
    Descriptor,
    Index,
    Manifest,
)


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
