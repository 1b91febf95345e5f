"""What a container is to be, as the runtime sees it: everything that isolation needs.

The engine makes one :class:`ContainerSettings` from a container's configuration; the native
runtime turns it into a plan (:mod:`tiffin.runtime.native`), and :mod:`tiffin.runtime.oci` into an
OCI runtime configuration. Plain data; nothing here touches the system but
:meth:`Device.of_host`.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import Any, Literal

from tiffin.errors import InvalidParameter
from tiffin.linux import capabilities
from tiffin.storage.driver import Mount

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

ULIMITS = {
    "cpu": 0,
    "fsize": 1,
    "data": 2,
    "stack": 3,
    "core": 4,
    "rss": 5,
    "nproc": 6,
    "nofile": 7,
    "memlock": 8,
    "locks": 10,
    "sigpending": 11,
    "msgqueue": 12,
    "nice": 13,
    "rtprio": 14,
    "rttime": 15,
}
"""The names of ``--ulimit``, and the kernel's numbers (getrlimit(2))."""

NAMESPACES = ("pid", "mount", "uts", "ipc", "network", "cgroup")


@dataclass(slots=True)
class ProcessSettings:
    """A process to start: a container's first one, or an exec."""

    args: list[str]
    env: list[str] = field(default_factory=list)
    """``NAME=value``; HOME is added if missing."""
    cwd: str = "/"
    """Made (owner root) if missing."""
    user: str = ""
    """As in Docker: name or uid, with or without ``:group``."""
    groups: list[str] = field(default_factory=list)
    """Additional groups by name or gid."""
    terminal: bool = False
    console_size: tuple[int, int] = (0, 0)
    """Rows and columns."""
    capabilities: list[str] = field(default_factory=lambda: list(capabilities.DEFAULT))
    no_new_privileges: bool = False
    rlimits: list[tuple[str, int, int]] = field(default_factory=list)
    """(name as in ``--ulimit``, soft, hard); -1 is unlimited."""
    oom_score_adj: int | None = None
    remapped: tuple[int, int] | None = None
    """The IDs that root has outside of the user namespace that an exec enters."""
    apparmor: str | None = None
    """The AppArmor profile to run under, on a host that has them."""
    selinux: str = ""
    """The SELinux label to run under, on a host that has them."""
    seccomp: tuple[bytes, int] | None = None
    """A compiled filter (:mod:`tiffin.runtime.seccomp`) and its flags."""


@dataclass(frozen=True, slots=True)
class MountPoint:
    """A volume, bind mount or tmpfs, or the tree of an image (``tree``: what mounts it).

    Options of a bind: ``ro``, ``rro`` (also what is mounted below), ``rbind`` (the default) or
    ``bind``, nosuid, nodev, noexec, ``idmap`` (its owners are those inside a user namespace, if the
    container has one), and a propagation (rprivate, the default, rslave, …). A tree is read-only
    unless it says ``rw``. Options of a tmpfs: mount(8)'s (size, mode, ro, exec, …).
    """

    kind: Literal["bind", "tmpfs", "tree"]
    source: str
    target: str
    options: tuple[str, ...] = ()
    tree: Mount | None = None
    below: str = ""
    """What of a bind's source is meant: a path in it, out of which no symlink leads. Of a tree: a
    directory in it."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device node of the container, and what it may do with it (letters of ``rwm``)."""

    path: str
    kind: Literal["c", "b"]
    major: int
    minor: int
    mode: int = 0o666
    uid: int = 0
    gid: int = 0
    access: str = "rwm"

    @classmethod
    def of_host(cls, host_path: str, path: str | None = None, access: str = "rwm") -> list[Device]:
        """The device that a host path names, or all devices below it if it is a directory.

        Raises InvalidParameter with Docker's sentence if it is neither.
        """
        real = os.path.realpath(host_path)
        inside = path or host_path
        found: list[Device] = []
        if os.path.isdir(real):
            for directory, _, names in os.walk(real):
                below = inside + directory[len(real) :]
                for name in names:
                    device = cls._of_node(f"{directory}/{name}", f"{below}/{name}", access)
                    if device is not None:
                        found.append(device)
        else:
            device = cls._of_node(real, inside, access)
            if device is not None:
                found.append(device)
        if not found:
            raise InvalidParameter(
                f'error gathering device information while adding custom device "{host_path}": '
                f"{'not a device node' if os.path.exists(real) else 'no such file or directory'}"
            )
        return found

    @classmethod
    def _of_node(cls, node: str, path: str, access: str) -> Device | None:
        try:
            info = os.lstat(node)
        except FileNotFoundError:
            return None
        kind: Literal["c", "b"]
        if stat.S_ISCHR(info.st_mode):
            kind = "c"
        elif stat.S_ISBLK(info.st_mode):
            kind = "b"
        else:
            return None
        major, minor = os.major(info.st_rdev), os.minor(info.st_rdev)
        mode = stat.S_IMODE(info.st_mode)
        return cls(path, kind, major, minor, mode, info.st_uid, info.st_gid, access)


@dataclass(slots=True)
class Resources:
    """Limits; 0 or empty leaves the kernel's default, -1 is unlimited."""

    memory: int = 0
    memory_swap: int = 0
    """Memory and swap together, as in Docker."""
    memory_reservation: int = 0
    cpu_shares: int = 0
    cpu_quota: int = 0
    cpu_period: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids_limit: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool = False
    blkio_weight: int = 0
    blkio_weight_device: str = ""
    """Here and below: lines of ``MAJOR:MINOR NUMBER``; 0 takes a limit away."""
    device_read_bps: str = ""
    device_write_bps: str = ""
    device_read_iops: str = ""
    device_write_iops: str = ""

    def as_dict(self) -> dict[str, int | str]:
        """The fields that are set, as :meth:`tiffin.linux.cgroups.Hierarchy.limit` takes them."""
        fields = {name: value for name in self.__slots__ if (value := getattr(self, name))}
        if self.memory_swappiness is not None:
            fields["memory_swappiness"] = self.memory_swappiness
        return fields


@dataclass(slots=True)
class ContainerSettings:
    """One container. See the module's text."""

    id: str
    process: ProcessSettings
    rootfs: list[Mount]
    hostname: str = ""
    domainname: str = ""
    readonly_rootfs: bool = False
    mounts: list[MountPoint] = field(default_factory=list)
    namespaces: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(NAMESPACES))
    """Of :data:`NAMESPACES`: None for a new one, the path of one to join; a missing one is shared
    with the host. ``mount`` must be new."""
    devices: list[Device] = field(default_factory=list)
    """Beside the default ones."""
    device_rules: list[str] = field(default_factory=list)
    """More rules of the devices controller (``c 10:200 rwm``)."""
    privileged: bool = False
    masked_paths: list[str] = field(default_factory=lambda: list(MASKED_PATHS))
    readonly_paths: list[str] = field(default_factory=lambda: list(READONLY_PATHS))
    sysctls: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    """For other runtimes, some of which act on them; the native one knows none."""
    resources: Resources = field(default_factory=Resources)
    shm_size: int = 64 << 20
    """Of /dev/shm; 0: there is none."""
    shm_from: str | None = None
    """The mount namespace (a path) of a container whose /dev/shm is this one's too."""
    id_map: tuple[int, int] | None = None
    """A user namespace of its own, where IDs from 0 on are others outside: (first, how many)."""
    seccomp: dict[str, Any] | None = None
    """The resolved profile that the process's filter was made of, for other runtimes."""
    mount_label: str = ""
    """The SELinux label of the file systems that are the container's own."""
    cgroup: str = ""
    """Below the root of each hierarchy, ``tiffin/ID`` if empty."""
    init: bool = False

    @property
    def cgroup_name(self) -> str:
        """The cgroup's name, with its default."""
        return self.cgroup.strip("/") or f"tiffin/{self.id}"

    @property
    def effective_sysctls(self) -> dict[str, str]:
        """The sysctls with Docker's two for a network namespace of the container's own: low ports
        and ping for everybody."""
        sysctls: dict[str, str] = {}
        if "network" in self.namespaces and self.namespaces["network"] is None:
            sysctls["net.ipv4.ip_unprivileged_port_start"] = "0"
            sysctls["net.ipv4.ping_group_range"] = "0 2147483647"
        return sysctls | self.sysctls
