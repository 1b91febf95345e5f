"""What a registry keeps, in a store (:mod:`tiffin.registry.stores`) and on the local disk.

In the store, which is a local folder unless another is given::

    blobs/ALGORITHM/ab/HEX                        the bytes of a blob or manifest, once for all
    repositories/NAME/_blobs/ALGORITHM/HEX        the blob belongs to the repository
    repositories/NAME/_manifests/ALGORITHM/HEX    the same for a manifest; holds its media type
    repositories/NAME/_tags/TAG                   holds the manifest's digest
    repositories/NAME/_referrers/ALGORITHM/HEX/ALGORITHM-HEX   a descriptor, by its subject

Always in the local folder::

    lock                                  flock: shared by who adds references, exclusive by gc
                                          (with another store, leases in it on top)
    uploads/UUID/data, repository         uploads under way

No component of a repository's name starts with ``_``, so the names don't collide.

Rules: contents appear complete. A blob is there before anything refers to it, and a reference is
gone before its blob is. Several processes may use one local folder, and several machines, each with
a local folder of its own, another store: the lock is there then (:mod:`tiffin.registry.leases`). An
upload is where it was begun.
"""

from __future__ import annotations

import contextlib
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
from tiffin.image.manifest import INDEX_TYPES, OCI_MANIFEST, is_distributable
from tiffin.image.reference import is_digest
from tiffin.layer.space import space_needed
from tiffin.registry.client import referrer
from tiffin.registry.faults import Fault
from tiffin.registry.leases import Hold, Leases
from tiffin.registry.stores import LocalStore, Store

MANIFEST_LIMIT = 8 << 20
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest of a repository."""

    raw: bytes
    media_type: str
    digest: str


class Storage:
    """See the module's text. Any thread may use it."""

    def __init__(self, root: Path, store: Store | None = None) -> None:
        """``root`` is the local folder; ``store`` keeps what is not local, if anything isn't."""
        self.root = root
        self.store: Store = store or LocalStore(root)
        self._leases = None if store is None else Leases(store)
        self.uploads_folder = root / "uploads"
        self.uploads_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Running hashes of uploads, which are made again from the data if they are lost.
        self._hashes: dict[str, tuple[int, Any]] = {}
        self._busy: set[str] = set()
        self._mutex = threading.Lock()

    @contextmanager
    def lock(self, *, exclusive: bool = False) -> Iterator[Hold]:
        """Keep the collection (or, if ``exclusive``, everybody who adds references) away.

        What is given is to be asked before anything is written or removed.
        """
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            if self._leases is None:
                yield Hold()
            else:
                with self._leases.held(exclusive=exclusive) as hold:
                    yield hold
        finally:
            os.close(fd)

    # Names.

    def exists(self, name: str) -> bool:
        """Whether anything was ever stored in the repository."""
        return bool({"_manifests", "_blobs"}.intersection(self.store.names(_repository(name))))

    def repositories(self) -> list[str]:
        """The names of all repositories, sorted."""
        found = []
        pending = self.store.names("repositories")
        while pending:
            name = pending.pop()
            below = self.store.names(_repository(name))
            if "_manifests" in below or "_blobs" in below:
                found.append(name)
            pending += [f"{name}/{part}" for part in below if not part.startswith("_")]
        return sorted(found)

    def has_bytes(self, digest: str) -> bool:
        """Whether the bytes of a digest are here, in whichever repository."""
        try:
            self.store.size(bytes_key(digest))
        except FileNotFoundError:
            return False
        return True

    def bytes_of(self, digest: str) -> bytes:
        """The bytes of a (small) digest; raises FileNotFoundError."""
        return self.store.read(bytes_key(digest))

    def is_linked(self, name: str, kind: str, digest: str) -> bool:
        """Whether a digest is a repository's (``kind``: ``_blobs``, ``_manifests``)."""
        try:
            self.store.size(link_key(name, kind, digest))
        except FileNotFoundError:
            return False
        return True

    # Blobs.

    def has_blob(self, name: str, digest: str) -> int | None:
        """The size of a repository's blob, or None. Whoever asks may be about to refer to it, so
        the collection takes it for new again."""
        try:
            self.store.touch(link_key(name, "_blobs", digest))
            return self.store.size(bytes_key(digest))
        except FileNotFoundError:
            return None

    def open_blob(self, name: str, digest: str) -> BinaryIO:
        """A repository's blob, to read; raises Fault. It is young again, as by
        :meth:`has_blob`."""
        if self.has_blob(name, digest) is not None:
            try:
                return self.store.open(bytes_key(digest))
            except FileNotFoundError:
                pass
        raise Fault("BLOB_UNKNOWN", "blob unknown to registry", digest=digest)

    def delete_blob(self, name: str, digest: str) -> None:
        """Take a blob out of a repository; the collection frees its bytes. Raises Fault."""
        try:
            self.store.delete(link_key(name, "_blobs", digest))
        except FileNotFoundError:
            raise Fault("BLOB_UNKNOWN", "blob unknown to registry", digest=digest) from None

    def mount(self, name: str, digest: str, source: str | None) -> bool:
        """Make a blob of another repository (any, if None) this one's too; whether there is one."""
        with self.lock() as hold:
            if not self.has_bytes(digest):
                return False
            if source is not None and not self.is_linked(source, "_blobs", digest):
                return False
            hold.assure()
            self.adopt(name, digest)
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
            with self.lock() as hold:
                self.place(path, digest)
                hold.assure()
                self.adopt(name, digest)
            self._forget(upload)

    def place(self, path: Path, digest: str) -> None:
        """Let a complete file become the bytes of a digest; under :meth:`lock`."""
        self.store.take(path, bytes_key(digest))

    def adopt(self, name: str, digest: str) -> None:
        """Make a blob whose bytes are there a repository's."""
        self.store.write(link_key(name, "_blobs", digest), b"")

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
                media_type = self.store.read(link_key(name, "_manifests", digest)).decode()
                return StoredManifest(self.bytes_of(digest), media_type, digest)
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
            return self.store.read(_tag_key(name, reference)).decode()
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
        with self.lock() as hold:
            if check:
                self._check_references(name, document)
            hold.assure()
            if not self.has_bytes(digest):
                self.store.write(bytes_key(digest), raw)
            self.store.write(link_key(name, "_manifests", digest), media_type.encode())
            subject = subject_of(document)
            if subject:
                entry = json.dumps(referrer(document, media_type, digest, len(raw)))
                self.store.write(_referrer_key(name, subject, digest), entry.encode())
            for tag in tags:
                self.store.write(_tag_key(name, tag), digest.encode())

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
        with self.lock():
            if not self.is_linked(name, "_manifests", digest):
                raise Fault("MANIFEST_UNKNOWN", f"manifest unknown: {digest}", digest=digest)
            for tag in self.tags(name):
                if self.resolve(name, tag) == digest:
                    self._delete(_tag_key(name, tag))
            self.forget_manifest(name, digest, json.loads(self.bytes_of(digest)))

    def forget_manifest(self, name: str, digest: str, document: dict[str, Any]) -> None:
        """Take a manifest, and what it says of its subject, out of a repository; under a lock."""
        subject = subject_of(document)
        if subject:
            self._delete(_referrer_key(name, subject, digest))
        self._delete(link_key(name, "_manifests", digest))

    def _delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.store.delete(key)

    def delete_tag(self, name: str, tag: str) -> None:
        """Remove a tag; raises Fault."""
        try:
            self.store.delete(_tag_key(name, tag))
        except FileNotFoundError:
            raise Fault("MANIFEST_UNKNOWN", f"manifest unknown: {tag}", tag=tag) from None

    def tags(self, name: str) -> list[str]:
        """All tags of a repository, sorted."""
        return self.store.names(f"{_repository(name)}/_tags")

    def manifests(self, name: str) -> Iterator[str]:
        """The digests of a repository's manifests."""
        yield from self.links(name, "_manifests")

    def links(self, name: str, kind: str) -> Iterator[str]:
        """The digests of a repository's blobs or manifests (``_blobs``, ``_manifests``)."""
        folder = f"{_repository(name)}/{kind}"
        for algorithm in self.store.names(folder):
            for encoded in self.store.names(f"{folder}/{algorithm}"):
                yield f"{algorithm}:{encoded}"

    def referrers(self, name: str, digest: str) -> list[dict[str, Any]]:
        """The descriptors of the manifests whose subject is ``digest``, in order of digest."""
        folder = link_key(name, "_referrers", digest)
        found = []
        for entry in self.store.names(folder):
            try:
                found.append(json.loads(self.store.read(f"{folder}/{entry}")))
            except FileNotFoundError:
                # Its manifest was deleted just now.
                continue
        return found


def bytes_key(digest: str) -> str:
    """Where the bytes of a digest are in the store."""
    algorithm, _, encoded = digest.partition(":")
    return f"blobs/{algorithm}/{encoded[:2]}/{encoded}"


def link_key(name: str, kind: str, digest: str) -> str:
    """What says that a digest is a repository's (``_blobs``, ``_manifests``, ``_referrers``)."""
    algorithm, _, encoded = digest.partition(":")
    return f"{_repository(name)}/{kind}/{algorithm}/{encoded}"


def _repository(name: str) -> str:
    return f"repositories/{name}"


def _tag_key(name: str, tag: str) -> str:
    return f"{_repository(name)}/_tags/{tag}"


def _referrer_key(name: str, subject: str, digest: str) -> str:
    return f"{link_key(name, '_referrers', subject)}/{digest.replace(':', '-')}"


def blob_references(document: dict[str, Any]) -> list[str]:
    """The blobs that a manifest needs; layers that may lie elsewhere are none of them."""
    found = []
    config = document.get("config")
    if isinstance(config, dict):
        found.append(config.get("digest"))
    for entry in [*(document.get("layers") or ()), *(document.get("blobs") or ())]:
        if isinstance(entry, dict) and is_distributable(str(entry.get("mediaType", ""))):
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


def subject_of(document: dict[str, Any]) -> str:
    """The digest of what a manifest refers to, or nothing."""
    subject = document.get("subject")
    digest = subject.get("digest") if isinstance(subject, dict) else None
    return digest if isinstance(digest, str) and is_digest(digest) else ""
