"""Trees that files are copied from and into: a context, an image's stack of layers, nothing.

A path is as in :class:`tiffin.layer.entry.Entry`: bytes, relative, ``b""`` for the root. A tree
itself never follows a symlink; :func:`resolve` does, always inside the tree, as a chroot would.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from tiffin.errors import BuildFailure, InvalidParameter, NotFound
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.writer import Content

_MOST_SYMLINKS = 255


class Tree(Protocol):
    """What can be looked at."""

    def entry(self, path: bytes) -> Entry | None:
        """What is at ``path``, following no symlink at its end or on the way."""

    def children(self, path: bytes) -> list[Entry]:
        """What is inside the directory ``path``, sorted by name."""


class Source(Tree, Protocol):
    """A tree whose files can be copied."""

    def identify(self, entry: Entry) -> Entry:
        """The entry with the digest and the extended attributes of its content filled in."""

    def opened(self, entry: Entry) -> AbstractContextManager[Content]:
        """The content of a file, to be read once inside the block, in which the entry's extended
        attributes are known. Raises BuildFailure if the file changes meanwhile."""

    def learn(self, entry: Entry) -> None:
        """Take notice of the digest of a file, which was found while it was copied."""


class EmptyTree:
    """A tree with nothing in it: FROM scratch, or a build without a context."""

    def entry(self, path: bytes) -> Entry | None:
        return Entry(b"", Kind.DIRECTORY, mode=0o755) if not path else None

    def children(self, path: bytes) -> list[Entry]:
        return []

    def open(self, path: bytes) -> int:
        raise NotFound(f"there is no file {os.fsdecode(path)!r} in an empty image")

    def identify(self, entry: Entry) -> Entry:
        return entry

    @contextmanager
    def opened(self, entry: Entry) -> Iterator[Content]:
        yield None

    def learn(self, entry: Entry) -> None:
        pass


class StageFiles:
    """The files of a stack of layers, as a source; what identifies them is in their index."""

    def __init__(self, lower: LowerTree, chain: str | None = None) -> None:
        self._lower = lower
        self.chain = chain
        """The stack, where it can be mounted as it is."""

    def entry(self, path: bytes) -> Entry | None:
        return self._lower.entry(path)

    def children(self, path: bytes) -> list[Entry]:
        return self._lower.children(path)

    def identify(self, entry: Entry) -> Entry:
        return entry

    @contextmanager
    def opened(self, entry: Entry) -> Iterator[Content]:
        fd = self._lower.open(entry.path)
        try:
            yield fd
        finally:
            os.close(fd)

    def learn(self, entry: Entry) -> None:
        pass


class LowerTree(Tree, Protocol):
    """What :class:`tiffin.layer.lower.Lower` has."""

    def open(self, path: bytes) -> int:
        """A new descriptor for reading the file at ``path``."""


def join(directory: bytes, name: bytes) -> bytes:
    """``directory/name``; the root has no name."""
    return directory + b"/" + name if directory else name


def parent(path: bytes) -> bytes:
    """The directory that ``path`` is in."""
    return path.rpartition(b"/")[0]


def resolve(tree: Tree, path: bytes, *, follow_last: bool = True) -> bytes:
    """The path that ``path`` leads to, with every symlink on the way followed inside the tree.

    What does not exist is taken as it is written, so the result may be the place of something
    that is still to be made. Raises InvalidParameter for a loop of symlinks.
    """
    todo = [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]
    done: list[bytes] = []
    symlinks = 0
    while todo:
        part = todo.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            if done:
                done.pop()
            continue
        here = b"/".join([*done, part])
        entry = tree.entry(here) if (todo or follow_last) else None
        if entry is None or entry.kind is not Kind.SYMLINK:
            done.append(part)
            continue
        symlinks += 1
        if symlinks > _MOST_SYMLINKS:
            shown = path.decode("utf-8", "replace")
            raise InvalidParameter(f"/{shown}: too many levels of symbolic links")
        if entry.target.startswith(b"/"):
            done.clear()
        todo += reversed(entry.target.split(b"/"))
    return b"/".join(done)


def changed_meanwhile(entry: Entry) -> BuildFailure:
    """The error for a file that did not stay as it was found."""
    return BuildFailure(
        f"{os.fsdecode(entry.path)} changed while the build was reading it: build again"
    )
