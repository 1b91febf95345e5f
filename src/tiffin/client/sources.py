"""What a client hands to the daemon: a folder as a tar, or, in place of the bytes, where they lie.

A tiffin daemon on this machine can be given a *source*: the path, with device and inode to tell
that it sees the same thing, and reads it in place. This is the one thing that goes beyond Docker's
API (header ``X-Tiffin-Source``); any other daemon gets the bytes.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import Any, BinaryIO

HEADER = "X-Tiffin-Source"


def source_header(path: str) -> dict[str, str]:
    """The header for a file or folder; raises OSError."""
    from json import dumps

    real = os.path.realpath(path)
    status = os.stat(real)
    return {HEADER: dumps({"path": real, "dev": status.st_dev, "ino": status.st_ino})}


def piped(write: Callable[[BinaryIO], None]) -> Iterator[bytes]:
    """What ``write`` writes, part by part: it runs in a thread, in step with who reads.

    An error of ``write`` comes out here; a reader that stops early ends it.
    """
    from threading import Thread

    reader, writer = os.pipe()
    failure: list[BaseException] = []

    def work() -> None:
        try:
            with os.fdopen(writer, "wb", 1 << 20) as sink:
                write(sink)
        except BaseException as error:
            failure.append(error)

    thread = Thread(target=work)
    thread.start()
    try:
        while part := os.read(reader, 1 << 20):
            yield part
    finally:
        os.close(reader)
        thread.join()
    if failure:
        raise failure[0]


def folder_tar(folder: str, ignored: list[str]) -> Iterator[bytes]:
    """A folder as a tar, part by part, owners as root; ``ignored`` are .dockerignore patterns."""
    import tarfile

    def write(sink: BinaryIO) -> None:
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for name in walk(folder, ignored):
                tar.add(os.path.join(folder, name), name, recursive=False, filter=_root)

    return piped(write)


def _root(entry: Any) -> Any:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def walk(folder: str, ignored: list[str]) -> Iterator[str]:
    """The names below a folder, parents first, in order, without what is ignored."""
    if not ignored:
        yield from _names(folder, "")
        return
    from tiffin.build.dockerignore import Ignore

    ignore = Ignore(ignored)
    states = {"": ignore.root}
    names = _names(folder, "")
    skip: bool | None = None
    while True:
        try:
            path = names.send(skip)
        except StopIteration:
            return
        out, states[path] = ignore.check(path, states[path.rpartition("/")[0]])
        skip = out and not ignore.may_hold_exceptions(path)
        if not out:
            yield path


def _names(folder: str, inside: str) -> Generator[str, bool | None, None]:
    """All names below a folder; one that is answered by True is not gone into."""
    for name in sorted(os.listdir(os.path.join(folder, inside))):
        path = f"{inside}/{name}" if inside else name
        skipped = yield path
        real = os.path.join(folder, path)
        if not skipped and not os.path.islink(real) and os.path.isdir(real):
            yield from _names(folder, path)


class _Readable:
    """Parts of bytes as a file to read."""

    def __init__(self, parts: Iterator[bytes | memoryview]) -> None:
        self._parts = parts
        self._rest = b""

    def read(self, count: int) -> bytes:
        pieces: list[bytes] = []
        while count > 0:
            if not self._rest:
                self._rest = bytes(next(self._parts, b""))
                if not self._rest:
                    break
            piece, self._rest = self._rest[:count], self._rest[count:]
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)


def readable(parts: Iterator[bytes | memoryview]) -> BinaryIO:
    """The body of an answer as a stream that tarfile can read."""
    from typing import cast

    return cast("BinaryIO", _Readable(parts))


def ignored_names(folder: str, dockerfile: str) -> list[str]:
    """The patterns of .dockerignore; the Dockerfile and the list itself are always sent."""
    try:
        with open(os.path.join(folder, ".dockerignore"), "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return []
    from tiffin.build.dockerignore import read_patterns

    patterns = read_patterns(content)
    return [*patterns, "!.dockerignore", f"!{dockerfile}"] if patterns else []
