"""A directory becomes a layer's index: what a commit does instead of writing a tar.

The directory is a container layer's own one, with deletions marked in the driver's way, or a whole
tree that is compared with its parent's. Entries come sorted by path, component by component, so the
digest does not depend on the order in which directories are read. Nothing is written: the canonical
tar is only hashed.

What is left out: sockets, as Docker does; the root directory, unless it is not the usual one (mode
0755, root's) or not as the one compared with; overlay's own attributes. Two trees are compared by
type, mode, owner, size, time, link target, device and attributes; a directory whose contents
changed is part of the layer.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tiffin.errors import InvalidParameter, Unsupported
from tiffin.layer import tarwriter
from tiffin.layer.entry import KINDS, Entry, Kind
from tiffin.layer.failure import explain
from tiffin.layer.folders import MAX_DEPTH
from tiffin.layer.index import Index
from tiffin.layer.pipeline import Outgoing
from tiffin.storage.driver import Whiteouts

_OPEN_ANCHOR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_DIRECTORY = _OPEN_ANCHOR | os.O_NOFOLLOW
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_REFUSED_XATTRS = ("redirect", "metacopy")
_PREFIX = tarwriter.WHITEOUT_PREFIX


class _Found(NamedTuple):
    entry: Entry
    parent: int
    """The open directory that it is in; -1 for the root and for marks."""
    name: bytes


@dataclass(slots=True)
class _Level:
    """One directory of the walk."""

    fd: int
    path: bytes
    names: Iterator[bytes]
    old: int | None = None
    """The same directory of the tree that is compared with."""
    own: _Found | None = None
    """The directory itself, as long as it is not known whether it changed."""
    fresh: set[bytes] = field(default_factory=set)
    """Names that only the old directory has."""


def own_entries(
    directory: Path, whiteouts: Whiteouts, *, lower_tree: Path | None = None
) -> Iterator[Entry]:
    """What an own directory changes, without digests: sorted by path; opaque marks come after
    their directory. For ``Whiteouts.NONE`` the difference to the tree ``lower_tree``."""
    for found in _walk(directory, whiteouts, lower_tree):
        entry = found.entry
        if entry.kind is Kind.FILE:
            xattrs = _xattrs(b"/proc/self/fd/%d/%s" % (found.parent, found.name))
            entry.xattrs = _visible(xattrs, whiteouts)
        yield entry


def capture(directory: Path, whiteouts: Whiteouts, *, lower_tree: Path | None = None) -> Index:
    """The index of the layer that ``directory`` holds, with the digest of its canonical tar.

    Raises InvalidParameter for a file named like a whiteout, Unsupported for what only another
    way of mounting leaves behind, CorruptArchive for a file that shrinks meanwhile.
    """
    running = hashlib.sha256()
    entries: list[Entry] = []
    path = b""
    try:
        with Outgoing(running.update) as tar:
            for found in _walk(directory, whiteouts, lower_tree):
                entry = found.entry
                path = entry.path
                if entry.kind is Kind.FILE:
                    fd = os.open(found.name, _OPEN_FILE, dir_fd=found.parent)
                    try:
                        names = os.listxattr(fd)
                        if names and _file_xattrs(entry, fd, names, whiteouts):
                            entry = Entry(path, Kind.WHITEOUT)
                            tar.write(tarwriter.header(entry))
                        else:
                            size = entry.size
                            tar.write(tarwriter.header(entry))
                            tar.content(fd, size, entry)
                            tar.write(bytes(-size % 512))
                    finally:
                        os.close(fd)
                else:
                    tar.write(tarwriter.header(entry))
                entries.append(entry)
            tar.write(tarwriter.TRAILER)
            tar.finish()
            return Index("sha256:" + running.hexdigest(), tar.length, entries)
    except OSError as error:
        raise explain(error, path) from error


def _file_xattrs(entry: Entry, fd: int, names: list[str], whiteouts: Whiteouts) -> bool:
    """Put a file's attributes into its entry; True if it is a whiteout by attribute."""
    xattrs = {name: os.getxattr(fd, name) for name in names}
    if whiteouts.of_overlay and whiteouts.attribute("whiteout") in xattrs and not entry.size:
        return True
    _refuse(entry.path, xattrs, whiteouts)
    entry.xattrs = _visible(xattrs, whiteouts)
    return False


def _walk(directory: Path, whiteouts: Whiteouts, lower_tree: Path | None) -> Iterator[_Found]:
    levels: list[_Level] = []
    links: dict[tuple[int, int], bytes] = {}
    try:
        fd = os.open(directory, _OPEN_ANCHOR)
        old = None
        if lower_tree is not None and whiteouts is Whiteouts.NONE:
            try:
                old = os.open(lower_tree, _OPEN_ANCHOR)
            except BaseException:
                os.close(fd)
                raise
        levels.append(_level(fd, b"", old))
        root = _entry(b"", os.fstat(fd))
        root.xattrs = _visible(_xattrs(fd), whiteouts)
        usual = (root.mode, root.uid, root.gid) == (0o755, 0, 0) and not root.xattrs
        before = None if old is None else _described(old, b"", b"", whiteouts)
        if _differs(root, before) and not (usual and before is None):
            yield _Found(root, -1, b"")
        while levels:
            level = levels[-1]
            for name in level.names:
                yield from _visit(levels, level, name, whiteouts, links)
                if levels[-1] is not level:
                    break
            else:
                levels.pop()
                _close(level)
    finally:
        for level in levels:
            _close(level)


def _level(fd: int, path: bytes, old: int | None, own: _Found | None = None) -> _Level:
    names = {os.fsencode(name) for name in os.listdir(fd)}
    gone: set[bytes] = set()
    if old is not None:
        gone = {os.fsencode(name) for name in os.listdir(old)} - names
    return _Level(fd, path, iter(sorted(names | gone, key=_order)), old, own, gone)


def _order(name: bytes) -> bytes:
    """Names in a directory's order: a mark where the name stands that it hides."""
    if not name.startswith(_PREFIX):
        return name
    return b"" if name.startswith(tarwriter.WHITEOUT_META_PREFIX) else name[len(_PREFIX) :]


def _close(level: _Level) -> None:
    os.close(level.fd)
    if level.old is not None:
        os.close(level.old)


def _visit(
    levels: list[_Level],
    level: _Level,
    name: bytes,
    whiteouts: Whiteouts,
    links: dict[tuple[int, int], bytes],
) -> Iterator[_Found]:
    path = level.path + b"/" + name if level.path else name
    if name in level.fresh:
        if not stat.S_ISSOCK(os.stat(name, dir_fd=level.old, follow_symlinks=False).st_mode):
            yield from _pending(levels)
            yield _Found(Entry(path, Kind.WHITEOUT), -1, b"")
        return
    if name.startswith(_PREFIX):
        if whiteouts is not Whiteouts.AUFS:
            raise InvalidParameter(
                f"the file {os.fsdecode(path)!r} can't be part of a layer: names that begin "
                "with .wh. mark deleted files; rename it"
            )
        if name == tarwriter.OPAQUE_NAME:
            yield _Found(Entry(level.path, Kind.OPAQUE), -1, b"")
        elif not name.startswith(tarwriter.WHITEOUT_META_PREFIX):
            hidden = name[len(_PREFIX) :]
            gone = level.path + b"/" + hidden if level.path else hidden
            yield _Found(Entry(gone, Kind.WHITEOUT), -1, b"")
        return
    status = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
    form = stat.S_IFMT(status.st_mode)
    if form == stat.S_IFSOCK:
        return
    if form == stat.S_IFCHR and not status.st_rdev and whiteouts.of_overlay:
        yield _Found(Entry(path, Kind.WHITEOUT), -1, b"")
        return
    entry = _entry(path, status)
    found = _Found(entry, level.fd, name)
    if form == stat.S_IFREG:
        if level.old is not None:
            entry.xattrs = _visible(_xattrs(b"/proc/self/fd/%d/%s" % (level.fd, name)), whiteouts)
            if not _differs(entry, _described(level.old, name, path, whiteouts)):
                return
            yield from _pending(levels)
        yield _linked(found, status, links)
        return
    if form == stat.S_IFDIR:
        yield from _enter(levels, level, found, whiteouts)
        return
    if form == stat.S_IFLNK:
        entry.target = os.readlink(name, dir_fd=level.fd)
    entry.xattrs = _visible(_xattrs(b"/proc/self/fd/%d/%s" % (level.fd, name)), whiteouts)
    if level.old is not None:
        if not _differs(entry, _described(level.old, name, path, whiteouts)):
            return
        yield from _pending(levels)
    yield _linked(found, status, links)


def _linked(found: _Found, status: os.stat_result, links: dict[tuple[int, int], bytes]) -> _Found:
    """The entry, made a hard link if the same file has come before."""
    if status.st_nlink < 2:
        return found
    entry = found.entry
    first = links.setdefault((status.st_dev, status.st_ino), entry.path)
    if first == entry.path:
        return found
    link = Entry(
        entry.path,
        Kind.HARDLINK,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime_ns,
        target=first,
    )
    return _Found(link, -1, b"")


def _enter(
    levels: list[_Level], level: _Level, found: _Found, whiteouts: Whiteouts
) -> Iterator[_Found]:
    """A directory: itself, if it is part of the layer for sure, and a new level for the walk."""
    entry = found.entry
    if len(levels) > MAX_DEPTH:
        raise InvalidParameter(
            f"directories are nested too deeply for a layer at {os.fsdecode(entry.path)!r}"
        )
    fd = os.open(found.name, _OPEN_DIRECTORY, dir_fd=level.fd)
    try:
        xattrs = _xattrs(fd)
        _refuse(entry.path, xattrs, whiteouts)
        entry.xattrs = _visible(xattrs, whiteouts)
        old = None
        if level.old is not None:
            described = _described(level.old, found.name, entry.path, whiteouts)
            if described is not None and described.kind is Kind.DIRECTORY:
                old = os.open(found.name, _OPEN_DIRECTORY, dir_fd=level.old)
            try:
                if _differs(entry, described):
                    yield from _pending(levels)
                    yield found
                    below = _level(fd, entry.path, old)
                else:
                    below = _level(fd, entry.path, old, found)
            except BaseException:
                if old is not None:
                    os.close(old)
                raise
        else:
            yield found
            below = _level(fd, entry.path, None)
    except BaseException:
        os.close(fd)
        raise
    levels.append(below)
    if whiteouts.of_overlay and xattrs.get(whiteouts.opaque) == b"y":
        yield _Found(Entry(entry.path, Kind.OPAQUE), -1, b"")


def _pending(levels: list[_Level]) -> Iterator[_Found]:
    """The directories on the way to a change, which thereby are part of it."""
    for level in levels:
        if level.own is not None:
            own, level.own = level.own, None
            yield own


def _entry(path: bytes, status: os.stat_result) -> Entry:
    mode = status.st_mode
    form = mode & 0o170000
    entry = Entry(
        path,
        KINDS[form],
        mode & 0o7777,
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_size if form == stat.S_IFREG else 0,
    )
    if form == stat.S_IFCHR or form == stat.S_IFBLK:
        entry.device = (os.major(status.st_rdev), os.minor(status.st_rdev))
    return entry


def _described(directory: int, name: bytes, path: bytes, whiteouts: Whiteouts) -> Entry | None:
    """What a whole tree has under that name; the directory itself for no name."""
    try:
        status = (
            os.stat(name, dir_fd=directory, follow_symlinks=False)
            if name
            else (os.fstat(directory))
        )
    except FileNotFoundError:
        return None
    if stat.S_ISSOCK(status.st_mode):
        return None
    entry = _entry(path, status)
    if entry.kind is Kind.SYMLINK:
        entry.target = os.readlink(name, dir_fd=directory)
    xattrs = _xattrs(b"/proc/self/fd/%d/%s" % (directory, name or b"."))
    entry.xattrs = _visible(xattrs, whiteouts)
    return entry


def _differs(new: Entry, old: Entry | None) -> bool:
    if old is None or new.kind is not old.kind:
        return True
    mine = (new.mode, new.uid, new.gid, new.size, new.target, new.device, new.xattrs)
    other = (old.mode, old.uid, old.gid, old.size, old.target, old.device, old.xattrs)
    return mine != other or (new.kind is not Kind.DIRECTORY and new.mtime_ns != old.mtime_ns)


def _xattrs(where: int | bytes) -> dict[str, bytes]:
    follow = isinstance(where, int)
    try:
        names = os.listxattr(where, follow_symlinks=follow)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return {}
    return {name: os.getxattr(where, name, follow_symlinks=follow) for name in names}


def _visible(xattrs: dict[str, bytes], whiteouts: Whiteouts) -> dict[str, bytes] | None:
    """The attributes without those of overlay itself."""
    if not xattrs:
        return None
    private = whiteouts.private
    return {name: xattrs[name] for name in sorted(xattrs) if not name.startswith(private)} or None


def _refuse(path: bytes, xattrs: dict[str, bytes], whiteouts: Whiteouts) -> None:
    for name in map(whiteouts.attribute, _REFUSED_XATTRS):
        if name in xattrs:
            raise Unsupported(
                f"{os.fsdecode(path)!r} has the attribute {name}: the layer was written to by an "
                "overlay mount with redirect_dir or metacopy, and can't be read on its own"
            )
