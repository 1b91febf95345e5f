"""fuse-overlayfs: overlay2's layout, stacked by a process instead of the kernel.

For kernels and file systems that can't mount overlay. Every open, read and write goes through the
process, so it is slower than overlay2; layers are the same, and can be told apart by nobody.

On disk, beside what overlay2 has (:mod:`tiffin.storage.overlay2`)::

    ROOT/storage/fuse-overlayfs/
        mnt/ID             where the process of the snapshot d/ID shows its tree
        mnt/ID.HASH        the same of a stack whose uppermost layer is d/ID

What ``mounts`` returns is a bind of such a place. The process lives as long as its file system is
mounted somewhere: here until ``release``, in a container as long as that lives. It is no child of
the daemon, which may go. A process that was killed is started again by the next ``mounts``.

fuse-overlayfs marks an opaque directory by overlayfs's attribute and, for its own sake, by files
called ``.wh..wh..opq`` and ``.wh..opq``; and it marks every directory that is made, also where
there is nothing to hide. Before anybody else looks at a layer, it is left with the marks alone
that overlayfs would have left, so that equal changes make equal layers.

Source: fuse-overlayfs(1), and what version 1.10 is seen to do.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from tiffin.errors import NotFound, TiffinError
from tiffin.linux import syscalls
from tiffin.storage import tree
from tiffin.storage.driver import Mount, Support
from tiffin.storage.filesystem import file_system_name
from tiffin.storage.joining import is_opaque
from tiffin.storage.overlay2 import Overlay2, counts

_PROGRAM = "fuse-overlayfs"
_MARKS = (".wh..wh..opq", ".wh..opq")
_GONE = (errno.ENOTCONN, errno.ECONNABORTED)


class FuseOverlayfs(Overlay2):
    """See the module's text."""

    name: ClassVar[str] = "fuse-overlayfs"

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(home, settings)
        (home / "mnt").mkdir(mode=0o700, exist_ok=True)
        self._mounting = threading.Lock()

    @classmethod
    def probe(cls, home: Path, settings: Mapping[str, str] | None = None) -> Support:
        backing = file_system_name(home.parent)
        home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if shutil.which(_PROGRAM) is None:
            return Support(
                False,
                f"the program {_PROGRAM} is not in $PATH: install the package fuse-overlayfs "
                "(apt-get install fuse-overlayfs)",
            )
        try:
            os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return Support(
                False,
                f"/dev/fuse can't be opened ({error.strerror}): load the kernel's module "
                "(modprobe fuse), and give a container --device /dev/fuse",
            )
        with tempfile.TemporaryDirectory(prefix="probe", dir=home.parent) as name:
            reflinks = tree.can_reflink(Path(name))
        features = (
            ("Backing Filesystem", backing),
            ("Native Diff", "true"),
            ("Quota", "true" if counts(home.parent) else "false"),
            ("Reflinks", "true" if reflinks else "false"),
            ("Using metacopy", "false"),
        )
        return Support(True, f"{_PROGRAM} mounts overlays on {backing} by itself", features)

    def mounts(self, key: str) -> list[Mount]:
        folder, committed = self._shelf.find(key)
        lower = self._lower(folder)
        name = os.path.basename(folder)
        if committed:
            return self._serve(name, [f"{folder}/fs", *lower], ())
        writable = (f"upperdir={folder}/fs", f"workdir={folder}/work")
        return self._serve(name, lower or ["empty"], writable)

    def view(self, stack: tuple[str, ...]) -> list[Mount]:
        lower = self._stack(stack) or ["empty"]
        digest = hashlib.sha256(":".join(lower).encode()).hexdigest()[:16]
        return self._serve(f"{lower[0].split('/')[1]}.{digest}" if stack else "empty", lower, ())

    def commit(self, key: str, name: str) -> None:
        folder, _ = self._shelf.find(key)
        self._end(os.path.basename(folder))
        self._clean(folder)
        super().commit(key, name)

    @contextmanager
    def own_directory(self, key: str) -> Iterator[Path]:
        folder, committed = self._shelf.find(key)
        if not committed:
            self._clean(folder)
        yield self.home / folder / "fs"

    def release(self, key: str) -> None:
        with suppress(NotFound):
            self._end(os.path.basename(self._shelf.find(key)[0]))

    def remove(self, key: str) -> None:
        with suppress(NotFound):
            name = os.path.basename(self._shelf.find(key)[0])
            for served in os.listdir(self.home / "mnt"):
                if served == name or served.startswith(f"{name}."):
                    self._end(served)
        super().remove(key)

    def close(self) -> None:
        for name in os.listdir(self.home / "mnt"):
            self._end(name)

    def sweep(self) -> None:
        self.close()
        super().sweep()

    def _clean(self, folder: str) -> None:
        below = [self.home / one for one in self._lower(folder)]
        _tidy(self.home / folder / "fs", below, self.whiteouts.opaque)

    def _serve(self, name: str, lower: list[str], writable: tuple[str, ...]) -> list[Mount]:
        """Have a process show a tree, unless one does."""
        place = self.home / "mnt" / name
        with self._mounting:
            if not self._served(place):
                place.mkdir(exist_ok=True)
                options = (f"lowerdir={':'.join(lower)}", *writable, "dev", "suid", "noatime")
                command = [_PROGRAM, "-o", ",".join(options), str(place)]
                try:
                    started = subprocess.run(
                        command,
                        cwd=self.home,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.PIPE,
                        start_new_session=True,
                    )
                except FileNotFoundError:
                    raise TiffinError(
                        f"the program {_PROGRAM} is gone: install the package fuse-overlayfs"
                    ) from None
                if started.returncode or not self._served(place):
                    said = started.stderr.decode(errors="replace").strip()
                    raise TiffinError(
                        f"{_PROGRAM} can't show the files: {said or 'no reason given'}"
                    )
        return [Mount("bind", str(place), ("bind",) if writable else ("bind", "ro"))]

    def _served(self, place: Path) -> bool:
        try:
            return os.stat(place).st_dev != os.stat(self.home).st_dev
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno not in _GONE:
                raise
            # The process was killed.
            syscalls.umount(str(place), syscalls.MNT_DETACH)
            return False

    def _end(self, name: str) -> None:
        """Show the tree here no more; its process ends when nobody else has it mounted."""
        place = self.home / "mnt" / name
        with self._mounting:
            while self._served(place):
                syscalls.umount(str(place), syscalls.MNT_DETACH)
            with suppress(FileNotFoundError):
                place.rmdir()


def _tidy(own: Path, lower: Sequence[Path], opaque: str) -> None:
    """Leave the marks that the kernel's overlayfs would, where it would: the attribute, on
    directories that hide one of the layers below (the uppermost first)."""
    for directory, _, files, descriptor in os.fwalk(own):
        marks = [mark for mark in _MARKS if mark in files]
        attribute = is_opaque(descriptor, opaque)
        if not marks and not attribute:
            continue
        status = os.fstat(descriptor)
        hides = _hides(os.path.relpath(directory, own), lower, opaque)
        if hides and not attribute:
            os.setxattr(descriptor, opaque, b"y")
        elif attribute and not hides:
            os.removexattr(descriptor, opaque)
        for mark in marks:
            with suppress(FileNotFoundError):
                os.unlink(mark, dir_fd=descriptor)
        if marks:
            os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))


def _hides(path: str, lower: Sequence[Path], opaque: str) -> bool:
    """Whether the layers below show a directory at ``path``."""
    above = [*reversed(Path(path).parents), Path(path)]
    for layer in lower:
        ends = False
        for part in above:
            try:
                status = os.lstat(layer / part)
            except (FileNotFoundError, NotADirectoryError):
                break
            if not stat.S_ISDIR(status.st_mode):
                return False
            ends = ends or is_opaque(layer / part, opaque)
        else:
            return True
        if ends:
            return False
    return False
