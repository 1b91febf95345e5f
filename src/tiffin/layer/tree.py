"""A snapshot's own directory while a layer is put into it.

Everything is done relative to descriptors of directories, one component at a time and without
following symlinks: a symlink on the way is read and resolved here, inside the root, also where it
lies in a layer below. So no name in a tar leads out of the directory, whatever links it meets.

The rules:

- Parents that the layer has no entry of are *implied*: they get what the stack below says of them,
  else mode 0755, root, the epoch.
- A directory keeps the time its entry says, though files are put into it: times of directories are
  set at the end.
- A whiteout hides what is below, never what the same layer has. A directory that comes where the
  layer itself had a whiteout or a file is opaque.
- Directories with the set-group-ID bit or a default ACL pass something on to what is made in them;
  what is made there gets its owner, mode and ACL set in any case.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tiffin.errors import CorruptArchive, StorageFull, TiffinError
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.lower import Lower
from tiffin.layer.tarwriter import OPAQUE_NAME, WHITEOUT_PREFIX
from tiffin.linux import syscalls
from tiffin.storage.driver import Whiteouts

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
_FOLDERS = 64
"""So many directories are kept open."""
_MAX_LINKS = 40
MAX_DEPTH = 256
"""More directories inside each other than this are refused, here and when a layer is captured."""
_PATH_MAX = 4096
_DEFAULT_ACL = "system.posix_acl_default"
_ACLS = ("system.posix_acl_access", _DEFAULT_ACL)
OVERLAY_XATTRS = "trusted.overlay."
OPAQUE_XATTR = "trusted.overlay.opaque"

_DIRECTORY, _OTHER, _WHITEOUT = 1, 2, 3


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


def explain(error: OSError, path: bytes) -> TiffinError:
    """What a failed system call means for the one who brought the layer."""
    name = os.fsdecode(path) or "/"
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"no space left on device while writing {name!r} of a layer")
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.ERANGE, errno.EFBIG):
        return CorruptArchive(f"the entry {name!r} can't be stored: {reason}")
    return TiffinError(f"the entry {name!r} of a layer can't be written: {reason}")


def current_umask() -> int:
    """The process's umask, read without changing it."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o777


@dataclass(slots=True)
class Folder:
    """An open directory of the tree, by the path that it really has."""

    fd: int
    path: bytes
    inherits: bool
    """Whether what is made inside gets more than it was made with."""


class OwnDirectory:
    """See the module's text. ``replaced`` is called with the path of each file of this layer
    before the layer itself removes it. A context manager: leaving it closes descriptors."""

    def __init__(
        self,
        directory: Path,
        whiteouts: Whiteouts,
        lower: Lower | None,
        replaced: Callable[[bytes], None] | None = None,
    ) -> None:
        self._whiteouts = whiteouts
        self._lower = lower
        self._replaced = replaced
        self.needs_lower = False
        self.implied: list[Entry] = []
        """Directories made without an entry, as they were made."""
        # What this layer has placed: path to _DIRECTORY, _OTHER or _WHITEOUT.
        self._placed: dict[bytes, int] = {}
        self._opaque: set[bytes] = set()
        # Whiteouts that the directory has a mark for.
        self._marks: set[bytes] = set()
        self._times: dict[bytes, int] = {}
        self._links: set[bytes] = set()
        self._umask = current_umask()
        self._uid = os.geteuid()
        self._gid = os.getegid()
        self._folders: dict[bytes, Folder] = {}
        self._root = self._folder(os.open(directory, _OPEN_DIRECTORY), b"")
        self._folders[b""] = self._root

    def __enter__(self) -> OwnDirectory:
        return self

    def __exit__(self, *exc: object) -> None:
        self._forget()
        if self._root.fd >= 0:
            os.close(self._root.fd)
            self._root.fd = -1

    # Walking

    def _folder(self, fd: int, path: bytes) -> Folder:
        self._times.setdefault(path, os.fstat(fd).st_mtime_ns)
        if path not in self._placed and path:
            self._placed[path] = _DIRECTORY
        return Folder(fd, path, _inherits(fd))

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
            folder = self._folder(os.open(name, _OPEN_DIRECTORY, dir_fd=here.fd), path)
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
            if self._placed.get(path) == _OTHER:
                raise CorruptArchive(
                    f"the entry {os.fsdecode(path)!r} is used as a directory and is none"
                ) from None
            return self._imply(here, name, path, None)
        self._folders[path] = folder
        return folder

    def _below(self, path: bytes) -> Entry | None:
        """What the stack below has at ``path``, unless this layer hides it."""
        if self._lower is None or self._placed.get(path) == _WHITEOUT or self._hidden(path):
            return None
        return self._lower.entry(path)

    def _hidden(self, path: bytes) -> bool:
        """Whether the path lies in a directory that is opaque."""
        if self._opaque:
            while path:
                path = path.rpartition(b"/")[0]
                if path in self._opaque:
                    return True
        return False

    def _imply(self, here: Folder, name: bytes, path: bytes, below: Entry | None) -> Folder:
        self.needs_lower = True
        if below is None or below.kind is not Kind.DIRECTORY:
            entry = Entry(path, Kind.DIRECTORY, 0o755)
        else:
            entry = replace(below, path=path)
        self.implied.append(entry)
        self._make_directory(here, name, entry)
        folder = self._folder(os.open(name, _OPEN_DIRECTORY, dir_fd=here.fd), path)
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

    # Making

    def _before(self, folder: Folder, path: bytes, *, directory: bool) -> None:
        """Note that ``path`` is about to be made."""
        if self._links and path in self._links:
            self._links.discard(path)
            self._forget(keep=None if folder is self._root else folder)
        self._placed[path] = _DIRECTORY if directory else _OTHER

    def create(self, folder: Folder, name: bytes, entry: Entry) -> int:
        """A new empty file for ``entry``, whose path is the real one, open for reading and
        writing; :meth:`complete` is to follow."""
        known = entry.path in self._placed
        if known or self._links:
            if known:
                self._clear(folder, name, entry.path)
            self._before(folder, entry.path, directory=False)
        else:
            self._placed[entry.path] = _OTHER
        try:
            return os.open(name, _CREATE, entry.mode & 0o777, dir_fd=folder.fd)
        except FileExistsError:
            self._clear(folder, name, entry.path)
            self._placed[entry.path] = _OTHER
            return os.open(name, _CREATE, entry.mode & 0o777, dir_fd=folder.fd)

    def complete(self, fd: int, folder: Folder, entry: Entry) -> None:
        """Give a file that has all its content its owner, mode, attributes and time."""
        self._own(fd, entry, folder.inherits)
        if entry.xattrs:
            _set_xattrs(fd, entry)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _own(self, fd: int, entry: Entry, inherits: bool) -> None:
        """Owner and mode of what has just been made with ``entry.mode``, less the umask."""
        owned = inherits or entry.uid != self._uid or entry.gid != self._gid
        if inherits:
            for name in _list_xattrs(fd):
                if name in _ACLS:
                    os.removexattr(fd, name)
        if owned:
            os.fchown(fd, entry.uid, entry.gid)
        if inherits or entry.mode & (0o7000 | self._umask):
            os.fchmod(fd, entry.mode)

    def directory(self, entry: Entry) -> Entry:
        """Make the directory, or give the one that is there the entry's attributes."""
        if not entry.path:
            self._update_directory(os.dup(self._root.fd), entry)
            return entry
        folder, name, path = self.place(entry.path)
        if path != entry.path:
            entry = replace(entry, path=path)
        self._make_directory(folder, name, entry)
        return entry

    def _make_directory(self, folder: Folder, name: bytes, entry: Entry) -> None:
        path = entry.path
        opaque = False
        before = self._placed.get(path)
        if before == _DIRECTORY:
            self._update_directory(os.open(name, _OPEN_DIRECTORY, dir_fd=folder.fd), entry)
            return
        if before is not None:
            self._clear(folder, name, path)
            opaque = True
        self._before(folder, path, directory=True)
        try:
            os.mkdir(name, entry.mode & 0o777, dir_fd=folder.fd)
        except FileExistsError:
            # The whole tree is kept here, and the stack below has something of that name.
            try:
                fd = os.open(name, _OPEN_DIRECTORY, dir_fd=folder.fd)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                self._clear(folder, name, path)
                self._placed[path] = _DIRECTORY
                os.mkdir(name, entry.mode & 0o777, dir_fd=folder.fd)
            else:
                self._update_directory(fd, entry)
                return
        self._times[path] = entry.mtime_ns
        if (
            folder.inherits
            or entry.xattrs
            or entry.uid != self._uid
            or entry.gid != self._gid
            or entry.mode & (0o7000 | self._umask)
        ):
            fd = os.open(name, _OPEN_DIRECTORY, dir_fd=folder.fd)
            try:
                self._own(fd, entry, folder.inherits)
                _set_xattrs(fd, entry)
            finally:
                os.close(fd)
        if opaque:
            self._mark_opaque(path)

    def _update_directory(self, fd: int, entry: Entry) -> None:
        try:
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)
            for name in _list_xattrs(fd):
                if not name.startswith(OVERLAY_XATTRS) and name not in (entry.xattrs or {}):
                    os.removexattr(fd, name)
            _set_xattrs(fd, entry)
        finally:
            os.close(fd)
        self._placed[entry.path] = _DIRECTORY
        self._times[entry.path] = entry.mtime_ns
        known = self._folders.get(entry.path)
        if known is not None:
            known.inherits = _inherits(known.fd)

    def other(self, entry: Entry) -> Entry:
        """Make a symlink, a device or a FIFO."""
        folder, name, path = self.place(entry.path)
        if path != entry.path:
            entry = replace(entry, path=path)
        if path in self._placed:
            self._clear(folder, name, path)
        self._before(folder, path, directory=False)
        try:
            self._make_other(folder, name, entry)
        except FileExistsError:
            self._clear(folder, name, path)
            self._placed[path] = _OTHER
            self._make_other(folder, name, entry)
        if folder.inherits or entry.uid != self._uid or entry.gid != self._gid:
            os.chown(name, entry.uid, entry.gid, dir_fd=folder.fd, follow_symlinks=False)
        if entry.kind is not Kind.SYMLINK and (
            folder.inherits or entry.mode & (0o7000 | self._umask)
        ):
            os.chmod(name, entry.mode, dir_fd=folder.fd)
        if entry.xattrs:
            _set_xattrs(b"/proc/self/fd/%d/%s" % (folder.fd, name), entry)
        times = (entry.mtime_ns, entry.mtime_ns)
        os.utime(name, ns=times, dir_fd=folder.fd, follow_symlinks=False)
        return entry

    def _make_other(self, folder: Folder, name: bytes, entry: Entry) -> None:
        if entry.kind is Kind.SYMLINK:
            if not entry.target:
                raise CorruptArchive(f"the symlink {os.fsdecode(entry.path)!r} has no target")
            os.symlink(entry.target, name, dir_fd=folder.fd)
            return
        if entry.kind is Kind.FIFO:
            os.mknod(name, stat.S_IFIFO | (entry.mode & 0o777), dir_fd=folder.fd)
            return
        if entry.kind is Kind.CHARACTER_DEVICE and entry.device == (0, 0):
            # On overlay this is the mark of a deleted file.
            raise CorruptArchive(
                f"the entry {os.fsdecode(entry.path)!r} is a character device 0/0, "
                "which a layer can't hold"
            )
        form = stat.S_IFCHR if entry.kind is Kind.CHARACTER_DEVICE else stat.S_IFBLK
        device = os.makedev(*entry.device)
        os.mknod(name, form | (entry.mode & 0o777), device, dir_fd=folder.fd)

    def hardlink(self, entry: Entry) -> Entry:
        """Make a hard link. Where its target lies in the stack below a copy is made, and the entry
        that comes back is that of a file (or symlink, or device)."""
        name_of = os.fsdecode(entry.path)
        target = self.resolve(entry.target)
        folder, name, path = self.place(entry.path)
        if target == path:
            raise CorruptArchive(f"the entry {name_of!r} is a hard link to itself")
        here = self._placed.get(target)
        if here == _DIRECTORY:
            raise CorruptArchive(f"the entry {name_of!r} is a hard link to a directory")
        if here == _OTHER:
            source = self.open(target.rpartition(b"/")[0], os.O_RDONLY | os.O_DIRECTORY)
            try:
                if path in self._placed:
                    self._clear(folder, name, path)
                self._before(folder, path, directory=False)
                self._link(source, target.rpartition(b"/")[2], folder, name, path)
            except FileNotFoundError:
                raise self._no_target(name_of, entry) from None
            finally:
                os.close(source)
            return replace(entry, path=path, target=target)
        below = self._below(target)
        if below is None or below.kind in (Kind.DIRECTORY, Kind.WHITEOUT):
            raise self._no_target(name_of, entry)
        self.needs_lower = True
        entry = replace(below, path=path)
        if entry.kind is not Kind.FILE:
            return self.other(entry)
        assert self._lower is not None
        source_fd = self._lower.open(target)
        try:
            fd = self.create(folder, name, entry)
            try:
                while os.copy_file_range(source_fd, fd, 1 << 30):
                    pass
                self.complete(fd, folder, entry)
            finally:
                os.close(fd)
        finally:
            os.close(source_fd)
        return entry

    def _link(self, source: int, target: bytes, folder: Folder, name: bytes, path: bytes) -> None:
        fds = {"src_dir_fd": source, "dst_dir_fd": folder.fd}
        try:
            os.link(target, name, **fds, follow_symlinks=False)
        except FileExistsError:
            self._clear(folder, name, path)
            self._placed[path] = _OTHER
            os.link(target, name, **fds, follow_symlinks=False)

    @staticmethod
    def _no_target(name: str, entry: Entry) -> CorruptArchive:
        target = os.fsdecode(entry.target)
        return CorruptArchive(f"the entry {name!r} is a hard link to {target!r}, which is no file")

    # Hiding

    def whiteout(self, path: bytes) -> bytes:
        """Hide what is below at ``path``; gives the real path."""
        folder, name, path = self.place(path)
        before = self._placed.get(path)
        if before == _DIRECTORY:
            self._mark_opaque(path)
        if before is not None:
            return path
        self._placed[path] = _WHITEOUT
        if self._whiteouts is Whiteouts.NONE:
            self._remove(folder, name, path)
            return path
        # The kernel shows a mark that hides nothing as a name without a file: make none.
        if self._hidden(path):
            return path
        if self._lower is not None and self._lower.entry(path) is None:
            self.needs_lower = True
            return path
        self._marks.add(path)
        if self._whiteouts is Whiteouts.OVERLAY:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=folder.fd)
        else:
            os.close(os.open(WHITEOUT_PREFIX + name, _CREATE, 0o444, dir_fd=folder.fd))
        return path

    def _remove_mark(self, folder: Folder, path: bytes) -> None:
        prefix = b"" if self._whiteouts is Whiteouts.OVERLAY else WHITEOUT_PREFIX
        os.unlink(prefix + path.rpartition(b"/")[2], dir_fd=folder.fd)
        self._marks.discard(path)

    def opaque(self, path: bytes) -> bytes:
        """Hide what is below inside the directory ``path``; gives the real path."""
        path = self.folder(path).path
        self._mark_opaque(path)
        return path

    def _mark_opaque(self, path: bytes) -> None:
        self._opaque.add(path)
        if self._whiteouts is Whiteouts.NONE:
            self._empty(path)
            return
        start = path + b"/" if path else b""
        for mark in [mark for mark in self._marks if mark.startswith(start)]:
            # It hides nothing any more; see whiteout.
            self._remove_mark(self.folder(mark.rpartition(b"/")[0]), mark)
        if not path:
            return  # a root can't be marked; see finish
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if self._whiteouts is Whiteouts.OVERLAY:
                os.setxattr(fd, OPAQUE_XATTR, b"y")
            else:
                os.close(os.open(OPAQUE_NAME, _CREATE & ~os.O_EXCL, 0o444, dir_fd=fd))
        finally:
            os.close(fd)

    def _empty(self, path: bytes) -> None:
        """Remove from a whole tree's directory what this layer did not put there."""
        folder = self.folder(path)
        for name in os.listdir(folder.fd):
            raw = os.fsencode(name)
            child = path + b"/" + raw if path else raw
            if child not in self._placed:
                self._remove(folder, raw, child)
            elif self._placed[child] == _DIRECTORY:
                self._empty(child)
                folder = self.folder(path)

    # Removing

    def _clear(self, folder: Folder, name: bytes, path: bytes) -> None:
        """Remove what is at ``path``, whatever it is, with all that it holds."""
        kind = self._placed.pop(path, None)
        if path in self._marks:
            self._remove_mark(folder, path)
            return
        if kind == _OTHER and self._replaced is not None:
            self._replaced(path)
        if kind == _DIRECTORY:
            start = path + b"/"
            for below in [known for known in self._placed if known.startswith(start)]:
                if self._placed.pop(below) == _OTHER and self._replaced is not None:
                    self._replaced(below)
            for known in [known for known in self._times if known.startswith(start)]:
                del self._times[known]
            self._marks = {mark for mark in self._marks if not mark.startswith(start)}
            self._opaque = {known for known in self._opaque if not known.startswith(start)}
            self._opaque.discard(path)
        self._remove(folder, name, path)

    def _remove(self, folder: Folder, name: bytes, path: bytes) -> None:
        self._times.pop(path, None)
        try:
            os.unlink(name, dir_fd=folder.fd)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
            _remove_tree(folder.fd, name)
            # Folders below are gone; the one given stays open for its user.
            self._forget(keep=None if folder is self._root else folder)

    # The end

    def finish(self) -> None:
        """Do what has to wait for the last entry."""
        if b"" in self._opaque and self._whiteouts is not Whiteouts.NONE:
            self._hide_root()
        for path, mtime_ns in self._times.items():
            fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.utime(fd, ns=(mtime_ns, mtime_ns))
            finally:
                os.close(fd)

    def _hide_root(self) -> None:
        """The kernel ignores an opaque mark on a layer's root: hide each name below by itself."""
        if self._lower is None:
            return
        self.needs_lower = True
        self._opaque.discard(b"")
        for below in self._lower.children(b""):
            self.whiteout(below.path)


def _inherits(fd: int) -> bool:
    return bool(os.fstat(fd).st_mode & stat.S_ISGID) or _DEFAULT_ACL in _list_xattrs(fd)


def _list_xattrs(fd: int) -> list[str]:
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return []


def _set_xattrs(where: int | bytes, entry: Entry) -> None:
    for name, value in (entry.xattrs or {}).items():
        if name.startswith(OVERLAY_XATTRS):
            continue
        try:
            os.setxattr(where, name, value, follow_symlinks=isinstance(where, int))
        except OSError as error:
            # As Docker: a file system without such attributes, or a kind of file that may not
            # have the user's, is no reason to refuse the layer. The index keeps them.
            allowed = error.errno == errno.ENOTSUP or (
                error.errno == errno.EPERM and name.startswith("user.")
            )
            if not allowed:
                raise


def _remove_tree(parent: int, name: bytes) -> None:
    fd = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
    try:
        for child in os.listdir(fd):
            raw = os.fsencode(child)
            try:
                os.unlink(raw, dir_fd=fd)
            except OSError as error:
                if error.errno not in (errno.EISDIR, errno.EPERM):
                    raise
                _remove_tree(fd, raw)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)
