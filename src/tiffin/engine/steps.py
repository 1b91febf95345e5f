"""A build's RUN: a container of the same runtime and the same defaults as any other.

It has no row: nobody lists it, and it never outlives its step. If the daemon dies meanwhile, the
next one finds a container in the keeper that it knows nothing of, and kills it; the snapshot and
the folder have no owner and are removed.
"""

from __future__ import annotations

import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tiffin.build.backend import Cancelled, Output, RunResult, RunStep
from tiffin.build.tree import EmptyTree
from tiffin.engine import configuration
from tiffin.engine.container import Container, Spec, State
from tiffin.engine.lifecycle import Lifecycle
from tiffin.engine.loans import Lender, Places, clamp
from tiffin.engine.mountpoints import MountPoint
from tiffin.engine.root import Root
from tiffin.engine.streams import frames
from tiffin.errors import NotFound
from tiffin.layer.store import LayerStore
from tiffin.storage import tree

_STDERR = 2
_ASK_EVERY = 0.2
"""Seconds between two questions whether a step is still wanted."""

JSON = dict[str, Any]


class Steps:
    """Runs the commands of builds."""

    def __init__(
        self,
        root: Root,
        layers: LayerStore,
        lifecycle: Lifecycle,
        lender: Lender,
        keep: Callable[[Container, RunStep], None],
    ) -> None:
        """``keep`` makes a container of a failed step an ordinary one."""
        self._root = root
        self._layers = layers
        self._lifecycle = lifecycle
        self._lender = lender
        self._keep = keep

    def run(self, step: RunStep, output: Output, cancelled: Cancelled) -> RunResult:
        """Run a command to its end; see :meth:`tiffin.build.backend.Backend.run_step`."""
        container = self._container(step)
        folder = self._root.container(container.id)
        lower = self._layers.lower(step.top) if step.top is not None else EmptyTree()
        places = Places(step.mounts, lower)
        kept = False
        try:
            with ExitStack() as stack:
                container.spec.mounts = self._lender.lend(step.mounts, stack, cancelled)
                # A container's snapshot without a row goes at the next start, as does other work.
                purpose = "container" if step.keep is not None else "work"
                self._layers.prepare(
                    container.snapshot, step.top, mountpoints=True, purpose=purpose
                )
                folder.mkdir(mode=0o710)
                code = self._execute(container, output, cancelled)
                if code and step.keep is not None and not cancelled():
                    with self._layers.own_directory(container.snapshot) as directory:
                        layered = self._layers.holder(container.snapshot).layered
                        places.take_out(directory, layered=layered)
                    self._keep_failed(container, step, folder)
                    kept = True
            if code:
                return RunResult(code, None, container.id if kept else "")
            with self._layers.own_directory(container.snapshot) as directory:
                layered = self._layers.holder(container.snapshot).layered
                places.take_out(directory, layered=layered)
                if step.latest is not None and layered:
                    clamp(directory, step.latest, None)
                elif step.latest is not None:
                    with self._layers.base_tree(container.snapshot) as base:
                        clamp(directory, step.latest, base)
            return RunResult(code, self._layers.commit(container.snapshot, step.top))
        finally:
            if not kept:
                self._layers.remove_snapshot(container.snapshot)
                if folder.exists():
                    shutil.rmtree(folder)

    def _keep_failed(self, container: Container, step: RunStep, folder: Path) -> None:
        """Give the container a life of its own: with a shell, and without secrets."""
        mounts: list[MountPoint] = []
        for point, mount in zip(container.spec.mounts, step.mounts, strict=True):
            if mount.secret or mount.kind == "socket":
                continue
            # What was written to a tree is gone; what it was stays.
            point.snapshot = ""
            if mount.kind in ("layer", "file"):
                # What it was bound from goes with the step.
                own = folder / f"mount{len(mounts)}"
                source = Path(point.source)
                if source.is_dir():
                    own.mkdir()
                    tree.copy(source, own)
                else:
                    shutil.copy2(source, own)
                point.source = str(own)
            mounts.append(point)
        container.spec.mounts = mounts
        self._keep(container, step)

    def _container(self, step: RunStep) -> Container:
        config, host, networks = configuration.normalise(
            {
                "Cmd": step.args,
                "Env": [*step.env, *(f"{name}={text}" for name, text in step.secrets.items())],
                "User": step.user,
                "WorkingDir": step.working_directory,
                "Hostname": step.hostname or step.container_id[:12],
                "HostConfig": {
                    "NetworkMode": step.network_mode,
                    "LogConfig": {"Type": "none"},
                    "Privileged": step.insecure,
                    **step.host,
                },
            }
        )
        spec = Spec(configuration.merge(config, {}), host, networks, [], "")
        self._lifecycle.sandboxes.settle(spec)
        return Container(
            step.container_id,
            step.container_id[:12],
            "",
            step.top,
            f"b{step.container_id[:40]}",
            spec,
            State(),
            time.time_ns(),
        )

    def _execute(self, container: Container, output: Output, cancelled: Cancelled) -> int:
        keeper = self._lifecycle.keeper
        ends: list[JSON] = []
        ended = threading.Event()

        def hear(event: JSON) -> None:
            ends.append(event)
            ended.set()

        with self._lifecycle.watching(container.id, hear):
            ours, theirs = socket.socketpair()
            with ours:
                with theirs:
                    keeper.attach(container.id, theirs.fileno())
                try:
                    self._lifecycle.launches.launch(container)
                except BaseException:
                    keeper.forget(container.id)
                    raise
                try:
                    for stream, data in frames(ours, cancelled):
                        output(data, stream == _STDERR)
                    # It may go on with its output closed.
                    while not ended.wait(_ASK_EVERY) and not cancelled():
                        pass
                finally:
                    if not ended.is_set():
                        self._kill(container)
                    ended.wait()
                    keeper.forget(container.id)
                    self._lifecycle.launches.release(container)
        code = ends[0]["code"]
        return 255 if code is None else int(code)

    def _kill(self, container: Container) -> None:
        try:
            self._lifecycle.keeper.signal(container.id, signal.SIGKILL)
        except NotFound:
            # It ended by itself in the meantime.
            return
