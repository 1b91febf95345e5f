"""Where images are kept packed: a repository of a registry, an OCI layout, a tar of one.

A *place* is read and written in the same words, so that :mod:`tiffin.registry.copying` knows
nothing of what they are. In texts: ``oci:FOLDER[:TAG]``, ``oci-archive:FILE[:TAG]``, or a reference
(also after ``docker://``).

Source: OCI image specification, ``image-layout.md``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from tiffin.errors import (
    Conflict,
    CorruptArchive,
    DigestMismatch,
    InvalidParameter,
    NotFound,
    Unsupported,
)
from tiffin.image.manifest import OCI_INDEX, Descriptor
from tiffin.image.reference import Reference, is_digest
from tiffin.layer.compression import decompressed
from tiffin.registry.client import Registry

_REF_NAME = "org.opencontainers.image.ref.name"
_BLOCK = 1 << 20
_LIMIT = 8 << 20


class Place(Protocol):
    """See the module's text."""

    def manifest(self, reference: str) -> tuple[bytes, str]:
        """The bytes and media type of a manifest, by tag or digest; "" is the only one there is.
        Raises NotFound."""

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """A blob to read; reading verifies it."""

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob is there (for a registry: or could be mounted)."""

    def has_manifest(self, digest: str) -> bool:
        """Whether a manifest is there."""

    def put(self, descriptor: Descriptor, stream: BinaryIO) -> None:
        """Store a blob."""

    def put_manifest(self, raw: bytes, media_type: str, reference: str) -> None:
        """Store a manifest under a tag or digest."""

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """The descriptors of what refers to a manifest."""


class RegistryPlace:
    """A repository of a registry."""

    def __init__(self, client: Registry, repository: str, mount_from: str = "") -> None:
        """``mount_from``: a repository of the same registry that blobs may be mounted from."""
        self.client = client
        self.repository = repository
        self.mount_from = mount_from

    def manifest(self, reference: str) -> tuple[bytes, str]:
        return self.client.raw_manifest(self.repository, reference or "latest")

    def open(self, descriptor: Descriptor) -> BinaryIO:
        return cast(BinaryIO, self.client.blob(self.repository, descriptor))

    def has(self, descriptor: Descriptor) -> bool:
        digest = descriptor.digest
        if self.client.find_blob(self.repository, digest, push=True) is not None:
            return True
        if not self.mount_from or self.mount_from == self.repository:
            return False
        upload = self.client.begin_upload(self.repository, mount=digest, source=self.mount_from)
        if upload is None:
            return True
        upload.cancel()
        return False

    def has_manifest(self, digest: str) -> bool:
        return self.client.find_manifest(self.repository, digest) is not None

    def put(self, descriptor: Descriptor, stream: BinaryIO) -> None:
        algorithm = descriptor.digest.partition(":")[0]
        upload = self.client.begin_upload(self.repository, algorithm=algorithm)
        assert upload is not None
        try:
            parts: list[bytes] = []
            waiting = 0
            while data := stream.read(_BLOCK):
                parts.append(data)
                waiting += len(data)
                if waiting >= upload.chunk:
                    upload.send(b"".join(parts))
                    parts, waiting = [], 0
            upload.finish(descriptor.digest, b"".join(parts))
        except BaseException:
            upload.cancel()
            raise

    def put_manifest(self, raw: bytes, media_type: str, reference: str) -> None:
        self.client.put_manifest(self.repository, reference or "latest", raw, media_type)

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        return self.client.referrers(self.repository, digest)


class LayoutPlace:
    """An OCI layout in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, digest: str) -> Path:
        algorithm, _, encoded = digest.partition(":")
        if not is_digest(digest):
            raise InvalidParameter(f"malformed digest {digest!r}")
        return self._folder / "blobs" / algorithm / encoded

    def _index(self) -> dict[str, Any]:
        try:
            document = json.loads((self._folder / "index.json").read_bytes())
        except FileNotFoundError:
            return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        except ValueError as error:
            raise CorruptArchive(f"{self._folder}/index.json is not JSON: {error}") from error
        if not isinstance(document, dict) or not isinstance(document.get("manifests"), list):
            raise CorruptArchive(f"{self._folder}/index.json is no index")
        return document

    def manifest(self, reference: str) -> tuple[bytes, str]:
        if is_digest(reference):
            return self._read(reference), ""
        entry = _entry(self._index(), reference, str(self._folder))
        return self._read(entry["digest"]), str(entry.get("mediaType") or "")

    def _read(self, digest: str) -> bytes:
        try:
            raw = self._path(digest).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"{digest} is not in the layout {self._folder}") from None
        return _checked(raw, digest)

    def open(self, descriptor: Descriptor) -> BinaryIO:
        try:
            file = open(self._path(descriptor.digest), "rb", buffering=0)  # noqa: SIM115
        except FileNotFoundError:
            raise NotFound(f"{descriptor.digest} is not in the layout {self._folder}") from None
        return cast(BinaryIO, Verified(file, descriptor))

    def has(self, descriptor: Descriptor) -> bool:
        return self._path(descriptor.digest).exists()

    def has_manifest(self, digest: str) -> bool:
        return self._path(digest).exists()

    def put(self, descriptor: Descriptor, stream: BinaryIO) -> None:
        path = self._path(descriptor.digest)
        with _appearing(path) as file:
            while data := stream.read(_BLOCK):
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]

    def put_manifest(self, raw: bytes, media_type: str, reference: str) -> None:
        algorithm = reference.partition(":")[0] if is_digest(reference) else "sha256"
        digest = f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"
        with _appearing(self._path(digest)) as file:
            file.write(raw)
        if is_digest(reference):
            return
        with _appearing(self._folder / "oci-layout") as file:
            file.write(b'{"imageLayoutVersion":"1.0.0"}')
        index = self._index()
        entry: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": len(raw)}
        if reference:
            entry["annotations"] = {_REF_NAME: reference}
        index["manifests"] = [
            other
            for other in index["manifests"]
            if _name_of(other) != reference or (not reference and other["digest"] != digest)
        ]
        index["manifests"].append(entry)
        with _appearing(self._folder / "index.json") as file:
            file.write(json.dumps(index, separators=(",", ":")).encode())

    def sweep(self) -> None:
        """Remove the blobs that nothing in the layout names."""
        wanted: set[str] = set()
        pending = [entry["digest"] for entry in self._index()["manifests"]]
        while pending:
            digest = pending.pop()
            wanted.add(digest)
            document = json.loads(self._read(digest))
            for entry in document.get("manifests") or ():
                if entry["digest"] not in wanted and self.has_manifest(entry["digest"]):
                    pending.append(entry["digest"])
            for entry in (document.get("config"), *(document.get("layers") or ())):
                if entry:
                    wanted.add(entry["digest"])
        for path in (self._folder / "blobs").glob("*/*"):
            if not path.name.startswith(".") and f"{path.parent.name}:{path.name}" not in wanted:
                path.unlink()

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        # A layout lists what refers to its images among them.
        found = []
        for entry in self._index()["manifests"]:
            document = json.loads(self._read(entry["digest"]))
            if (document.get("subject") or {}).get("digest") == digest:
                found.append(entry)
        return found


class ArchivePlace(LayoutPlace):
    """A tar of an OCI layout: unpacked into a folder beside it, and written at the end."""

    def __init__(self, path: Path, folder: Path, *, reading: bool) -> None:
        super().__init__(folder)
        self._file = path
        if reading:
            self._unpack()
        elif path.exists():
            raise Conflict(f"{path} exists already: remove it, or choose another name")

    def _unpack(self) -> None:
        try:
            with (
                open(self._file, "rb") as packed,
                tarfile.open(fileobj=decompressed(packed), mode="r|") as tar,
            ):
                for member in tar:
                    name = os.path.normpath(member.name)
                    if not member.isfile() or name.startswith(("..", "/")):
                        continue
                    source = tar.extractfile(member)
                    assert source is not None
                    with _appearing(self._folder / name) as file:
                        shutil.copyfileobj(source, file, _BLOCK)
        except FileNotFoundError:
            raise NotFound(f"{self._file} does not exist") from None
        except (tarfile.TarError, EOFError) as error:
            raise CorruptArchive(f"{self._file} is no archive of an OCI layout: {error}") from error

    def write(self) -> None:
        """Write the archive; it appears complete. The same content gives the same bytes."""
        with _appearing(self._file) as output, tarfile.open(fileobj=output, mode="w") as tar:
            for path in sorted(self._folder.rglob("*")):
                info = tarfile.TarInfo(str(path.relative_to(self._folder)))
                if path.is_dir():
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(info)
                    continue
                info.size, info.mode = path.stat().st_size, 0o644
                with open(path, "rb") as file:
                    tar.addfile(info, file)


class Verified:
    """A stream that is checked against its descriptor as it is read."""

    def __init__(self, file: Any, descriptor: Descriptor) -> None:
        self._file = file
        self._descriptor = descriptor
        self._hash = hashlib.new(descriptor.digest.partition(":")[0])
        self._length = 0

    def read(self, size: int = _BLOCK) -> bytes:
        """The next bytes; raises DigestMismatch at the end."""
        data = bytes(self._file.read(size))
        self._hash.update(data)
        self._length += len(data)
        if not data or self._length > self._descriptor.size:
            found = f"{self._descriptor.digest.partition(':')[0]}:{self._hash.hexdigest()}"
            if found != self._descriptor.digest or self._length != self._descriptor.size:
                raise DigestMismatch(
                    f"blob {self._descriptor.digest} of {self._descriptor.size} bytes has"
                    f" {self._length} bytes and the digest {found}"
                )
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Verified:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


Connect = Callable[[Reference], Registry]


@contextmanager
def opened(text: str, connect: Connect, *, reading: bool) -> Iterator[tuple[Place, str]]:
    """The place that a text names, and the tag or digest in it.

    ``connect`` makes clients of registries. Raises InvalidParameter, NotFound, Unsupported.
    """
    kind, colon, rest = text.partition(":")
    if kind in ("docker-archive", "docker-daemon", "containers-storage", "dir", "sif", "ostree"):
        raise Unsupported(f"{kind}: is not supported here: use oci:, oci-archive: or a reference")
    if kind in ("oci", "oci-archive") and colon and not rest.startswith("//"):
        path, _, tag = rest.partition(":")
        if not path:
            raise InvalidParameter(f"{text}: expected {kind}:PATH[:TAG]")
        if kind == "oci":
            if reading and not (Path(path) / "index.json").exists():
                raise NotFound(f"{path} is no OCI layout: it has no index.json")
            yield LayoutPlace(Path(path)), tag
            return
        parent = Path(path).absolute().parent
        with tempfile.TemporaryDirectory(prefix=".copy-", dir=parent) as folder:
            place = ArchivePlace(Path(path), Path(folder), reading=reading)
            yield place, tag
            if not reading:
                place.write()
        return
    reference = Reference.parse(text.removeprefix("docker://")).with_default_tag()
    client = connect(reference)
    with client:
        yield (
            RegistryPlace(client, reference.path),
            reference.digest or reference.tag or "latest",
        )


@contextmanager
def _appearing(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _name_of(entry: dict[str, Any]) -> str:
    return str((entry.get("annotations") or {}).get(_REF_NAME, ""))


def _entry(index: dict[str, Any], reference: str, where: str) -> dict[str, Any]:
    entries: list[dict[str, Any]] = index["manifests"]
    if reference:
        entries = [
            entry
            for entry in entries
            if _name_of(entry) == reference or _name_of(entry).endswith(f":{reference}")
        ]
    if not entries:
        raise NotFound(f"there is no image {reference or 'at all'} in {where}")
    if len(entries) > 1:
        names = ", ".join(_name_of(entry) or entry["digest"] for entry in entries)
        raise InvalidParameter(f"{where} has several images: name one of {names}")
    return entries[0]


def _checked(raw: bytes, digest: str) -> bytes:
    algorithm = digest.partition(":")[0]
    found = f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"
    if found != digest:
        raise DigestMismatch(f"{digest} has the digest {found}")
    if len(raw) > _LIMIT:
        raise InvalidParameter(f"manifest {digest} is longer than {_LIMIT} bytes")
    return raw


__all__ = ["ArchivePlace", "LayoutPlace", "Place", "RegistryPlace", "opened"]
