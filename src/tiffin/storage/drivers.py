"""The storage drivers there are, which of them is taken, and why another is not.

Several live side by side under one root, each in ``ROOT/storage/NAME``. The *chosen* one takes
what is new; a stack of layers stays in the driver that it lies in, and what is put on it goes
there too, so that choosing another driver never hides what an earlier one holds.

``ROOT/storage/chosen`` (JSON: driver, settings) is what was last asked for by name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from tiffin.errors import InvalidParameter
from tiffin.storage.aufs import Aufs
from tiffin.storage.btrfs import Btrfs
from tiffin.storage.devicemapper import Devicemapper
from tiffin.storage.driver import StorageDriver, Support
from tiffin.storage.fuse_overlayfs import FuseOverlayfs
from tiffin.storage.overlay import Overlay
from tiffin.storage.overlay2 import Overlay2
from tiffin.storage.vfs import Vfs
from tiffin.storage.zfs import Zfs

DRIVERS: tuple[tuple[type[StorageDriver], bool, str], ...] = (
    (Overlay2, True, "layers are stacked by the kernel: nothing is copied until it is written to"),
    (Btrfs, True, "snapshots of subvolumes share down to the block, and know sizes"),
    (Zfs, True, "clones of datasets share blocks, and know sizes"),
    (Aufs, True, "layers are stacked by the kernel, if it was patched with AUFS"),
    (FuseOverlayfs, True, "overlay2's layers where the kernel can't mount overlay"),
    (Vfs, True, "works on every file system, by copying whole trees"),
    (Devicemapper, False, "a file system of its own for each container, on a thin pool"),
    (Overlay, False, "for kernels whose overlayfs takes one lower directory"),
)
"""Every driver, whether it is taken without being asked for, and what speaks for it; the one that
is preferred first."""


def home(root: Path, name: str) -> Path:
    """The folder of the driver ``name`` in an engine root."""
    return root / "storage" / name


def find(name: str) -> type[StorageDriver]:
    """The driver of that name; raises InvalidParameter, naming those there are."""
    for driver, _, _ in DRIVERS:
        if driver.name == name.lower():
            return driver
    names = ", ".join(driver.name for driver, _, _ in DRIVERS)
    raise InvalidParameter(f"driver not supported: {name}: the storage drivers are {names}")


def parse_settings(options: Iterable[str]) -> dict[str, str]:
    """``--storage-opt`` of the daemon (``dm.thinpooldev=…``) as a table; raises InvalidParameter
    for what no driver knows."""
    known = {name: driver.name for driver, _, _ in DRIVERS for name in driver.settings}
    found = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or name not in known:
            raise InvalidParameter(
                f"unknown storage option: {option}: those there are: "
                f"{', '.join(f'{each}=' for each in sorted(known))}"
            )
        found[name] = value
    return found


def probe(
    driver: type[StorageDriver], place: Path, settings: Mapping[str, str] | None = None
) -> Support:
    """Whether a driver works in its folder.

    On a full disk nothing can be tried. A driver that has snapshots there is taken to work then:
    what it holds must be removable, since that is what makes room.
    """
    try:
        return driver.probe(place, settings)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return Support(_used(place), "no space left on device: the driver could not be tried")


def choose(
    root: Path, name: str | None = None, settings: Mapping[str, str] | None = None
) -> StorageDriver:
    """The driver ``name``, or else the one that was asked for before, or that the root was used
    with, or else the first that works; ``driver.why`` says which of these.

    Raises InvalidParameter, which says what is missing.
    """
    if name:
        driver = _open(find(name), root, _own(find(name), settings or {}), "it was asked for")
        _remember(root, driver)
        return driver
    chosen, earlier = _chosen(root)
    if chosen is not None:
        own = _own(find(chosen), settings) if settings else earlier
        driver = _open(find(chosen), root, own, "it was asked for earlier for this root")
        if settings:
            _remember(root, driver)
        return driver
    for kind, _, _ in DRIVERS:
        if _used(home(root, kind.name)):
            why = "the root was used with it before"
            return _open(kind, root, _own(kind, settings or {}), why)
    reasons: list[str] = []
    for kind, automatic, _ in DRIVERS:
        if not automatic:
            continue
        place = home(root, kind.name)
        support = probe(kind, place, settings)
        if support.works:
            found = kind(place, _own(kind, settings or {}))
            found.why = "the first of the table that works here"
            if reasons:
                found.why += f" ({'; '.join(reasons)})"
            return found
        reasons.append(f"{kind.name}: {support.reason}")
    raise InvalidParameter(f"no storage driver works under {root}: {'; '.join(reasons)}")


class Drivers:
    """The drivers of one root, opened when they are needed; any thread may ask."""

    def __init__(self, root: Path, chosen: StorageDriver) -> None:
        self._root = root
        self.chosen = chosen
        self._opened = {chosen.name: chosen}
        self._opening = threading.Lock()

    def get(self, name: str) -> StorageDriver:
        """The driver of that name; raises InvalidParameter if there is none.

        It is not tried out: what it holds can be named where it can't be mounted.
        """
        with self._opening:
            found = self._opened.get(name)
            if found is None:
                found = self._opened[name] = find(name)(home(self._root, name))
            return found

    def all(self) -> list[StorageDriver]:
        """Those that have a folder in the root, the chosen one first."""
        names = [driver.name for driver, _, _ in DRIVERS if home(self._root, driver.name).is_dir()]
        others = [self.get(name) for name in names if name != self.chosen.name]
        return [self.chosen, *others]

    def choose(self, driver: StorageDriver) -> None:
        """From now on this one takes what is new, here and at the next start."""
        self.chosen = driver
        _remember(self._root, driver)

    def close(self) -> None:
        """End what the drivers have set up for mounts."""
        with self._opening:
            for driver in self._opened.values():
                driver.close()


def _own(driver: type[StorageDriver], settings: Mapping[str, str]) -> Mapping[str, str]:
    foreign = sorted(set(settings) - set(driver.settings))
    if foreign:
        raise InvalidParameter(
            f"the storage driver {driver.name} has no option {foreign[0]}"
            + (f": it has {', '.join(sorted(driver.settings))}" if driver.settings else "")
        )
    return settings


def _chosen(root: Path) -> tuple[str | None, Mapping[str, str]]:
    try:
        content = json.loads((root / "storage" / "chosen").read_text())
    except FileNotFoundError:
        return None, {}
    return content["driver"], content["settings"]


def _remember(root: Path, driver: StorageDriver) -> None:
    content = json.dumps({"driver": driver.name, "settings": dict(driver.options)})
    place = root / "storage" / "chosen"
    with contextlib.suppress(FileNotFoundError):
        if place.read_text() == content:
            return
    fresh = place.with_name("chosen~")
    fresh.write_text(content)
    os.rename(fresh, place)


def _used(place: Path) -> bool:
    """Whether a driver has kept snapshots in its folder."""
    return any(
        any((place / name).iterdir())
        for name in ("committed", "writable")
        if (place / name).is_dir()
    )


def _open(
    kind: type[StorageDriver], root: Path, settings: Mapping[str, str], why: str
) -> StorageDriver:
    support = probe(kind, home(root, kind.name), settings)
    if not support.works:
        raise refusal(kind.name, root, support)
    driver = kind(home(root, kind.name), settings)
    driver.why = why
    return driver


def refusal(name: str, root: Path, support: Support) -> InvalidParameter:
    """What is said of a driver that was asked for and does not work."""
    return InvalidParameter(
        f"storage driver {name} does not work under {root}: {support.reason}; "
        "choose another with --storage-driver, or another --root"
    )
