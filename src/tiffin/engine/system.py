"""The engine as a whole: info, version, disk usage, pruning."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiffin.engine import logdrivers, security, timestamps
from tiffin.engine.containers import Containers
from tiffin.engine.events import Events
from tiffin.engine.images import Images
from tiffin.engine.root import Root
from tiffin.engine.roster import Roster
from tiffin.engine.volumes import Volumes
from tiffin.image.platforms import Platform
from tiffin.layer.store import LayerStore
from tiffin.linux.cgroups import Hierarchy
from tiffin.runtime import foreign
from tiffin.storage import drivers
from tiffin.store.database import Database
from tiffin.version import API_VERSION, MIN_API_VERSION, __version__
from tiffin.version import __file__ as version_file

if TYPE_CHECKING:
    from tiffin.engine.builds import Builds
    from tiffin.engine.registries import Registries

JSON = dict[str, Any]


class System:
    """What is asked of the engine as a whole."""

    def __init__(
        self,
        database: Database,
        root: Root,
        roster: Roster,
        layers: LayerStore,
        images: Images,
        containers: Containers,
        volumes: Volumes,
        builds: Callable[[], Builds],
        registries: Callable[[], Registries],
        events: Events,
    ) -> None:
        self._database = database
        self._root = root
        self._roster = roster
        self._layers = layers
        self._images = images
        self._containers = containers
        self._volumes = volumes
        self._builds = builds
        self._registries = registries
        self.events = events
        self._identity = root.path.stat().st_ino

    def version(self) -> JSON:
        """Docker's ``version``."""
        kernel = os.uname().release
        # There is no build: the day when this version was put where it is comes nearest.
        built = timestamps.rfc3339(Path(version_file).stat().st_mtime_ns)
        return {
            "Platform": {"Name": "tiffin"},
            "Components": [
                {
                    "Name": "Engine",
                    "Version": __version__,
                    "Details": {
                        "ApiVersion": API_VERSION,
                        "Arch": Platform.of_host().architecture,
                        "BuildTime": built,
                        "Experimental": "false",
                        "GitCommit": "",
                        "GoVersion": f"Python {platform.python_version()}",
                        "KernelVersion": kernel,
                        "MinAPIVersion": MIN_API_VERSION,
                        "Os": "linux",
                    },
                }
            ],
            "Version": __version__,
            "ApiVersion": API_VERSION,
            "MinAPIVersion": MIN_API_VERSION,
            "GitCommit": "",
            "GoVersion": f"Python {platform.python_version()}",
            "Os": "linux",
            "Arch": Platform.of_host().architecture,
            "KernelVersion": kernel,
            "BuildTime": built,
        }

    def info(self) -> JSON:
        """Docker's ``info``."""
        registries, warnings = self._registries().described()
        states = [container.state.status for container in self._roster.all()]
        count = self._database.one("SELECT count(*) AS images FROM images")
        hierarchy = Hierarchy.detect()
        controllers = hierarchy.available
        driver = self._layers.driver
        support = drivers.probe(type(driver), driver.home, driver.options)
        return {
            "ID": f"tiffin-{self._identity}",
            "Containers": len(states),
            "ContainersRunning": states.count("running"),
            "ContainersPaused": states.count("paused"),
            "ContainersStopped": len(states) - states.count("running") - states.count("paused"),
            "Images": count["images"] if count else 0,
            "Driver": self._layers.driver.name,
            "DriverStatus": [
                *(list(row) for row in support.features),
                ["Chosen because", driver.why],
                *(
                    ["Also holds layers", other.name]
                    for other in self._layers.drivers.all()[1:]
                    if next(iter(other.keys()), None) is not None
                ),
            ],
            "Plugins": {
                "Volume": ["local"],
                "Network": ["bridge", "host", "ipvlan", "macvlan", "null"],
                "Authorization": None,
                "Log": list(logdrivers.NAMES),
            },
            "MemoryLimit": "memory" in controllers,
            "SwapLimit": "memory" in controllers,
            "CpuCfsPeriod": "cpu" in controllers,
            "CpuCfsQuota": "cpu" in controllers,
            "CPUShares": "cpu" in controllers,
            "CPUSet": "cpuset" in controllers,
            "PidsLimit": "pids" in controllers,
            "IPv4Forwarding": True,
            "Debug": False,
            "NFd": len(os.listdir("/proc/self/fd")),
            "OomKillDisable": hierarchy.version != "2",
            "NGoroutines": 0,
            "SystemTime": timestamps.rfc3339(time.time_ns()),
            "LoggingDriver": "json-file",
            "CgroupDriver": "cgroupfs",
            "CgroupVersion": "2" if hierarchy.version == "2" else "1",
            "NEventsListener": 0,
            "KernelVersion": os.uname().release,
            "OperatingSystem": _operating_system(),
            "OSVersion": "",
            "OSType": "linux",
            "Architecture": platform.machine(),
            "NCPU": os.cpu_count() or 1,
            "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "IndexServerAddress": "https://index.docker.io/v1/",
            "RegistryConfig": registries,
            "GenericResources": None,
            "HttpProxy": "",
            "HttpsProxy": "",
            "NoProxy": "",
            "DockerRootDir": str(self._root.path),
            "Name": os.uname().nodename,
            "Labels": [],
            "ExperimentalBuild": False,
            "ServerVersion": __version__,
            "Runtimes": {
                "native": {"path": sys.executable},
                **{name: {"path": path} for name in foreign.NAMES if (path := foreign.find(name))},
            },
            "DefaultRuntime": "native",
            "Swarm": {
                "NodeID": "",
                "NodeAddr": "",
                "LocalNodeState": "inactive",
                "ControlAvailable": False,
                "Error": "",
                "RemoteManagers": None,
            },
            "LiveRestoreEnabled": True,
            "Isolation": "",
            "InitBinary": "tiffin",
            "ContainerdCommit": {"ID": ""},
            "RuncCommit": {"ID": ""},
            "InitCommit": {"ID": ""},
            "SecurityOptions": security.described(),
            "CDISpecDirs": [],
            "Warnings": warnings,
        }

    def df(self) -> JSON:
        """Docker's ``system df``: every figure out of the database, no directory walked but those
        of running containers and volumes."""
        cache = self._builds().cache()
        return {
            "LayersSize": self._layers.total_size(),
            "Images": self._images.list(shared_size=True),
            "Containers": self._containers.list(all=True, size=True),
            "Volumes": [
                {
                    **volume,
                    "UsageData": {
                        "Size": self._volumes.size(volume["Name"]),
                        "RefCount": len(self._volumes.users(volume["Name"])),
                    },
                }
                for volume in self._volumes.list({})
            ],
            "BuildCache": cache,
            "BuilderSize": sum(record["Size"] for record in cache),
        }


def _operating_system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"
