"""What a pull has brought: which layers were new, what they cost, and which step made each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tiffin.engine.images import Image
from tiffin.image.reference import Reference

if TYPE_CHECKING:
    from tiffin.engine.pulling import LayerReport

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull has brought."""

    image: Image
    name: Reference
    digest: str
    """Of what the name stands for in the registry: an index, or a manifest."""
    previous: Image | None
    """What the name stood for before."""
    layers: list[LayerReport] = field(default_factory=list)

    @property
    def fresh(self) -> bool:
        """Whether the name stands for another image than before."""
        return self.previous is None or self.previous.id != self.image.id

    def why(self) -> JSON:
        """Which layers were new, what they cost, and which step made each."""
        rows = []
        for step, chain in self.image.config.steps():
            if chain is not None:
                rows.append(step.created_by)
        before = set(self.previous.config.diff_ids) if self.previous is not None else set()
        layers = []
        for number, report in enumerate(self.layers):
            layers.append(
                {
                    **report.document(),
                    "CreatedBy": rows[number] if number < len(rows) else "",
                    "Before": report.diff_id in before,
                }
            )
        return {
            "Name": self.name.familiar,
            "Image": self.image.id,
            "Previous": self.previous.id if self.previous is not None else "",
            "Digest": self.digest,
            "Layers": layers,
            "Fetched": sum(report.fetched for report in self.layers),
            "Size": sum(report.size for report in self.layers),
        }
