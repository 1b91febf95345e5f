"""One image comes in: its layers in parallel, each fetched, verified, unpacked and indexed in one
pass, and placed on each other at the end.

What is here is not fetched: layers of the stack, equal layers of other stacks, and what an earlier
attempt has left in its spool. A layer whose files depend on those below it is fetched like the
others, and unpacked from its spool once they are there.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from tiffin.engine.endpoints import Endpoints
from tiffin.engine.spools import Spools
from tiffin.errors import (
    CorruptArchive,
    DigestMismatch,
    InvalidParameter,
    TiffinError,
    Unsupported,
)
from tiffin.image.config import ImageConfig
from tiffin.image.manifest import LAYER_TYPES, Descriptor, Manifest
from tiffin.layer.store import Layer, LayerStore, Staged
from tiffin.registry.client import Cancelled, Registry

JSON = dict[str, Any]
Say = Callable[[JSON], None]

PARALLEL = 3
"""Layers at a time, as Docker."""
_INTERVAL = 0.1
"""Seconds between two messages about one layer."""


@dataclass
class LayerReport:
    """Where a layer came from, and what it cost."""

    diff_id: str
    digest: str
    size: int
    """Bytes as the registry has it."""
    origin: str = ""
    """``here`` (in this stack), ``shared`` (in another one), ``fetched``."""
    fetched: int = 0
    resumed: int = 0
    seconds: float = 0.0

    def document(self) -> JSON:
        """As JSON."""
        return {
            "DiffID": self.diff_id,
            "Digest": self.digest,
            "Size": self.size,
            "Origin": self.origin,
            "Fetched": self.fetched,
            "Resumed": self.resumed,
            "Seconds": round(self.seconds, 3),
        }


@dataclass
class _Task:
    """One layer that is not here."""

    descriptor: Descriptor
    report: LayerReport
    staged: Staged | None = None
    layer: Layer | None = None
    said: float = field(default=0.0)

    @property
    def name(self) -> str:
        """What its progress is told by."""
        return short(self.descriptor.digest)


def short(digest: str) -> str:
    """The twelve digits that a layer is called by."""
    return digest.partition(":")[2][:12]


class Pull:
    """See the module's text."""

    def __init__(
        self,
        layers: LayerStore,
        spools: Spools,
        endpoints: Endpoints,
        repository: str,
        say: Say,
    ) -> None:
        """The first of the endpoints gave the manifest."""
        self._layers = layers
        self._spools = spools
        self._endpoints = endpoints
        self._repository = repository
        self._mutex = threading.Lock()
        self._say = say
        self._stopped = threading.Event()
        # What is here already of the stack: the rest goes to the driver that it lies in.
        self._base: str | None = None
        self.reports: list[LayerReport] = []

    def say(self, status: str, task: _Task, **detail: Any) -> None:
        """Tell something about one layer."""
        with self._mutex:
            self._say({"status": status, "progressDetail": detail, "id": task.name})

    def config(self, manifest: Manifest) -> ImageConfig:
        """The image's configuration; raises Unsupported for what is no image."""
        if not manifest.is_image:
            raise Unsupported(
                f"unsupported media type {manifest.config.media_type}: this is an artifact and no"
                " image; `tiffin image copy` copies it"
            )
        for layer in manifest.layers:
            if layer.media_type not in LAYER_TYPES:
                raise Unsupported(
                    f"{layer.digest}: layers of the media type {layer.media_type} are not supported"
                )
        raw = self._endpoints.first(
            lambda client: client.read_blob(self._repository, manifest.config)
        )
        config = ImageConfig.parse(raw)
        if len(config.diff_ids) != len(manifest.layers):
            raise InvalidParameter(
                "invalid manifest, layers length mismatch: expected"
                f" {len(config.diff_ids)}, got {len(manifest.layers)}"
            )
        return config

    def run(self, manifest: Manifest, config: ImageConfig) -> str | None:
        """Bring the layers; the chain ID of the top one. Call it under a lease.

        Raises what is wrong; complete layers stay in their spools then.
        """
        tasks = []
        for diff_id, descriptor in zip(config.diff_ids, manifest.layers, strict=True):
            report = LayerReport(diff_id, descriptor.digest, descriptor.size)
            tasks.append(_Task(descriptor, report))
        self.reports = [task.report for task in tasks]
        chain: str | None = None
        missing: list[_Task] = []
        for task in tasks:
            if not missing:
                known = self._layers.known(chain, task.report.diff_id)
                if known is not None:
                    chain = known.chain_id
                    task.report.origin = "here"
                    self.say("Already exists", task)
                    continue
            missing.append(task)
            self.say("Pulling fs layer", task)
        for task in missing[PARALLEL:]:
            self.say("Waiting", task)
        # Those that are here too: a pull that failed may have left their bytes.
        with self._spools.used([task.descriptor.digest for task in tasks]):
            return self._chain(missing, chain) if missing else chain

    def _chain(self, tasks: list[_Task], chain: str | None) -> str:
        self._base = chain
        pool = ThreadPoolExecutor(min(PARALLEL, len(tasks)), "pull")
        futures: list[Future[None]] = []
        try:
            for task in tasks:
                base = (chain,) if task is tasks[0] else None
                futures.append(pool.submit(self._bring, task, base))
            # Whoever fails first is told, whatever its place.
            pending = dict(zip(futures, tasks, strict=True))
            for future, task in pending.items():
                self._wait(future, futures)
                chain = self._place(task, chain)
            assert chain is not None
            return chain
        finally:
            self._stopped.set()
            for future in futures:
                future.cancel()
            pool.shutdown(wait=True)
            for task in tasks:
                if task.staged is not None:
                    task.staged.close()

    @staticmethod
    def _wait(future: Future[None], futures: list[Future[None]]) -> None:
        while True:
            for other in futures:
                if other.done() and not other.cancelled() and other.exception() is not None:
                    other.result()
            if future.done():
                future.result()
                return
            try:
                future.result(timeout=0.2)
            except TimeoutError:
                continue

    def _place(self, task: _Task, chain: str | None) -> str:
        if task.layer is not None:
            layer = task.layer
        elif task.staged is not None:
            staged, task.staged = task.staged, None
            layer = self._layers.place(staged, chain)
        else:
            start = time.monotonic()
            spool = _Later(self._spools.path(task.descriptor.digest))
            with spool:
                layer = self._layers.ingest(
                    cast(BinaryIO, spool), chain, diff_id=task.report.diff_id
                )
            task.report.seconds += time.monotonic() - start
        self.say("Pull complete", task)
        return layer.chain_id

    def _bring(self, task: _Task, base: tuple[str | None] | None) -> None:
        """Fetch and unpack one layer, unless it can be had without; ``base`` is what it lies on,
        where that is there already."""
        if self._stopped.is_set():
            return
        digest = task.descriptor.digest
        start = time.monotonic()
        with self._spools.filling.held(digest):
            if self._stopped.is_set():
                return
            if self._layers.shared(task.report.diff_id, self._base) is not None:
                task.report.origin = "shared"
                self.say("Already exists", task)
                return
            task.report.origin = "fetched"
            self._endpoints.first(lambda client: self._fetch(task, client, base))
        task.report.seconds += time.monotonic() - start

    def _fetch(self, task: _Task, client: Registry, base: tuple[str | None] | None) -> None:
        again = True
        while again:
            stream = client.blob(
                self._repository,
                task.descriptor,
                spool=self._spools.path(task.descriptor.digest),
                progress=lambda done: self._downloading(task, done),
            )
            try:
                with stream:
                    self._unpack(task, cast(BinaryIO, stream), stream.drain, base)
                    self.say("Download complete", task)
                again = False
            except DigestMismatch:
                # Bytes that an interrupted attempt has left may be no good; new ones count.
                again = stream.resumed > 0
                if not again:
                    raise
            finally:
                task.report.fetched += stream.fetched
                task.report.resumed = stream.resumed

    def _unpack(
        self,
        task: _Task,
        stream: BinaryIO,
        drain: Callable[[], None],
        base: tuple[str | None] | None,
    ) -> None:
        diff_id = task.report.diff_id
        try:
            if base is not None and self._layers.driver_of(base[0]).layered:
                task.layer = self._layers.ingest(stream, base[0], diff_id=diff_id)
            else:
                task.staged = self._layers.stage(stream, diff_id, self._base)
            # What follows the tar is part of the blob, and of its digest.
            drain()
        except (CorruptArchive, DigestMismatch) as error:
            # The registry's bytes may be wrong, which says more than what they did to the tar.
            drain()
            self._spools.path(task.descriptor.digest).unlink(missing_ok=True)
            raise type(error)(f"layer {task.descriptor.digest}: {error.message}") from error

    def _downloading(self, task: _Task, done: int) -> None:
        if self._stopped.is_set():
            raise Cancelled("the pull has ended")
        now = time.monotonic()
        if now - task.said >= _INTERVAL or done == task.descriptor.size:
            task.said = now
            self.say("Downloading", task, current=done, total=task.descriptor.size)


class _Later:
    """A file that is opened when it is read: a layer that is there already needs no bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def read(self, size: int = 1 << 20) -> bytes:
        if self._fd < 0:
            try:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise TiffinError(
                    f"{self._path} is gone while its layer was pulled: pull again"
                ) from error
        return os.read(self._fd, size)

    def __enter__(self) -> _Later:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
