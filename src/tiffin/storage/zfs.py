"""zfs: each snapshot is a dataset, and begins as a clone of its parent's.

On disk (the folders' own rules are :mod:`tiffin.storage.shelf`'s)::

    ROOT/storage/zfs/
        parent         the dataset that all the others lie in (``tank/tiffin``); the same for good
        writable/KEY   → ../d/ID
        committed/KEY  → ../d/ID
        d/ID/dataset   the dataset (JSON: name, and the snapshot that it is a clone of)
        trash/

The dataset is called by the folder's name (``tank/tiffin/ID``) and has ``mountpoint=legacy``, so
that nobody but who is asked mounts it, and access control lists, as Linux's other file systems. A
clone holds its origin's snapshot; that is made for the clone alone and destroyed with it (``zfs
destroy -d``). ``--storage-opt size=`` is the dataset's ``quota``, which counts what the container
writes itself.

The dataset that all lie in is ``zfs.fsname``, or, where the driver's folder lies on a zfs, the
one there. Each step is a run of the ``zfs`` command, some 10 ms.

Source: zfs-clone(8), zfs-destroy(8), zfsprops(7).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from tiffin.errors import TiffinError
from tiffin.linux.detached import mount_detached
from tiffin.storage import tree
from tiffin.storage.driver import Mount, Support, Whiteouts
from tiffin.storage.filesystem import mount_source
from tiffin.storage.shelved import Shelved

_BUSY_SECONDS = 10.0
# Access control lists, which zfs does not have by itself, are kept with the other attributes then.
_PROPERTIES = tuple(
    part for name in ("mountpoint=legacy", "acltype=posixacl", "xattr=sa") for part in ("-o", name)
)
_PACKAGES = (
    "install the packages zfs-dkms (of contrib, with the kernel's headers) and zfsutils-linux"
)


class Zfs(Shelved):
    """See the module's text."""

    name: ClassVar[str] = "zfs"
    layered: ClassVar[bool] = False
    whiteouts: Whiteouts = Whiteouts.NONE
    settings: ClassVar[Mapping[str, str]] = {
        "zfs.fsname": "the pool or dataset that all lie in (tank/tiffin)",
    }

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(home, settings)
        self._recording = threading.Lock()

    @classmethod
    def probe(cls, home: Path, settings: Mapping[str, str] | None = None) -> Support:
        home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if shutil.which("zfs") is None:
            return Support(False, f"the program zfs is not in $PATH: {_PACKAGES}")
        if not os.path.exists("/dev/zfs"):
            with suppress(FileNotFoundError):
                subprocess.run(["modprobe", "zfs"], capture_output=True)
        if not os.path.exists("/dev/zfs"):
            return Support(False, f"the kernel has no zfs module (modprobe zfs): {_PACKAGES}")
        parent = _parent(home, settings or {})
        if not parent:
            return Support(
                False,
                f"no dataset was given and {home} lies on no zfs: make one (zpool create tank "
                "DEVICE) and name it with --storage-opt zfs.fsname=tank",
            )
        if _run("list", "-H", "-o", "name", parent, check=False) is None:
            return Support(
                False, f"there is no zfs dataset {parent}: make it (zfs create {parent})"
            )
        features = (
            ("Backing Filesystem", "zfs"),
            ("Parent Dataset", parent),
            ("Native Diff", "false"),
            ("Quota", "true"),
            ("Reflinks", "false"),
            ("Using metacopy", "false"),
        )
        return Support(True, "each snapshot is a clone, which shares blocks", features)

    def prepare(self, key: str, parent: str | tuple[str, ...] | None) -> None:
        below = None if parent is None else self._shelf.find_committed(self.single(parent))
        self._make(key, below)

    def limit(self, key: str, size: int) -> None:
        _run("set", f"quota={size}", self._dataset(self._shelf.find(key)[0]))

    def copy(self, source: str, key: str) -> None:
        self._make(key, self._shelf.find(source)[0])

    def mounts(self, key: str) -> list[Mount]:
        folder, committed = self._shelf.find(key)
        return [Mount("zfs", self._dataset(folder), ("ro",) if committed else ())]

    def view(self, stack: tuple[str, ...]) -> list[Mount]:
        folder = self._shelf.find_committed(self.top(stack))
        return [Mount("zfs", self._dataset(folder), ("ro",))]

    @contextmanager
    def own_directory(self, key: str) -> Iterator[Path]:
        folder, committed = self._shelf.find(key)
        options: list[tuple[str, str | None]] = [("source", self._dataset(folder))]
        if committed:
            options.append(("ro", None))
        fd = mount_detached("zfs", options)
        try:
            yield Path(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def taken(self) -> int:
        return int(_run("get", "-Hp", "-o", "value", "used", self._root()) or 0)

    def _root(self) -> str:
        """The dataset that all lie in; written down by the first who asks."""
        place = self.home / "parent"
        with suppress(FileNotFoundError):
            return place.read_text()
        parent = _parent(self.home, self.options)
        if not parent:
            raise TiffinError("the zfs driver was given no dataset: --storage-opt zfs.fsname=tank")
        with self._recording:
            fresh = place.with_name("parent~")
            fresh.write_text(parent)
            os.rename(fresh, place)
        return parent

    def _dataset(self, folder: str) -> str:
        return str(json.loads((self.home / folder / "dataset").read_text())["name"])

    def _make(self, key: str, below: str | None) -> None:
        root = self._root()
        with self._shelf.making(key) as folder:
            identifier = folder.name.removesuffix("~")
            # A dataset's name may not begin with what an identifier may.
            record: dict[str, Any] = {"name": f"{root}/x{identifier}", "origin": None}
            if below is not None:
                record["origin"] = f"{self._dataset(below)}@x{identifier}"
            (folder / "dataset").write_text(json.dumps(record))
            if record["origin"] is None:
                _run("create", *_PROPERTIES, record["name"])
                return
            _run("snapshot", record["origin"])
            _run("clone", *_PROPERTIES, record["origin"], record["name"])
            # From now on it goes with its clone.
            _run("destroy", "-d", record["origin"])

    def _discard(self, folder: Path) -> None:
        try:
            record = json.loads((folder / "dataset").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            # It was not made yet.
            tree.delete(folder)
            return
        deadline = time.monotonic() + _BUSY_SECONDS
        while _run("list", "-H", record["name"], check=False) is not None:
            try:
                _run("destroy", "-r", record["name"])
                break
            except TiffinError as error:
                # Somebody has it mounted still, or there are clones of it, which does not end by
                # itself: it stays in the trash until a later sweep.
                if "dependent clones" in str(error) or time.monotonic() > deadline:
                    return
            time.sleep(0.05)
        if record["origin"] and _run("list", "-H", record["origin"], check=False) is not None:
            _run("destroy", "-d", record["origin"])
        tree.delete(folder)


def _parent(home: Path, settings: Mapping[str, str]) -> str:
    with suppress(FileNotFoundError):
        return (home / "parent").read_text()
    if named := settings.get("zfs.fsname"):
        return named
    kind, source = mount_source(home)
    return source if kind == "zfs" else ""


def _run(*arguments: str, check: bool = True) -> str | None:
    """One ``zfs`` command: its output, or None if it fails and need not work."""
    try:
        done = subprocess.run(
            ["zfs", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise TiffinError(f"the program zfs is not in $PATH: {_PACKAGES}") from None
    if done.returncode == 0:
        return done.stdout
    if not check:
        return None
    said = done.stderr.strip()
    if "out of space" in said or "quota" in said:
        raise OSError(errno.ENOSPC, said)
    raise TiffinError(f"zfs {' '.join(arguments)}: {said}")
