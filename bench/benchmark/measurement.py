"""Measuring several sides of one thing in turn.

A *case* is something that people do (run a container, commit one). A *side* is one way to do it:
an engine through one of its clients. Sides are measured in alternation (A B C, A B C, …) after one
round that does not count, so that what disturbs the machine disturbs all of them. A *measure* is
one number that each round gives (seconds, bytes); a *target* bounds a measure of one kind of side,
as a ratio to every peer, or by itself.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum

from benchmark.machine import settle


class Role(Enum):
    """What a side is."""

    TIFFIN = "tiffin"
    LIBRARY = "library"
    DOCKER_TO_TIFFIN = "docker CLI → tiffin"
    API = "API of tiffin"
    PEER = "peer"
    INFORMATIVE = "informative"
    """A peer that no target refers to."""


def _nothing() -> None:
    pass


@dataclass(slots=True)
class Side:
    """One way to do the case's thing. ``measure`` gives a number for each measure's name."""

    label: str
    role: Role
    measure: Callable[[], dict[str, float]]
    before: Callable[[], object] = _nothing
    after: Callable[[], object] = _nothing


@dataclass(frozen=True, slots=True)
class Target:
    """At most ``ratio`` times every peer, or at most ``limit`` in the measure's unit."""

    role: Role
    ratio: float | None = None
    limit: float | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Measure:
    """One number that a round gives."""

    name: str
    title: str
    unit: str
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """A case made ready: its sides, and what is measured of them."""

    measures: tuple[Measure, ...]
    sides: list[Side]
    warm: bool = True
    """Whether a round that does not count comes first."""


@dataclass(slots=True)
class Result:
    """The numbers of one side for one measure."""

    side: str
    role: Role
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(slots=True)
class Outcome:
    """All results of one measure of one case."""

    case: str
    measure: Measure
    results: list[Result]


Prepare = Callable[[], AbstractContextManager[list[Comparison]]]


def seconds(work: Callable[[], object]) -> Callable[[], dict[str, float]]:
    """A measure named ``time``: how long ``work`` takes."""

    def measure() -> dict[str, float]:
        start = time.perf_counter()
        work()
        return {"time": time.perf_counter() - start}

    return measure


def alternate(
    case: str, comparison: Comparison, runs: int, progress: Callable[[str], None]
) -> Iterator[Outcome]:
    """Measure all sides ``runs`` times, as a rule after one round that does not count."""
    results = {
        measure.name: [Result(side.label, side.role) for side in comparison.sides]
        for measure in comparison.measures
    }
    for number in range(0 if comparison.warm else 1, runs + 1):
        for position, side in enumerate(comparison.sides):
            progress(f"{case}: round {number} of {runs}: {side.label}")
            side.before()
            settle()
            try:
                values = side.measure()
            finally:
                side.after()
            if number:
                for name, value in values.items():
                    results[name][position].values.append(value)
    for measure in comparison.measures:
        yield Outcome(case, measure, results[measure.name])
