"""overlay2: each snapshot holds its changes alone, and the kernel's overlayfs stacks them.

On disk (the folders' own rules are :mod:`tiffin.storage.shelf`'s)::

    ROOT/storage/overlay2/
        writable/KEY   → ../d/ID
        committed/KEY  → ../d/ID
        empty/             an empty directory: what the lowest snapshot lies on, since overlayfs
                           wants something below
        userxattr          a mark: all that is here has attributes as user namespaces allow them
        d/ID/fs/           the snapshot's own files: upperdir while writable, then a lowerdir
        d/ID/work/         overlayfs's workdir; gone after the commit
        d/ID/lower         what it was prepared on, the uppermost first: d/ID/fs:d/ID/fs…
        trash/

A mount's options name everything relative to that folder (``lowerdir=d/3Kq7-2mA/fs:…``), 14 bytes
a layer, so that over 250 layers fit into the page that mount(2) takes; from Linux 6.7 on it may be
twice as many (:mod:`tiffin.linux.overlayfs`).

Said explicitly, since a distribution's kernel may have other defaults, and a tree written with them
could not be moved from layer to layer: ``index=off`` (else a lower directory belongs to one upper
for good), ``metacopy=off`` (else a layer would hold attributes without contents) and
``redirect_dir=off`` (else it would hold directories whose contents are elsewhere; with ``off``
rename(2) of a directory that the layers below have answers EXDEV, and mv copies, as Docker's users
know it).

In a user namespace nobody may set ``trusted.*`` attributes. A driver that is first used in one has
overlayfs write ``user.overlay.*`` instead (the option ``userxattr``, from Linux 5.11 on), and keeps
to that for good, also where root opens it later, since a tree has marks of one kind.

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
from tiffin.linux import overlayfs, quota, syscalls
from tiffin.linux.detached import mount_detached
from tiffin.storage import tree
from tiffin.storage.driver import Mount, Support, Whiteouts
from tiffin.storage.filesystem import file_system_name
from tiffin.storage.shelved import Stacked

_EXPLICIT = ("index", "metacopy", "redirect_dir")
_PARAMETERS = Path("/sys/module/overlay/parameters")
_USER = "userxattr"
# In a user namespace it is not permitted.
_NO_QUOTA = (*quota.NOT_THERE, errno.EPERM)


class Overlay2(Stacked):
    """See the module's text."""

    name: ClassVar[str] = "overlay2"
    whiteouts: Whiteouts = Whiteouts.OVERLAY

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        if not (home / "empty").exists() and _denied(home.parent):
            home.mkdir(mode=0o700, exist_ok=True)
            (home / _USER).touch()
        super().__init__(home, settings)
        if (home / _USER).exists():
            self.whiteouts = Whiteouts.USER_OVERLAY

    @classmethod
    def probe(cls, home: Path, settings: Mapping[str, str] | None = None) -> Support:
        backing = file_system_name(home.parent)
        home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        denied = _denied(home.parent)
        user = (home / _USER).exists() or (denied and not (home / "empty").exists())
        if denied and not user:
            return Support(
                False,
                f"the layers in {home} have trusted attributes, which nobody may read in a user "
                "namespace: use another root there",
            )
        style = Whiteouts.USER_OVERLAY if user else Whiteouts.OVERLAY
        with tempfile.TemporaryDirectory(prefix="probe", dir=home.parent) as name:
            reason = trial(Path(name), style)
            reflinks = tree.can_reflink(Path(name)) if not reason else False
        if reason:
            return Support(False, f"{reason} (the file system under {home} is {backing})")
        features = (
            ("Backing Filesystem", backing),
            ("Supports d_type", "true"),
            ("Using metacopy", "false"),
            ("Native Overlay Diff", "true"),
            ("userxattr", "true" if user else "false"),
            ("Quota", "true" if counts(home.parent) else "false"),
            ("Reflinks", "true" if reflinks else "false"),
        )
        return Support(True, f"the kernel mounts overlayfs on {backing}", features)

    def _check_depth(self, lower: list[str]) -> None:
        if len(lower) > overlayfs.MOST:
            raise InvalidParameter(
                f"max depth exceeded: overlayfs stacks {overlayfs.MOST} layers, not {len(lower)}; "
                "squash some of them into one"
            )

    def _furnish(self, place: Path) -> None:
        (place / "work").mkdir(0o700)

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
            if error.errno not in _NO_QUOTA:
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

    def _mount(self, lower: list[str], flags: tuple[str, ...], *writable: str) -> list[Mount]:
        # Without an upperdir overlayfs wants two directories, and with one it wants a lower one.
        if not lower or (len(lower) == 1 and not writable):
            lower = [*lower, "empty"]
        options = (*flags, f"lowerdir={':'.join(lower)}", *writable, *self._settings)
        self._check_depth(lower)
        if not overlayfs.fits(",".join(options)) and not overlayfs.takes_one_by_one():
            raise InvalidParameter(
                f"max depth exceeded: {len(lower)} layers do not fit into one overlay mount before "
                "Linux 6.7; squash some of them into one"
            )
        return [Mount("overlay", "overlay", options, str(self.home))]

    @cached_property
    def _settings(self) -> tuple[str, ...]:
        """``index=off`` and so on, as far as this kernel knows them."""
        if self.whiteouts is Whiteouts.USER_OVERLAY:
            # It implies that redirects are not followed, and is refused beside another word.
            return ("userxattr", *(f"{name}=off" for name in ("index", "metacopy")))
        return tuple(f"{name}=off" for name in _EXPLICIT if (_PARAMETERS / name).exists())


def _denied(place: Path) -> bool:
    """Whether the attributes of overlayfs may not be set there: in a user namespace."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="probe", dir=place) as name:
        try:
            os.setxattr(name, "trusted.overlay.trial", b"y")
        except OSError as error:
            return error.errno == errno.EPERM
    return False


def counts(place: Path) -> bool:
    """Whether the file system has quotas of projects."""
    try:
        quota.used(place, 0)
    except OSError as error:
        if error.errno not in (*_NO_QUOTA, errno.ENOENT):
            raise
        return error.errno == errno.ENOENT
    return True


def trial(place: Path, style: Whiteouts) -> str:
    """Mount a small overlay out of ``place``; what is missing and how to get it, or nothing."""
    lower, upper, work = place / "lower", place / "upper", place / "work"
    for directory in (lower, upper, work):
        directory.mkdir()
    (lower / "file").touch()
    try:
        os.setxattr(upper, style.opaque, b"y")
        os.removexattr(upper, style.opaque)
    except PermissionError:
        return f"setting {style.opaque} is not permitted: root with CAP_SYS_ADMIN is needed"
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        kind = style.opaque.partition(".")[0]
        more = "" if kind == "trusted" else ", which overlayfs needs in a user namespace"
        return f"the file system has no {kind} extended attributes{more}"
    try:
        os.mknod(upper / "device", stat.S_IFCHR | 0o600, 0)
        os.unlink(upper / "device")
    except PermissionError:
        return "making device nodes is not permitted: CAP_MKNOD is needed for whiteouts"
    options: list[tuple[str, str | None]] = [
        ("lowerdir", str(lower)),
        ("upperdir", str(upper)),
        ("workdir", str(work)),
    ]
    if style is Whiteouts.USER_OVERLAY:
        options.append(("userxattr", None))
    try:
        fd = _mount_trial(options, place)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return (
                "the kernel has no overlayfs: load its module (modprobe overlay; it comes with the "
                "distribution's kernel package), or take a kernel with CONFIG_OVERLAY_FS"
            )
        if style is Whiteouts.USER_OVERLAY:
            return (
                f"the kernel refuses to mount overlayfs in a user namespace ({error.strerror}): "
                "that needs Linux 5.11"
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


def _mount_trial(options: list[tuple[str, str | None]], place: Path) -> int:
    try:
        return mount_detached("overlay", options)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
    # Before Linux 5.2 a mount must be attached to be looked into.
    merged = place / "merged"
    merged.mkdir()
    data = ",".join(name if value is None else f"{name}={value}" for name, value in options)
    try:
        syscalls.mount("overlay", str(merged), "overlay", 0, data)
    except OSError:
        merged.rmdir()
        raise
    return os.open(merged, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
