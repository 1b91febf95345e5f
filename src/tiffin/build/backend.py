"""What the builder needs of the engine: images, layers, and a place to run a command."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from tiffin.build.tree import LowerTree
from tiffin.image.config import ImageConfig
from tiffin.layer.layer import Layer
from tiffin.layer.writer import LayerWriter
from tiffin.store.database import Database

Output = Callable[[bytes], None]
Cancelled = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class RunStep:
    """A RUN that must be executed."""

    container_id: str
    """64 hex digits, for the container that it runs in; the build's output has shown it."""
    top: str | None
    """The chain ID of the stack that it runs on."""
    args: list[str]
    env: list[str]
    """The image's variables and the build arguments; the engine adds its defaults (PATH, HOME)."""
    working_directory: str
    """Absolute; made if it is missing."""
    user: str
    network_mode: str
    """``default``, ``none`` or ``host``."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a RUN ended."""

    exit_code: int
    layer: Layer | None
    """What it changed, as a layer on ``top``; only where the exit code is 0."""


class Layers(Protocol):
    """The part of :class:`tiffin.layer.store.LayerStore` that the builder uses."""

    def write(self, parent: str | None, fill: Callable[[LayerWriter], None]) -> Layer:
        """A layer made of entries."""

    def get(self, chain_id: str) -> Layer:
        """The layer of that chain ID; raises NotFound."""

    def lower(self, chain: str | None) -> LowerTree:
        """The merged view of a stack."""

    def lease(self) -> AbstractContextManager[None]:
        """Keep what is made inside the block from collection."""

    def keep(self, chain_id: str) -> None:
        """Tell the leases of a layer that was found, so that they keep it too."""


class Backend(Protocol):
    """What the engine implements."""

    @property
    def database(self) -> Database:
        """Where the build cache is."""

    @property
    def layers(self) -> Layers:
        """The layer store."""

    def image(self, reference: str, platform: str) -> ImageConfig:
        """The configuration of an image that is here, by name or id.

        ``platform`` is empty or as in ``--platform``. Raises NotFound with what to do.
        """

    def run_step(self, step: RunStep, output: Output, cancelled: Cancelled) -> RunResult:
        """Run a command to its end. Stdout and stderr go to ``output`` as they come.

        Nothing is left of the container afterwards, whatever happens. Raises StartFailure, whose
        exit code counts as the command's.
        """

    def save_image(self, config: ImageConfig, top: str | None, tags: list[str]) -> str:
        """Store an image, give it its names (``familiar`` references), and return its id."""
