"""What the builder needs of the engine: images, layers, and a place to run a command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tiffin.build.cache import BuildCache, Record
from tiffin.build.context import BuildContext
from tiffin.build.tree import LowerTree
from tiffin.build.turns import Turns
from tiffin.image.config import ImageConfig
from tiffin.layer.layer import Layer
from tiffin.layer.writer import LayerWriter
from tiffin.store.database import Database

Output = Callable[[bytes, bool], None]
"""Takes what a command prints; True: on stderr."""
Cancelled = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class StepMount:
    """What is lent to a command: see :mod:`tiffin.build.mounts`."""

    kind: str
    """``layer`` (files of a layer that lies on nothing), ``tree`` (a directory of a whole stack),
    ``cache``, ``tmpfs``, ``file`` (content at hand: a script, a secret) or ``socket``."""
    target: str
    readonly: bool = True
    chain: str | None = None
    """The layer or stack; for a cache the layer that a new folder is filled from."""
    path: bytes = b""
    """What of the layer or stack."""
    content: bytes = b""
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    id: str = ""
    sharing: str = "shared"
    size: int = 0
    socket: str = ""
    """The host's path of a socket."""
    secret: bool = False
    """Whether ``content`` must not reach a disk."""


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
    """As in ``HostConfig``: ``default``, ``none``, ``host``, ``container:NAME``, a network."""
    mounts: tuple[StepMount, ...] = ()
    host: Mapping[str, Any] = field(default_factory=dict)
    """More of Docker's ``HostConfig``: limits, hosts, ulimits."""
    insecure: bool = False
    """Whether it runs with all privileges (``--security=insecure``)."""
    hostname: str = ""
    latest: int | None = None
    """Files that it makes get no later time than this (nanoseconds)."""
    keep: ImageConfig | None = None
    """If the command fails, its container stays, as one of an image of this configuration."""
    terminal: bool = False
    """Whether the shell of a container that stays has a terminal."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Secrets as variables: no container that stays has them."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a RUN ended."""

    exit_code: int
    layer: Layer | None
    """What it changed, as a layer on ``top``; only where the exit code is 0."""
    kept: str = ""
    """The container that stays, after a failure, if that was asked."""


class Layers(Protocol):
    """The part of :class:`tiffin.layer.store.LayerStore` that the builder uses."""

    def write(
        self, parent: str | None, fill: Callable[[LayerWriter], None], *, model: str | None = None
    ) -> Layer:
        """A layer made of entries; ``model`` is the chain ID of one that it may be much like."""

    def get(self, chain_id: str) -> Layer:
        """The layer of that chain ID; raises NotFound."""

    def ingest(self, tar: BinaryIO, parent: str | None, *, diff_id: str | None = None) -> Layer:
        """The layer that a tar holds, compressed or not."""

    def write_tar(self, layer: Layer, output: int | BinaryIO) -> None:
        """Write a layer's tar, byte for byte."""

    def lower(self, chain: str | None) -> LowerTree:
        """The merged view of a stack."""

    def lease(self) -> AbstractContextManager[None]:
        """Keep what is made inside the block from collection."""

    def known(self, parent: str | None, diff_id: str) -> Layer | None:
        """The layer of that diff ID on ``parent``, if it can be had without its tar."""

    def keep(self, chain_id: str) -> None:
        """Tell the leases of a layer that was found, so that they keep it too."""


class CacheSource(Protocol):
    """A cache outside of the engine."""

    def __contains__(self, key: str) -> bool:
        """Whether it has a step."""

    def take(self, key: str, cache: BuildCache, layers: Layers) -> Record | None:
        """Bring a step's layers and its record into the engine; None if that can't be done."""


class Backend(Protocol):
    """What the engine implements."""

    @property
    def database(self) -> Database:
        """Where the build cache is."""

    @property
    def layers(self) -> Layers:
        """The layer store."""

    @property
    def turns(self) -> Turns:
        """What lets builds at the same time make a step once."""

    @property
    def work(self) -> Path | None:
        """Where temporary files go."""

    def context(self, where: str) -> BuildContext:
        """What a named context is: a folder of this machine, a URL of an archive or a file, or a
        git repository."""

    def cache_sources(self) -> list[CacheSource]:
        """The caches outside of the engine that the build may take steps from."""

    def inline_cache(self, config: ImageConfig, keys: list[str]) -> ImageConfig:
        """The configuration with the cache of its steps inside, if that was asked for."""

    def export_cache(self, keys: list[str], final: list[str], bases: set[str]) -> None:
        """Write the caches that were asked for. ``keys`` are those of all steps, ``final`` those
        that the image is made of, ``bases`` the chain IDs of base images."""

    def image(self, reference: str, platform: str, *, pull: bool = False) -> ImageConfig:
        """The configuration of an image, by name or id; ``pull`` asks its registry first.

        ``platform`` is empty or as in ``--platform``; the reference may be ``oci-layout://`` and a
        folder. Raises NotFound with what to do.
        """

    def known(self, reference: str) -> ImageConfig | None:
        """The configuration of an image that is here, by name or id."""

    def run_step(self, step: RunStep, output: Output, cancelled: Cancelled) -> RunResult:
        """Run a command to its end. Stdout and stderr go to ``output`` as they come.

        Nothing is left of the container afterwards, whatever happens. Raises StartFailure, whose
        exit code counts as the command's.
        """

    def save_image(self, config: ImageConfig, top: str | None, tags: list[str]) -> str:
        """Store an image, give it its names (``familiar`` references), and return its id."""
