"""The build context: the files that COPY and ADD may take, and the Dockerfile.

A context is one of three. A *folder* is read in place: only the directories that a step asks for
are listed, and a file is read only if nothing is known of it (:mod:`tiffin.build.digests`). An
*archive* is a tar stream, compressed or not, as the API and ``build -`` bring it. A *lone
Dockerfile* has no files at all.

Rules, as Docker's: what ``.dockerignore`` excludes is not there, the Dockerfile and
``.dockerignore`` themselves too (they are still read). For a folder a file ``X.dockerignore``
next to the Dockerfile ``X`` takes the place of ``.dockerignore``, and the Dockerfile may lie
outside of the folder. From an archive, which a client has filtered, only those two files are
taken out where they are excluded. Nothing outside of the folder is ever opened: symlinks are
copied, or followed inside the context.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from tiffin.build.archive import ArchiveSource, read_up_to
from tiffin.build.digests import DigestCache, Known, Stamp, stamp_of
from tiffin.build.dockerignore import Ignore, State, read_patterns
from tiffin.build.tree import EmptyTree, Source, changed_meanwhile, parent
from tiffin.errors import BuildFailure, InvalidParameter, NotFound
from tiffin.layer.compression import decompressed
from tiffin.layer.entry import KINDS, Entry, Kind
from tiffin.layer.writer import OpenFile
from tiffin.linux import syscalls

DOCKERFILE = "Dockerfile"
IGNORE_FILE = ".dockerignore"

_BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS
_STRICT = _BENEATH | syscalls.RESOLVE_NO_SYMLINKS
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LARGE = 1 << 20
"""From here on it pays to ask whether a file's digest is known."""
_CAPABILITY = "security.capability"
_LARGEST_DOCKERFILE = 16 << 20
_TAR_HEADER = 512


class _Closing(Protocol):
    def close(self) -> None: ...


@dataclass(slots=True)
class BuildContext:
    """What a build is given. Use as a context manager, or call :meth:`close`."""

    dockerfile: bytes
    dockerfile_name: str
    """As errors call it."""
    source: Source
    ignore: Ignore | None = None
    """What ``.dockerignore`` keeps out, where that is known."""
    owned: list[_Closing] = field(default_factory=list)

    def close(self) -> None:
        """Let go of descriptors and temporary files."""
        while self.owned:
            self.owned.pop().close()

    def __enter__(self) -> BuildContext:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def lone(dockerfile: bytes) -> BuildContext:
    """A build of a Dockerfile without any files."""
    return BuildContext(_not_empty(dockerfile, DOCKERFILE), DOCKERFILE, EmptyTree())


def from_stream(
    stream: BinaryIO,
    work: Path | None = None,
    *,
    dockerfile: str = DOCKERFILE,
    content: bytes | None = None,
) -> BuildContext:
    """A tar, compressed or not, or a Dockerfile alone, as they come in on a stream.

    ``work`` is where a large context is spooled, ``content`` the Dockerfile's text where it comes
    from elsewhere. Raises CorruptArchive, NotFound.
    """
    plain = decompressed(stream)
    beginning = read_up_to(plain, _TAR_HEADER)
    if b"\0" not in beginning:
        if content is not None:
            raise InvalidParameter("the build context is no archive")
        return lone(beginning + read_up_to(plain, _LARGEST_DOCKERFILE))
    source = ArchiveSource(work)
    try:
        source.read_tar(cast(BinaryIO, _Rejoined(beginning, plain)))
        names = [dockerfile, dockerfile.lower()] if dockerfile == DOCKERFILE else [dockerfile]
        name, path = dockerfile, b""
        for name in names if content is None else ():
            path = os.fsencode(os.path.normpath(name).lstrip("/"))
            content = source.read(path)
            if content is not None:
                break
        if content is None:
            raise NotFound(f"Cannot locate specified Dockerfile: {dockerfile}")
        ignore = Ignore(read_patterns(source.read(IGNORE_FILE.encode()) or b""))
        for unwanted in (IGNORE_FILE.encode(), *([path] if path else ())):
            if ignore.excludes(os.fsdecode(unwanted)):
                source.remove(unwanted)
    except BaseException:
        source.close()
        raise
    return BuildContext(_not_empty(content, name), name, source, ignore, [source])


class _Rejoined:
    """A stream, with what was read of it put back in front."""

    def __init__(self, beginning: bytes, rest: BinaryIO) -> None:
        self._beginning = beginning
        self._rest = rest

    def read(self, count: int) -> bytes:
        if self._beginning:
            part, self._beginning = self._beginning[:count], self._beginning[count:]
            return part
        return self._rest.read(count)


def from_folder(
    folder: Path,
    digests: DigestCache,
    *,
    dockerfile: str | Path | None = None,
    content: bytes | None = None,
    ignored: bool = True,
) -> BuildContext:
    """A folder on this machine, read in place.

    ``dockerfile`` is relative to ``folder``, or absolute (then it may lie elsewhere); ``content``
    is the Dockerfile's text where it comes from a stream; ``ignored`` is false where no
    ``.dockerignore`` counts. Raises NotFound, InvalidParameter.
    """
    try:
        root = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"unable to prepare context: {folder}: {error.strerror}") from error
    try:
        name = str(dockerfile) if dockerfile is not None else DOCKERFILE
        patterns = None
        if content is None:
            content, name, patterns = _find_dockerfile(root, folder, name, dockerfile is None)
        if patterns is None and ignored:
            patterns = _read_beneath(root, IGNORE_FILE)
        ignore = Ignore(read_patterns(patterns or b""))
        source = FolderSource(root, ignore, digests)
    except BaseException:
        os.close(root)
        raise
    return BuildContext(_not_empty(content, name), name, source, ignore, [source])


def _not_empty(dockerfile: bytes, name: str) -> bytes:
    if not dockerfile.strip():
        raise InvalidParameter(f"the Dockerfile ({name}) cannot be empty")
    return dockerfile


def _find_dockerfile(
    root: int, folder: Path, name: str, default: bool
) -> tuple[bytes, str, bytes | None]:
    """The Dockerfile's text, its name, and the text of the ``.dockerignore`` of its own."""
    inside = os.path.relpath(name, folder) if os.path.isabs(name) else os.path.normpath(name)
    if not inside.startswith("../") and inside != "..":
        for candidate in (inside, inside.lower()) if default else (inside,):
            content = _read_beneath(root, candidate)
            if content is not None:
                return content, candidate, _read_beneath(root, f"{candidate}{IGNORE_FILE}")
    elif os.path.isabs(name):
        try:
            own = Path(f"{name}{IGNORE_FILE}")
            return Path(name).read_bytes(), name, own.read_bytes() if own.exists() else None
        except OSError as error:
            raise NotFound(f"Cannot locate specified Dockerfile: {name}: {error.strerror}") from (
                error
            )
    raise NotFound(
        f"Cannot locate specified Dockerfile: {name} (looked in {folder}; name another with -f)"
    )


def _read_beneath(root: int, name: str) -> bytes | None:
    """A small file's content; None if there is none. A symlink may not lead out."""
    try:
        fd = syscalls.openat2(root, name, os.O_RDONLY | os.O_NONBLOCK, resolve=_BENEATH)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InvalidParameter(
            f"forbidden path outside the build context, or unreadable: {name}: {error.strerror}"
        ) from error
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        return file.read(_LARGEST_DOCKERFILE)


class _Opened:
    """A file of a folder while it is copied. A context manager: leaving it makes sure that the
    file is still the one that was found."""

    __slots__ = ("_entry", "_fd", "_source", "_stamp")

    def __init__(self, source: FolderSource, entry: Entry, stamp: Stamp) -> None:
        self._source = source
        self._entry = entry
        self._stamp = stamp

    def __enter__(self) -> OpenFile:
        entry, stamp = self._entry, self._stamp
        fd = self._fd = self._source.open_file(entry)
        known = self._source.known(stamp) if entry.size > _LARGE else None
        if not entry.digest:
            entry.xattrs = _capability(fd)
        return OpenFile(fd, stamp[2], stamp[0], known.digest if known is not None else b"")

    def __exit__(self, *exception: object) -> None:
        fd = self._fd
        try:
            # Also where it could not be read to its end.
            if stamp_of(os.fstat(fd)) != self._stamp:
                raise changed_meanwhile(self._entry)
        finally:
            os.close(fd)


class FolderSource:
    """A folder's files, without what is ignored. Listings are read once and kept. Several threads
    may use one."""

    def __init__(self, root: int, ignore: Ignore, digests: DigestCache) -> None:
        """Takes the descriptor ``root`` over."""
        self._root = root
        self._ignore = ignore
        self._digests = digests
        self._listings: dict[bytes, dict[bytes, Entry]] = {}
        self._states: dict[bytes, State] = {b"": ignore.root}
        self._stamps: dict[bytes, Stamp] = {}
        self._began = digests.now()
        """Before anything was looked at: what has changed since may change again unseen."""
        self._lock = threading.RLock()
        self._open: tuple[bytes, int] | None = None
        """The directory that a file was last opened in."""

    def close(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def entry(self, path: bytes) -> Entry | None:
        if not path:
            status = os.fstat(self._root)
            return Entry(b"", Kind.DIRECTORY, status.st_mode & 0o7777, mtime_ns=status.st_mtime_ns)
        above = parent(path)
        if above and above not in self._listings:
            directory = self.entry(above)
            if directory is None or directory.kind is not Kind.DIRECTORY:
                return None
        return self._listing(above).get(path)

    def children(self, path: bytes) -> list[Entry]:
        directory = self.entry(path)
        if directory is None or directory.kind is not Kind.DIRECTORY:
            return []
        return list(self._listing(path).values())

    def identify(self, entry: Entry) -> Entry:
        if entry.kind is not Kind.FILE or entry.digest:
            return entry
        stamp = self._stamps[entry.path]
        known = self._digests.find(stamp)
        if known is None:
            known = self._read(entry, stamp)
        entry.digest, entry.xattrs = known
        return entry

    def opened(self, entry: Entry) -> _Opened:
        return _Opened(self, entry, self._stamps[entry.path])

    def learn(self, entry: Entry) -> None:
        known = Known(entry.digest, entry.xattrs)
        self._digests.remember(self._stamps[entry.path], known, self._began)

    def known(self, stamp: Stamp) -> Known | None:
        """What is known of a file without reading it."""
        return self._digests.find(stamp)

    def _read(self, entry: Entry, stamp: Stamp) -> Known:
        fd = self.open_file(entry)
        with open(fd, "rb", buffering=0) as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            known = Known(digest, _capability(fd))
            if stamp_of(os.fstat(fd)) != stamp:
                raise changed_meanwhile(entry)
        self._digests.remember(stamp, known, self._began)
        return known

    def open_file(self, entry: Entry) -> int:
        """A descriptor of the file; whether it still is what was found is to be looked at when it
        has been read."""
        directory, _, name = entry.path.rpartition(b"/")
        with self._lock:
            try:
                if self._open is None or self._open[0] != directory:
                    fd = self._open_directory(directory)
                    if self._open is not None:
                        os.close(self._open[1])
                    self._open = (directory, fd)
                return os.open(name, _READ, dir_fd=self._open[1])
            except FileNotFoundError as error:
                raise changed_meanwhile(entry) from error
            except OSError as error:
                shown = os.fsdecode(entry.path)
                raise BuildFailure(f"cannot read {shown} in the build context: {error}") from error

    def _open_directory(self, path: bytes) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY
        return syscalls.openat2(self._root, path or b".", flags, resolve=_STRICT)

    def _listing(self, directory: bytes) -> dict[bytes, Entry]:
        found = self._listings.get(directory)
        if found is None:
            with self._lock:
                found = self._listings.get(directory)
                if found is None:
                    found = self._listings[directory] = self._list(directory)
        return found

    def _list(self, directory: bytes) -> dict[bytes, Entry]:
        try:
            fd = self._open_directory(directory)
        except FileNotFoundError:
            return {}  # deleted since its parent was listed: what is in it is gone as well
        except OSError as error:
            raise BuildFailure(
                f"cannot list {os.fsdecode(directory) or '.'} in the build context: {error}"
            ) from error
        ignore, above = self._ignore, self._states[directory]
        checked = bool(ignore)
        prefix = os.fsdecode(directory) + "/" if directory else ""
        entries: list[Entry] = []
        try:
            with os.scandir(fd) as items:
                for item in items:
                    name = prefix + item.name
                    out = False
                    if checked:
                        out, state = ignore.check(name, above)
                        if out and not (
                            item.is_dir(follow_symlinks=False) and ignore.may_hold_exceptions(name)
                        ):
                            continue
                    else:
                        state = above
                    entry = self._entry(item, os.fsencode(name), fd)
                    if entry is None:
                        continue
                    if entry.kind is Kind.DIRECTORY:
                        self._states[entry.path] = state
                        if out and not self._listing(entry.path):
                            continue
                    entries.append(entry)
        finally:
            os.close(fd)
        entries.sort(key=lambda entry: entry.path)
        return {entry.path: entry for entry in entries}

    def _entry(self, item: os.DirEntry[str], path: bytes, directory: int) -> Entry | None:
        try:
            status = item.stat(follow_symlinks=False)
            kind = KINDS.get(stat.S_IFMT(status.st_mode))
            if kind is None:
                return None  # a socket is no file to copy
            entry = Entry(path, kind, status.st_mode & 0o7777, mtime_ns=status.st_mtime_ns)
            if kind is Kind.FILE:
                entry.size = status.st_size
                self._stamps[path] = stamp_of(status)
            elif kind is Kind.SYMLINK:
                entry.target = os.fsencode(os.readlink(item.name, dir_fd=directory))
            elif kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE):
                entry.device = (os.major(status.st_rdev), os.minor(status.st_rdev))
        except FileNotFoundError:
            return None  # deleted while the directory was listed
        return entry


def _capability(fd: int) -> dict[str, bytes] | None:
    """The one extended attribute that Docker copies from a context."""
    try:
        if _CAPABILITY in os.listxattr(fd):
            return {_CAPABILITY: os.getxattr(fd, _CAPABILITY)}
    except OSError:
        pass  # the file system has no extended attributes
    return None
