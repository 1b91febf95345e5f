"""overlay2: each snapshot holds its changes alone, and the kernel's overlayfs stacks them.

On disk (the folders' own rules are :mod:`tiffin.storage.shelf`'s)::

    ROOT/storage/overlay2/
        writable/KEY   → ../d/ID
        committed/KEY  → ../d/ID
        empty/             an empty directory: what the lowest snapshot lies on, since overlayfs
                           wants something below
        d/ID/fs/           the snapshot's own files: upperdir while writable, then a lowerdir
        d/ID/work/         overlayfs's workdir; gone after the commit
        d/ID/lower         what it was prepared on, the uppermost first: d/ID/fs:d/ID/fs…
        trash/

A mount's options name everything relative to that folder (``lowerdir=d/3Kq7-2mA/fs:…``), 14 bytes
a layer, so that over 250 layers fit into the page that mount(2) takes.

Said explicitly, since a distribution's kernel may have other defaults, and a tree written with them
could not be moved from layer to layer: ``index=off`` (else a lower directory belongs to one upper
for good), ``metacopy=off`` (else a layer would hold attributes without contents) and
``redirect_dir=off`` (else it would hold directories whose contents are elsewhere; with ``off``
rename(2) of a directory that the layers below have answers EXDEV, and mv copies, as Docker's users
know it).

A snapshot with a limit of its size is a project of the file system's quotas
(:mod:`tiffin.linux.quota`): ``fs`` and ``work`` belong to it, and what overlayfs makes in them.

Source: ``Documentation/filesystems/overlayfs.rst`` of Linux 6.18.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from tiffin.errors import InvalidParameter, NotFound, Unsupported
from tiffin.linux import quota, syscalls
from tiffin.linux.detached import mount_detached
from tiffin.storage import tree
from tiffin.storage.driver import Mount, Support, Whiteouts
from tiffin.storage.filesystem import file_system_name
from tiffin.storage.shelved import Shelved

_EXPLICIT = ("index", "metacopy", "redirect_dir")
_PARAMETERS = Path("/sys/module/overlay/parameters")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Overlay2(Shelved):
    """See the module's text."""

    name: ClassVar[str] = "overlay2"
    layered: ClassVar[bool] = True
    whiteouts: ClassVar[Whiteouts] = Whiteouts.OVERLAY

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(home, settings)
        (home / "empty").mkdir(exist_ok=True)

    @classmethod
    def probe(cls, home: Path, settings: Mapping[str, str] | None = None) -> Support:
        backing = file_system_name(home.parent)
        home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="probe", dir=home.parent) as name:
            reason = trial(Path(name))
            reflinks = tree.can_reflink(Path(name)) if not reason else False
        if reason:
            return Support(False, f"{reason} (the file system under {home} is {backing})")
        features = (
            ("Backing Filesystem", backing),
            ("Supports d_type", "true"),
            ("Using metacopy", "false"),
            ("Native Overlay Diff", "true"),
            ("userxattr", "false"),
            ("Quota", "true" if _counts(home.parent) else "false"),
            ("Reflinks", "true" if reflinks else "false"),
        )
        return Support(True, f"the kernel mounts overlayfs on {backing}", features)

    def prepare(self, key: str, parent: str | tuple[str, ...] | None) -> None:
        if isinstance(parent, str):
            folder = self._shelf.find_committed(parent)
            lower = [f"{folder}/fs", *self._lower(folder)]
        else:
            lower = self._stack(parent or ())
        with self._shelf.making(key) as folder_path:
            own = folder_path / "fs"
            own.mkdir(0o755)
            (folder_path / "work").mkdir(0o700)
            (folder_path / "lower").write_text(":".join(lower))
            if lower:
                # The uppermost root directory is the one that is seen.
                copy_directory_attributes(self.home / lower[0], own)

    def commit(self, key: str, name: str) -> None:
        self._shelf.commit(key, name)
        folder, _ = self._shelf.find(name)
        tree.delete(self.home / folder / "work")

    def mounts(self, key: str) -> list[Mount]:
        folder, committed = self._shelf.find(key)
        lower = self._lower(folder)
        if committed:
            return self._mount([f"{folder}/fs", *lower], ("ro",))
        return self._mount(lower, (), f"upperdir={folder}/fs", f"workdir={folder}/work")

    def view(self, stack: tuple[str, ...]) -> list[Mount]:
        return self._mount(self._stack(stack), ("ro",))

    def limit(self, key: str, size: int) -> None:
        folder = self.home / self._shelf.find(key)[0]
        try:
            project = quota.project_of(folder)
            if not project:
                project = quota.any_project()
                # The folder last: who finds it in a project finds the others in it too.
                for part in (folder / "work", folder / "fs", folder):
                    quota.assign(part, project)
            quota.limit(folder, project, size)
        except OSError as error:
            if error.errno not in quota.NOT_THERE:
                raise
            raise Unsupported(
                "--storage-opt is supported only for overlay over xfs with 'pquota' mount option, "
                f"or ext4 with 'prjquota'; what {self.home} is on is "
                f"{file_system_name(self.home)} without"
            ) from error

    def remove(self, key: str) -> None:
        project = 0
        with suppress(NotFound, OSError):
            # Only what has a limit has a project. A file system without any has none to give back.
            project = quota.project_of(self.home / self._shelf.find(key)[0])
        super().remove(key)
        if project >= quota.FIRST:
            with suppress(OSError):
                quota.limit(self.home, project, 0)

    def _stack(self, keys: tuple[str, ...]) -> list[str]:
        """The own directories of committed snapshots, the uppermost first.

        Overlayfs refuses a directory that it is given twice. Of two equal layers the lower adds
        nothing that the upper does not also say, so it is left out.
        """
        return list(dict.fromkeys(f"{self._shelf.find_committed(key)}/fs" for key in keys[::-1]))

    def _lower(self, folder: str) -> list[str]:
        recorded = (self.home / folder / "lower").read_text()
        return recorded.split(":") if recorded else []

    def _mount(self, lower: list[str], flags: tuple[str, ...], *writable: str) -> list[Mount]:
        # Without an upperdir overlayfs wants two directories, and with one it wants a lower one.
        if not lower or (len(lower) == 1 and not writable):
            lower = [*lower, "empty"]
        options = (*flags, f"lowerdir={':'.join(lower)}", *writable, *self._settings)
        if sum(len(option) + 1 for option in options) > _PAGE:
            raise InvalidParameter(
                f"max depth exceeded: {len(lower)} layers do not fit into one overlay mount; "
                "squash some of them into one"
            )
        return [Mount("overlay", "overlay", options, str(self.home))]

    @cached_property
    def _settings(self) -> tuple[str, ...]:
        """``index=off`` and so on, as far as this kernel knows them."""
        return tuple(f"{name}=off" for name in _EXPLICIT if (_PARAMETERS / name).exists())


def _counts(place: Path) -> bool:
    """Whether the file system has quotas of projects."""
    try:
        quota.used(place, 0)
    except OSError as error:
        if error.errno not in (*quota.NOT_THERE, errno.ENOENT):
            raise
        return error.errno == errno.ENOENT
    return True


def copy_directory_attributes(source: Path, target: Path) -> None:
    """Give one directory the owner, mode, xattrs and times of another."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    source_fd = os.open(source, flags)
    try:
        target_fd = os.open(target, flags)
        try:
            tree.copy_attributes(source_fd, target_fd)
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


def trial(place: Path) -> str:
    """Mount a small overlay out of ``place``; what is missing and how to get it, or nothing."""
    lower, upper, work = place / "lower", place / "upper", place / "work"
    for directory in (lower, upper, work):
        directory.mkdir()
    (lower / "file").touch()
    try:
        os.setxattr(upper, "trusted.overlay.trial", b"y")
        os.removexattr(upper, "trusted.overlay.trial")
    except PermissionError:
        return "setting trusted xattrs is not permitted: root with CAP_SYS_ADMIN is needed"
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return "the file system has no trusted extended attributes"
        raise
    try:
        os.mknod(upper / "device", stat.S_IFCHR | 0o600, 0)
        os.unlink(upper / "device")
    except PermissionError:
        return "making device nodes is not permitted: CAP_MKNOD is needed for whiteouts"
    directories = (("lowerdir", str(lower)), ("upperdir", str(upper)), ("workdir", str(work)))
    try:
        fd = _mount_trial(directories, place)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return (
                "the kernel has no overlayfs: load its module (modprobe overlay; it comes with the "
                "distribution's kernel package), or take a kernel with CONFIG_OVERLAY_FS"
            )
        return f"the kernel refuses to mount overlayfs here: {error.strerror}"
    try:
        os.unlink("file", dir_fd=fd)
    except OSError as error:
        return f"overlayfs can't delete files here: {error.strerror}"
    finally:
        os.close(fd)
        if (place / "merged").exists():
            syscalls.umount(str(place / "merged"), syscalls.MNT_DETACH)
    if not tree.is_whiteout(os.lstat(upper / "file")):
        return "overlayfs left no whiteout for a deleted file"
    return ""


def _mount_trial(directories: tuple[tuple[str, str], ...], place: Path) -> int:
    try:
        return mount_detached("overlay", directories)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
    # Before Linux 5.2 a mount must be attached to be looked into.
    merged = place / "merged"
    merged.mkdir()
    data = ",".join(f"{name}={value}" for name, value in directories)
    try:
        syscalls.mount("overlay", str(merged), "overlay", 0, data)
    except OSError:
        merged.rmdir()
        raise
    return os.open(merged, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
