"""Garbage collection of a registry, safe while pushes and pulls go on.

Mark: every manifest of a repository, and what they name. Sweep: first the links of a repository's
blobs that no manifest of it names, then the bytes that no repository has a link to. With
``untagged``, manifests go too that no tag, no index and no subject leads to.

Why it is safe: what is younger than the grace period is kept, and whoever asks whether a blob is
there makes it young again, since that is what a push does before it names it. The rest is checked
where it counts: a manifest is stored under a shared lock that finds all its blobs there, and each
removal happens under the exclusive one. A push that is slower than the grace period is refused
(``MANIFEST_BLOB_UNKNOWN``) and pushed again; it never ends in a broken image.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tiffin.registry.storage import (
    Storage,
    blob_references,
    bytes_key,
    link_key,
    manifest_references,
)

GRACE = 3600.0
UPLOAD_LIFETIME = 7 * 24 * 3600.0


@dataclass
class Swept:
    """What a collection removed."""

    manifests: int = 0
    links: int = 0
    blobs: int = 0
    uploads: int = 0
    bytes: int = 0

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def sweep(storage: Storage, *, untagged: bool = False, grace: float = GRACE) -> Swept:
    """Remove what nothing needs; see the module's text."""
    swept = Swept()
    young = time.time() - grace
    for name in storage.repositories():
        if untagged:
            _sweep_manifests(storage, name, young, swept)
        _sweep_links(storage, name, young, swept)
    _sweep_bytes(storage, young, swept)
    _sweep_uploads(storage, swept)
    return swept


def _documents(storage: Storage, name: str) -> dict[str, dict[str, Any]]:
    found = {}
    for digest in storage.manifests(name):
        try:
            found[digest] = json.loads(storage.bytes_of(digest))
        except FileNotFoundError:
            # It was deleted just now.
            continue
    return found


def _sweep_manifests(storage: Storage, name: str, young: float, swept: Swept) -> None:
    documents = _documents(storage, name)
    live = set()
    pending: list[str | None] = [storage.resolve(name, tag) for tag in storage.tags(name)]
    for digest in documents:
        if _is_young(storage, name, "_manifests", digest, young):
            pending.append(digest)
    while pending:
        found = pending.pop()
        if found is None or found in live or found not in documents:
            continue
        live.add(found)
        pending += manifest_references(documents[found])
        # What refers to a live manifest (a signature) lives with it.
        pending += [entry["digest"] for entry in storage.referrers(name, found)]
    for digest in set(documents) - live:
        with storage.lock(exclusive=True) as hold:
            tagged = {storage.resolve(name, tag) for tag in storage.tags(name)}
            if digest in tagged or _is_young(storage, name, "_manifests", digest, young):
                continue
            hold.assure()
            storage.forget_manifest(name, digest, documents[digest])
            swept.manifests += 1


def _needed(storage: Storage, name: str) -> set[str]:
    needed: set[str] = set()
    for document in _documents(storage, name).values():
        needed.update(blob_references(document))
        for entry in document.get("layers") or ():
            if isinstance(entry, dict):
                needed.add(str(entry.get("digest")))
    return needed


def _is_young(storage: Storage, name: str, kind: str, digest: str, young: float) -> bool:
    try:
        return storage.store.time(link_key(name, kind, digest)) > young
    except FileNotFoundError:
        return False


def _sweep_links(storage: Storage, name: str, young: float, swept: Swept) -> None:
    candidates = [
        digest
        for digest in storage.links(name, "_blobs")
        if not _is_young(storage, name, "_blobs", digest, young)
    ]
    if not candidates:
        return
    with storage.lock(exclusive=True) as hold:
        # Under the lock no manifest arrives that would need one of them.
        needed = _needed(storage, name)
        for digest in candidates:
            if digest in needed or _is_young(storage, name, "_blobs", digest, young):
                continue
            hold.assure()
            with contextlib.suppress(FileNotFoundError):
                storage.store.delete(link_key(name, "_blobs", digest))
            swept.links += 1


def _sweep_bytes(storage: Storage, young: float, swept: Swept) -> None:
    linked: set[str] = set()
    for name in storage.repositories():
        linked.update(storage.links(name, "_blobs"))
        linked.update(storage.manifests(name))
    for digest in _kept(storage):
        if digest in linked:
            continue
        key = bytes_key(digest)
        # Before the lock, which costs more.
        try:
            if storage.store.time(key) > young:
                continue
        except FileNotFoundError:
            continue
        with storage.lock(exclusive=True) as hold:
            try:
                size, age = storage.store.size(key), storage.store.time(key)
                if age > young or _linked_now(storage, digest):
                    continue
                hold.assure()
                storage.store.delete(key)
            except FileNotFoundError:
                # Another collection was quicker.
                continue
        swept.blobs += 1
        swept.bytes += size


def _kept(storage: Storage) -> Iterator[str]:
    """Every digest that has bytes."""
    for algorithm in storage.store.names("blobs"):
        for shard in storage.store.names(f"blobs/{algorithm}"):
            for encoded in storage.store.names(f"blobs/{algorithm}/{shard}"):
                yield f"{algorithm}:{encoded}"


def _linked_now(storage: Storage, digest: str) -> bool:
    return any(
        storage.is_linked(name, kind, digest)
        for name in storage.repositories()
        for kind in ("_blobs", "_manifests")
    )


def _sweep_uploads(storage: Storage, swept: Swept) -> None:
    old = time.time() - UPLOAD_LIFETIME
    for upload in os.listdir(storage.uploads_folder):
        folder = storage.uploads_folder / upload
        # An upload begins with its folder, and ends with its data: either may be all there is.
        times = [_mtime(folder / "data"), _mtime(folder)]
        if max(times) > old or not any(times):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        swept.uploads += 1


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
