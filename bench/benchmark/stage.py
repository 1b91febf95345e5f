"""The stage: the engines and materials that cases play with, and what a case is."""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmark.engines import Client, Engine, Podman, Tiffin
from benchmark.materials import Materials
from benchmark.measurement import Comparison, Role, Target, seconds

BIG_ROOT = "ubuntu:18.04"


@dataclass(slots=True)
class Stage:
    """What cases play on."""

    folder: Path
    materials: Materials
    engines: list[Engine]

    def clients(self, *, same_program: bool = False, podman: bool = True) -> list[Client]:
        """Every way to reach an engine; ``same_program``: by the docker CLI alone."""
        found = []
        for engine in self.engines:
            if isinstance(engine, Podman) and not podman:
                continue
            for client in engine.clients:
                if not (same_program and client.label in ("tiffin",)):
                    found.append(client)
        return found

    def ensure(self, image: str) -> None:
        """Have the image in every engine."""
        tar = self.materials.busybox() if image == "busybox" else self.materials.debian()
        for engine in self.engines:
            client = engine.clients[0]
            if not client("images", "-q", image).strip():
                client("import", str(tar), image)

    def absent(self, image: str) -> None:
        """Have the image, and its layer, in no engine: else it would be found, and not made."""
        for engine in self.engines:
            engine.clients[0]("rmi", "-f", image, check=False)
            if isinstance(engine, Tiffin):
                engine.clients[0]("builder", "prune", "-a", "-f")


def role(client: Client) -> Role:
    """What a client's side is."""
    if isinstance(client.engine, Podman):
        return Role.INFORMATIVE
    if isinstance(client.engine, Tiffin):
        return Role.TIFFIN if client.label == "tiffin" else Role.DOCKER_TO_TIFFIN
    return Role.PEER


def run_words(client: Client) -> list[str]:
    """Podman would raise limits, which not every machine lets even root do."""
    if not isinstance(client.engine, Podman):
        return []
    return ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]


Case = Callable[[Stage], AbstractContextManager[list[Comparison]]]


def ratio_of(role: Role, ratio: float, text: str) -> Target:
    return Target(role, ratio=ratio, text=text)


def with_cpu(client: Client, *words: str) -> Callable[[], dict[str, float]]:
    """How long a command takes, on the clock and of the processors."""

    def taken() -> float:
        own = resource.getrusage(resource.RUSAGE_CHILDREN)
        return own.ru_utime + own.ru_stime + client.engine.cpu_seconds()

    def measure() -> dict[str, float]:
        before = taken()
        numbers = seconds(partial(client, *words))()
        return {**numbers, "cpu": taken() - before}

    return measure
