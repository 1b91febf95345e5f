"""Registries of our own, clients of them, and small images made of bytes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tiffin.image.manifest import DOCKER_CONFIG, DOCKER_LAYER_GZIP, DOCKER_MANIFEST, Descriptor
from tiffin.registry.client import Patience, Registry
from tiffin.registry.credentials import Credentials
from tiffin.registry.endpoints import Configuration
from tiffin.registry.server import RegistryServer

HASTY = Patience(attempts=4, first=0.01, longest=2.0, connect=5, read=5)
"""As patient as a registry, in a hundredth of the time."""


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def layer_tar(files: dict[str, bytes], mode: int = 0o644) -> bytes:
    """A plain tar of files, with their folders."""
    buffer = io.BytesIO()
    folders: set[str] = set()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            parts = name.split("/")[:-1]
            for count in range(1, len(parts) + 1):
                folder = "/".join(parts[:count])
                if folder not in folders:
                    folders.add(folder)
                    info = tarfile.TarInfo(folder)
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(info)
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class MadeImage:
    """An image as a registry has it."""

    def __init__(
        self,
        tars: list[bytes],
        *,
        architecture: str = "amd64",
        pack: Callable[[bytes], bytes] = lambda tar: gzip.compress(tar, 6, mtime=0),
        layer_type: str = DOCKER_LAYER_GZIP,
        annotations: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
    ) -> None:
        self.tars = tars
        self.blobs = [pack(tar) for tar in tars]
        self.config = json.dumps(
            {
                "architecture": architecture,
                "os": "linux",
                "config": {"Cmd": ["/bin/sh"], "Labels": labels or {}},
                "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in tars]},
                "history": [
                    {"created": "2024-01-01T00:00:00Z", "created_by": f"step {number}"}
                    for number, _ in enumerate(tars)
                ],
            }
        ).encode()
        self.layers = [Descriptor.of(blob, layer_type) for blob in self.blobs]
        self.config_descriptor = Descriptor.of(self.config, DOCKER_CONFIG)
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": self.config_descriptor.to_document(),
            "layers": [layer.to_document() for layer in self.layers],
        }
        if annotations:
            document["annotations"] = annotations
        self.manifest = json.dumps(document, indent=2).encode()
        self.digest = digest_of(self.manifest)

    @property
    def id(self) -> str:
        return self.config_descriptor.digest

    def push(self, registry: Registry, repository: str, tag: str) -> None:
        for blob in (*self.blobs, self.config):
            registry.put_blob(repository, blob)
        registry.put_manifest(repository, tag, self.manifest, DOCKER_MANIFEST)


Start = Callable[..., RegistryServer]


@pytest.fixture
def start_registry(tmp_path: Path) -> Iterator[Start]:
    """Start registries; each in a folder of its own, unless one is given."""
    with ExitStack() as stack:
        count = 0

        def start(folder: Path | None = None, **options: Any) -> RegistryServer:
            nonlocal count
            count += 1
            place = folder or tmp_path / f"registry{count}"
            return stack.enter_context(RegistryServer(place, **options))

        yield start


@pytest.fixture
def server(start_registry: Start) -> RegistryServer:
    return start_registry()


Connect = Callable[..., Registry]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Clients of servers or addresses, closed at the end."""
    with ExitStack() as stack:

        def connect(
            server: RegistryServer | str,
            credentials: Credentials | None = None,
            folders: tuple[Path, ...] = (),
            **options: Any,
        ) -> Registry:
            address = server if isinstance(server, str) else server.address
            (endpoint,) = Configuration(folders).endpoints(address, mirrors=False)
            options.setdefault("patience", HASTY)
            return stack.enter_context(Registry(endpoint, credentials, **options))

        yield connect


@pytest.fixture
def registry(server: RegistryServer, connect: Connect) -> Registry:
    return connect(server)
