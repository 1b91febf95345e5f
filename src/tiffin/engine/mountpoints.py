"""What a container mounts: parsing of ``Binds``, ``Mounts``, ``Tmpfs`` and image volumes.

Source: Docker Engine API v1.50, ``HostConfig.Binds``, ``Mount``, ``MountPoint``; docker run's
documentation of ``-v`` and ``--mount``.
"""

from __future__ import annotations

import os
import posixpath
from typing import Any

import msgspec

from tiffin.engine.names import check_volume_name
from tiffin.errors import InvalidParameter

JSON = dict[str, Any]

_BIND_MODES = frozenset(
    "ro rw z Z nocopy private rprivate shared rshared slave rslave "
    "consistent cached delegated".split()
)
_PROPAGATION = frozenset("private rprivate shared rshared slave rslave".split())

_ALTERNATIVES = (
    frozenset({"ro", "rw"}),
    frozenset({"z", "Z"}),
    _PROPAGATION,
    frozenset({"consistent", "cached", "delegated"}),
)

ANONYMOUS = "anonymous"
"""The mode of a mount point whose volume was made for its container alone."""


class MountPoint(msgspec.Struct):
    """One mount of a container; kept with the container."""

    kind: str
    """``bind``, ``volume``, ``tmpfs`` or ``image``."""
    target: str
    """Absolute path inside the container."""
    source: str = ""
    """The host's path of a bind; filled in from the volume for a volume; an image's name."""
    name: str = ""
    """The volume's name; empty for an anonymous one until it is made."""
    writable: bool = True
    mode: str = ""
    """The mode as it was written (``ro``, ``z``)."""
    propagation: str = ""
    recursive: bool = True
    readonly_recursive: bool = True
    """Whether what is mounted below a read-only bind is read-only too."""
    copy: bool = True
    """Whether a new volume is filled from the image."""
    create_source: bool = False
    """Whether a missing host folder is made (``-v`` does, ``--mount`` doesn't)."""
    subpath: str = ""
    labels: dict[str, str] = {}
    driver: str = "local"
    options: dict[str, str] = {}
    size: int = 0
    """A tmpfs's size in bytes, 0 for the kernel's default."""
    permissions: int = 0o1777
    tmpfs_options: list[str] = []
    extra_options: list[str] = []
    """Further options of a tmpfs beside its size and mode."""
    chain: str = ""
    """The top of the layers of an image's mount, which it keeps."""
    snapshot: str = ""
    """The writable snapshot on these layers that is mounted instead, by a step of a build."""


def _target(path: str, what: str) -> str:
    if not path.startswith("/"):
        raise InvalidParameter(
            f"invalid {what}: invalid mount path: '{path}' mount path must be absolute"
        )
    normal = posixpath.normpath(path)
    if normal in ("/", "//"):
        raise InvalidParameter(f"invalid {what}: invalid specification: destination can't be '/'")
    return normal


def parse_bind(text: str) -> MountPoint:
    """``source:target[:mode,…]`` or, for an anonymous volume, ``target``."""
    parts = text.split(":")
    what = f"volume specification: '{text}'"
    if len(parts) == 1:
        return MountPoint("volume", _target(parts[0], what))
    if len(parts) > 3 or not parts[0] or not parts[1]:
        raise InvalidParameter(f"invalid volume specification: '{text}'")
    source = parts[0]
    kind = "bind" if source.startswith("/") else "volume"
    target = _target(parts[1], f'{what}: invalid mount config for type "{kind}"')
    modes = parts[2].split(",") if len(parts) == 3 and parts[2] else []
    if not set(modes) <= _BIND_MODES or any(len(set(modes) & one) > 1 for one in _ALTERNATIVES):
        raise InvalidParameter(f"invalid mode: {parts[2]}")
    if kind == "bind" and "nocopy" in modes:
        raise InvalidParameter(
            f'invalid {what}: invalid mount config for type "bind": field VolumeOptions must not '
            "be specified"
        )
    point = MountPoint(
        "bind",
        target,
        writable="ro" not in modes,
        mode=",".join(modes),
        propagation=next((mode for mode in modes if mode in _PROPAGATION), ""),
        copy="nocopy" not in modes,
    )
    if source.startswith("/"):
        point.source, point.create_source = posixpath.normpath(source), True
        point.propagation = point.propagation or "rprivate"
        return point
    point.kind, point.name = "volume", check_volume_name(source)
    return point


def parse_mount(mount: JSON) -> MountPoint:
    """One element of ``HostConfig.Mounts``."""
    kind = mount.get("Type") or "volume"
    target = _target(mount.get("Target") or "", f'mount config for type "{kind}"')
    source = mount.get("Source") or ""
    point = MountPoint(kind, target, writable=not mount.get("ReadOnly"))
    if kind == "bind":
        options = mount.get("BindOptions") or {}
        if not source:
            raise InvalidParameter(
                'invalid mount config for type "bind": field Source must not be empty'
            )
        if not source.startswith("/"):
            raise InvalidParameter(
                f"invalid mount config for type \"bind\": invalid mount path: '{source}' mount "
                "path must be absolute"
            )
        point.source = posixpath.normpath(source)
        point.propagation = options.get("Propagation") or "rprivate"
        if point.propagation not in _PROPAGATION:
            raise InvalidParameter(
                'invalid mount config for type "bind": invalid propagation mode: '
                + point.propagation
            )
        point.recursive = not options.get("NonRecursive")
        point.readonly_recursive = not options.get("ReadOnlyNonRecursive")
        if options.get("ReadOnlyForceRecursive"):
            if not mount.get("ReadOnly"):
                raise InvalidParameter(
                    'invalid mount config for type "bind": BindOptions.ReadOnlyForceRecursive '
                    "needs the mount to be read-only"
                )
            if point.propagation not in ("private", "rprivate"):
                raise InvalidParameter(
                    'invalid mount config for type "bind": BindOptions.ReadOnlyForceRecursive '
                    "needs the propagation private or rprivate"
                )
        point.create_source = bool(options.get("CreateMountpoint"))
    elif kind == "volume":
        options = mount.get("VolumeOptions") or {}
        point.name = check_volume_name(source) if source else ""
        point.copy = not options.get("NoCopy")
        point.labels = options.get("Labels") or {}
        point.subpath = _subpath(options.get("Subpath") or "", "volume")
        if point.subpath and not point.name:
            raise InvalidParameter(
                'invalid mount config for type "volume": must not set Subpath when using '
                "anonymous volumes"
            )
        driver = options.get("DriverConfig") or {}
        point.driver = driver.get("Name") or "local"
        point.options = driver.get("Options") or {}
    elif kind == "tmpfs":
        options = mount.get("TmpfsOptions") or {}
        if source:
            raise InvalidParameter(
                'invalid mount config for type "tmpfs": field Source must not be specified'
            )
        point.size = options.get("SizeBytes") or 0
        point.permissions = options.get("Mode") or 0o1777
        if point.size < 0:
            raise InvalidParameter('invalid mount config for type "tmpfs": the size is negative')
        point.extra_options = ["=".join(pair) for pair in options.get("Options") or []]
    elif kind == "image":
        options = mount.get("ImageOptions") or {}
        if not source:
            raise InvalidParameter(
                'invalid mount config for type "image": field Source must not be empty'
            )
        point.subpath = _subpath(options.get("Subpath") or "", "image")
        # Nothing keeps what would be written to it.
        point.source, point.writable = source, False
    else:
        raise InvalidParameter(
            f'invalid mount config for type "{kind}": mount type unknown (bind, volume, tmpfs, '
            "image)"
        )
    return point


def _subpath(text: str, kind: str) -> str:
    if not text:
        return ""
    normal = posixpath.normpath(text)
    if normal.startswith(("/", "../")) or normal == "..":
        raise InvalidParameter(
            f'invalid mount config for type "{kind}": subpath must be a relative path within the '
            f"{kind}: {text!r}"
        )
    return normal


def parse_tmpfs(target: str, options: str) -> MountPoint:
    """``--tmpfs TARGET[:OPTIONS]``; the options go to the mount as they are."""
    if not target.startswith("/"):
        raise InvalidParameter(f"invalid mount path: '{target}' mount path must be absolute")
    return MountPoint(
        "tmpfs",
        _target(target, 'mount config for type "tmpfs"'),
        tmpfs_options=[option for option in options.split(",") if option],
        mode=options,
    )


def parse_source(text: str) -> tuple[str, str]:
    """``--volumes-from CONTAINER[:ro|rw]`` as (container, mode); raises InvalidParameter."""
    reference, _, mode = text.partition(":")
    if not reference or mode not in ("", "ro", "rw", "z", "Z", "ro,z", "ro,Z", "rw,z", "rw,Z"):
        raise InvalidParameter(f"invalid mode: {mode}" if reference else "invalid volumes-from")
    return reference, mode


def mount_points(config: JSON, host: JSON, inherited: list[MountPoint]) -> list[MountPoint]:
    """All mount points of a container, in the order in which they are mounted.

    ``inherited`` are those of the containers in ``VolumesFrom``. What is asked for itself wins
    over what is inherited, and both over the image's volumes. Raises InvalidParameter for a
    target named twice.
    """
    points: dict[str, MountPoint] = {point.target: point for point in inherited}
    named: set[str] = set()
    asked = [parse_bind(text) for text in host.get("Binds") or []]
    driver = host.get("VolumeDriver") or "local"
    for point in asked:
        point.driver = driver
    asked += [parse_mount(mount) for mount in host.get("Mounts") or []]
    asked += [parse_tmpfs(target, text) for target, text in (host.get("Tmpfs") or {}).items()]
    for point in asked:
        if point.target in named:
            raise InvalidParameter(f"Duplicate mount point: {point.target}")
        named.add(point.target)
        points[point.target] = point
    for text in config.get("Volumes") or {}:
        point = parse_bind(text) if ":" in text else MountPoint("volume", _target(text, "volume"))
        point.driver = driver
        points.setdefault(point.target, point)
    # Outer targets first, so that an inner one isn't covered.
    return sorted(points.values(), key=lambda point: point.target.count("/"))


def leave_inner_writable(points: list[MountPoint]) -> None:
    """Let read-only binds be so at their top alone, as before version 1.44 of the API."""
    for point in points:
        if point.kind == "bind":
            point.readonly_recursive = False


def check_sources(points: list[MountPoint]) -> None:
    """Raise InvalidParameter, in Docker's words, for a bind whose source does not exist."""
    for point in points:
        if point.kind != "bind" or os.path.lexists(point.source):
            continue
        if not point.create_source:
            raise InvalidParameter(
                'invalid mount config for type "bind": bind source path does not exist: '
                + point.source
            )
