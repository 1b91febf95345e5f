"""Migration: everything goes from one storage driver to another, whenever it is killed."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path

import pytest

from layer.roots import Root, add_container, files_in, files_of, in_memory, ingest, tree_of
from storage.conftest import loop_mounted
from storage.killing import Arm, killed_at, steps
from tiffin.errors import Conflict
from tiffin.layer.checking import check
from tiffin.layer.migration import migrate
from tiffin.layer.store import LayerStore
from tiffin.storage.driver import StorageDriver
from tiffin.storage.drivers import DRIVERS, home
from tiffin.storage.overlay2 import Overlay2
from tiffin.storage.vfs import Vfs

pytestmark = pytest.mark.root

_CODE = ["layer/migration.py", "layer/collection.py", "storage/"]
_BASE = {"etc/passwd": "root", "data/a": "a", "data/b": "b"}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder for a root."""
    with in_memory(tmp_path / "memory") as folder:
        yield folder / "root"


def _still(_: Sequence[str]) -> AbstractContextManager[None]:
    return nullcontext()


def _fill(store: LayerStore, place: Path) -> list[str]:
    """Two families, containers on both, one on nothing, one whose files were committed."""
    base = ingest(store, _BASE)
    top = ingest(store, {"data/a": None, "data/c": "c"}, base)
    side = ingest(store, {"data": None, "side": "s"}, base)
    other = ingest(store, {"other": "o"})
    more = ingest(store, {"data/a": None, "data/c": "c"}, other)
    for key, layer in (("one", top), ("two", side), ("three", None), ("four", more)):
        add_container(store, key, layer)
        with tree_of(store, key, place) as tree:
            (tree / "own").write_text(key)
            if key == "one":
                (tree / "data/b").unlink()
                (tree / "etc/passwd").chmod(0o600)
            if key == "two":
                (tree / "etc/passwd").unlink()
                (tree / "etc").rmdir() if not os.listdir(tree / "etc") else None
    return [layer.chain_id for layer in (base, top, side, other, more)]


def _seen(store: LayerStore, chains: list[str], place: Path) -> dict[str, dict[str, str]]:
    found = {chain: files_in(store, store.get(chain), place) for chain in chains}
    for key in ("one", "two", "three", "four"):
        with tree_of(store, key, place) as tree:
            found[key] = files_of(tree)
    return found


def _tars(store: LayerStore, chains: list[str]) -> list[bytes]:
    tars = []
    for chain in chains:
        output = io.BytesIO()
        store.write_tar(store.get(chain), output)
        tars.append(output.getvalue())
    return tars


@pytest.mark.parametrize("kinds", [(Overlay2, Vfs), (Vfs, Overlay2)], ids=["to vfs", "to overlay2"])
def test_all_is_as_it_was_in_the_other_driver(
    place: Path, tmp_path: Path, kinds: tuple[type[StorageDriver], type[StorageDriver]]
) -> None:
    with Root(place, kinds[0]).open() as store:
        chains = _fill(store, tmp_path)
        seen, tars = _seen(store, chains, tmp_path), _tars(store, chains)
        old, new = store.driver, store.drivers.get(kinds[1].name)
        said: list[tuple[str, str]] = []
        moved = migrate(store, new, _still, lambda *what: said.append(what))
        assert moved == 5
        assert len([kind for kind, _ in said if kind == "container"]) == 4
        assert {store.get(chain).driver for chain in chains} == {new.name}
        assert {store.holder(key).name for key in ("one", "two", "three", "four")} == {new.name}
        assert _seen(store, chains, tmp_path) == seen
        assert _tars(store, chains) == tars
        assert list(old.keys()) == []
        assert migrate(store, new, _still, lambda *what: None) == 0
    with Root(place, kinds[1]).open() as store:
        assert _seen(store, chains, tmp_path) == seen
        rows = store.database.all("SELECT DISTINCT driver FROM snapshots")
        assert [row["driver"] for row in rows] == [kinds[1].name]
        store.database.execute("DELETE FROM containers")
        for key in ("one", "two", "three", "four"):
            store.remove_snapshot(key)
        store.collect([])
        assert os.listdir(store.layers_folder) == []


def test_a_migration_that_is_killed_goes_on_where_it_was(place: Path, tmp_path: Path) -> None:
    root = Root(place, Overlay2)
    with root.open() as store:
        chains = _fill(store, tmp_path)
        seen = _seen(store, chains, tmp_path)

    def live(arm: Arm) -> None:
        with root.open() as opened:
            arm()
            migrate(opened, opened.drivers.get("vfs"), _still, lambda *what: None)

    deaths = 0
    for step in steps():
        if not killed_at(step * 30, live, _CODE):
            break
        deaths += 1
        with root.open() as store:
            assert _seen(store, chains, tmp_path) == seen
    assert deaths > 3
    with root.open() as store:
        assert {store.get(chain).driver for chain in chains} == {"vfs"}
        assert _seen(store, chains, tmp_path) == seen


def _each_pair_once(names: list[str]) -> list[str]:
    """A round trip that goes from every one to every other exactly once."""
    left = {name: [other for other in names if other != name] for name in names}
    way, trip = [names[0]], []
    while way:
        if left[way[-1]]:
            way.append(left[way[-1]].pop())
        else:
            trip.append(way.pop())
    return trip[::-1]


def test_from_every_driver_to_every_other_through_a_kill_on_each_way(tmp_path: Path) -> None:
    with in_memory(tmp_path / "memory") as memory, loop_mounted("btrfs", memory) as disk:
        kinds = {kind.name: kind for kind, _, _ in DRIVERS if _works(kind, disk)}
        assert {"overlay2", "overlay", "btrfs", "vfs"} <= set(kinds)
        trip = _each_pair_once(list(kinds))
        with Root(disk / "root", kinds[trip[0]]).open() as store:
            chains = _fill(store, tmp_path)
            seen, tars = _seen(store, chains, tmp_path), _tars(store, chains)
        deaths = 0
        for number, (old, new) in enumerate(pairwise(trip)):
            root = Root(disk / "root", kinds[old])

            def go(arm: Arm, root: Root = root, new: str = new) -> None:
                with root.open() as opened:
                    arm()
                    migrate(opened, opened.drivers.get(new), _still, lambda *what: None)

            deaths += killed_at(400 * (1 + number % 7), go, _CODE)
            with root.open() as store:
                assert _seen(store, chains, tmp_path) == seen, f"killed on the way to {new}"
                migrate(store, store.drivers.get(new), _still, lambda *what: None)
                assert _seen(store, chains, tmp_path) == seen, f"from {old} to {new}"
                assert _tars(store, chains) == tars
                store.drivers.close()
                assert list(store.drivers.get(old).keys()) == []
        assert deaths > len(trip) // 2
        with Root(disk / "root", kinds[trip[-1]]).open() as store:
            report = check(store, repair=False, fetch=lambda _: nullcontext(None), say=_ignore)
            assert (report.layers, report.problems) == (5, [])
            store.drivers.close()


def _works(kind: type[StorageDriver], disk: Path) -> bool:
    return kind.probe(home(disk / "root", kind.name)).works


def _ignore(*_: object) -> None:
    """Nobody listens."""


def test_what_runs_is_left_alone(place: Path, tmp_path: Path) -> None:
    def refuse(keys: Sequence[str]) -> AbstractContextManager[None]:
        raise Conflict(f"{keys[0]} runs")

    with Root(place, Overlay2).open() as store:
        chains = _fill(store, tmp_path)
        seen = _seen(store, chains, tmp_path)
        with pytest.raises(Conflict, match="runs"):
            migrate(store, store.drivers.get("vfs"), refuse, lambda *what: None)
        assert _seen(store, chains, tmp_path) == seen
        store.prepare("step", chains[0], purpose="work")
        with pytest.raises(Conflict, match="being built"):
            migrate(store, store.drivers.get("vfs"), _still, lambda *what: None)
