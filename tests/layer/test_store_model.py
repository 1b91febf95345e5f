"""Random lives of a layer store, compared with a model of dictionaries."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from layer.roots import Files, Root, files_of, in_memory, ingest, tree_of
from tiffin.errors import NotFound
from tiffin.layer.store import Layer, LayerStore
from tiffin.storage.driver import StorageDriver
from tiffin.storage.overlay2 import Overlay2
from tiffin.storage.vfs import Vfs

pytestmark = pytest.mark.root

_PATHS = st.sampled_from(["a", "b", "d/a", "d/b", "d/e/f"])
_LAYERS = st.dictionaries(_PATHS, st.sampled_from(["one", "two", None]), max_size=4)


def _over(below: Mapping[str, str], files: Files) -> dict[str, str]:
    """What a stack shows with one more layer."""
    merged = dict(below)
    for path, content in files.items():
        if content is None:
            merged.pop(path, None)
        else:
            merged[path] = content
    return merged


class Life(RuleBasedStateMachine):
    """Layers come by tar and from containers, go by collection, and the store is reopened."""

    kind: type[StorageDriver]
    memory: Path
    stacks = Bundle("stacks")
    containers = Bundle("containers")

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(dir=self.memory))
        self.root = Root(self.place / "root", self.kind)
        self.opened = self.root.open()
        self.store: LayerStore = self.opened.__enter__()
        # What each chain ID shows, and its layers; None is the empty stack.
        self.shown: dict[str | None, dict[str, str]] = {None: {}}
        self.layers: dict[str, Layer] = {}
        # What each container shows, and its stack.
        self.living: dict[str, tuple[str | None, dict[str, str]]] = {}
        self.number = 0

    def teardown(self) -> None:
        self.opened.__exit__(None, None, None)
        shutil.rmtree(self.place)

    @initialize(target=stacks)
    def nothing(self) -> None:
        return None

    def _learn(self, layer: Layer, shown: dict[str, str]) -> str:
        self.shown[layer.chain_id] = shown
        self.layers[layer.chain_id] = layer
        return layer.chain_id

    @rule(target=stacks, parent=stacks, files=_LAYERS, again=st.booleans())
    def arrive(self, parent: str | None, files: dict[str, str | None], again: bool) -> object:
        if parent not in self.shown:
            with pytest.raises(NotFound):
                ingest(self.store, files, Layer(parent or "", "", None, "", "", 0, 0))
            return multiple()
        below = self.layers[parent] if parent else None
        layer = ingest(self.store, files, below)
        assert layer.size == sum(len(content or "") for content in files.values())
        if again:
            assert ingest(self.store, files, below) == layer
        return self._learn(layer, _over(self.shown[parent], files))

    @rule(target=containers, parent=stacks, files=_LAYERS)
    def run(self, parent: str | None, files: dict[str, str | None]) -> object:
        if parent not in self.shown:
            with pytest.raises(NotFound):
                self.store.prepare("c", parent, mountpoints=True)
            return multiple()
        self.number += 1
        key = f"c{self.number}"
        self.store.prepare(key, parent, mountpoints=True)
        shown = self.shown[parent]
        with tree_of(self.store, key, self.place) as tree:
            for path, content in files.items():
                if content is not None:
                    (tree / path).parent.mkdir(parents=True, exist_ok=True)
                    (tree / path).write_text(content)
                elif path in shown:
                    (tree / path).unlink()
        self.living[key] = (parent, _over(shown, files))
        return key

    @rule(target=stacks, key=consumes(containers))
    def commit(self, key: str) -> object:
        if key not in self.living:
            return multiple()
        parent, shown = self.living.pop(key)
        layer = self.store.commit(key, parent)
        with pytest.raises(NotFound):
            self.store.mounts(key)
        return self._learn(layer, shown)

    @rule(target=stacks, key=containers)
    def commit_a_copy(self, key: str) -> object:
        if key not in self.living:
            return multiple()
        parent, shown = self.living[key]
        return self._learn(self.store.commit_copy(key, parent), shown)

    @rule(key=consumes(containers))
    def remove(self, key: str) -> None:
        self.living.pop(key, None)
        self.store.remove_snapshot(key)

    @rule(roots=st.lists(stacks, max_size=3))
    def collect(self, roots: list[str | None]) -> None:
        pending = [root for root in roots if root in self.layers]
        pending += [parent for parent, _ in self.living.values() if parent]
        kept: set[str] = set()
        while pending:
            chain = pending.pop()
            if chain is not None and chain not in kept:
                kept.add(chain)
                pending.append(self.layers[chain].parent)
        removed = self.store.collect([root for root in roots if root is not None])
        assert {layer.chain_id for layer in removed} == self.layers.keys() - kept
        self.layers = {chain: self.layers[chain] for chain in kept}
        self.shown = {chain: self.shown[chain] for chain in (None, *kept)}

    @rule()
    def reopen(self) -> None:
        """A new start: containers without a row (there are no rows here) are gone."""
        self.opened.__exit__(None, None, None)
        self.opened = self.root.open()
        self.store = self.opened.__enter__()
        self.living.clear()

    @rule(chain=stacks)
    def look(self, chain: str | None) -> None:
        if chain is None or chain not in self.shown:
            return
        shown = self.shown[chain]
        for path in ("a", "d/a", "d/e/f", "d"):
            entry = self.store.lookup(chain, path.encode())
            if path in shown:
                assert entry is not None
                assert entry.size == len(shown[path])
        self.store.prepare("look", chain)
        with tree_of(self.store, "look", self.place) as tree:
            assert files_of(tree, mountpoints=True) == shown
        self.store.remove_snapshot("look")
        output = io.BytesIO()
        self.store.write_tar(self.layers[chain], output)
        assert len(output.getvalue()) == self.layers[chain].tar_size

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        for chain, layer in self.layers.items():
            assert self.store.get(chain) == layer
            assert self.store.size(chain) == sum(each.size for each in self.store.chain(chain))
        layer_keys = {layer.snapshot for layer in self.layers.values()}
        keys = {key for key in list(self.store.driver.keys()) if not key.startswith("i")}
        assert keys == layer_keys | self.living.keys()
        picture = self.root.picture()
        assert picture["trash"] == picture["work folder"] == picture["moves"] == []


@pytest.mark.parametrize("kind", [Overlay2, Vfs], ids=lambda kind: kind.name)
def test_random_lives(kind: type[StorageDriver], tmp_path: Path) -> None:
    with in_memory(tmp_path / "memory") as memory:
        case = type("Case", (Life,), {"kind": kind, "memory": memory}).TestCase
        case.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
        case("runTest").runTest()
