"""The engine of one root: opens it, puts the parts together, and closes it again."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiffin.engine.commits import Commits
from tiffin.engine.containers import Containers
from tiffin.engine.creation import Creation
from tiffin.engine.events import Events
from tiffin.engine.images import Images
from tiffin.engine.lifecycle import Lifecycle
from tiffin.engine.listing import Listing
from tiffin.engine.networks import Networks
from tiffin.engine.reconciliation import Reconciliation
from tiffin.engine.root import Root
from tiffin.engine.roster import Roster
from tiffin.engine.sandboxes import Sandboxes
from tiffin.engine.spools import Spools
from tiffin.engine.streams import demultiplex
from tiffin.engine.system import System
from tiffin.engine.transfers import Transfers
from tiffin.engine.trees import Trees
from tiffin.engine.volumes import Volumes
from tiffin.layer.store import LayerStore
from tiffin.network.fabric import Fabric
from tiffin.storage import drivers
from tiffin.store.database import Database

if TYPE_CHECKING:
    from tiffin.engine.builds import Builds
    from tiffin.engine.registries import Registries
    from tiffin.engine.storage import Storage


@dataclass(frozen=True, slots=True)
class Finished:
    """How a container that was run to its end came out."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Engine:
    """Everything under one engine root.

    All methods block, and any thread may call them. Use it as a context manager, or call
    :meth:`close`. Containers go on running after that.

    ``root`` is the folder (``TIFFIN_ROOT``, else /var/lib/tiffin); ``storage_driver`` a name as in
    ``--storage-driver``, ``storage_options`` as in ``--storage-opt``; ``what`` says who
    this is to a process that wants the same root.
    ``lasting``: restart policies take this for the start of a daemon, as Docker's do; what was
    stopped by hand is started again if its policy is ``always``.
    Raises RootInUse, Forbidden, Unsupported (no such driver, or it does not work here).
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        storage_driver: str | None = None,
        storage_options: Sequence[str] = (),
        what: str | None = None,
        lasting: bool = False,
    ) -> None:
        self._root = Root(root, what or f"the library in {' '.join(sys.argv)[:200] or 'Python'}")
        try:
            settings = drivers.parse_settings(storage_options)
            driver = drivers.choose(self._root.path, storage_driver, settings)
            self._database = Database(self._root.database)
            self._layers = LayerStore(self._database, driver, self._root.path)
            # Before anything reads the rows: it finishes commits that a kill has interrupted.
            self._layers.sweep()
            self.events = Events()
            roster = Roster(self._database)
            trees = Trees(self._root, self._layers)
            self._spools = Spools(self._root.path / "ingest")
            self.images = Images(
                self._database, self._root, self._layers, self.events, self._spools
            )
            self._registries: Registries | None = None
            self._loading = threading.Lock()
            self.volumes = Volumes(self._database, self._root, roster, self.events)
            self._fabric = Fabric(self._database, self._root.path, self._root.mark)
            self._fabric.realm.make_default()
            self._sandboxes = Sandboxes(self._root, roster, self._fabric, self.events)
            self.networks = Networks(
                self._database, roster, self._fabric, self._sandboxes, self.events
            )
            self._lifecycle = Lifecycle(
                self._database,
                self._root,
                roster,
                self._layers,
                self.volumes,
                self._sandboxes,
                self.events,
                f"tiffin/{self._root.mark}",
            )
            self._lifecycle.removal.collect = self.images.collect
            self.containers = Containers(
                self._database,
                self._root,
                roster,
                self._layers,
                self._lifecycle,
                self.events,
                Creation(
                    self._root,
                    roster,
                    self.images,
                    self._layers,
                    self._lifecycle,
                    self.volumes,
                    trees,
                    self.events,
                ),
                Listing(roster, self.images, self._layers, self._lifecycle),
                Transfers(self._root, roster, trees, self.events),
                Commits(
                    self._database,
                    roster,
                    self.images,
                    self._layers,
                    self._lifecycle,
                    self.events,
                ),
            )
            self.system = System(
                self._database,
                self._root,
                roster,
                self._layers,
                self.images,
                self.containers,
                self.volumes,
                lambda: self.builds,
                lambda: self.registries,
                self.events,
            )
            self.images.removal.mounted = lambda: {
                point.chain for one in roster.all() for point in one.spec.mounts if point.chain
            }
            self._roster = roster
            self._builds: Builds | None = None
            self._builds_lock = threading.Lock()
            self._sweep()
            Reconciliation(self._database, self._root, roster, self._lifecycle).run(lasting)
            self._sandboxes.resume()
            self.volumes.resume()
        except BaseException:
            self._root.release()
            raise

    @property
    def storage(self) -> Storage:
        """The verbs on storage drivers; loaded when they are first used."""
        from tiffin.engine.storage import Storage

        return Storage(self._root, self._roster, self._layers, lambda: self.registries)

    @property
    def builds(self) -> Builds:
        """The verbs on builds; loaded when they are first used, since they are half of the code."""
        from tiffin.engine.builds import Builds

        # One for all threads: builds at the same time know of each other through it.
        with self._builds_lock:
            if self._builds is None:
                self._builds = Builds(
                    self._database,
                    self._root,
                    self.images,
                    self._layers,
                    self._lifecycle,
                    self._roster,
                    self.registries,
                )
            return self._builds

    @property
    def registries(self) -> Registries:
        """The verbs on registries; loaded when they are first used."""
        from tiffin.engine.registries import Registries

        with self._loading:
            if self._registries is None:
                self._registries = Registries(
                    self._database,
                    self._root,
                    self._layers,
                    self.images,
                    self.events,
                    self._spools,
                )
            return self._registries

    @property
    def root(self) -> Root:
        """The engine root's folders."""
        return self._root

    def _sweep(self) -> None:
        """Remove what an engine that was killed has left behind."""
        for entry in os.scandir(self._root.work):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        known = {container.id for container in self._roster.all()}
        for entry in os.scandir(self._root.containers):
            if entry.name not in known:
                shutil.rmtree(entry.path)
        self.volumes.sweep()
        self.images.collect()
        self._spools.sweep()

    @property
    def busy(self) -> bool:
        """Whether a container runs, or is about to be restarted."""
        return any(container.active for container in self._roster.all())

    def run(
        self,
        image: str,
        command: Sequence[str] = (),
        *,
        stdin: bytes | None = None,
        remove: bool = True,
        name: str | None = None,
        environment: Mapping[str, str] | None = None,
        volumes: Sequence[str] = (),
        network: str = "bridge",
        user: str = "",
        working_dir: str = "",
        entrypoint: Sequence[str] | None = None,
    ) -> Finished:
        """Run a command in a new container to its end; what came out of it.

        ``volumes`` are as in ``-v``. ``remove`` takes the container away afterwards. Raises
        NotFound (no such image) and StartFailure; an exit code is no error.
        """
        body: dict[str, Any] = {
            "Image": image,
            "Cmd": list(command) or None,
            "Env": [f"{key}={value}" for key, value in (environment or {}).items()],
            "User": user,
            "WorkingDir": working_dir,
            "Entrypoint": list(entrypoint) if entrypoint is not None else None,
            "OpenStdin": stdin is not None,
            "StdinOnce": stdin is not None,
            "HostConfig": {
                "NetworkMode": network,
                "Binds": list(volumes) or None,
                "LogConfig": {"Type": "none" if remove else "json-file"},
            },
        }
        container = self.containers.create(body, name)["Id"]
        try:
            waiter = self.containers.wait_later(container, "next-exit")
            ours, theirs = socket.socketpair()
            with ours:
                with theirs:
                    self.containers.attach(
                        container, theirs, stdin=stdin is not None, stdout=True, stderr=True
                    )
                self.containers.start(container)
                if stdin is not None:
                    stdout, stderr = _converse(ours, stdin)
                else:
                    stdout, stderr = demultiplex(ours)
            answer = waiter.result()
            assert answer is not None
            return Finished(answer["StatusCode"], stdout, stderr)
        finally:
            if remove:
                self.containers.remove(container, force=True, volumes=True)

    def shutdown_keeper(self) -> None:
        """Stop the keeper too; raises Conflict while containers run."""
        self._lifecycle.keeper.shutdown()

    def close(self) -> None:
        """Let go of the root; containers go on running under the keeper."""
        self.containers.close()
        self._lifecycle.close()
        self._fabric.shutdown(idle=not self.busy)
        if self._builds is not None:
            self._builds.close()
        self._layers.drivers.close()
        self._database.close()
        self._root.release()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _converse(connection: socket.socket, data: bytes) -> tuple[bytes, bytes]:
    """Send everything and read everything at once, since either side may be waiting."""

    def send() -> None:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except BrokenPipeError:
            # The container ended without reading everything, as it may.
            pass

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    result = demultiplex(connection)
    sender.join()
    return result
