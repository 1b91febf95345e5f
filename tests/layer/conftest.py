"""What the tests of layers share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from layer.tars import Layer
from tiffin.layer.lower import Lower
from tiffin.storage.driver import Whiteouts


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
