"""devicemapper: each snapshot is a thin device with a file system of its own.

A *thin pool* hands out blocks to thin devices as they are written; a *snapshot* of a thin device
shares all its blocks. The first write to a large file of an image costs one block of 64 KiB. Every
container has its own page cache, and a size that it can't go beyond.

On disk (the folders' own rules are :mod:`tiffin.storage.shelf`'s)::

    ROOT/storage/devicemapper/
        pool.json          what the pool was made with; the same for good
        pool/data          the pool's files, sparse, on loop devices; not with ``dm.thinpooldev``
        pool/metadata
        next               the number that the next thin device gets; none is used twice
        writable/KEY   → ../d/ID
        committed/KEY  → ../d/ID
        d/ID/device        the thin device (JSON: number, sectors); written before it is made
        trash/

The *base*, number 0, is an empty file system, which a snapshot without parent begins as. A device
is active while somebody needs its node: inside ``own_directory``, and from ``mounts`` to
``release``; it goes with its last user (deferred removal). What is committed is mounted read-only
by everybody.

A pool that is full makes file systems fail. So a new snapshot is refused while there is still
``dm.min_free_space`` left, and the pool answers writes that it has no block for at once with an
error (``error_if_no_space``), which the file system tells the writer; it keeps what it had.

Source: ``Documentation/admin-guide/device-mapper/thin-provisioning.rst``; the options' names are
Docker's.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from tiffin.errors import NotFound, StorageFull, TiffinError, Unsupported
from tiffin.linux import devicemapper as dm
from tiffin.linux import loopdevices
from tiffin.linux.detached import mount_detached
from tiffin.storage import tree
from tiffin.storage.driver import Mount, Support, Whiteouts
from tiffin.storage.filesystem import file_system_name
from tiffin.storage.shelved import Shelved
from tiffin.storage.sizes import parse_size

_BLOCK_SECTORS = 128
_SECTOR = 512
_RESIZE_EXT4 = 0x40086610
_BUSY_SECONDS = 10.0
_DEFAULTS = {
    "dm.thinpooldev": "",
    "dm.basesize": "10g",
    "dm.loopdatasize": "100g",
    "dm.loopmetadatasize": "2g",
    "dm.fs": "ext4",
    "dm.min_free_space": "10%",
    "dm.mountopt": "",
}


class Devicemapper(Shelved):
    """See the module's text."""

    name: ClassVar[str] = "devicemapper"
    layered: ClassVar[bool] = False
    whiteouts: Whiteouts = Whiteouts.NONE
    settings: ClassVar[Mapping[str, str]] = {
        "dm.thinpooldev": "a thin pool that is there (its name), instead of one of files",
        "dm.basesize": "the size of each file system (10g)",
        "dm.loopdatasize": "how far the pool's file of data may grow (100g)",
        "dm.loopmetadatasize": "the same of its metadata (2g)",
        "dm.fs": "the file system: ext4 or xfs",
        "dm.min_free_space": "refuse new snapshots when less of the pool is free (10%)",
        "dm.mountopt": "more options to mount with",
    }

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(home, settings)
        self._lock = threading.RLock()
        # By number: blocks of own_directory that use the device, and devices given by mounts.
        self._users: Counter[int] = Counter()
        self._given: set[int] = set()

    @classmethod
    def probe(cls, home: Path, settings: Mapping[str, str] | None = None) -> Support:
        home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        options = {**_DEFAULTS, **(settings or {})}
        if not dm.make_control():
            return Support(
                False,
                "the kernel has no device mapper: load its module (modprobe dm_thin_pool; it comes "
                "with the distribution's kernel package), or take a kernel with "
                "CONFIG_DM_THIN_PROVISIONING",
            )
        if "thin-pool" not in dm.targets():
            with suppress(FileNotFoundError):
                subprocess.run(["modprobe", "dm_thin_pool"], capture_output=True)
        if "thin-pool" not in dm.targets():
            return Support(
                False, "the kernel's device mapper has no thin pools: modprobe dm_thin_pool"
            )
        maker = f"mkfs.{options['dm.fs']}"
        if shutil.which(maker) is None:
            package = "e2fsprogs" if options["dm.fs"] == "ext4" else "xfsprogs"
            return Support(False, f"{maker} is not in $PATH: install the package {package}")
        if (pool := options["dm.thinpooldev"]) and dm.find(os.path.basename(pool)) is None:
            return Support(
                False,
                f"there is no device mapper device {pool}: make the thin pool, or leave "
                "dm.thinpooldev out",
            )
        features = (
            ("Backing Filesystem", options["dm.fs"]),
            ("Pool", pool or f"files on {file_system_name(home.parent)}"),
            ("Native Diff", "false"),
            ("Quota", "true" if options["dm.fs"] == "ext4" else "false"),
            ("Reflinks", "true" if options["dm.fs"] == "xfs" else "false"),
            ("Using metacopy", "false"),
        )
        return Support(True, "each snapshot is a thin device, which shares blocks", features)

    # Snapshots.

    def prepare(self, key: str, parent: str | tuple[str, ...] | None) -> None:
        if parent is None:
            pool = self._pool()
            origin, sectors = int(pool["base"]), int(pool["sectors"])
        else:
            origin, sectors = self._device(self._shelf.find_committed(self.single(parent)))
        self._snapshot(key, origin, sectors)

    def limit(self, key: str, size: int) -> None:
        pool = self._pool()
        folder, _ = self._shelf.find(key)
        number, sectors = self._device(folder)
        wanted = size // _SECTOR // _BLOCK_SECTORS * _BLOCK_SECTORS
        if wanted == sectors:
            return
        if wanted < sectors or pool["fs"] != "ext4":
            raise Unsupported(
                f"--storage-opt size={size} is not supported here: file systems grow (ext4 alone, "
                f"dm.fs) from the {sectors * _SECTOR} bytes that they begin with, and never shrink"
            )
        with self._lock:
            name = f"{self._prefix()}{number}"
            _write(self.home / folder / "device", json.dumps({"number": number, "sectors": wanted}))
            if dm.find(name) is not None:
                dm.load(name, "thin", wanted, f"{self._pool_node(pool)} {number}")
                dm.suspend(name)
                dm.resume(name)
        with self._opened(number, wanted) as mounted:
            # What a mount is given as takes no ioctl.
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mounted)
            try:
                blocks = wanted * _SECTOR // os.fstatvfs(fd).f_bsize
                fcntl.ioctl(fd, _RESIZE_EXT4, struct.pack("Q", blocks))
            finally:
                os.close(fd)

    def copy(self, source: str, key: str) -> None:
        origin, sectors = self._device(self._shelf.find(source)[0])
        self._snapshot(key, origin, sectors)

    def commit(self, key: str, name: str) -> None:
        number, _ = self._device(self._shelf.find(key)[0])
        self._let_go(number)
        self._wait_unused(number)
        super().commit(key, name)

    def mounts(self, key: str) -> list[Mount]:
        folder, committed = self._shelf.find(key)
        number, sectors = self._device(folder)
        with self._lock:
            node = self._activate(number, sectors)
            self._given.add(number)
        options = (*self._options(), "ro") if committed else self._options()
        return [Mount(self._pool()["fs"], node, options)]

    def view(self, stack: tuple[str, ...]) -> list[Mount]:
        return self.mounts(self.top(stack))

    @contextmanager
    def own_directory(self, key: str) -> Iterator[Path]:
        folder, committed = self._shelf.find(key)
        with self._opened(*self._device(folder), read_only=committed) as fd:
            yield Path(f"/proc/self/fd/{fd}")

    def release(self, key: str) -> None:
        with suppress(NotFound):
            self._let_go(self._device(self._shelf.find(key)[0])[0])

    def sweep(self) -> None:
        if (self.home / "pool.json").exists() and dm.make_control():
            self._deactivate_all()
            super().sweep()

    def close(self) -> None:
        if not (self.home / "pool.json").exists() or not dm.make_control():
            return
        with self._lock:
            self._given.clear()
            self._deactivate_all()
            pool = self._recorded()
            if not pool["thinpooldev"] and dm.find(f"{self._prefix()}pool") is not None:
                files = [self.home / "pool" / name for name in ("metadata", "data")]
                devices = [loopdevices.find(file) for file in files]
                # In use by containers that run on; the next start finds it.
                if dm.remove(f"{self._prefix()}pool"):
                    for device in devices:
                        if device is not None:
                            loopdevices.detach(device)

    # The pool.

    def _recorded(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.home / "pool.json").read_text())
        return content

    def _prefix(self) -> str:
        return f"tiffin-{self._recorded()['mark']}-"

    def _pool(self) -> dict[str, Any]:
        """What the pool was made with; made and filled with the base by the first who asks."""
        with self._lock, suppress(FileNotFoundError):
            return self._recorded()
        with self._lock:
            options = {**_DEFAULTS, **self.options}
            size = parse_size(options["dm.basesize"])
            pool = {
                "mark": secrets.token_hex(4),
                "thinpooldev": os.path.basename(options["dm.thinpooldev"]),
                "fs": options["dm.fs"],
                "sectors": size // _SECTOR // _BLOCK_SECTORS * _BLOCK_SECTORS,
                "data": parse_size(options["dm.loopdatasize"]),
                "metadata": parse_size(options["dm.loopmetadatasize"]),
                "base": secrets.randbelow(1 << 22) if options["dm.thinpooldev"] else 0,
            }
            fresh = self.home / "pool.json~"
            fresh.write_text(json.dumps(pool))
            self._make_base(pool)
            os.rename(fresh, self.home / "pool.json")
            return pool

    def _make_base(self, pool: dict[str, Any]) -> None:
        node = self._pool_node(pool)
        name = f"tiffin-{pool['mark']}-base"
        dm.message(self._pool_name(pool), f"create_thin {pool['base']}")
        device = dm.create(name, "thin", pool["sectors"], f"{node} {pool['base']}")
        try:
            quick = ["-E", "nodiscard"] if pool["fs"] == "ext4" else ["-K"]
            made = subprocess.run(
                [f"mkfs.{pool['fs']}", "-q", *quick, device.node],
                stdin=subprocess.DEVNULL,
                capture_output=True,
            )
            if made.returncode:
                raise TiffinError(
                    f"mkfs.{pool['fs']} failed: {made.stderr.decode(errors='replace').strip()}"
                )
            fd = mount_detached(pool["fs"], [("source", device.node)])
            try:
                with suppress(FileNotFoundError):
                    os.rmdir("lost+found", dir_fd=fd)
            finally:
                os.close(fd)
        finally:
            _retry(lambda: dm.remove(name))
        _write(self.home / "next", str(pool["base"] + 1))

    @staticmethod
    def _pool_name(pool: dict[str, Any]) -> str:
        return str(pool["thinpooldev"] or f"tiffin-{pool['mark']}-pool")

    def _pool_node(self, pool: dict[str, Any]) -> str:
        """The pool's node; a pool of files is started if it does not run."""
        with self._lock:
            name = self._pool_name(pool)
            if (running := dm.find(name)) is not None:
                return running.node
            if pool["thinpooldev"]:
                raise TiffinError(f"the thin pool {name} is not there: activate it (lvchange -ay)")
            (self.home / "pool").mkdir(exist_ok=True)
            devices = []
            for part in ("metadata", "data"):
                file = self.home / "pool" / part
                with file.open("ab") as stream:
                    stream.truncate(pool[part])
                devices.append(loopdevices.attach(file))
            parameters = f"{devices[0]} {devices[1]} {_BLOCK_SECTORS} 0 2 skip_block_zeroing"
            return dm.create(
                name, "thin-pool", pool["data"] // _SECTOR, f"{parameters} error_if_no_space"
            ).node

    def _check_space(self, pool: dict[str, Any]) -> None:
        text = {**_DEFAULTS, **self.options}["dm.min_free_space"].removesuffix("%")
        least = float(text)
        words = dm.status(self._pool_name(pool)).split()
        if words[0] in ("Fail", "Error"):
            raise TiffinError(f"the thin pool {self._pool_name(pool)} has failed: repair it first")
        for what, part in (("metadata", words[1]), ("data", words[2])):
            used, _, total = part.partition("/")
            free = 100.0 * (1 - int(used) / int(total))
            if free < least:
                raise StorageFull(
                    f"no space left on device: {free:.1f}% of the thin pool's {what} are free, and "
                    f"dm.min_free_space keeps {least:g}%: remove containers and images, or grow it"
                )

    # Devices.

    def _device(self, folder: str) -> tuple[int, int]:
        """Number and length of a snapshot's thin device."""
        content = json.loads((self.home / folder / "device").read_text())
        return content["number"], content["sectors"]

    def _snapshot(self, key: str, origin: int, sectors: int) -> None:
        pool = self._pool()
        self._pool_node(pool)
        self._check_space(pool)
        with self._shelf.making(key) as folder, self._lock:
            number = int((self.home / "next").read_text())
            _write(self.home / "next", str(number + 1))
            record = json.dumps({"number": number, "sectors": sectors})
            (folder / "device").write_text(record)
            # A device that runs must stand still while a snapshot is taken of it.
            name = f"{self._prefix()}{origin}"
            running = dm.find(name) is not None
            if running:
                dm.suspend(name)
            try:
                dm.message(self._pool_name(pool), f"create_snap {number} {origin}")
            finally:
                if running:
                    dm.resume(name)

    def _activate(self, number: int, sectors: int) -> str:
        pool = self._pool()
        name = f"{self._prefix()}{number}"
        if (running := dm.find(name)) is not None:
            dm.keep(name)
            return running.node
        return dm.create(name, "thin", sectors, f"{self._pool_node(pool)} {number}").node

    @contextmanager
    def _opened(self, number: int, sectors: int, read_only: bool = False) -> Iterator[int]:
        """The root of the device's file system, mounted where nobody sees it."""
        with self._lock:
            node = self._activate(number, sectors)
            self._users[number] += 1
        try:
            options = [("source", node), *((name, None) for name in self._options())]
            if read_only:
                options.append(("ro", None))
            fd = _retry_busy(lambda: mount_detached(self._pool()["fs"], options))
            try:
                yield fd
            finally:
                os.close(fd)
        finally:
            with self._lock:
                self._users[number] -= 1
                if not self._users[number] and number not in self._given:
                    del self._users[number]
                    dm.remove(f"{self._prefix()}{number}", deferred=True)

    def _options(self) -> tuple[str, ...]:
        pool = self._pool()
        more = self.options.get("dm.mountopt") or ""
        own = ("nouuid", "discard") if pool["fs"] == "xfs" else ("discard",)
        return (*own, *(option for option in more.split(",") if option))

    def _let_go(self, number: int) -> None:
        with self._lock:
            self._given.discard(number)
            if not self._users[number]:
                dm.remove(f"{self._prefix()}{number}", deferred=True)

    def _wait_unused(self, number: int) -> None:
        name = f"{self._prefix()}{number}"

        def unused() -> bool:
            device = dm.find(name)
            return device is None or not device.open_count

        if not _retry(unused):
            raise TiffinError(f"the device {name} is still mounted somewhere: try again")

    def _deactivate_all(self) -> None:
        with self._lock:
            for name in dm.names():
                number = name.removeprefix(self._prefix())
                if number == name or not number.isdigit() or self._users[int(number)]:
                    continue
                if int(number) not in self._given:
                    dm.remove(name, deferred=True)

    def _discard(self, folder: Path) -> None:
        try:
            content = json.loads((folder / "device").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            # It was not made yet.
            tree.delete(folder)
            return
        number, pool = content["number"], self._pool()
        self._given.discard(number)
        if not _retry(lambda: dm.remove(f"{self._prefix()}{number}")):
            # Somebody has it mounted still: it stays in the trash until the next sweep.
            return
        self._pool_node(pool)
        try:
            dm.message(self._pool_name(pool), f"delete {number}")
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
        tree.delete(folder)


def _write(place: Path, text: str) -> None:
    fresh = place.with_name(f"{place.name}~")
    fresh.write_text(text)
    os.rename(fresh, place)


def _retry(done: Callable[[], bool]) -> bool:
    """Ask until it is so, for a while: the last user of a mount may be on its way out."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _retry_busy(act: Callable[[], int]) -> int:
    """Do it, again for a while where the kernel says busy."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return act()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)
