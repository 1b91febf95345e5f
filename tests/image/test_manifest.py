"""Manifests and indexes: they conform, keep their digests, and refuse what is malformed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tiffin.errors import InvalidParameter, TiffinError, Unsupported
from tiffin.image.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    Platform,
    parse_manifest,
)

Conforms = Callable[[str, Any], None]
CONFIG = Descriptor.of(b"{}", OCI_CONFIG)
LAYER = Descriptor.of(b"layer", OCI_LAYER_GZIP, {"b": "2", "a": "1"})


def test_manifest_conforms_and_reads_back(conforms: Conforms) -> None:
    manifest = Manifest.make(CONFIG, [LAYER], annotations={"k": "v"})
    conforms("image-manifest", json.loads(manifest.raw))
    again = parse_manifest(manifest.raw)
    assert again == manifest
    assert again.digest == manifest.digest
    conforms_descriptor = manifest.descriptor.to_document()
    assert Descriptor.parse(conforms_descriptor, "x") == manifest.descriptor


def test_index_conforms_and_reads_back(conforms: Conforms) -> None:
    entry = Descriptor(OCI_MANIFEST, CONFIG.digest, 2, {}, Platform("linux", "arm", "v7"))
    index = Index.make([entry])
    conforms("image-index", json.loads(index.raw))
    assert parse_manifest(index.raw) == index


def test_docker_documents_are_the_same_under_other_types() -> None:
    manifest = Manifest.make(CONFIG, [LAYER], media_type=DOCKER_MANIFEST)
    assert parse_manifest(manifest.raw, DOCKER_MANIFEST) == manifest
    index = Index.make([manifest.descriptor], media_type=DOCKER_INDEX)
    assert parse_manifest(index.raw, DOCKER_INDEX) == index


def test_type_is_told_by_shape_where_nothing_names_it() -> None:
    manifest = {"schemaVersion": 2, "config": CONFIG.to_document(), "layers": []}
    assert isinstance(parse_manifest(json.dumps(manifest).encode()), Manifest)
    assert isinstance(parse_manifest(b'{"schemaVersion":2,"manifests":[]}'), Index)


def test_best_manifest_for_a_platform() -> None:
    def entry(number: int, platform: Platform | None, **annotations: str) -> Descriptor:
        return Descriptor(OCI_MANIFEST, f"sha256:{number:064x}", 1, annotations, platform)

    old = entry(1, Platform("linux", "arm", "v6"))
    amd = entry(2, Platform("linux", "amd64"))
    new = entry(3, Platform("linux", "arm", "v7"))
    silent = entry(4, None)
    proof = Descriptor(OCI_MANIFEST, f"sha256:{5:064x}", 1, {"vnd.docker.reference.type": "x"})
    index = Index.make([silent, old, amd, new, proof])
    assert index.best_first(Platform("linux", "arm", "v7")) == [new, old, silent]
    assert index.best_first(Platform("linux", "arm", "v6")) == [old, silent]
    assert index.best_first(Platform("linux", "amd64")) == [amd, silent]
    assert index.best_first(Platform("linux", "s390x")) == [silent]


@pytest.mark.parametrize(
    ("document", "error", "what"),
    [
        ({"schemaVersion": 1}, Unsupported, "schema 1"),
        ({"schemaVersion": 3}, InvalidParameter, "schemaVersion must be 2"),
        ({"schemaVersion": 2, "mediaType": "text/html"}, InvalidParameter, "text/html"),
        ({"schemaVersion": 2, "config": {}}, InvalidParameter, "config has no digest"),
        (
            {"schemaVersion": 2, "config": {"digest": "sha256:../../etc"}},
            InvalidParameter,
            "config has no digest",
        ),
        (
            {"schemaVersion": 2, "config": {"digest": CONFIG.digest, "size": -1}},
            InvalidParameter,
            "has no size",
        ),
        (
            {"schemaVersion": 2, "config": CONFIG.to_document(), "layers": {}},
            InvalidParameter,
            "layers must be a list",
        ),
        (
            {"schemaVersion": 2, "config": CONFIG.to_document(), "manifests": []},
            InvalidParameter,
            "no other manifests",
        ),
        (
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "layers": []},
            InvalidParameter,
            "neither config nor layers",
        ),
        (
            {"schemaVersion": 2, "manifests": [1]},
            InvalidParameter,
            "manifests\\[0\\] must be a descriptor",
        ),
        ([], InvalidParameter, "must be an object"),
    ],
)
def test_malformed_document_is_refused(document: Any, error: type[TiffinError], what: str) -> None:
    with pytest.raises(error, match=what):
        parse_manifest(json.dumps(document).encode())


def test_document_must_be_what_it_was_announced_as() -> None:
    with pytest.raises(InvalidParameter, match="its media type is"):
        parse_manifest(Manifest.make(CONFIG, []).raw, OCI_INDEX)
    with pytest.raises(InvalidParameter, match="not JSON"):
        parse_manifest(b"<html>")
