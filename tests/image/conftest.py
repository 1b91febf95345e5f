"""The published OCI schemas as functions that check a document; a store of layers that is none."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from jsonschema import Draft4Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

from image.archives import Members, Store, Tarball, digest
from tiffin.errors import DigestMismatch
from tiffin.image.archive import LoadedImage, read_archive
from tiffin.image.config import HistoryEntry, ImageConfig, chain_ids
from tiffin.image.platforms import Platform
from tiffin.layer.compression import decompressed

SCHEMAS = Path(__file__).parent.parent / "spec" / "oci-image"


@pytest.fixture(scope="session")
def conforms() -> Callable[[str, Any], None]:
    """``conforms("image-manifest", document)`` raises if the document breaks the schema."""
    resources = {}
    for path in SCHEMAS.glob("*.json"):
        contents = json.loads(path.read_text())
        resource = Resource.from_contents(contents, default_specification=DRAFT4)
        resources[path.name] = resource
        resources[contents.get("id", path.name)] = resource

    # The schemas name each other relative to ids that are no addresses of these files.
    def retrieve(uri: str) -> Resource[Any]:
        return resources[uri.rpartition("/")[2]]

    registry = Registry(retrieve=retrieve)  # type: ignore[call-arg]

    def check(schema: str, document: Any) -> None:
        contents = json.loads((SCHEMAS / f"{schema}-schema.json").read_text())
        Draft4Validator(contents, registry=registry).validate(document)

    return check


class FakeStore:
    """Stands for the layer store: takes layers in, checks their diff IDs and remembers chains."""

    def __init__(self) -> None:
        self.tars: dict[str, bytes] = {}
        self.read: list[str] = []

    def ingest(self, stream: BinaryIO, parent: str | None, diff_id: str) -> FakeLayer:
        assert parent is None or parent in self.tars
        tar = decompressed(stream).read()
        found = "sha256:" + hashlib.sha256(tar).hexdigest()
        if found != diff_id:
            raise DigestMismatch(f"layer: expected {diff_id}, got {found}")
        chain = chain_ids([parent, diff_id])[-1] if parent else diff_id
        self.tars[chain] = tar
        self.read.append(diff_id)
        return FakeLayer(chain)

    def known(self, parent: str | None, diff_id: str) -> FakeLayer | None:
        chain = chain_ids([parent, diff_id])[-1] if parent else diff_id
        return FakeLayer(chain) if chain in self.tars else None


@dataclass(frozen=True)
class FakeLayer:
    chain_id: str


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def tarball() -> Callable[..., bytes]:
    """``tarball({"name": b"content"})``; a str makes a link, None a directory."""

    def make(members: Mapping[str, bytes | str | None], *, hard: bool = False) -> bytes:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                if content is None:
                    info.type = tarfile.DIRTYPE
                elif isinstance(content, str):
                    info.type = tarfile.LNKTYPE if hard else tarfile.SYMTYPE
                    info.linkname = content
                else:
                    info.size = len(content)
                tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
        return made.getvalue()

    return make


@pytest.fixture
def tiny_file_system(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for one MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


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


@pytest.fixture
def load(tmp_path: Path, store: Store) -> Callable[..., list[LoadedImage]]:
    """Reads an archive, given as bytes, out of a file."""

    def load(tar: bytes, platform: Platform | None = None) -> list[LoadedImage]:
        path = tmp_path / "archive"
        path.write_bytes(tar)
        return read_archive(path, store.ingest, spool=tmp_path, platform=platform)

    return load
