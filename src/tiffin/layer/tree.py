"""A snapshot's own directory while a layer is put into it.

Where things go is found by :mod:`tiffin.layer.folders`; this makes them.

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
from dataclasses import replace
from pathlib import Path

from tiffin.errors import CorruptArchive
from tiffin.layer.attributes import (
    ACLS,
    inherits,
    list_xattrs,
    set_xattrs,
)
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.folders import DIRECTORY, OPEN_DIRECTORY, OTHER, WHITEOUT, Folder, Folders
from tiffin.layer.lower import Lower
from tiffin.layer.tarwriter import OPAQUE_NAME, WHITEOUT_PREFIX
from tiffin.storage import tree
from tiffin.storage.driver import Whiteouts

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def current_umask() -> int:
    """The process's umask, read without changing it."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o777


class OwnDirectory(Folders):
    """See the module's text. ``replaced`` is called with the path of each file of this layer
    before the layer itself removes it. A context manager: leaving it closes descriptors."""

    def __init__(
        self,
        directory: Path,
        whiteouts: Whiteouts,
        lower: Lower | None,
        replaced: Callable[[bytes], None] | None = None,
    ) -> None:
        super().__init__(directory)
        self._whiteouts = whiteouts
        self._lower = lower
        self._replaced = replaced
        self.implied: list[Entry] = []
        """Directories made without an entry, as they were made."""
        # Directories that have an entry of their own.
        self._named: set[bytes] = set()
        self._opaque: set[bytes] = set()
        # Whiteouts that the directory has a mark for.
        self._marks: set[bytes] = set()
        self._umask = current_umask()
        self._uid = os.geteuid()
        self._gid = os.getegid()

    def __enter__(self) -> OwnDirectory:
        return self

    def _below(self, path: bytes) -> Entry | None:
        """What the stack below has at ``path``, unless this layer hides it."""
        if self._lower is None or self._placed.get(path) == WHITEOUT or self._hidden(path):
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
        folder = self._folder(os.open(name, OPEN_DIRECTORY, dir_fd=here.fd), path)
        self._folders[path] = folder
        return folder

    # Making

    def _before(self, folder: Folder, path: bytes, *, directory: bool) -> None:
        """Note that ``path`` is about to be made."""
        if self._links and path in self._links:
            self._links.discard(path)
            self._forget(keep=None if folder is self._root else folder)
        self._placed[path] = DIRECTORY if directory else OTHER

    def create(self, folder: Folder, name: bytes, entry: Entry) -> int:
        """A new empty file for ``entry``, whose path is the real one, open for reading and
        writing; :meth:`complete` is to follow."""
        known = entry.path in self._placed
        if known or self._links:
            if known:
                self._clear(folder, name, entry.path)
            self._before(folder, entry.path, directory=False)
        else:
            self._placed[entry.path] = OTHER
        try:
            return os.open(name, _CREATE, entry.mode & 0o777, dir_fd=folder.fd)
        except FileExistsError:
            self._clear(folder, name, entry.path)
            self._placed[entry.path] = OTHER
            return os.open(name, _CREATE, entry.mode & 0o777, dir_fd=folder.fd)

    def adopt(self, source: int, folder: Folder, name: bytes, path: bytes) -> bool:
        """Make a file that is a hard link to ``name`` in the directory ``source``, whose owner,
        mode, attributes and time it has; False if that can't be, and nothing has happened."""
        if path in self._placed or self._links:
            return False
        try:
            os.link(name, name, src_dir_fd=source, dst_dir_fd=folder.fd, follow_symlinks=False)
        except OSError:
            # Of another file system, a file with all the links that it may have, or gone; whatever
            # it is, a copy will do, or say what is wrong.
            return False
        self._placed[path] = OTHER
        return True

    def renounce(self, folder: Folder, name: bytes, path: bytes) -> None:
        """Undo :meth:`adopt`."""
        del self._placed[path]
        os.unlink(name, dir_fd=folder.fd)

    def complete(self, fd: int, folder: Folder, entry: Entry) -> None:
        """Give a file that has all its content its owner, mode, attributes and time."""
        self._own(fd, entry, folder.inherits)
        if entry.xattrs:
            set_xattrs(fd, entry, self._whiteouts.private)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _own(self, fd: int, entry: Entry, inherited: bool) -> None:
        """Owner and mode of what has just been made with ``entry.mode``, less the umask."""
        owned = inherited or entry.uid != self._uid or entry.gid != self._gid
        if inherited:
            for name in list_xattrs(fd):
                if name in ACLS:
                    os.removexattr(fd, name)
        if owned:
            os.fchown(fd, entry.uid, entry.gid)
        if inherited or entry.mode & (0o7000 | self._umask):
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
        self._named.add(path)
        return entry

    def _make_directory(self, folder: Folder, name: bytes, entry: Entry) -> None:
        path = entry.path
        opaque = False
        before = self._placed.get(path)
        if before == DIRECTORY:
            self._update_directory(os.open(name, OPEN_DIRECTORY, dir_fd=folder.fd), entry)
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
                fd = os.open(name, OPEN_DIRECTORY, dir_fd=folder.fd)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                self._clear(folder, name, path)
                self._placed[path] = DIRECTORY
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
            fd = os.open(name, OPEN_DIRECTORY, dir_fd=folder.fd)
            try:
                self._own(fd, entry, folder.inherits)
                set_xattrs(fd, entry, self._whiteouts.private)
            finally:
                os.close(fd)
        if opaque:
            self._mark_opaque(path)

    def _update_directory(self, fd: int, entry: Entry) -> None:
        private = self._whiteouts.private
        try:
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)
            for name in list_xattrs(fd):
                if not name.startswith(private) and name not in (entry.xattrs or {}):
                    os.removexattr(fd, name)
            set_xattrs(fd, entry, private)
        finally:
            os.close(fd)
        self._placed[entry.path] = DIRECTORY
        self._times[entry.path] = entry.mtime_ns
        known = self._folders.get(entry.path)
        if known is not None:
            known.inherits = inherits(known.fd)

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
            self._placed[path] = OTHER
            self._make_other(folder, name, entry)
        if folder.inherits or entry.uid != self._uid or entry.gid != self._gid:
            os.chown(name, entry.uid, entry.gid, dir_fd=folder.fd, follow_symlinks=False)
        if entry.kind is not Kind.SYMLINK and (
            folder.inherits or entry.mode & (0o7000 | self._umask)
        ):
            os.chmod(name, entry.mode, dir_fd=folder.fd)
        if entry.xattrs:
            place = b"/proc/self/fd/%d/%s" % (folder.fd, name)
            set_xattrs(place, entry, self._whiteouts.private)
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
        if here == DIRECTORY:
            raise CorruptArchive(f"the entry {name_of!r} is a hard link to a directory")
        if here == OTHER:
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
            self._placed[path] = OTHER
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
        if before == DIRECTORY:
            self._mark_opaque(path)
            if path not in self._named:
                # What it looks like came from the directory that is now gone.
                self._make_directory(folder, name, Entry(path, Kind.DIRECTORY, 0o755))
        if before is not None:
            return path
        self._placed[path] = WHITEOUT
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
        if self._whiteouts.of_overlay:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=folder.fd)
        else:
            os.close(os.open(WHITEOUT_PREFIX + name, _CREATE, 0o444, dir_fd=folder.fd))
        return path

    def _remove_mark(self, folder: Folder, path: bytes) -> None:
        prefix = b"" if self._whiteouts.of_overlay else WHITEOUT_PREFIX
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
            if self._whiteouts.of_overlay:
                os.setxattr(fd, self._whiteouts.opaque, b"y")
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
            elif self._placed[child] == DIRECTORY:
                self._empty(child)
                folder = self.folder(path)

    # Removing

    def _clear(self, folder: Folder, name: bytes, path: bytes) -> None:
        """Remove what is at ``path``, whatever it is, with all that it holds."""
        kind = self._placed.pop(path, None)
        if path in self._marks:
            self._remove_mark(folder, path)
            return
        if kind == OTHER and self._replaced is not None:
            self._replaced(path)
        if kind == DIRECTORY:
            start = path + b"/"
            for below in [known for known in self._placed if known.startswith(start)]:
                if self._placed.pop(below) == OTHER and self._replaced is not None:
                    self._replaced(below)
            for known in [known for known in self._times if known.startswith(start)]:
                del self._times[known]
            self._marks = {mark for mark in self._marks if not mark.startswith(start)}
            self._opaque = {known for known in self._opaque if not known.startswith(start)}
            self._opaque.discard(path)
            self._named = {known for known in self._named if not known.startswith(start)}
            self._named.discard(path)
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
            tree.delete(Path(f"/proc/self/fd/{folder.fd}", os.fsdecode(name)))
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
