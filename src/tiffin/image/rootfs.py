"""A root file system put together from paths of the host and from contents made up here.

A path of the host is added at its own place with everything on the way to it: parent directories,
and symlinks as symlinks, so that the host's merged ``/usr`` comes along as it is. All belongs to
root and carries one moment; the order is that of the paths. Nothing is copied until it is written.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from tiffin.errors import Forbidden, InvalidParameter, NotFound
from tiffin.layer.entry import Entry, Kind

__all__ = ["Rootfs", "Source"]

Source = str | bytes | None
"""Where a file's content is: a path of the host, or the bytes; None for all that is no file."""

_LINKS_MAX = 40
_KERNEL = ("/proc", "/sys", "/dev")


class Rootfs:
    """The tree as it grows."""

    def __init__(self, mtime_ns: int) -> None:
        self._mtime_ns = mtime_ns
        self._entries: dict[str, tuple[Entry, Source]] = {}
        self._inodes: dict[str, tuple[int, int]] = {}
        self._fresh: list[str] = []

    def __contains__(self, path: str) -> bool:
        """Whether there is an entry at this very path; links are not followed."""
        return path in self._entries

    def add(self, path: str) -> str:
        """Adds what the host has at ``path`` (of a directory only itself), and what leads there.

        Returns the real path. Raises NotFound if the host has no such thing, Forbidden if it may
        not be looked at, and InvalidParameter for files that the kernel makes up.
        """
        todo = path.split("/")[::-1]
        here = ""
        links = 0
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                here = here.rpartition("/")[0]
                continue
            place = f"{here}/{name}"
            if place in _KERNEL:
                raise InvalidParameter(f"{path} is under {place}, which is the kernel's")
            target = self._add_one(place, path)
            if target is None:
                here = place
                continue
            links += 1
            if links > _LINKS_MAX:
                raise NotFound(f"{path}: too many symbolic links on the way")
            todo += target.split("/")[::-1]
            if target.startswith("/"):
                here = ""
        return here or "/"

    def add_tree(self, path: str, left_out: Callable[[str], bool] | None = None) -> None:
        """Adds a file or a directory with its contents, and the files that symlinks lead to.

        ``left_out`` is asked for each path below ``path``. Sockets, FIFOs and devices are passed
        over, and so are links that lead nowhere, or to a directory elsewhere.
        """
        real = self.add(path)
        if not os.path.isdir(real):
            return
        for name in sorted(os.listdir(real)):
            below = f"{real.rstrip('/')}/{name}"
            if left_out is not None and left_out(below):
                continue
            mode = os.lstat(below).st_mode
            if stat.S_ISDIR(mode):
                self.add_tree(below, left_out)
            elif stat.S_ISREG(mode) or (stat.S_ISLNK(mode) and os.path.isfile(below)):
                self.add(below)
            elif stat.S_ISLNK(mode):
                self._add_one(below, below)

    def make_directory(self, path: str, mode: int = 0o755) -> str:
        """A directory with this mode, whatever the host has; returns its real path."""
        place = self._resolved(path)
        self._put(place, Entry(os.fsencode(place[1:]), Kind.DIRECTORY, mode), None)
        return place

    def ensure_directory(self, path: str) -> str:
        """A directory as the host has it, or a new one; returns its real path."""
        return self._parent(path)

    def make_file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """A file with this content, unless there is something at ``path`` already."""
        place = self._resolved(path)
        if place not in self._entries:
            entry = Entry(os.fsencode(place[1:]), Kind.FILE, mode, size=len(content))
            self._put(place, entry, content)

    def make_symlink(self, path: str, target: str) -> None:
        """A symlink, unless there is something at ``path`` already."""
        place = self._resolved(path)
        if place not in self._entries:
            entry = Entry(os.fsencode(place[1:]), Kind.SYMLINK, 0o777, target=os.fsencode(target))
            self._put(place, entry, None)

    def fresh_files(self) -> Iterator[str]:
        """The files of the host that were added, each once, also those added meanwhile."""
        while self._fresh:
            yield self._fresh.pop(0)

    def entries(self) -> list[tuple[Entry, Source]]:
        """All that there is, sorted by path; files that share an inode on the host share one."""
        first: dict[tuple[int, int], Entry] = {}
        entries: list[tuple[Entry, Source]] = []
        for place, (entry, source) in sorted(
            self._entries.items(), key=lambda item: item[1][0].path
        ):
            inode = self._inodes.get(place)
            known = first.setdefault(inode, entry) if inode is not None else entry
            if known is not entry:
                link = Entry(entry.path, Kind.HARDLINK, entry.mode, target=known.path)
                link.mtime_ns = entry.mtime_ns
                entry, source = link, None
            entries.append((entry, source))
        return entries

    def _add_one(self, place: str, wanted: str) -> str | None:
        """Adds one path of the host; returns where it leads if it is a symlink."""
        known = self._entries.get(place)
        if known is not None:
            entry = known[0]
            return os.fsdecode(entry.target) if entry.kind is Kind.SYMLINK else None
        try:
            status = os.lstat(place)
            path = os.fsencode(place[1:])
            mode = stat.S_IMODE(status.st_mode)
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink(place)
                self._put(place, Entry(path, Kind.SYMLINK, 0o777, target=os.fsencode(target)), None)
                return target
            if stat.S_ISDIR(status.st_mode):
                self._put(place, Entry(path, Kind.DIRECTORY, mode), None)
                return None
            if not stat.S_ISREG(status.st_mode):
                raise InvalidParameter(f"{place} is neither a file nor a directory nor a link")
            entry = Entry(path, Kind.FILE, mode, size=status.st_size, xattrs=_capability(place))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"{wanted} is not on this host: there is no {place}") from error
        except PermissionError as error:
            raise Forbidden(f"{wanted} can't be read: permission denied at {place}") from error
        self._put(place, entry, place)
        if status.st_nlink > 1:
            self._inodes[place] = (status.st_dev, status.st_ino)
        self._fresh.append(place)
        return None

    def _resolved(self, path: str) -> str:
        """The place of ``path`` with its parents made, and links among them followed."""
        parent, _, name = path.rpartition("/")
        return f"{self._parent(parent)}/{name}" if parent else path

    def _parent(self, path: str) -> str:
        place = self._resolved(path)
        if place not in self._entries and os.path.lexists(place):
            return self.add(place)
        known = self._entries.get(place)
        if known is None:
            return self.make_directory(place)
        if known[0].kind is Kind.SYMLINK:
            return self.add(place)
        return place

    def _put(self, place: str, entry: Entry, source: Source) -> None:
        entry.mtime_ns = self._mtime_ns
        self._entries[place] = (entry, source)
        self._inodes.pop(place, None)


def _capability(place: str) -> dict[str, bytes] | None:
    # What makes ping work for everyone; labels and ACLs are the host's own business.
    name = "security.capability"
    try:
        return {name: os.getxattr(place, name, follow_symlinks=False)}
    except OSError:
        # Not there, or the file system has no attributes at all.
        return None
