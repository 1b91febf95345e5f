"""How much a registry saves by keeping each layer once: the numbers, and a page of them.

*Referenced* is what all images would take if each had its layers to itself; *stored* is what is on
the disk for them.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from typing import Any

from tiffin.image.manifest import INDEX_TYPES, is_distributable
from tiffin.registry.storage import Storage
from tiffin.units import human_size

_SHOWN = 25
"""Layers."""
_NAMED = 5
"""Repositories of each."""


@dataclass(frozen=True, slots=True)
class SharedLayer:
    """A layer, and the images (manifests, as ``name@digest``) that have it."""

    digest: str
    size: int
    images: tuple[str, ...]
    repositories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """See the module's text."""

    repositories: int
    images: int
    tags: int
    referenced: int
    stored: int
    layers: tuple[SharedLayer, ...]
    """Those that save most first."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "repositories": self.repositories,
            "images": self.images,
            "tags": self.tags,
            "bytesReferenced": self.referenced,
            "bytesStored": self.stored,
            "bytesSaved": self.referenced - self.stored,
            "layers": [
                {
                    "digest": layer.digest,
                    "size": layer.size,
                    "images": len(layer.images),
                    "repositories": list(layer.repositories),
                    "bytesSaved": layer.size * (len(layer.images) - 1),
                }
                for layer in self.layers[:_SHOWN]
            ],
        }


def measure(storage: Storage) -> Report:
    """Read every manifest, and add up."""
    sizes: dict[str, int] = {}
    users: dict[str, set[str]] = {}
    places: dict[str, set[str]] = {}
    images: set[str] = set()
    referenced = tags = 0
    names = storage.repositories()
    for name in names:
        tags += len(storage.tags(name))
        for digest in storage.manifests(name):
            try:
                document = json.loads(storage.bytes_of(digest))
            except FileNotFoundError:
                continue
            if document.get("mediaType") in INDEX_TYPES or "manifests" in document:
                continue
            image = f"{name}@{digest}"
            images.add(image)
            config = document.get("config")
            for entry in [config, *(document.get("layers") or ())]:
                if not isinstance(entry, dict) or not isinstance(entry.get("size"), int):
                    continue
                if not is_distributable(str(entry.get("mediaType", ""))):
                    # It is somewhere else.
                    continue
                blob = str(entry.get("digest"))
                referenced += entry["size"]
                sizes[blob] = entry["size"]
                if entry is config:
                    continue
                users.setdefault(blob, set()).add(image)
                places.setdefault(blob, set()).add(name)
    layers = [
        SharedLayer(blob, size, tuple(sorted(users[blob])), tuple(sorted(places[blob])))
        for blob, size in sizes.items()
        if blob in users
    ]
    layers.sort(key=lambda layer: (-layer.size * (len(layer.images) - 1), layer.digest))
    stored = sum(size for blob, size in sizes.items() if storage.has_bytes(blob))
    return Report(len(names), len(images), tags, referenced, stored, tuple(layers))


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3rem .6rem;"
    "border-bottom:1px solid #8884}td.n,th.n{text-align:right}code{font-size:.9em}"
    ".bar{background:#8883;border-radius:4px;height:1.2rem;margin:1rem 0}"
    ".bar div{background:#2a7;height:100%;border-radius:4px}"
)


def page(report: Report) -> str:
    """The numbers as a page that needs nothing else."""
    share = 100 * report.stored / report.referenced if report.referenced else 100.0
    rows = "".join(
        f"<tr><td><code>{html.escape(layer.digest[:19])}</code></td>"
        f'<td class="n">{human_size(layer.size)}</td><td class="n">{len(layer.images)}</td>'
        f'<td class="n">{human_size(layer.size * (len(layer.images) - 1))}</td>'
        f"<td>{html.escape(_some(layer.repositories))}</td></tr>"
        for layer in report.layers[:_SHOWN]
        if len(layer.images) > 1
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>tiffin registry</title><style>{_STYLE}</style></head><body>"
        "<h1>tiffin registry</h1>"
        f"<p>{report.images} images in {report.repositories} repositories, {report.tags} tags.</p>"
        f"<p><b>{human_size(report.referenced)}</b> referenced, "
        f"<b>{human_size(report.stored)}</b> stored: "
        f"sharing layers saves <b>{human_size(report.referenced - report.stored)}</b>.</p>"
        f'<div class="bar"><div style="width:{share:.1f}%"></div></div>'
        "<h2>The layers that save most</h2>"
        '<table><tr><th>Layer</th><th class="n">Size</th><th class="n">Images</th>'
        f'<th class="n">Saved</th><th>Repositories</th></tr>{rows}</table>'
        "</body></html>\n"
    )


def _some(names: tuple[str, ...]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
