"""One layer in its place in a stack, as the database knows it."""

from __future__ import annotations

from dataclasses import dataclass

from tiffin.store.database import Row


@dataclass(frozen=True, slots=True)
class Layer:
    """See the module's text."""

    chain_id: str
    diff_id: str
    parent: str | None
    """The chain ID of what it lies on, None at the bottom."""
    snapshot: str
    """The storage driver's key; other layers of the same driver may share it."""
    driver: str
    """The name of the storage driver that holds it."""
    tar_size: int
    """Bytes of the uncompressed tar."""
    size: int
    """Bytes of its own files, as ``Usage.size``."""

    @classmethod
    def of(cls, row: Row) -> Layer:
        """The layer of a row of ``layers``."""
        return cls(
            row["chain_id"],
            row["diff_id"],
            row["parent"],
            row["snapshot"],
            row["driver"],
            row["tar_size"],
            row["size"],
        )
