"""A build's RUN: a container of the same runtime and the same defaults as any other.

It has no row: nobody lists it, and it never outlives its step. If the daemon dies meanwhile, the
next one finds a container in the keeper that it knows nothing of, and kills it; the snapshot and
the folder have no owner and are removed.
"""

from __future__ import annotations

import queue
import shutil
import signal
import socket
import time
from typing import Any

from tiffin.build.backend import Cancelled, Output, RunResult, RunStep
from tiffin.engine import configuration, isolation
from tiffin.engine.container import Container, Spec, State
from tiffin.engine.lifecycle import Lifecycle
from tiffin.engine.root import Root
from tiffin.engine.streams import frames
from tiffin.errors import NotFound
from tiffin.layer.store import LayerStore

JSON = dict[str, Any]


class Steps:
    """Runs the commands of builds."""

    def __init__(self, root: Root, layers: LayerStore, lifecycle: Lifecycle) -> None:
        self._root = root
        self._layers = layers
        self._lifecycle = lifecycle

    def run(self, step: RunStep, output: Output, cancelled: Cancelled) -> RunResult:
        """Run a command to its end; see :meth:`tiffin.build.backend.Backend.run_step`."""
        container = self._container(step)
        folder = self._root.container(container.id)
        try:
            self._layers.prepare(container.snapshot, step.top, mountpoints=True)
            folder.mkdir(mode=0o710)
            isolation.write_network_files(container, folder)
            code = self._execute(container, output, cancelled)
            layer = None
            if code == 0:
                layer = self._layers.commit(container.snapshot, step.top)
            return RunResult(code, layer)
        finally:
            self._layers.remove_snapshot(container.snapshot)
            if folder.exists():
                shutil.rmtree(folder)

    def _container(self, step: RunStep) -> Container:
        config, host, networks = configuration.normalise(
            {
                "Cmd": step.args,
                "Env": step.env,
                "User": step.user,
                "WorkingDir": step.working_directory,
                "Hostname": step.container_id[:12],
                "HostConfig": {
                    "NetworkMode": step.network_mode,
                    "LogConfig": {"Type": "none"},
                },
            }
        )
        return Container(
            step.container_id,
            step.container_id[:12],
            "",
            step.top,
            f"b{step.container_id[:40]}",
            Spec(configuration.merge(config, {}), host, networks, [], ""),
            State(),
            time.time_ns(),
        )

    def _execute(self, container: Container, output: Output, cancelled: Cancelled) -> int:
        keeper = self._lifecycle.keeper
        ends: queue.SimpleQueue[JSON] = queue.SimpleQueue()
        with self._lifecycle.watching(container.id, ends.put):
            ours, theirs = socket.socketpair()
            with ours:
                with theirs:
                    keeper.attach(container.id, theirs.fileno())
                try:
                    self._lifecycle.launch(container)
                except BaseException:
                    keeper.forget(container.id)
                    raise
                try:
                    for _, data in frames(ours, cancelled):
                        output(data)
                finally:
                    if ends.empty() and cancelled():
                        self._kill(container)
                end = ends.get()
                keeper.forget(container.id)
        return int(end["code"]) if end["code"] is not None else 255

    def _kill(self, container: Container) -> None:
        try:
            self._lifecycle.keeper.signal(container.id, signal.SIGKILL)
        except NotFound:
            # It ended by itself in the meantime.
            return
