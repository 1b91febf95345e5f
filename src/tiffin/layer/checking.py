"""Every file of every layer, compared with the layer's index; and put right where it can be.

A driver of layers has the changes of each layer alone, so that is what is compared. A driver of
whole trees has a stack's whole tree in each of its layers: all of it is compared.

Repair: what a file must hold is known by its digest. Its content comes from the first of these
that has it (each is verified): another name or another layer with the same digest; the layer's own
tar, fetched again from a registry that it is known to be in. Attributes come from the index. What
is too much is removed; what a directory, link or device should be is made anew. Nothing may run on
a layer that is repaired.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from tiffin.errors import NotFound, TiffinError
from tiffin.layer.capture import own_entries
from tiffin.layer.compression import decompressed
from tiffin.layer.entry import KINDS, Entry, Kind
from tiffin.layer.index import Index
from tiffin.layer.layer import Layer
from tiffin.layer.store import LayerStore
from tiffin.layer.unpack import unpack
from tiffin.linux import syscalls
from tiffin.storage import tree
from tiffin.storage.driver import StorageDriver, Whiteouts

_BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
_MARKS = (Kind.WHITEOUT, Kind.OPAQUE)
_FORMS = {kind: form for form, kind in KINDS.items()} | {Kind.HARDLINK: stat.S_IFREG}

Fetch = Callable[[str], AbstractContextManager[BinaryIO | None]]
"""The packed tar of a layer, by diff ID, from wherever it can be had again; None for nowhere."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One path of a layer that is not as its index says."""

    layer: str
    """The diff ID."""
    driver: str
    path: str
    what: str
    """missing, extra, type, content, owner, mode, time, target, device, attributes, link;
    unreadable (and why); index, of a layer that can't be checked at all. Why a repair failed is
    said too."""
    repaired: str = ""
    """Where what was put in its place came from; empty if nothing was."""


@dataclass(slots=True)
class Report:
    """What a check has looked at."""

    layers: int = 0
    files: int = 0
    size: int = 0
    problems: list[Problem] | None = None


def check(
    store: LayerStore, *, repair: bool, fetch: Fetch, say: Callable[[str, Problem | None], None]
) -> Report:
    """Compare everything; ``say`` is told of each layer and of each problem."""
    report = Report(problems=[])
    problems = report.problems
    assert problems is not None
    done: set[tuple[str, str]] = set()
    rows = store.database.all("SELECT * FROM layers ORDER BY created")
    sources = _Sources(store, [Layer.of(row) for row in rows])
    for row in rows:
        layer = Layer.of(row)
        if (layer.driver, layer.snapshot) in done:
            continue
        done.add((layer.driver, layer.snapshot))
        say(layer.diff_id, None)
        report.layers += 1
        with store.pins.held(layer.chain_id), store.making.held(layer.diff_id):
            if store.database.one("SELECT 1 FROM layers WHERE chain_id = ?", (layer.chain_id,)):
                for problem in _Check(store, layer, sources, fetch if repair else None, report):
                    problems.append(problem)
                    say(layer.diff_id, problem)
    return report


class _Check:
    """The check of one layer, an iterable of its problems."""

    def __init__(
        self,
        store: LayerStore,
        layer: Layer,
        sources: _Sources,
        fetch: Fetch | None,
        report: Report,
    ) -> None:
        self._store = store
        self._layer = layer
        self._sources = sources
        self._fetch = fetch
        self._report = report
        self._driver: StorageDriver = store.drivers.get(layer.driver)
        self._root = -1

    def __iter__(self) -> Iterator[Problem]:
        try:
            index = self._store.index(self._layer)
        except (TiffinError, OSError) as error:
            yield self._problem(b"", f"index ({error})")
            return
        try:
            with ExitStack() as stack:
                own = stack.enter_context(self._driver.own_directory(self._layer.snapshot))
                self._root = os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, self._root)
                self._restored = _Restored(self._store, self._layer, self._fetch, stack)
                yield from self._compare(index, own)
        except NotFound:
            yield self._problem(b"", "missing")

    def _problem(self, path: bytes, what: str, repaired: str = "") -> Problem:
        layer = self._layer
        return Problem(layer.diff_id, layer.driver, os.fsdecode(path), what, repaired)

    def _expected(self, index: Index) -> Iterator[Entry]:
        if self._driver.layered:
            yield from index.effective()
            return
        lower = self._store.lower(self._layer.chain_id)
        pending = [b""]
        while pending:
            for entry in lower.children(pending.pop()):
                yield entry
                if entry.kind is Kind.DIRECTORY:
                    pending.append(entry.path)

    def _compare(self, index: Index, own: Path) -> Iterator[Problem]:
        wanted: set[tuple[bytes, bool]] = set()
        directories: list[Entry] = []
        for entry in self._expected(index):
            wanted.add((entry.path, entry.kind in _MARKS))
            if entry.kind in _MARKS or not entry.path:
                continue
            if entry.path in index.implied and self._driver.layered:
                continue
            self._report.files += 1
            what = self._differs(entry)
            if what:
                if entry.kind is Kind.DIRECTORY:
                    directories.append(entry)
                yield self._problem(entry.path, *self._repair(entry, what))
        style = self._driver.whiteouts
        for found in list(own_entries(own, style if self._driver.layered else Whiteouts.NONE)):
            mark = found.kind in _MARKS
            if (found.path, mark) in wanted or not found.path:
                continue
            if not mark and found.path in index.implied:
                continue
            repaired = ""
            if self._fetch is not None and not mark:
                with suppress(FileNotFoundError):
                    self._remove(found.path)
                repaired = "removed"
            yield self._problem(found.path, "extra", repaired)
        # What was put into them has changed their times.
        for entry in reversed(directories):
            if self._fetch is not None:
                self._dress(entry)

    def _open(self, path: bytes, flags: int) -> int:
        return syscalls.openat2(self._root, path, flags | os.O_NOFOLLOW, resolve=_BENEATH)

    def _differs(self, entry: Entry) -> str:
        """What is not as the entry says, or nothing."""
        try:
            return self._difference(entry)
        except OSError as error:
            # A disk that fails in one place may be read in others.
            return f"unreadable ({error.strerror})"

    def _difference(self, entry: Entry) -> str:
        try:
            fd = self._open(entry.path, os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            return "missing"
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EXDEV):
                raise
            return "type"
        try:
            status = os.fstat(fd)
            if entry.kind is Kind.HARDLINK:
                return self._differs_link(entry, status)
            if stat.S_IFMT(status.st_mode) != _FORMS[entry.kind]:
                return "type"
            if entry.kind is Kind.SYMLINK:
                if os.readlink(b"", dir_fd=fd) != entry.target:
                    return "target"
            elif stat.S_IMODE(status.st_mode) != entry.mode:
                return "mode"
            if (status.st_uid, status.st_gid) != (entry.uid, entry.gid):
                return "owner"
            if entry.kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE) and entry.device != (
                os.major(status.st_rdev),
                os.minor(status.st_rdev),
            ):
                return "device"
            if entry.kind is Kind.FILE:
                self._report.size += status.st_size
                if status.st_size != entry.size or self._digest(entry.path) != entry.digest:
                    return "content"
            place = f"/proc/self/fd/{self._root}/{os.fsdecode(entry.path)}"
            names = {
                name: os.getxattr(place, name, follow_symlinks=False)
                for name in os.listxattr(place, follow_symlinks=False)
                if not name.startswith(self._private)
            }
            if names != self._attributes(entry):
                return "attributes"
            if entry.kind is not Kind.DIRECTORY and status.st_mtime_ns != entry.mtime_ns:
                return "time"
        finally:
            os.close(fd)
        return ""

    def _differs_link(self, entry: Entry, status: os.stat_result) -> str:
        try:
            fd = self._open(entry.target, os.O_PATH)
        except OSError:
            return "link"
        try:
            return "" if os.fstat(fd).st_ino == status.st_ino else "link"
        finally:
            os.close(fd)

    def _digest(self, path: bytes) -> bytes:
        with os.fdopen(self._open(path, os.O_RDONLY), "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    # Repair.

    def _repair(self, entry: Entry, what: str) -> tuple[str, str]:
        """What was wrong, and where what is there now came from, if anything is."""
        if self._fetch is None:
            return what, ""
        try:
            return what, self._put_right(entry, what)
        except (OSError, TiffinError) as error:
            return f"{what}; its repair failed: {error}", ""

    def _put_right(self, entry: Entry, what: str) -> str:
        if what in ("mode", "owner", "time", "attributes") and entry.kind is not Kind.HARDLINK:
            self._dress(entry)
            return "the index"
        above, _, name = entry.path.rpartition(b"/")
        parent = self._open(above or b".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            times = os.fstat(parent)
            fresh = b".tiffin-repair-" + secrets.token_hex(6).encode()
            source = "the index"
            match entry.kind:
                case Kind.FILE:
                    source = self._content(entry, parent, fresh)
                    if not source:
                        return ""
                case Kind.HARDLINK:
                    os.link(entry.target, fresh, src_dir_fd=self._root, dst_dir_fd=parent)
                case Kind.DIRECTORY:
                    os.mkdir(fresh, dir_fd=parent)
                case Kind.SYMLINK:
                    os.symlink(entry.target, fresh, dir_fd=parent)
                case _:
                    device = os.makedev(*entry.device)
                    os.mknod(fresh, _FORMS[entry.kind] | 0o600, device, dir_fd=parent)
            if what == "type":
                self._remove(entry.path)
            os.rename(fresh, name, src_dir_fd=parent, dst_dir_fd=parent)
            if entry.kind is not Kind.HARDLINK:
                self._dress(entry)
            os.utime(parent, ns=(times.st_atime_ns, times.st_mtime_ns))
            return source
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(fresh, dir_fd=parent)
            raise
        finally:
            os.close(parent)

    def _content(self, entry: Entry, parent: int, fresh: bytes) -> str:
        """Make a file of the entry's content out of wherever it can be had; from where."""
        places = self._sources.of(entry.digest, (self._layer.snapshot, entry.path))
        for origin, opened in [*places, ("a registry", lambda: self._restored.open(entry.path))]:
            try:
                reader = opened()
            except (OSError, TiffinError):
                # It is not there: the next one may be.
                continue
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with (
                os.fdopen(reader, "rb") as source,
                os.fdopen(os.open(fresh, flags, 0o600, dir_fd=parent), "wb") as target,
            ):
                running = hashlib.sha256()
                while block := _readable(source):
                    running.update(block)
                    target.write(block)
            if running.digest() == entry.digest:
                return origin
        with suppress(FileNotFoundError):
            os.unlink(fresh, dir_fd=parent)
        return ""

    @property
    def _private(self) -> tuple[str, ...]:
        return self._driver.whiteouts.private

    def _attributes(self, entry: Entry) -> dict[str, bytes]:
        """Those that a file has in this driver's folder."""
        return {
            name: value
            for name, value in (entry.xattrs or {}).items()
            if not name.startswith(self._private)
        }

    def _dress(self, entry: Entry) -> None:
        place = f"/proc/self/fd/{self._root}/{os.fsdecode(entry.path)}"
        os.chown(place, entry.uid, entry.gid, follow_symlinks=False)
        if entry.kind is not Kind.SYMLINK:
            os.chmod(place, entry.mode)
        for name in os.listxattr(place, follow_symlinks=False):
            if not name.startswith(self._private) and name not in (entry.xattrs or {}):
                os.removexattr(place, name, follow_symlinks=False)
        for name, value in self._attributes(entry).items():
            os.setxattr(place, name, value, follow_symlinks=False)
        os.utime(place, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)

    def _remove(self, path: bytes) -> None:
        above, _, name = path.rpartition(b"/")
        parent = self._open(above or b".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            times = os.fstat(parent)
            try:
                os.unlink(name, dir_fd=parent)
            except IsADirectoryError:
                tree.delete(Path(f"/proc/self/fd/{parent}/{os.fsdecode(name)}"))
            os.utime(parent, ns=(times.st_atime_ns, times.st_mtime_ns))
        finally:
            os.close(parent)


def _readable(file: BinaryIO) -> bytes:
    """The next part of a file; nothing where it can't be read, which its digest will tell."""
    try:
        return file.read(1 << 20)
    except OSError:
        return b""


class _Sources:
    """Where the layers have files, by digest; read when the first is asked for."""

    def __init__(self, store: LayerStore, layers: list[Layer]) -> None:
        self._store = store
        self._layers = layers
        self._places: dict[bytes, list[tuple[Layer, bytes]]] | None = None

    def of(self, digest: bytes, but: tuple[str, bytes]) -> Iterator[tuple[str, Callable[[], int]]]:
        """Other places than ``but`` (snapshot and path) that should have that content."""
        if self._places is None:
            self._places = {}
            for layer in self._layers:
                with suppress(TiffinError, OSError):
                    for entry in self._store.index(layer).effective():
                        if entry.kind is Kind.FILE:
                            found = self._places.setdefault(entry.digest, [])
                            found.append((layer, entry.path))
        for layer, path in self._places.get(digest, ()):
            if (layer.snapshot, path) != but:
                lower = self._store.lower(layer.chain_id)
                name = f"/{os.fsdecode(path)} of layer {layer.diff_id}"
                yield name, partial(lower.open, path)


class _Restored:
    """A layer's files, out of its tar that is fetched again when the first is asked for."""

    def __init__(
        self, store: LayerStore, layer: Layer, fetch: Fetch | None, stack: ExitStack
    ) -> None:
        self._store = store
        self._layer = layer
        self._fetch = fetch
        self._stack = stack
        self._directory: Path | None = None

    def open(self, path: bytes) -> int:
        """A descriptor of the file; raises NotFound."""
        if self._directory is None:
            self._directory = self._unpacked()
        root = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return syscalls.openat2(root, path, os.O_RDONLY | os.O_NOFOLLOW, resolve=_BENEATH)
        finally:
            os.close(root)

    def _unpacked(self) -> Path:
        assert self._fetch is not None
        store, layer = self._store, self._layer
        with self._fetch(layer.diff_id) as tar:
            if tar is None:
                raise NotFound(f"layer {layer.diff_id} is in no registry that is known")
            folder = store.work_folder / f"w{secrets.token_hex(8)}"
            self._stack.callback(tree.delete, folder)
            (folder / "fs").mkdir(parents=True)
            unpack(
                decompressed(tar),
                folder / "fs",
                Whiteouts.NONE,
                lower=store.lower(layer.parent) if layer.parent else None,
                expect_diff_id=layer.diff_id,
                stash=folder / "stash",
            )
        return folder / "fs"
