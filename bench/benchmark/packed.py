"""Images as registries keep them, made here of the Debian root: in one layer, and in eight.

They lie as OCI layouts in the folder of materials, packed by zlib as Docker packs (gzip, level 6),
so that they are no engine's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_GZIP = 31
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"

LARGE = 4 << 30
_REPEATED = 16 << 10
_TIMES = 8


class _Packing:
    """A file that packs what is written to it, and hashes both sides."""

    def __init__(self, target: Path, level: int) -> None:
        self._file = target.open("wb")
        self._packer = zlib.compressobj(level, zlib.DEFLATED, _GZIP)
        self._plain, self._packed = hashlib.sha256(), hashlib.sha256()
        self.written = 0

    def write(self, data: bytes) -> int:
        self._plain.update(data)
        self.written += len(data)
        self._put(self._packer.compress(data))
        return len(data)

    def _put(self, packed: bytes) -> None:
        self._packed.update(packed)
        self._file.write(packed)

    def tell(self) -> int:
        """Where a tar's writer is."""
        return self.written

    def close(self) -> tuple[str, str]:
        """End it: the digests of what was written, and of the file."""
        self._put(self._packer.flush())
        self._file.close()
        return f"sha256:{self._plain.hexdigest()}", f"sha256:{self._packed.hexdigest()}"


Fill = Callable[[tarfile.TarFile], None]


def layout(target: Path, fills: Iterable[Fill], level: int = 6) -> None:
    """Make an OCI layout of one image, tagged 1, with a layer that each of ``fills`` writes."""
    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    diff_ids, layers = [], []
    for fill in fills:
        unfinished = target / "layer"
        packing = _Packing(unfinished, level)
        with tarfile.open(fileobj=packing, mode="w", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
            fill(tar)
        diff_id, digest = packing.close()
        size = unfinished.stat().st_size
        unfinished.rename(blobs / digest.partition(":")[2])
        diff_ids.append(diff_id)
        layers.append({"mediaType": _LAYER, "digest": digest, "size": size})
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2025-01-01T00:00:00Z",
        "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": "2025-01-01T00:00:00Z", "created_by": "made"} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _put(blobs, config, _CONFIG),
        "layers": layers,
    }
    entry = _put(blobs, manifest, _MANIFEST)
    entry["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [entry]}
    (target / "index.json").write_text(json.dumps(index))
    (target / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


def _put(blobs: Path, document: dict[str, Any], kind: str) -> dict[str, Any]:
    raw = json.dumps(document).encode()
    digest = hashlib.sha256(raw).hexdigest()
    (blobs / digest).write_bytes(raw)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(raw)}


def parts_of(tar: Path, count: int) -> list[Fill]:
    """A tar's members as the layers of an image of ``count``: each of about as many bytes, with
    the folders that its members lie in, and with links beside what they link to."""
    with tarfile.open(tar) as source:
        members = source.getmembers()
    folders = {member.name: member for member in members if member.isdir()}
    whole = sum(member.size + 512 for member in members)
    parts: list[list[tarfile.TarInfo]] = [[] for _ in range(count)]
    place: dict[str, int] = {}
    passed = 0
    for member in members:
        number = min(count - 1, passed * count // whole)
        if member.islnk():
            number = place[member.linkname]
        place[member.name] = number
        parts[number].append(member)
        passed += member.size + 512

    def fill(part: list[tarfile.TarInfo]) -> Fill:
        def write(target: tarfile.TarFile) -> None:
            there: set[str] = set()
            with tarfile.open(tar) as source:
                for member in part:
                    for parent in _parents(member.name):
                        if parent in folders and parent not in there:
                            there.add(parent)
                            target.addfile(folders[parent])
                    if member.name in there:
                        continue
                    there.add(member.name)
                    content = source.extractfile(member) if member.isreg() else None
                    target.addfile(member, content)

        return write

    return [fill(part) for part in parts]


def _parents(name: str) -> list[str]:
    pieces = name.split("/")[:-1]
    return ["/".join(pieces[: end + 1]) for end in range(len(pieces))]


class _Random:
    """Random bytes, each piece of which comes eight times: they pack to about an eighth."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._ready = b""

    def read(self, size: int) -> bytes:
        size = min(size, self._left)
        while len(self._ready) < size:
            self._ready += os.urandom(_REPEATED) * _TIMES
        data, self._ready = self._ready[:size], self._ready[size:]
        self._left -= size
        return data


def large(tar: tarfile.TarFile) -> None:
    """A layer of one file of 4 GiB."""
    member = tarfile.TarInfo("large")
    member.size, member.mode = LARGE, 0o644
    content: Any = _Random(LARGE)
    tar.addfile(member, content)


def blobs_of(folder: Path) -> tuple[dict[str, Path], bytes]:
    """The blobs of a layout's image by digest, but for its manifest, and the manifest."""
    index = json.loads((folder / "index.json").read_bytes())
    name = index["manifests"][0]["digest"].partition(":")[2]
    found = {f"sha256:{path.name}": path for path in (folder / "blobs" / "sha256").iterdir()}
    raw = found.pop(f"sha256:{name}").read_bytes()
    return found, raw
