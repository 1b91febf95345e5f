"""What the tests of layers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layer.roots import Root, in_memory
from layer.tars import Layer
from tiffin.layer.lower import Lower
from tiffin.layer.store import LayerStore
from tiffin.storage.driver import Whiteouts
from tiffin.storage.overlay2 import Overlay2
from tiffin.storage.vfs import Vfs


@pytest.fixture
def layer(tmp_path: Path) -> Callable[..., Layer]:
    """Makes layers, each in a directory of its own."""
    count = 0

    def make(
        tar: bytes, whiteouts: Whiteouts = Whiteouts.OVERLAY, lower: Lower | None = None
    ) -> Layer:
        nonlocal count
        count += 1
        return Layer(tmp_path / f"layer{count}", tar, whiteouts, lower)

    return make


@pytest.fixture(params=[Overlay2, Vfs], ids=lambda kind: kind.name)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Root]:
    """An empty root, on each driver."""
    with in_memory(tmp_path / "memory") as place:
        yield Root(place / "root", request.param)


@pytest.fixture
def store(root: Root) -> Iterator[LayerStore]:
    """The store of that root."""
    with root.open() as opened:
        yield opened
