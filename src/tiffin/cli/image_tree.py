"""The tree of images: an image rests on another when that one's layers are the start of its own.

Where images share layers that are no image by themselves, the fork is drawn too. Computed from the
diff IDs of ``RootFS.Layers``, which say exactly what is shared, whatever the images are called.
"""

from __future__ import annotations

from tiffin.cli.tables import columns, short_id
from tiffin.client.connection import escape
from tiffin.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tiffin.client.connection import Client


class _Node:
    """A stack of layers that is an image, or that several images start with."""

    __slots__ = ("below", "image", "layers")

    def __init__(self, layers: tuple[str, ...], image: dict[str, Any] | None) -> None:
        self.layers = layers
        self.image = image
        self.below: list[_Node] = []


def grow(images: list[dict[str, Any]]) -> list[_Node]:
    """The roots of the tree of images (as inspected: Id, Size, RepoTags, Created, RootFS)."""
    root = _Node((), None)
    key = lambda image: (len(_layers(image)), image.get("Created", ""), image["Id"])  # noqa: E731
    for image in sorted(images, key=key):
        _insert(root, _Node(_layers(image), image))
    return root.below


def _layers(image: dict[str, Any]) -> tuple[str, ...]:
    return tuple((image.get("RootFS") or {}).get("Layers") or ())


def _insert(parent: _Node, new: _Node) -> None:
    while True:
        for position, child in enumerate(parent.below):
            common = _common(child.layers, new.layers)
            if child.layers and common == len(child.layers):
                parent = child
                break
            if common > len(parent.layers):
                fork = _Node(new.layers[:common], None)
                fork.below = [child, new]
                parent.below[position] = fork
                return
        else:
            parent.below.append(new)
            return


def _common(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def draw(client: Client, images: list[dict[str, Any]], *, truncate: bool) -> str:
    """The tree as text, for images as the list has them."""
    inspected = [client.get(f"/images/{escape(image['Id'])}/json") for image in images]
    rows = [["IMAGE", "IMAGE ID", "SIZE", "ADDED", "LAYERS"]]
    _draw(rows, grow(inspected), 0, "", truncate, top=True)
    return columns(rows)


def _draw(
    rows: list[list[str]], nodes: list[_Node], size: int, indent: str, truncate: bool, *, top: bool
) -> None:
    for position, node in enumerate(nodes):
        last = position == len(nodes) - 1
        branch = "" if top else "└─ " if last else "├─ "
        inside = "" if top else "   " if last else "│  "
        image = node.image
        if image is None:
            count = _images(node)
            plural = "layer" if len(node.layers) == 1 else "layers"
            text = f"({len(node.layers)} {plural} shared by {count} images)"
            rows.append([indent + branch + text, "", "", "", str(len(node.layers))])
            _draw(rows, node.below, size, indent + inside, truncate, top=False)
            continue
        names = [tag for tag in image.get("RepoTags") or () if tag != "<none>:<none>"]
        identifier = short_id(image["Id"]) if truncate else image["Id"]
        rows.append(
            [
                indent + branch + (", ".join(names) or "<none>"),
                identifier,
                human_size(image["Size"], 3),
                human_size(max(image["Size"] - size, 0), 3),
                str(len(node.layers)),
            ]
        )
        _draw(rows, node.below, image["Size"], indent + inside, truncate, top=False)


def _images(node: _Node) -> int:
    return (node.image is not None) + sum(map(_images, node.below))
