"""The end of layers: what is collected, and what is kept from it."""

from __future__ import annotations

import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layer.roots import (
    BASE,
    Root,
    Unreadable,
    files_in,
    ingest,
)
from tiffin.errors import (
    NotFound,
)
from tiffin.layer.store import LayerStore

pytestmark = pytest.mark.root


def test_collection_keeps_roots_and_what_they_rest_on(root: Root, tmp_path: Path) -> None:
    with root.open() as store:
        base = ingest(store, BASE)
        kept = ingest(store, {"kept": "x"}, base)
        picture = root.picture()
        first = ingest(store, {"doomed": "x"}, base)
        second = ingest(store, {"doomed too": "x"}, first)
        store.prepare("c", second.chain_id, mountpoints=True)
        assert store.collect([kept.chain_id]) == []
        store.remove_snapshot("c")
        assert set(store.collect([kept.chain_id])) == {first, second}
        assert root.picture() == picture
        assert files_in(store, kept, tmp_path) == {**BASE, "kept": "x"}
        with pytest.raises(NotFound):
            store.get(second.chain_id)
        assert set(store.collect([])) == {base, kept}
        assert root.picture()["keys"] == []
        again = ingest(store, BASE)
        assert files_in(store, again, tmp_path) == BASE


def test_collection_honours_what_the_database_names(store: LayerStore) -> None:
    layers = [ingest(store, {name: "x"}) for name in ("image", "container", "frozen", "cache")]
    image, container, frozen, cache = (layer.chain_id for layer in layers)
    database = store.database
    database.execute(
        "INSERT INTO images (id, config, top, size, created) VALUES ('i', x'', ?, 0, 0)", (image,)
    )
    database.execute(
        "INSERT INTO containers (id, name, image, base, frozen, snapshot, spec, state, created)"
        " VALUES ('c', 'c', 'i', ?, ?, 'c', x'', x'', 0)",
        (container, frozen),
    )
    database.execute(
        "INSERT INTO build_cache (key, step, parts, result, top, size, created, used, uses)"
        " VALUES ('k', '', x'', x'', ?, 0, 0, 0, 0)",
        (cache,),
    )
    assert store.collect([]) == []
    database.execute("DELETE FROM containers")
    assert set(store.collect([])) == {layers[1], layers[2]}


def test_a_shared_snapshot_stays_until_its_last_layer_goes(
    store: LayerStore, tmp_path: Path
) -> None:
    one, two = ingest(store, {"one": "1"}), ingest(store, {"two": "2"})
    shared = {"d/shared": "x"}
    on_one, on_two = ingest(store, shared, one), ingest(store, shared, two)
    store.collect([on_two.chain_id])
    assert files_in(store, on_two, tmp_path) == {"two": "2", **shared}
    store.collect([])
    assert list(store.driver.keys()) == []
    assert on_one.chain_id != on_two.chain_id


def test_a_lease_keeps_what_is_made_inside_it(store: LayerStore) -> None:
    old = ingest(store, {"old": "x"})
    unused = ingest(store, {"unused": "x"})
    with store.lease():
        with ThreadPoolExecutor(1) as pool:
            new = pool.submit(ingest, store, {"new": "x"}).result()
        found = store.ingest(Unreadable(), None, diff_id=old.diff_id)  # type: ignore[arg-type]
        assert found == old
        assert store.collect([]) == [unused]
    assert set(store.collect([])) == {old, new}


def test_ingest_and_collection_at_once(store: LayerStore, tmp_path: Path) -> None:
    """What is made under a lease stays, whoever collects meanwhile."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def collecting() -> None:
        while not stop.is_set():
            try:
                store.collect([])
            except BaseException as error:
                failures.append(error)
                return

    thread = threading.Thread(target=collecting)
    thread.start()
    try:

        def work(number: int) -> None:
            for turn in range(6):
                with store.lease():
                    base = ingest(store, {"base": "x"})
                    top = ingest(store, {f"top{number % 2}": str(turn)}, base)
                    key = f"c{number}-{turn}"
                    store.prepare(key, top.chain_id, mountpoints=True)
                    with store.own_directory(key) as directory:
                        (directory / "own").write_text(key)
                    layer = store.commit(key, top.chain_id)
                    assert len(store.chain(layer.chain_id)) == 3
                    for each in store.chain(layer.chain_id):
                        store.write_tar(each, io.BytesIO())

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    finally:
        stop.set()
        thread.join()
    assert not failures
    store.collect([])
    assert list(store.driver.keys()) == []
    assert os.listdir(store.layers_folder) == []
