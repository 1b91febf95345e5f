"""One build: what its stages share.

A stage is built in a thread of its own where several are needed. A stage that needs another one
waits for it (:meth:`Session.state_of`), and gives up its *slot* meanwhile: slots bound how many
stages work at once. A stage needs earlier ones only, so nobody waits in a circle. The first failure
ends the others: they see :attr:`Session.cancelled`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tiffin.build.arguments import Arguments
from tiffin.build.backend import Backend, Cancelled
from tiffin.build.cache import BuildCache, Record
from tiffin.build.context import BuildContext
from tiffin.build.downloads import Memory
from tiffin.build.instructions import From
from tiffin.build.options import BuildOptions
from tiffin.build.progress import Progress
from tiffin.build.stages import Stages
from tiffin.build.tree import EmptyTree, LowerTree
from tiffin.errors import BuildFailure
from tiffin.image.config import ImageConfig, chain_ids


@dataclass(frozen=True, slots=True)
class State:
    """A stage after some of its steps."""

    config: ImageConfig
    """What the next step starts from."""
    recorded: ImageConfig | None
    """What the image is so far: None as long as nothing is built on ``scratch``. Differs from
    ``config`` where a stage's start changes something: the default PATH, triggers taken out."""
    key: str
    """The last step's key; before any, the base image's id, or ``scratch``."""
    top: str | None
    steps: int = 0
    cmd_set: bool = False
    base: str | None = None
    """The chain ID of what the stage's base image brought."""

    @property
    def image_id(self) -> str:
        """The id that an image would have now; empty for none."""
        return self.recorded.id if self.recorded is not None else ""


@dataclass(frozen=True, slots=True)
class Finished:
    """A stage that is built."""

    state: State
    arguments: Arguments


class Ended(BuildFailure):
    """A stage stops because the build has ended elsewhere."""


class Session:
    """See the module's text."""

    def __init__(
        self,
        backend: Backend,
        options: BuildOptions,
        context: BuildContext,
        plan: Stages,
        bases: list[From],
        arguments: Arguments,
        progress: Progress,
        cancelled: Cancelled,
        epoch: int | None,
        keys: list[str],
    ) -> None:
        self.backend = backend
        self.options = options
        self.context = context
        self.plan = plan
        self.bases = bases
        self.arguments = arguments
        self.progress = progress
        self.epoch = epoch
        """``SOURCE_DATE_EPOCH``, in seconds."""
        self.cache = BuildCache(backend.database)
        self.used: list[str] = []
        """Keys of the records that were found."""
        self.keys = keys
        """Keys of all records of this build, found or made."""
        self.downloads = Memory(self.cache, backend.layers, keys)
        self.began = time.time_ns()
        self.base_chains: set[str] = set()
        """The chain IDs of the layers of all base images."""
        self.elsewhere = backend.cache_sources()
        images = [text for text in options.cache_from if "=" not in text]
        self._allowed = self._stacks(images) if options.as_docker and images else None
        self._asked = cancelled
        self._changed = threading.Condition()
        self._finished: dict[int, Finished] = {}
        self._failure: BaseException | None = None
        self._slots = threading.Semaphore(options.jobs)
        self._contexts: dict[str, BuildContext] = {}
        self._contexts_lock = threading.Lock()

    # -- stages

    def cancelled(self) -> bool:
        """Whether to stop."""
        return self._failure is not None or self._asked()

    def check(self) -> None:
        """Raise if the build is to stop."""
        if self._failure is not None:
            raise Ended("Build cancelled")
        if self._asked():
            raise BuildFailure("Build cancelled")

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the slots inside the block."""
        while not self._slots.acquire(timeout=0.2):
            self.check()
        try:
            yield
        finally:
            self._slots.release()

    def finish(self, index: int, finished: Finished) -> None:
        """A stage is built."""
        with self._changed:
            self._finished[index] = finished
            self._changed.notify_all()

    def fail(self, failure: BaseException) -> None:
        """A stage can't be built; the first one to say so decides what the build fails with."""
        with self._changed:
            if self._failure is None and not isinstance(failure, Ended):
                self._failure = failure
            self._changed.notify_all()

    @property
    def failure(self) -> BaseException | None:
        """Why the build fails."""
        return self._failure

    def finished(self, index: int) -> Finished:
        """Another stage, when it is built; the caller holds a slot, which is free meanwhile."""
        with self._changed:
            found = self._finished.get(index)
        if found is not None:
            return found
        self._slots.release()
        try:
            with self._changed:
                while index not in self._finished and not self.cancelled():
                    self._changed.wait(0.2)
                found = self._finished.get(index)
        finally:
            self._slots.acquire()
        if found is None:
            self.check()
            raise Ended("Build cancelled")
        return found

    def stage_before(self, name: str, index: int) -> int | None:
        """The earlier stage of that name or number, unless a named context takes its place."""
        if name.lower() in self.options.contexts:
            return None
        found = self.plan.find(name)
        return found if found is not None and found < index else None

    def _stacks(self, images: Sequence[str]) -> set[str]:
        """The chain IDs of what the images are made of; one that is not here adds none."""
        found: set[str] = set()
        for name in images:
            config = self.backend.known(name)
            if config is not None:
                found.update(chain_ids(config.diff_ids))
        return found

    # -- files

    def lower(self, top: str | None) -> LowerTree:
        """The files of a stack."""
        return EmptyTree() if top is None else self.backend.layers.lower(top)

    def hold(self, chain: str) -> None:
        """Keep a layer that was found from being collected while the build lasts."""
        self.backend.layers.get(chain)
        self.backend.layers.keep(chain)

    def named_context(self, name: str) -> BuildContext | None:
        """The files that ``--build-context`` gives that name to; None if they are an image's."""
        given = self.options.contexts.get(name.lower(), "")
        if not given or given.startswith(IMAGE_CONTEXTS):
            return None
        with self._contexts_lock:
            if name not in self._contexts:
                self._contexts[name] = self.backend.context(given)
            return self._contexts[name]

    def named_image(self, name: str) -> str:
        """The image that a name stands for: its own, or what ``--build-context`` says."""
        given = self.options.contexts.get(name.lower(), "")
        return given.removeprefix(IMAGE_CONTEXT) if given.startswith(IMAGE_CONTEXTS) else name

    def found(self, key: str) -> Record | None:
        """The record of a step: of this engine, or brought in from a folder. Inside a lease."""
        with self.backend.database.transaction():
            record = self.cache.find(key)
            if record is not None and self._allowed is not None and record.top not in self._allowed:
                return None
            if record is not None and record.top is not None:
                self.hold(record.top)
        if record is not None:
            return record
        for folder in self.elsewhere:
            if key in folder:
                record = folder.take(key, self.cache, self.backend.layers)
                if record is not None:
                    return record
        return None

    def close(self) -> None:
        """Let go of named contexts."""
        for context in self._contexts.values():
            context.close()

    @property
    def latest(self) -> int | None:
        """The time that no file of the build may be later than, in nanoseconds."""
        return None if self.epoch is None else self.epoch * 1_000_000_000


IMAGE_CONTEXT = "docker-image://"
IMAGE_CONTEXTS = (IMAGE_CONTEXT, "oci-layout://")
"""What a named context begins with that is an image."""
