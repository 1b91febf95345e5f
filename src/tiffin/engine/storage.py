"""The verbs on storage drivers: migrate, check, benchmark."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiffin.engine.root import Root
from tiffin.engine.roster import Roster
from tiffin.errors import Conflict, TiffinError
from tiffin.layer.store import LayerStore
from tiffin.storage import drivers

if TYPE_CHECKING:
    from tiffin.engine.registries import Registries
    from tiffin.layer.checking import Problem
    from tiffin.registry.credentials import Credentials

JSON = dict[str, Any]
Progress = Callable[[JSON], None]

_WORDS = {"layer": "Copying layer", "container": "Copying container", "family": "Moving stack"}


class Storage:
    """See the module's text. Messages are Docker's progress: ``status``, with an ``id``."""

    def __init__(
        self,
        root: Root,
        roster: Roster,
        layers: LayerStore,
        registries: Callable[[], Registries],
    ) -> None:
        self._root = root
        self._roster = roster
        self._layers = layers
        self._registries = registries

    def migrate(self, to: str, settings: Sequence[str] = (), say: Progress | None = None) -> int:
        """Move all images and containers to another storage driver, which takes what is new from
        now on; the number of layers that moved.

        What was interrupted goes on where it was. Raises InvalidParameter (no such driver, or it
        does not work here), Conflict (something runs), StorageFull.
        """
        from tiffin.layer.migration import migrate

        tell = say or (lambda message: None)
        kind = drivers.find(to)
        target = self._layers.drivers.get(kind.name)
        options = drivers.parse_settings(settings)
        support = drivers.probe(kind, target.home, options or target.options)
        if not support.works:
            raise drivers.refusal(kind.name, self._root.path, support)
        if options and options != dict(target.options):
            target.options = options
        if running := [one.name for one in self._roster.all() if one.active]:
            raise Conflict(
                f"containers run: {', '.join(sorted(running)[:5])}: stop them, and migrate then"
            )
        self._layers.drivers.choose(target)
        target.why = "everything was migrated to it"
        moved = migrate(
            self._layers,
            target,
            self._still,
            lambda what, name: tell({"status": _WORDS[what], "id": _short(name)}),
        )
        tell({"status": f"{moved} layers have moved to {target.name}; their digests were verified"})
        return moved

    @contextmanager
    def _still(self, keys: Sequence[str]) -> Iterator[None]:
        """Inside the block the containers of these snapshots don't start."""
        wanted = set(keys)
        with ExitStack() as locks:
            for container in sorted(self._roster.all(), key=lambda one: one.id):
                if container.snapshot not in wanted:
                    continue
                locks.enter_context(container.lock)
                if container.active:
                    raise Conflict(f"container {container.name} runs: stop it, and migrate then")
            yield

    def check(
        self,
        *,
        repair: bool = False,
        credentials: Mapping[str, Credentials] | None = None,
        say: Progress | None = None,
    ) -> JSON:
        """Compare every layer with its index; with ``repair``, put right what can be.

        ``credentials`` of registries are by host. Gives the numbers of layers, files, bytes,
        problems and of those repaired. Raises Conflict if something runs that is to be repaired.
        """
        from tiffin.layer.checking import check

        tell = say or (lambda message: None)
        if repair and any(one.active for one in self._roster.all()):
            raise Conflict("containers run: stop them before layers are repaired")

        def heard(layer: str, problem: Problem | None) -> None:
            if problem is None:
                tell({"status": "Checking", "id": _short(layer)})
                return
            ending = f": repaired from {problem.repaired}" if problem.repaired else ""
            where = f"/{problem.path}" if problem.path else "the layer"
            tell(
                {
                    "status": f"{where} ({problem.driver}): {problem.what}{ending}",
                    "id": _short(layer),
                }
            )

        fetch = partial(self._registries().packed_layer, credentials=credentials)
        report = check(self._layers, repair=repair, fetch=fetch, say=heard)
        problems = report.problems or []
        if repair and problems:
            # Trees that were joined of them, and what is kept of their stacks.
            self._layers.forget([])
            self._layers.drivers.close()
        repaired = sum(bool(problem.repaired) for problem in problems)
        tell(
            {
                "status": f"{report.layers} layers, {report.files} files, {report.size} bytes: "
                f"{len(problems)} problems, {repaired} repaired"
            }
        )
        return {
            "Layers": report.layers,
            "Files": report.files,
            "Size": report.size,
            "Problems": len(problems),
            "Repaired": repaired,
        }

    def benchmark(self, *, short: bool = False, say: Progress | None = None) -> JSON:
        """Measure the drivers that work here on the disk of the root, and recommend one."""
        from tiffin.storage import benchmark

        tell = say or (lambda message: None)
        place = Path(tempfile.mkdtemp(prefix="benchmark", dir=self._root.path / "work"))
        results: dict[str, benchmark.Figures] = {}
        try:
            for kind, _, _ in drivers.DRIVERS:
                home = drivers.home(place, kind.name)
                support = drivers.probe(kind, home, benchmark.SETTINGS.get(kind.name))
                if not support.works:
                    tell({"status": f"left out: {support.reason}", "id": kind.name})
                    continue
                tell({"status": "measuring", "id": kind.name})
                try:
                    results[kind.name] = benchmark.measure(kind, home, short=short)
                except (OSError, TiffinError) as error:
                    tell({"status": f"left out: {error}", "id": kind.name})
        finally:
            shutil.rmtree(place, ignore_errors=True)
        best = benchmark.recommend(results)
        for line in benchmark.table(results):
            tell({"status": line})
        tell({"status": f"recommended here: {best}"})
        return {
            "Recommended": best,
            "Figures": {name: dict(found) for name, found in results.items()},
        }


def _short(name: str) -> str:
    return name.removeprefix("sha256:")[:12]
