"""What a storage driver is.

The words:

*snapshot*: a directory tree under a key. It is *writable* (a container's layer, or a layer that
is being unpacked) or *committed* (read-only for good). Each snapshot but the lowest has a parent,
which is committed. A key is made of ``[a-z0-9.-]`` and at most 100 characters long.

*own directory*: where a snapshot's own bytes lie. A *layered* driver (overlay2, aufs) keeps there
only what the snapshot changes against its parent, with deletions marked in the driver's own
:class:`Whiteouts` style. The others (vfs, btrfs, zfs, devicemapper) keep the whole tree there.

Three uses:

1. *A layer arrives as a tar*: ``prepare(temporary, parent)``; with ``own_directory(temporary)`` as
   the place the tar is unpacked into; ``commit(temporary, key)``. On any failure
   ``remove(temporary)``.
2. *A container*: ``prepare(key, parent)``; ``mounts(key)`` are given to the runtime, which mounts
   them inside the container's mount namespace; ``usage(key)``; ``remove(key)``.
3. *A container's layer becomes an image's*: ``commit(key, name)`` moves it; nothing is copied.

A driver mounts nothing on the host for longer than a ``with own_directory(...)``; ``mounts``
returns data. What such a mount needs that is no data (a block device that must be there, a file
system's process) the driver sets up in ``mounts`` and ``view`` and ends in ``release``, ``remove``,
``close`` or the next start's ``sweep``; a container that runs on keeps it alive by itself.

The path of an own directory is good inside its block only, and may lead through a descriptor: it
is opened with its last symlink followed.

A driver knows nothing of the database, of digests or of images. It holds no state in memory that
is not also on disk, and any number of threads may use it at once on different keys. Making a driver
object asks nothing of the kernel: what a root holds can be listed, and with most drivers read and
removed, where it can't be mounted.

Durability: each method leaves the disk so that a process killed at any line loses at most the
snapshot it was working on, and ``keys()`` lists that snapshot or doesn't; the layer store removes
what it does not know. ``remove`` renames first and deletes after, so that a half-deleted snapshot
never looks like one.

Source of the vocabulary: containerd's snapshotter interface, with ``own_directory`` for its diff
and apply services.
"""

from __future__ import annotations

import enum
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tiffin.errors import Unsupported
from tiffin.storage import tree
from tiffin.storage.usage import Usage

__all__ = ["Mount", "StorageDriver", "Support", "Usage", "Whiteouts"]


class Whiteouts(enum.Enum):
    """How a snapshot's own directory says that a lower file is gone."""

    OVERLAY = "overlay"
    """A 0/0 character device for a file; the xattr ``trusted.overlay.opaque=y`` on a directory."""
    USER_OVERLAY = "overlay, userxattr"
    """The same with ``user.overlay.opaque=y``, which the root of a user namespace may set."""
    AUFS = "aufs"
    """``.wh.NAME`` files, and ``.wh..wh..opq`` in a directory, as in layer tars."""
    NONE = "none"
    """The directory is the whole tree: a deleted file is simply not there."""

    @property
    def of_overlay(self) -> bool:
        """Whether overlayfs reads them."""
        return self in (Whiteouts.OVERLAY, Whiteouts.USER_OVERLAY)

    @property
    def opaque(self) -> str:
        """The attribute of an opaque directory, where it is one."""
        return self.attribute("opaque")

    def attribute(self, name: str) -> str:
        """One of overlayfs's attributes by its full name."""
        return f"{self._prefix}{name}"

    @property
    def private(self) -> tuple[str, ...]:
        """What the attributes begin with that are no part of a layer."""
        return (self._prefix, *tree.PRIVATE_XATTRS)

    @property
    def _prefix(self) -> str:
        return "user.overlay." if self is Whiteouts.USER_OVERLAY else "trusted.overlay."


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount(2), as data: what the runtime does to make a snapshot's tree appear.

    ``options`` are as in mount(8) (``ro``, ``lowerdir=l/A:l/B``); relative paths in them are
    relative to ``directory``, which the one who mounts changes into first, since mount(2) takes
    at most a page of options.
    """

    fstype: str
    source: str
    options: tuple[str, ...] = ()
    directory: str | None = None


@dataclass(frozen=True, slots=True)
class Support:
    """Whether a driver works under a root, and if not, exactly what is missing."""

    works: bool
    reason: str
    """Why it works, or what is missing (kernel, module, package, file system) and how to get it."""
    features: tuple[tuple[str, str], ...] = ()
    """Rows for ``tiffin info``: ("Backing Filesystem", "extfs"), …"""


class StorageDriver(ABC):
    """One way of stacking layers. See the module's text for the words and the uses."""

    name: ClassVar[str]
    """As in ``--storage-driver``."""
    layered: ClassVar[bool]
    """Whether the own directory of a snapshot holds its changes alone and may be used under any
    parent."""
    whiteouts: Whiteouts
    settings: ClassVar[Mapping[str, str]] = {}
    """The names that ``serve --storage-opt`` takes for this driver, and what they say."""

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        """Take ``home`` (made if missing, ``ROOT/storage/NAME``) as the driver's own folder."""
        self.home = home
        self.options: Mapping[str, str] = settings or {}
        self.why = ""
        """Why it is the one that takes what is new, where it is."""

    @classmethod
    @abstractmethod
    def probe(cls, home: Path, settings: Mapping[str, str] | None = None) -> Support:
        """Whether the driver works for ``home`` on this kernel; leaves nothing behind."""

    @abstractmethod
    def prepare(self, key: str, parent: str | tuple[str, ...] | None) -> None:
        """Make a writable snapshot ``key`` on ``parent``.

        A layered driver also takes a tuple of committed keys, the lowest first, since its layers
        do not know what they lie on; the others take a single key. Raises Conflict if the key
        exists, NotFound if a parent does not.
        """

    def copy(self, source: str, key: str) -> None:
        """Make a writable snapshot ``key`` with all that ``source`` holds, which may be in use.

        Of a layered driver it lies on nothing: only its own directory means something.
        """
        self.prepare(key, None)
        with self.own_directory(source) as own, self.own_directory(key) as target:
            tree.copy(own, target)

    def release(self, key: str) -> None:  # noqa: B027 (most drivers have nothing to do)
        """Nobody will use what ``mounts(key)`` has given any more, but those who mounted it."""

    def close(self) -> None:  # noqa: B027
        """End what the driver has set up for mounts; those in use stay."""

    @abstractmethod
    def commit(self, key: str, name: str) -> None:
        """Make the writable snapshot ``key`` read-only under ``name``, by a rename.

        Raises Conflict if ``name`` exists (``key`` is then untouched), NotFound for ``key``.
        """

    @abstractmethod
    def mounts(self, key: str) -> list[Mount]:
        """What to mount, in order, each on the same target, to see the snapshot's whole tree.

        A committed snapshot is seen read-only. Raises NotFound.
        """

    @abstractmethod
    def view(self, stack: tuple[str, ...]) -> list[Mount]:
        """What to mount to see committed snapshots read-only, without making a snapshot.

        ``stack`` is the lowest first; a driver that is not layered takes the last alone.
        """

    @abstractmethod
    def own_directory(self, key: str) -> AbstractContextManager[Path]:
        """The directory that holds the snapshot's own files, for as long as the block lasts."""

    @abstractmethod
    def usage(self, key: str) -> Usage:
        """Measure the snapshot's own files by walking its own directory."""

    def limit(self, key: str, size: int) -> None:
        """Let the writable snapshot's own files take ``size`` bytes, and no more; an earlier limit
        is replaced. Raises NotFound, and Unsupported where the driver can't.
        """
        del key, size
        raise Unsupported(f"--storage-opt is not supported for {self.name}")

    def taken(self) -> int:
        """How many bytes are in use where the driver keeps everything, by others too."""
        status = os.statvfs(self.home)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove the snapshot; no error if it does not exist. Its children must be gone."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is a whole snapshot of that key."""

    @abstractmethod
    def keys(self) -> Iterator[str]:
        """Every snapshot on disk, also half-made ones."""

    @abstractmethod
    def sweep(self) -> None:
        """Delete what earlier removals left half-done (the trash folder)."""
