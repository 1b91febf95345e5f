"""What a container changed: ``docker diff``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tiffin.layer.entry import Entry
from tiffin.layer.lower import Lower


class Change(NamedTuple):
    """One line of ``docker diff``."""

    kind: str
    """``A`` added, ``C`` changed, ``D`` deleted."""
    path: bytes
    """As ``Entry.path``."""


def changes(layers: Sequence[Iterable[Entry]], lower: Lower | None) -> list[Change]:
    """How the layers (the lowest first) differ from ``lower``, sorted by path.

    Each layer is given by its entries: ``Index.effective()`` or ``capture.own_entries(...)``.
    """
    raise NotImplementedError
