"""Files in and out of containers: ``cp``, ``export``.

Tars are streamed. Every file is opened relative to its directory's descriptor without following
symlinks, so nothing that the container does meanwhile leads out of its tree.

Source: Docker Engine API v1.50, ``ContainerArchive``, ``PutContainerArchive``.
"""

from __future__ import annotations

import os
import posixpath
import queue
import stat
import tarfile
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

from tiffin.engine.trees import open_in
from tiffin.errors import InvalidParameter, NotFound
from tiffin.image.moment import format_moment
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.tarreader import Member, TarReader
from tiffin.storage.tree import PRIVATE_XATTRS

JSON = dict[str, Any]

_BUFFER = 1 << 20
_RING = 4
_GO_BITS = (
    (stat.S_ISDIR, 1 << 31),
    (stat.S_ISLNK, 1 << 27),
    (stat.S_ISBLK, 1 << 26),
    (stat.S_ISCHR, (1 << 26) | (1 << 21)),
    (stat.S_ISFIFO, 1 << 25),
    (stat.S_ISSOCK, 1 << 24),
)


def go_mode(mode: int) -> int:
    """A file's mode as Go's ``os.FileMode`` has it, which the API uses."""
    result = mode & 0o777
    for test, bits in _GO_BITS:
        if test(mode):
            result |= bits
    for bit, go in ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20)):
        if mode & bit:
            result |= go
    return result


def _split(path: str) -> tuple[str, str]:
    """The directory and the last name of an absolute or relative path in a container."""
    clean = posixpath.normpath("/" + path).replace("//", "/")
    return posixpath.split(clean)


def _lstat(root: int, path: str) -> os.stat_result:
    directory, name = _split(path)
    # A trailing slash or dot asks for what a symlink leads to.
    if not name or path.endswith(("/", "/.")):
        fd = open_in(root, os.fsencode(path), os.O_PATH)
    else:
        parent = open_in(root, os.fsencode(directory), os.O_PATH | os.O_DIRECTORY)
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        except FileNotFoundError as error:
            raise NotFound(f"Could not find the file {path} in the container") from error
        finally:
            os.close(parent)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def path_stat(root: int, path: str) -> JSON:
    """What the header ``X-Docker-Container-Path-Stat`` says of a path. Raises NotFound."""
    status = _lstat(root, path)
    directory, name = _split(path)
    target = ""
    if stat.S_ISLNK(status.st_mode):
        parent = open_in(root, os.fsencode(directory), os.O_PATH | os.O_DIRECTORY)
        try:
            text = os.readlink(name, dir_fd=parent)
        finally:
            os.close(parent)
        target = text if text.startswith("/") else posixpath.normpath(f"{directory}/{text}")
    return {
        "name": name or "/",
        "size": status.st_size,
        "mode": go_mode(status.st_mode),
        "mtime": format_moment(status.st_mtime_ns),
        "linkTarget": target,
    }


class TreeTar:
    """Writes files of a tree into a tar stream, sorted by name.

    A context manager: the end of the tar is written with the end of the block, unless that fails.
    """

    def __init__(self, output: BinaryIO) -> None:
        self._tar = tarfile.open(  # noqa: SIM115 - the end of the block closes it
            fileobj=output, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_BUFFER
        )
        # An attribute of TarFile that typeshed does not know.
        self._tar.copybufsize = _BUFFER  # type: ignore[attr-defined]
        self._links: dict[tuple[int, int], str] = {}

    def add(self, parent: int, name: str, arcname: str) -> None:
        """Add what ``name`` is in the directory ``parent``, with all inside, as ``arcname``."""
        try:
            status = os.lstat(name, dir_fd=parent) if name else os.fstat(parent)
        except FileNotFoundError:
            # It went away since the directory was read; a tar of a living tree goes on without.
            return
        if stat.S_ISSOCK(status.st_mode):
            return
        info = tarfile.TarInfo(arcname)
        info.uid, info.gid = status.st_uid, status.st_gid
        info.mode = stat.S_IMODE(status.st_mode)
        seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
        info.mtime = seconds
        if nanoseconds:
            info.pax_headers = {"mtime": f"{seconds}.{nanoseconds:09d}"}
        if stat.S_ISDIR(status.st_mode):
            self._directory(parent, name, arcname, info)
        elif stat.S_ISREG(status.st_mode):
            self._file(parent, name, arcname, info, status)
        else:
            if stat.S_ISLNK(status.st_mode):
                info.type, info.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=parent)
            elif stat.S_ISFIFO(status.st_mode):
                info.type = tarfile.FIFOTYPE
            else:
                block = stat.S_ISBLK(status.st_mode)
                info.type = tarfile.BLKTYPE if block else tarfile.CHRTYPE
                info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
            self._tar.addfile(info)

    def _directory(self, parent: int, name: str, arcname: str, info: tarfile.TarInfo) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name or ".", flags, dir_fd=parent)
        try:
            info.type = tarfile.DIRTYPE
            self._xattrs(fd, info)
            if arcname not in ("", "."):
                self._tar.addfile(info)
            for child in sorted(os.listdir(fd)):
                self.add(fd, child, posixpath.join(arcname, child) if arcname else child)
        finally:
            os.close(fd)

    def _file(
        self, parent: int, name: str, arcname: str, info: tarfile.TarInfo, status: os.stat_result
    ) -> None:
        identity = (status.st_dev, status.st_ino)
        if status.st_nlink > 1:
            if identity in self._links:
                info.type, info.linkname = tarfile.LNKTYPE, self._links[identity]
                self._tar.addfile(info)
                return
            self._links[identity] = arcname
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        with open(fd, "rb", buffering=0) as file:
            self._xattrs(fd, info)
            info.size = status.st_size
            try:
                self._tar.addfile(info, _Exactly(file, info.size))
            except ConnectionError:
                # It is the reader that is gone.
                raise
            except OSError as error:
                raise InvalidParameter(f"{arcname} can't be read: {error}") from error

    @staticmethod
    def _xattrs(fd: int, info: tarfile.TarInfo) -> None:
        headers = dict(info.pax_headers)
        for attribute in os.listxattr(fd):
            if not attribute.startswith((*PRIVATE_XATTRS, "security.selinux")):
                value = os.getxattr(fd, attribute)
                headers[f"SCHILY.xattr.{attribute}"] = value.decode("utf-8", "surrogateescape")
        info.pax_headers = headers

    def __enter__(self) -> TreeTar:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            self._tar.close()
        else:
            # Else what tarfile still holds back would be written when it is collected.
            self._tar.fileobj.closed = True  # type: ignore[attr-defined]


class _Exactly:
    """A file read as exactly ``size`` bytes: cut, or filled with zeros, if it changes meanwhile."""

    def __init__(self, file: BinaryIO | Any, size: int) -> None:
        self._file, self._rest = file, size

    def read(self, amount: int = -1) -> bytes:
        wanted = self._rest if amount < 0 else min(amount, self._rest)
        data: bytes = self._file.read(wanted) or b"\0" * wanted
        self._rest -= len(data)
        return data


def export(root: int, output: BinaryIO) -> None:
    """The whole tree under ``root`` as a tar (``docker export``)."""
    with TreeTar(output) as tar:
        tar.add(root, "", "")


def get(root: int, path: str, output: BinaryIO) -> None:
    """``path`` with all inside as a tar whose names start with its last name."""
    _lstat(root, path)
    directory, name = _split(path)
    if not name or path.endswith(("/", "/.")):
        parent, member = open_in(root, os.fsencode(path), os.O_PATH), ""
        inside = "." if path.endswith("/.") or not name else name
    else:
        parent = open_in(root, os.fsencode(directory), os.O_PATH | os.O_DIRECTORY)
        member = inside = name
    try:
        if not stat.S_ISDIR(os.fstat(parent).st_mode):
            raise InvalidParameter(f"{path} is not a directory")
        with TreeTar(output) as tar:
            tar.add(parent, member, inside)
    finally:
        os.close(parent)


def put(
    root: int,
    path: str,
    source: BinaryIO,
    *,
    no_overwrite: bool,
    owner: Callable[[], tuple[int, int]] | None,
) -> None:
    """Unpack the tar ``source`` (decompressed) into the directory ``path``.

    ``owner`` gives the (uid, gid) that everything gets, or None to keep the tar's. Raises NotFound,
    InvalidParameter, CorruptArchive.
    """
    target = open_in(root, os.fsencode(path), os.O_PATH)
    try:
        if not stat.S_ISDIR(os.fstat(target).st_mode):
            raise InvalidParameter("extraction point is not a directory")
        real = os.readlink(f"/proc/self/fd/{target}")
        base = "/" if real == "/" else path
        ids = owner() if owner else None
        _extract(root, base, source, no_overwrite, ids)
    finally:
        os.close(target)


def _extract(
    root: int,
    base: str,
    source: BinaryIO,
    no_overwrite: bool,
    ids: tuple[int, int] | None,
) -> None:
    with _Ahead(source) as ahead:
        _unpack(root, base, TarReader(ahead.next_block), no_overwrite, ids)


def _unpack(
    root: int, base: str, reader: TarReader, no_overwrite: bool, ids: tuple[int, int] | None
) -> None:
    late: list[tuple[str, int]] = []
    while (member := reader.next()) is not None:
        entry = member.entry
        # Bytes that are not content are kept for those who give the tar back.
        reader.raw.clear()
        found = os.fsdecode(entry.path)
        name = posixpath.normpath("/" + found).lstrip("/")
        if not name or name == ".":
            _skip(reader, member)
            continue
        directory, last = posixpath.split(name)
        parent = _directory(root, f"{base}/{directory}")
        try:
            _replace(parent, last, entry, no_overwrite, name)
            if entry.kind is Kind.FILE:
                _write(parent, last, reader, member)
            else:
                _skip(reader, member)
                _create(root, base, parent, last, entry)
            if entry.kind is not Kind.HARDLINK:
                _attributes(parent, last, entry, *(ids or (entry.uid, entry.gid)))
            if entry.kind is Kind.DIRECTORY:
                late.append((f"{base}/{name}", entry.mtime_ns))
        finally:
            os.close(parent)
    # Directories get their times when nothing more is put into them.
    for place, moment in reversed(late):
        fd = open_in(root, os.fsencode(place), os.O_RDONLY | os.O_DIRECTORY)
        os.utime(fd, ns=(moment, moment))
        os.close(fd)


class _Ahead:
    """A stream in blocks, of which the next ones are read while one is written; in a few pieces of
    memory, since new memory for each costs more than what is done with it.

    A context manager: leaving it ends the reading. A stream of one block starts no thread.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._into: Callable[[memoryview], int] = source.readinto  # type: ignore[attr-defined]
        self._view = memoryview(bytearray(_BUFFER))
        self._free: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[memoryview | BaseException] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._used: memoryview | None = None
        self._ended = False

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._free.put(None)
            self._thread.join()

    def _fill(self, view: memoryview) -> memoryview:
        filled = 0
        while filled < _BUFFER and (size := self._into(view[filled:])):
            filled += size
        return view[:filled]

    def _run(self) -> None:
        try:
            while (view := self._free.get()) is not None:
                block = self._fill(view)
                self._full.put(block)
                if len(block) < _BUFFER:
                    return
        except BaseException as error:
            self._full.put(error)

    def next_block(self) -> memoryview:
        """The next block, empty at the end; it ends the use of the one before."""
        if self._ended:
            return self._view[:0]
        if self._thread is None and self._used is None:
            block = self._used = self._fill(self._view)
        else:
            if self._thread is None:
                for _ in range(_RING - 1):
                    self._free.put(memoryview(bytearray(_BUFFER)))
                self._thread = threading.Thread(target=self._run, name="cp", daemon=True)
                self._thread.start()
            if self._used is not None:
                self._free.put(self._used)
            found = self._full.get()
            if isinstance(found, BaseException):
                self._ended = True
                raise found
            block = self._used = found
        self._ended = len(block) < _BUFFER
        return block


def _skip(reader: TarReader, member: Member) -> None:
    for _ in reader.content(member.length):
        continue


def _write(parent: int, name: str, reader: TarReader, member: Member) -> None:
    """A file, with the content that the reader has next."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, member.entry.mode, dir_fd=parent)
    try:
        stretches = member.stretches
        for offset, length in stretches if stretches is not None else [(0, member.length)]:
            for part in reader.content(length):
                while part:
                    written = os.pwrite(fd, part, offset)
                    part, offset = part[written:], offset + written
        if stretches is not None:
            os.truncate(fd, member.entry.size)
    finally:
        os.close(fd)


def _directory(root: int, path: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY
    try:
        return open_in(root, os.fsencode(path), flags)
    except NotFound:
        above, name = posixpath.split(posixpath.normpath(path))
        parent = _directory(root, above)
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
        except FileExistsError as error:
            raise InvalidParameter(f"{path} is not a directory") from error
        finally:
            os.close(parent)
        return open_in(root, os.fsencode(path), flags)


def _replace(parent: int, name: str, entry: Entry, no_overwrite: bool, full: str) -> None:
    try:
        there = os.lstat(name, dir_fd=parent)
    except FileNotFoundError:
        return
    is_directory = stat.S_ISDIR(there.st_mode)
    coming = entry.kind is Kind.DIRECTORY
    if is_directory and coming:
        return
    if no_overwrite and is_directory != coming:
        kind = ("directory", "non-directory") if is_directory else ("non-directory", "directory")
        found = os.fsdecode(entry.path)
        raise InvalidParameter(f'cannot overwrite {kind[0]} "/{full}" with {kind[1]} "{found}"')
    if is_directory:
        _remove_tree(parent, name)
    else:
        os.unlink(name, dir_fd=parent)


def _remove_tree(parent: int, name: str) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        for child in os.listdir(fd):
            if stat.S_ISDIR(os.lstat(child, dir_fd=fd).st_mode):
                _remove_tree(fd, child)
            else:
                os.unlink(child, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)


def _create(root: int, base: str, parent: int, name: str, entry: Entry) -> None:
    """Anything but a file."""
    kind, mode = entry.kind, entry.mode
    if kind is Kind.DIRECTORY:
        try:
            os.mkdir(name, mode, dir_fd=parent)
        except FileExistsError:
            # What is in it stays.
            pass
    elif kind is Kind.SYMLINK:
        os.symlink(os.fsdecode(entry.target), name, dir_fd=parent)
    elif kind is Kind.HARDLINK:
        above, last = posixpath.split(posixpath.normpath(f"{base}/{os.fsdecode(entry.target)}"))
        other = _directory(root, above)
        try:
            os.link(last, name, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(other)
    elif kind is Kind.FIFO:
        os.mkfifo(name, mode, dir_fd=parent)
    else:
        type_bits = stat.S_IFCHR if kind is Kind.CHARACTER_DEVICE else stat.S_IFBLK
        os.mknod(name, mode | type_bits, os.makedev(*entry.device), dir_fd=parent)


def _attributes(parent: int, name: str, entry: Entry, uid: int, gid: int) -> None:
    times = (entry.mtime_ns, entry.mtime_ns)
    if entry.kind is Kind.SYMLINK:
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)
        return
    # Through a descriptor: the container may put a symlink in the new file's place at any moment.
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            found = os.fsdecode(entry.path)
            raise InvalidParameter(f"{found} was replaced by a symlink while it was copied")
        place = f"/proc/self/fd/{fd}"
        os.chown(place, uid, gid)
        os.chmod(place, entry.mode)
        for key, value in (entry.xattrs or {}).items():
            os.setxattr(place, key, value)
        os.utime(place, ns=times)
    finally:
        os.close(fd)
