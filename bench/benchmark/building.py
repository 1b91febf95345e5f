"""Builds beside BuildKit: whole commands, warm, touched and cold."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmark.engines import Client, Tiffin
from benchmark.materials import SMALL_FILES, Materials
from benchmark.measurement import Comparison, Measure, Role, Side, seconds
from benchmark.stage import Case, Stage, ratio_of, role, with_cpu

RESULT = "benchmark-result"
_THIRD, _HALF = "≤ 1/3", "≤ 1/2"


def _builders(stage: Stage) -> list[Client]:
    """tiffin by both of its clients, and the BuildKit of every peer."""
    found: list[Client] = []
    for engine in stage.engines:
        if isinstance(engine, Tiffin):
            found += engine.clients
        elif engine.buildkit is not None:
            found.append(engine.buildkit)
    return found


def _forget_all(client: Client) -> None:
    """Leave nothing of earlier builds, neither in BuildKit's cache nor in tiffin's."""
    client("rmi", "-f", RESULT, check=False)
    client("image", "prune", "-f")
    if isinstance(client.engine, Tiffin):
        client = client.engine.clients[0]
    client("builder", "prune", "-a", "-f")


def _case(
    title: str,
    context: Callable[[Materials], Path],
    ratio: float,
    text: str,
    *,
    cold: bool = False,
    change: Callable[[Path, int], None] | None = None,
    runs_nothing: bool = False,
) -> Case:
    """Whole ``build`` commands beside BuildKit's: cold ones, or each after ``change``.

    Where the build runs no command, which would be nobody's own, CPU time is told too: on a
    machine with much else to do it says more than the time on the clock.
    """

    @contextmanager
    def case(stage: Stage) -> Iterator[list[Comparison]]:
        stage.ensure("busybox")
        folder = context(stage.materials)
        numbers = itertools.count()
        sides = []
        for client in _builders(stage):

            def before(client: Client = client) -> None:
                if cold:
                    _forget_all(client)
                    _renew(folder)
                if change is not None:
                    change(folder, next(numbers))

            words = ["build", "--network", "none", "-t", RESULT, str(folder)]
            if not cold:
                client(*words)
            kind = Role.PEER if not client.engine.tiffin else role(client)
            once = with_cpu(client, *words) if runs_nothing else seconds(partial(client, *words))
            sides.append(Side(client.label, kind, once, before))
        # The docker command sends what tiffin's reads in place: no target for that.
        kinds = (Role.TIFFIN, *(() if ratio == 1 / 3 else (Role.DOCKER_TO_TIFFIN,)))
        targets = tuple(ratio_of(kind, ratio, text) for kind in kinds)
        measures = [Measure("time", title, "s" if cold or change else "ms", targets)]
        if runs_nothing:
            measures.append(Measure("cpu", "the same: CPU time of client and daemon", "s"))
        yield [Comparison(tuple(measures), sides)]
        for client in _builders(stage):
            _forget_all(client)

    return case


def _renew(context: Path) -> None:
    """Move every file's time of change, so that nobody knows its content from before."""
    for path in context.rglob("*"):
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _touch(context: Path, number: int) -> None:
    """Change one byte of one file, to something that it has not been in this run."""
    content = bytearray(context.joinpath("folder50", "file10000").read_bytes())
    content[:8] = b"%08d" % (number + int(time.time()) % 1_000_000 * 10)
    context.joinpath("folder50", "file10000").write_bytes(content)


steps = _case("`build` of twelve steps, warm: whole command", Materials.steps, 1 / 2, _HALF)
touch_one = _case(
    f"`build` after one of {SMALL_FILES:,} files of the context has changed",
    Materials.many,
    1 / 3,
    _THIRD,
    change=_touch,
    runs_nothing=True,
)
two_stages = _case(
    "`build` of two independent stages, cold", Materials.two_stages, 1.0, "≤ 1", cold=True
)
copy_many = _case(
    f"`build` with a COPY of {SMALL_FILES:,} small files, cold",
    Materials.many,
    1 / 3,
    _THIRD,
    cold=True,
    runs_nothing=True,
)
copy_large = _case(
    "`build` with a COPY of a file of 1 GiB, cold",
    Materials.one_large,
    1 / 3,
    _THIRD,
    cold=True,
    runs_nothing=True,
)
