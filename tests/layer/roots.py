"""Engine roots for tests of the layer store: opened, pictured, killed and opened again."""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from storage.actions import mounted
from tiffin.layer.store import Layer, LayerStore
from tiffin.linux import syscalls
from tiffin.storage.driver import StorageDriver
from tiffin.storage.drivers import home
from tiffin.store.database import Database

Files = Mapping[str, str | None]
"""A layer: path to content; None deletes, and a path that ends in ``/`` is a directory."""


BASE = {"etc/passwd": "root", "bin/sh": "shell", "data/a": "a", "data/b": "b"}
"""A layer to begin with."""


def tar_of(files: Files) -> bytes:
    """A layer's tar, with an entry for each directory above a file."""
    buffer = io.BytesIO()
    done: set[str] = set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, content in files.items():
            parts = path.rstrip("/").split("/")
            for depth in range(1, len(parts) + path.endswith("/")):
                directory = "/".join(parts[:depth])
                if directory not in done:
                    done.add(directory)
                    member = tarfile.TarInfo(directory)
                    member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o755, 1_600_000_000
                    tar.addfile(member)
            if path.endswith("/"):
                continue
            if content is None:
                parts[-1] = f".wh.{parts[-1]}"
            member = tarfile.TarInfo("/".join(parts))
            data = (content or "").encode()
            member.size, member.mtime = len(data), 1_600_000_000
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@contextmanager
def in_memory(place: Path) -> Iterator[Path]:
    """A file system that need not wait for a disk: these tests open databases by the hundred."""
    place.mkdir()
    syscalls.mount("tmpfs", str(place), "tmpfs")
    try:
        yield place
    finally:
        syscalls.umount(str(place), syscalls.MNT_DETACH)


class Root:
    """One engine root on one driver."""

    def __init__(self, path: Path, kind: type[StorageDriver]) -> None:
        self.path = path
        self.kind = kind
        path.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def open(self) -> Iterator[LayerStore]:
        """The store, swept as at start-up, and closed after the block."""
        database = Database(self.path / "tiffin.db")
        try:
            store = LayerStore(database, self.kind(home(self.path, self.kind.name)), self.path)
            store.sweep()
            yield store
        finally:
            database.close()

    def picture(self) -> dict[str, object]:
        """All that the store holds, without what is random or a time."""
        connection = sqlite3.connect(self.path / "tiffin.db")
        try:
            rows = {
                table: sorted(map(repr, connection.execute(f"SELECT {columns} FROM {table}")))
                for table, columns in (
                    ("layers", "chain_id, diff_id, parent, snapshot, driver, tar_size, size"),
                    ("snapshots", "*"),
                    ("moves", "*"),
                    ("containers", "id, base, frozen, snapshot"),
                )
            }
        finally:
            connection.close()
        place = home(self.path, self.kind.name)
        return {
            **rows,
            "keys": sorted(self.kind(place).keys()),
            "folders": len(os.listdir(place / "d")),
            "trash": os.listdir(place / "trash"),
            "layers folder": sorted(
                str(path.relative_to(self.path)) for path in (self.path / "layers").rglob("*")
            ),
            "work folder": os.listdir(self.path / "work"),
        }


def ingest(store: LayerStore, files: Files, parent: Layer | None = None) -> Layer:
    """Store a layer of such files."""
    return store.ingest(io.BytesIO(tar_of(files)), parent.chain_id if parent else None)


def add_container(store: LayerStore, key: str, base: Layer | None) -> None:
    """A container as the engine makes one: its snapshot, then its row."""
    chain = base.chain_id if base else None
    store.prepare(key, chain, mountpoints=True, purpose="container")
    store.database.execute(
        "INSERT INTO containers (id, name, image, base, snapshot, spec, state, created)"
        " VALUES (?, ?, '', ?, ?, x'', x'', 0)",
        (key, key, chain, key),
    )


def remove_container(store: LayerStore, key: str) -> None:
    """The end of such a container."""
    store.database.execute("DELETE FROM containers WHERE id = ?", (key,))
    store.remove_snapshot(key)


@contextmanager
def tree_of(store: LayerStore, key: str, place: Path) -> Iterator[Path]:
    """A snapshot's tree, mounted inside the block."""
    with mounted(store.mounts(key), place / f"mount-{key}") as tree:
        yield tree


def files_of(tree: Path, *, mountpoints: bool = False) -> dict[str, str]:
    """Path and content of every regular file."""
    skipped = {".dockerenv", "etc/hostname", "etc/hosts", "etc/resolv.conf", "dev/console"}
    return {
        path: (tree / path).read_text()
        for file in tree.rglob("*")
        if file.is_file() and not file.is_symlink()
        if (path := str(file.relative_to(tree))) not in skipped or mountpoints
    }


def files_in(store: LayerStore, layer: Layer, place: Path) -> dict[str, str]:
    """Path and content of every regular file of a stack."""
    with mounted(store.view(layer.chain_id), place / "view") as tree:
        return files_of(tree)


def digest(data: bytes) -> str:
    """Its sha256, as layers are named."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Unreadable(io.RawIOBase):
    """A stream that nobody may read."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        raise AssertionError("the tar was read")
