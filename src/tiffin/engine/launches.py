"""The launch of a container: what it needs is opened, and the keeper starts its first process.

Nothing here is written down; whoever launches keeps the answer, and calls :meth:`Launches.release`
when it learns of the end. A build's step is launched likewise, without a row.
"""

from __future__ import annotations

from typing import Any

from tiffin.engine import configuration, isolation, limits, logdrivers
from tiffin.engine.container import Container
from tiffin.engine.root import Root
from tiffin.engine.roster import Roster
from tiffin.engine.sandboxes import Sandboxes
from tiffin.engine.volumes import Volumes
from tiffin.errors import Conflict
from tiffin.keeper.client import KeeperClient
from tiffin.keeper.connection import NotAnswered
from tiffin.layer.store import LayerStore
from tiffin.linux.cgroups import Hierarchy
from tiffin.runtime import foreign, native, oci
from tiffin.runtime.seccomp import Filters

JSON = dict[str, Any]


class Launches:
    """Launches the containers of a root."""

    def __init__(
        self,
        root: Root,
        roster: Roster,
        layers: LayerStore,
        volumes: Volumes,
        sandboxes: Sandboxes,
        keeper: KeeperClient,
        cgroups: Hierarchy,
        cgroup_prefix: str,
    ) -> None:
        self._root = root
        self._roster = roster
        self._layers = layers
        self._volumes = volumes
        self._sandboxes = sandboxes
        self._keeper = keeper
        self._cgroups = cgroups
        self._prefix = cgroup_prefix
        self._mountpoint = str(root.keeper / "rootfs")
        self.filters = Filters(root.path / "seccomp")

    def cgroup(self, container: Container) -> str:
        """The container's cgroup, below the root of each hierarchy."""
        parent = (container.spec.host.get("CgroupParent") or "").strip("/")
        return f"{parent or self._prefix}/{container.id}"

    def launch(self, container: Container) -> JSON:
        """Have the keeper start a container's first process: ``{"pid", "started"}``.

        Its sandbox is made before; whoever learns of the end closes that.
        """
        path, namespace = self._sandboxes.open(container)
        try:
            self._volumes.use(container)
            if size := limits.storage_size(container.spec.host):
                # Again: a commit may have given it a new layer since.
                self._layers.limit(container.snapshot, size)
            answer = self._start(container, path)
            self._sandboxes.started(container, answer["pid"])
            return answer
        except BaseException:
            self.release(container)
            raise
        finally:
            # From here on the container's processes hold it.
            if namespace is not None:
                namespace.close()

    def release(self, container: Container) -> None:
        """A container has ended, or did not start: give back what it had of networks and mounts."""
        self._sandboxes.close(container)
        self._volumes.release(container)

    def _start(self, container: Container, network: str | None) -> JSON:
        folder = self._root.container(container.id)
        host, config = container.spec.host, container.spec.config
        container.state.id_base = 0
        if host.get("UsernsMode") in configuration.REMAPPED:
            taken = {other.state.id_base for other in self._roster.all()}
            container.state.id_base = isolation.free_id_base(container.id, taken)
        settings = isolation.container_settings(
            container,
            self._sandboxes.files.folder(container),
            self._layers.mounts(container.snapshot),
            self.cgroup(container),
            self.filters,
            self._peer,
            network,
            self._sandboxes.links.environment(container, starting=True),
            {
                point.target: (
                    self._layers.mounts(point.snapshot)
                    if point.snapshot
                    else self._layers.view(point.chain)
                )[-1]
                for point in container.spec.mounts
                if point.kind == "image"
            },
        )
        plan = native.plan(settings, self._mountpoint, self._cgroups).dump()
        if host["Runtime"] != configuration.NATIVE:
            foreign.check(host["Runtime"], settings)
            plan["runtime"] = {
                "name": host["Runtime"],
                "path": foreign.find(host["Runtime"]),
                "config": oci.oci_config(settings),
                "mountpoint": self._mountpoint,
            }
        log = logdrivers.keeper_options(container, folder)
        size = host.get("ConsoleSize") or None

        def start() -> JSON:
            return self._keeper.start(
                container.id,
                plan,
                log=log,
                terminal=container.tty,
                open_stdin=bool(config.get("OpenStdin")),
                stdin_once=bool(config.get("StdinOnce")),
                size=(size[0], size[1]) if size and any(size) else None,
            )

        try:
            return start()
        except NotAnswered:
            # The keeper died with the request. The next one knows whether the container had
            # started by then; what was only half started, it has removed.
            for entry in self._keeper.list():
                if entry["id"] == container.id and entry["started"] != container.state.started:
                    return entry
            return start()

    def _peer(self, reference: str) -> Container:
        """A running container that another one joins. Raises NotFound, Conflict."""
        other = self._roster.get(reference)
        if not other.running:
            raise Conflict(f"cannot join a namespace of container {reference}: it is not running")
        return other
