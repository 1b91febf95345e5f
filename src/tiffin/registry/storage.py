"""What a registry keeps on the local disk.

On disk::

    DATA/lock                                 flock: shared by who adds references, exclusive by gc
    DATA/blobs/ALGORITHM/ab/HEX               the bytes of a blob or manifest, once for all
    DATA/uploads/UUID/data, repository        uploads under way
    DATA/repositories/NAME/_blobs/ALGORITHM/HEX        the blob belongs to the repository
    DATA/repositories/NAME/_manifests/ALGORITHM/HEX    the same for a manifest; holds its media type
    DATA/repositories/NAME/_tags/TAG                   holds the manifest's digest
    DATA/repositories/NAME/_referrers/ALGORITHM/HEX/ALGORITHM-HEX   a descriptor, by its subject

No component of a repository's name starts with ``_``, so the names don't collide.

Rules: files appear by rename, complete. A blob is there before anything refers to it, and a
reference is gone before its blob is. Several processes may use one folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tiffin.errors import StorageFull
from tiffin.image.manifest import INDEX_TYPES, OCI_MANIFEST
from tiffin.image.reference import is_digest
from tiffin.layer.space import space_needed
from tiffin.registry.client import referrer
from tiffin.registry.faults import Fault

MANIFEST_LIMIT = 8 << 20
_BLOCK = 1 << 20
_EMPTY_REFERENCES: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest of a repository."""

    raw: bytes
    media_type: str
    digest: str


class Storage:
    """See the module's text. Any thread may use it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repositories_folder = root / "repositories"
        self.blobs_folder = root / "blobs"
        self.uploads_folder = root / "uploads"
        for folder in (self.repositories_folder, self.blobs_folder, self.uploads_folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Running hashes of uploads, which are made again from the data if they are lost.
        self._hashes: dict[str, tuple[int, Any]] = {}
        self._busy: set[str] = set()
        self._mutex = threading.Lock()

    @contextmanager
    def lock(self, *, exclusive: bool = False) -> Iterator[None]:
        """Keep the collection (or, if ``exclusive``, everybody who adds references) away."""
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)

    # Names.

    def repository(self, name: str) -> Path:
        """The folder of a repository."""
        return self.repositories_folder / name

    def exists(self, name: str) -> bool:
        """Whether anything was ever stored in the repository."""
        place = self.repository(name)
        return any((place / kind).is_dir() for kind in ("_manifests", "_blobs"))

    def repositories(self) -> list[str]:
        """The names of all repositories, sorted."""
        found = []
        top = os.fspath(self.repositories_folder)
        for folder, children, _ in os.walk(top):
            if "_manifests" in children or "_blobs" in children:
                found.append(os.path.relpath(folder, top))
            children[:] = [child for child in children if not child.startswith("_")]
        return sorted(found)

    def blob_path(self, digest: str) -> Path:
        """Where the bytes of a digest are."""
        algorithm, _, encoded = digest.partition(":")
        return self.blobs_folder / algorithm / encoded[:2] / encoded

    def _link(self, name: str, kind: str, digest: str) -> Path:
        algorithm, _, encoded = digest.partition(":")
        return self.repository(name) / kind / algorithm / encoded

    # Blobs.

    def has_blob(self, name: str, digest: str) -> int | None:
        """The size of a repository's blob, or None. Whoever asks may be about to refer to it, so
        the collection takes it for new again."""
        link = self._link(name, "_blobs", digest)
        try:
            os.utime(link)
            return self.blob_path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def open_blob(self, name: str, digest: str) -> BinaryIO:
        """A repository's blob, to read; raises Fault. It is young again, as by
        :meth:`has_blob`."""
        if self.has_blob(name, digest) is not None:
            try:
                return open(self.blob_path(digest), "rb", buffering=0)
            except FileNotFoundError:
                pass
        raise Fault("BLOB_UNKNOWN", "blob unknown to registry", digest=digest)

    def delete_blob(self, name: str, digest: str) -> None:
        """Take a blob out of a repository; the collection frees its bytes. Raises Fault."""
        try:
            self._link(name, "_blobs", digest).unlink()
        except FileNotFoundError:
            raise Fault("BLOB_UNKNOWN", "blob unknown to registry", digest=digest) from None

    def mount(self, name: str, digest: str, source: str | None) -> bool:
        """Make a blob of another repository (any, if None) this one's too; whether there is one."""
        with self.lock():
            if not self.blob_path(digest).exists():
                return False
            if source is not None and not self._link(source, "_blobs", digest).exists():
                return False
            self._write(self._link(name, "_blobs", digest), b"")
        return True

    # Uploads.

    def begin(self, name: str) -> str:
        """Begin an upload; its name."""
        upload = str(uuid.uuid4())
        folder = self.uploads_folder / upload
        with space_needed(self.root, "the upload"):
            folder.mkdir(mode=0o700)
            (folder / "repository").write_text(name)
            (folder / "data").touch(mode=0o600)
        return upload

    def upload_path(self, name: str, upload: str) -> Path:
        """The data of an upload of this repository; raises Fault."""
        folder = self.uploads_folder / upload
        try:
            uuid.UUID(upload)
            if (folder / "repository").read_text() == name:
                return folder / "data"
        except (ValueError, FileNotFoundError):
            pass
        raise Fault("BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")

    def offset(self, name: str, upload: str) -> int:
        """How many bytes an upload has; raises Fault."""
        return self.upload_path(name, upload).stat().st_size

    @contextmanager
    def _alone(self, upload: str) -> Iterator[None]:
        with self._mutex:
            if upload in self._busy:
                raise Fault("BLOB_UPLOAD_INVALID", "another request is writing to this upload", 409)
            self._busy.add(upload)
        try:
            yield
        finally:
            with self._mutex:
                self._busy.discard(upload)

    def append(
        self, name: str, upload: str, read: Callable[[memoryview], int], start: int | None
    ) -> int:
        """Add what ``read`` gives to an upload; its length afterwards.

        ``start`` is where the client says that the bytes belong. Raises Fault (416) if that is
        not the end of what is there.
        """
        path = self.upload_path(name, upload)
        with self._alone(upload), open(path, "ab", buffering=0) as file:
            offset = file.tell()
            if start is not None and start != offset:
                raise Fault("BLOB_UPLOAD_INVALID", "the chunk is out of order", 416, offset=offset)
            running = self._running(path, upload, offset)
            buffer = memoryview(bytearray(_BLOCK))
            try:
                with space_needed(self.root, "the upload"):
                    while count := read(buffer):
                        view = buffer[:count]
                        running.update(view)
                        while view:
                            view = view[file.write(view) :]
                        offset += count
            except StorageFull:
                # What is there would only keep the disk full.
                self._forget(upload)
                raise
            finally:
                with self._mutex:
                    self._hashes[upload] = (file.tell(), running)
        return offset

    def _running(self, path: Path, upload: str, offset: int) -> Any:
        with self._mutex:
            known, running = self._hashes.pop(upload, (-1, None))
        if known == offset:
            return running
        running = hashlib.sha256()
        if offset:
            with open(path, "rb", buffering=0) as file:
                while data := file.read(_BLOCK):
                    running.update(data)
        return running

    def finish(self, name: str, upload: str, digest: str) -> None:
        """Make an upload a blob of its repository; raises Fault where the digest is another's."""
        path = self.upload_path(name, upload)
        with self._alone(upload):
            size = path.stat().st_size
            algorithm, _, encoded = digest.partition(":")
            if algorithm == "sha256":
                found = self._running(path, upload, size).hexdigest()
            else:
                with open(path, "rb") as file:
                    found = hashlib.file_digest(file, algorithm).hexdigest()
            if found != encoded:
                self._forget(upload)
                raise Fault(
                    "DIGEST_INVALID",
                    "provided digest did not match uploaded content",
                    digest=digest,
                    found=f"{algorithm}:{found}",
                )
            with self.lock():
                self.place(path, digest)
                self._write(self._link(name, "_blobs", digest), b"")
            self._forget(upload)

    def place(self, path: Path, digest: str) -> None:
        """Let a complete file become the bytes of a digest; under :meth:`lock`."""
        target = self.blob_path(digest)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.rename(path, target)

    def adopt(self, name: str, digest: str) -> None:
        """Make a blob whose bytes are there a repository's."""
        self._write(self._link(name, "_blobs", digest), b"")

    def cancel(self, name: str, upload: str) -> None:
        """End an upload; raises Fault."""
        self.upload_path(name, upload)
        self._forget(upload)

    def _forget(self, upload: str) -> None:
        with self._mutex:
            self._hashes.pop(upload, None)
        shutil.rmtree(self.uploads_folder / upload, ignore_errors=True)

    # Manifests.

    def manifest(self, name: str, reference: str) -> StoredManifest:
        """The manifest of a tag or digest; raises Fault."""
        digest = self.resolve(name, reference)
        if digest is not None:
            try:
                media_type = self._link(name, "_manifests", digest).read_text()
                return StoredManifest(self.blob_path(digest).read_bytes(), media_type, digest)
            except FileNotFoundError:
                pass
        if not self.exists(name):
            raise Fault("NAME_UNKNOWN", "repository name not known to registry", name=name)
        raise Fault("MANIFEST_UNKNOWN", f"manifest unknown: {reference}", reference=reference)

    def resolve(self, name: str, reference: str) -> str | None:
        """The digest of a tag, or the digest itself."""
        if is_digest(reference):
            return reference
        try:
            return (self.repository(name) / "_tags" / reference).read_text()
        except FileNotFoundError:
            return None

    def put_manifest(
        self,
        name: str,
        digest: str,
        raw: bytes,
        media_type: str,
        tags: list[str],
        document: dict[str, Any],
        *,
        check: bool = True,
    ) -> None:
        """Store a manifest under its digest and under tags.

        Raises Fault where it names a blob that the repository does not have (unless not ``check``,
        for a cache, which gets blobs when they are asked for).
        """
        with self.lock():
            if check:
                self._check_references(name, document)
            target = self.blob_path(digest)
            if not target.exists():
                self._write(target, raw)
            self._write(self._link(name, "_manifests", digest), media_type.encode())
            subject = _subject(document)
            if subject:
                entry = referrer(document, media_type, digest, len(raw))
                place = self._link(name, "_referrers", subject) / digest.replace(":", "-")
                self._write(place, json.dumps(entry).encode())
            for tag in tags:
                self._write(self.repository(name) / "_tags" / tag, digest.encode())

    def _check_references(self, name: str, document: dict[str, Any]) -> None:
        missing = [
            digest for digest in blob_references(document) if self.has_blob(name, digest) is None
        ]
        if missing:
            raise Fault(
                "MANIFEST_BLOB_UNKNOWN",
                f"manifest references a blob unknown to registry: {missing[0]}",
                digest=missing,
            )

    def delete_manifest(self, name: str, digest: str) -> None:
        """Remove a manifest with all its tags; raises Fault."""
        link = self._link(name, "_manifests", digest)
        with self.lock():
            if not link.exists():
                raise Fault("MANIFEST_UNKNOWN", f"manifest unknown: {digest}", digest=digest)
            for tag in self.tags(name):
                if self.resolve(name, tag) == digest:
                    (self.repository(name) / "_tags" / tag).unlink(missing_ok=True)
            subject = _subject(json.loads(self.blob_path(digest).read_bytes()))
            if subject:
                place = self._link(name, "_referrers", subject) / digest.replace(":", "-")
                place.unlink(missing_ok=True)
            link.unlink(missing_ok=True)

    def delete_tag(self, name: str, tag: str) -> None:
        """Remove a tag; raises Fault."""
        try:
            (self.repository(name) / "_tags" / tag).unlink()
        except FileNotFoundError:
            raise Fault("MANIFEST_UNKNOWN", f"manifest unknown: {tag}", tag=tag) from None

    def tags(self, name: str) -> list[str]:
        """All tags of a repository, sorted."""
        try:
            names = os.listdir(self.repository(name) / "_tags")
        except FileNotFoundError:
            return []
        return sorted(name for name in names if not name.endswith("~"))

    def manifests(self, name: str) -> Iterator[str]:
        """The digests of a repository's manifests."""
        yield from self.links(name, "_manifests")

    def links(self, name: str, kind: str) -> Iterator[str]:
        """The digests of a repository's blobs or manifests (``_blobs``, ``_manifests``)."""
        folder = self.repository(name) / kind
        if not folder.is_dir():
            return
        for algorithm in sorted(os.listdir(folder)):
            for encoded in sorted(os.listdir(folder / algorithm)):
                if not encoded.endswith("~"):
                    yield f"{algorithm}:{encoded}"

    def link_path(self, name: str, kind: str, digest: str) -> Path:
        """The file that says that a digest is a repository's."""
        return self._link(name, kind, digest)

    def referrers(self, name: str, digest: str) -> list[dict[str, Any]]:
        """The descriptors of the manifests whose subject is ``digest``, in order of digest."""
        folder = self._link(name, "_referrers", digest)
        if not folder.is_dir():
            return []
        found = []
        for entry in sorted(os.listdir(folder)):
            if entry.endswith("~"):
                continue
            try:
                found.append(json.loads((folder / entry).read_bytes()))
            except FileNotFoundError:
                # Its manifest was deleted just now.
                continue
        return found

    def _write(self, path: Path, content: bytes) -> None:
        """A file that appears complete. No name that is stored ends in ``~``."""
        with space_needed(self.root, "the registry"):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}~")
            temporary.write_bytes(content)
            os.rename(temporary, path)


def blob_references(document: dict[str, Any]) -> list[str]:
    """The blobs that a manifest needs; layers that may lie elsewhere are none of them."""
    found = []
    config = document.get("config")
    if isinstance(config, dict):
        found.append(config.get("digest"))
    for entry in [*(document.get("layers") or ()), *(document.get("blobs") or ())]:
        if isinstance(entry, dict):
            media_type = str(entry.get("mediaType", ""))
            if "nondistributable" in media_type or ".foreign." in media_type:
                continue
            found.append(entry.get("digest"))
    return [digest for digest in found if isinstance(digest, str)]


def manifest_references(document: dict[str, Any]) -> list[str]:
    """The manifests that an index names."""
    entries = document.get("manifests") or ()
    return [
        entry["digest"]
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("digest"), str)
    ]


def media_type_of(document: dict[str, Any], said: str) -> str:
    """What a manifest is called: by itself, else by who gave it, else by its looks."""
    own = document.get("mediaType")
    if isinstance(own, str) and own:
        return own
    if said and said not in ("application/json", "application/octet-stream"):
        return said
    return sorted(INDEX_TYPES)[1] if "manifests" in document else OCI_MANIFEST


def _subject(document: dict[str, Any]) -> str:
    subject = document.get("subject")
    digest = subject.get("digest") if isinstance(subject, dict) else None
    return digest if isinstance(digest, str) and is_digest(digest) else ""
