"""Walking through a snapshot's own directory, from one open directory to the next.

Every path is walked one component at a time, without following symlinks: one on the way is read
and resolved here, inside the root, also where it lies in a layer below. So no name leads out of the
directory, whatever links it meets. The last few directories stay open, since the next entry of a
layer mostly goes where the one before went.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from tiffin.errors import CorruptArchive
from tiffin.layer.attributes import inherits
from tiffin.layer.entry import Entry, Kind
from tiffin.linux import syscalls

OPEN_ANCHOR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
OPEN_DIRECTORY = OPEN_ANCHOR | os.O_NOFOLLOW
_BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
_FOLDERS = 64
"""So many directories are kept open."""
_MAX_LINKS = 40
MAX_DEPTH = 256
"""More directories inside each other than this are refused, here and when a layer is captured."""
_PATH_MAX = 4096

DIRECTORY, OTHER, WHITEOUT = 1, 2, 3
"""What a layer has placed at a path."""


def clean_path(name: bytes) -> bytes:
    """A tar's name as an :attr:`Entry.path`: inside the root, or CorruptArchive."""
    if len(name) > _PATH_MAX:
        raise CorruptArchive(f"the name {os.fsdecode(name[:60])!r}… is too long")
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise CorruptArchive(f"the entry {os.fsdecode(name)!r} would leave the root")
            parts.pop()
        elif part and part != b".":
            parts.append(part)
    if len(parts) > MAX_DEPTH:
        raise CorruptArchive(f"the entry {os.fsdecode(name[:60])!r}… is nested too deeply")
    return b"/".join(parts)


@dataclass(slots=True)
class Folder:
    """An open directory of the tree, by the path that it really has."""

    fd: int
    path: bytes
    inherits: bool
    """Whether what is made inside gets more than it was made with."""


class Folders(ABC):
    """The open directories of a tree that a layer is being put into. A context manager: leaving it
    closes them."""

    def __init__(self, directory: Path) -> None:
        self.needs_lower = False
        """Whether something depended on what lies below."""
        # What the layer has placed: path to DIRECTORY, OTHER or WHITEOUT.
        self._placed: dict[bytes, int] = {}
        # The times that directories get at the end.
        self._times: dict[bytes, int] = {}
        # Symlinks that a walk went through: what is made in their place changes where paths lead.
        self._links: set[bytes] = set()
        self._folders: dict[bytes, Folder] = {}
        self._root = self._folder(os.open(directory, OPEN_ANCHOR), b"")
        self._folders[b""] = self._root

    def __exit__(self, *exc: object) -> None:
        self._forget()
        if self._root.fd >= 0:
            os.close(self._root.fd)
            self._root.fd = -1

    @abstractmethod
    def _below(self, path: bytes) -> Entry | None:
        """What the stack below has at ``path``, unless this layer hides it."""

    @abstractmethod
    def _imply(self, here: Folder, name: bytes, path: bytes, below: Entry | None) -> Folder:
        """Make a directory that a path goes through and nothing has named."""

    def _folder(self, fd: int, path: bytes) -> Folder:
        self._times.setdefault(path, os.fstat(fd).st_mtime_ns)
        if path not in self._placed and path:
            self._placed[path] = DIRECTORY
        return Folder(fd, path, inherits(fd))

    def _forget(self, keep: Folder | None = None) -> None:
        for fd in {folder.fd for folder in self._folders.values()}:
            if fd != self._root.fd and (keep is None or fd != keep.fd):
                os.close(fd)
        self._folders = {b"": self._root}
        if keep is not None:
            self._folders[keep.path] = keep

    def folder(self, path: bytes) -> Folder:
        """The directory at ``path``, made if it is missing; symlinks are followed inside."""
        known = self._folders.get(path)
        if known is not None:
            return known
        return self._walk(path)

    def _walk(self, path: bytes) -> Folder:
        if len(self._folders) >= _FOLDERS:
            self._forget()
        rest: list[bytes] = []
        at = path
        while at not in self._folders:
            at, _, name = at.rpartition(b"/")
            rest.append(name)
        here = self._folders[at]
        links = 0
        while rest:
            name = rest.pop()
            if not name or name == b".":
                continue
            if name == b"..":
                above = here.path.rpartition(b"/")[0]
                rest.extend(reversed(above.split(b"/")))
                here = self._root
                continue
            if len(self._folders) >= 2 * _FOLDERS:
                self._forget(keep=here)
            step = self._step(here, name)
            if isinstance(step, Folder):
                here = step
                continue
            links += 1
            if links > _MAX_LINKS or len(rest) > _PATH_MAX:
                raise CorruptArchive(f"too many levels of symbolic links in {os.fsdecode(path)!r}")
            rest.extend(reversed(step.split(b"/")))
            if step.startswith(b"/"):
                here = self._root
        self._folders[path] = here
        return here

    def _step(self, here: Folder, name: bytes) -> Folder | bytes:
        """One component further: the directory, or the text of a symlink that stands there."""
        path = here.path + b"/" + name if here.path else name
        known = self._folders.get(path)
        if known is not None and known.path == path:
            return known
        try:
            folder = self._folder(os.open(name, OPEN_DIRECTORY, dir_fd=here.fd), path)
        except FileNotFoundError:
            below = self._below(path)
            if below is not None and below.kind is Kind.SYMLINK:
                self.needs_lower = True
                self._links.add(path)
                return below.target
            return self._imply(here, name, path, below)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            if stat.S_ISLNK(os.stat(name, dir_fd=here.fd, follow_symlinks=False).st_mode):
                self._links.add(path)
                return os.readlink(name, dir_fd=here.fd)
            if self._placed.get(path) == OTHER:
                raise CorruptArchive(
                    f"the entry {os.fsdecode(path)!r} is used as a directory and is none"
                ) from None
            return self._imply(here, name, path, None)
        self._folders[path] = folder
        return folder

    def place(self, path: bytes) -> tuple[Folder, bytes, bytes]:
        """Where an entry of that path goes: its folder, its name there, its real path."""
        parent, _, name = path.rpartition(b"/")
        folder = self._folders.get(parent) or self._walk(parent)
        if folder.path != parent:
            path = folder.path + b"/" + name if folder.path else name
        return folder, name, path

    def resolve(self, path: bytes) -> bytes:
        """The real path of ``path`` (its end not followed), with nothing made on the way."""
        parts = path.split(b"/")
        rest = parts[-2::-1]
        here = b""
        links = 0
        while rest:
            name = rest.pop()
            if not name or name == b".":
                continue
            if name == b"..":
                here = here.rpartition(b"/")[0]
                continue
            step = here + b"/" + name if here else name
            text = self._link_text(step)
            if text is None:
                here = step
                continue
            links += 1
            if links > _MAX_LINKS or len(rest) > _PATH_MAX:
                raise CorruptArchive(f"too many levels of symbolic links in {os.fsdecode(path)!r}")
            rest.extend(reversed(text.split(b"/")))
            if text.startswith(b"/"):
                here = b""
        return here + b"/" + parts[-1] if here else parts[-1]

    def _link_text(self, path: bytes) -> bytes | None:
        if path in self._folders and self._folders[path].path == path:
            return None
        try:
            fd = syscalls.openat2(self._root.fd, path, os.O_PATH | os.O_NOFOLLOW, resolve=_BENEATH)
        except FileNotFoundError:
            below = self._below(path)
            if below is not None and below.kind is Kind.SYMLINK:
                self.needs_lower = True
                return below.target
            return None
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                return None
            raise
        try:
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                return os.readlink(b"", dir_fd=fd)
            return None
        finally:
            os.close(fd)

    def open(self, path: bytes, flags: int = os.O_RDONLY) -> int:
        """A descriptor of the file at the real path ``path`` in this directory itself."""
        return syscalls.openat2(
            self._root.fd, path or b".", flags | os.O_NOFOLLOW, resolve=_BENEATH
        )
