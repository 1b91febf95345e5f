"""The storage drivers there are, which of them is taken, and why another is not."""

from __future__ import annotations

import errno
from pathlib import Path

from tiffin.errors import InvalidParameter, Unsupported
from tiffin.storage.driver import StorageDriver, Support
from tiffin.storage.overlay2 import Overlay2
from tiffin.storage.vfs import Vfs

DRIVERS: tuple[tuple[type[StorageDriver], str], ...] = (
    (Overlay2, "layers are stacked by the kernel: nothing is copied until it is written to"),
    (Vfs, "works on every file system, by copying whole trees"),
)
"""Every driver and what speaks for it, the one that is preferred first."""

PLANNED = ("aufs", "btrfs", "devicemapper", "fuse-overlayfs", "zfs")
"""Names that Docker or Podman know, for which there is no driver here yet."""

_SAME = {"overlay": "overlay2"}


def home(root: Path, name: str) -> Path:
    """The folder of the driver ``name`` in an engine root."""
    return root / "storage" / name


def survey(root: Path) -> list[tuple[str, Support]]:
    """Whether each driver works under this root, in the order of preference."""
    return [(driver.name, probe(driver, home(root, driver.name))) for driver, _ in DRIVERS]


def probe(driver: type[StorageDriver], place: Path) -> Support:
    """Whether a driver works in its folder.

    On a full disk nothing can be tried. A driver that has snapshots there is taken to work then:
    what it holds must be removable, since that is what makes room.
    """
    try:
        return driver.probe(place)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return Support(_used(place), "no space left on device: the driver could not be tried")


def choose(root: Path, name: str | None = None) -> StorageDriver:
    """The driver ``name``, or else the one that the root was used with before, or else the first
    that works. Raises InvalidParameter, which says what is missing, and Unsupported."""
    drivers = {driver.name: driver for driver, _ in DRIVERS}
    if name is not None:
        name = name.lower()
        name = _SAME.get(name, name)
        if name in PLANNED:
            raise Unsupported(
                f"storage driver {name} is not there yet: use one of {', '.join(drivers)}"
            )
        if name not in drivers:
            raise InvalidParameter(
                f"driver not supported: {name}: the storage drivers are {', '.join(drivers)}"
            )
        return _open(drivers[name], root)
    for driver, _ in DRIVERS:
        if _used(home(root, driver.name)):
            return _open(driver, root)
    reasons = []
    for driver, _ in DRIVERS:
        support = probe(driver, home(root, driver.name))
        if support.works:
            return driver(home(root, driver.name))
        reasons.append(f"{driver.name}: {support.reason}")
    raise InvalidParameter(f"no storage driver works under {root}: {'; '.join(reasons)}")


def _used(place: Path) -> bool:
    """Whether a driver has kept snapshots in its folder."""
    return any(
        any((place / name).iterdir())
        for name in ("committed", "writable")
        if (place / name).is_dir()
    )


def _open(driver: type[StorageDriver], root: Path) -> StorageDriver:
    support = probe(driver, home(root, driver.name))
    if not support.works:
        raise InvalidParameter(
            f"storage driver {driver.name} does not work under {root}: {support.reason}; "
            "choose another with --storage-driver, or another --root"
        )
    return driver(home(root, driver.name))
