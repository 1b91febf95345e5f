"""Removing what is not in use: the question before it and the report after it."""

from __future__ import annotations

import sys

from tiffin.cli.command import Invocation
from tiffin.cli.values import filters
from tiffin.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def confirmed(warning: str) -> bool:
    """Asks; anything but yes is no."""
    sys.stdout.write(f"{warning}\nAre you sure you want to continue? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def removed(answer: dict[str, Any], title: str) -> int:
    """Prints what one prune removed; returns the bytes that came free."""
    deleted = (
        answer.get("ContainersDeleted")
        or answer.get("VolumesDeleted")
        or answer.get("NetworksDeleted")
        or answer.get("CachesDeleted")
    )
    lines = list(deleted or ())
    for image in answer.get("ImagesDeleted") or ():
        if image.get("Untagged"):
            lines.append(f"untagged: {image['Untagged']}")
        else:
            lines.append(f"deleted: {image['Deleted']}")
    if lines:
        print(title)
        for line in lines:
            print(line)
        print()
    return int(answer.get("SpaceReclaimed") or 0)


def prune_one(
    call: Invocation,
    what: str,
    warning: str,
    title: str,
    more: dict[str, list[str]] | None = None,
    **query: Any,
) -> int:
    """A prune command of one kind of things."""
    if not call.options["force"] and not confirmed(warning):
        return 0
    from json import dumps

    given = {**filters(call.options["filter"]), **(more or {})}
    path = "/build/prune" if what == "build" else f"/{what}/prune"
    answer = call.client.post(path, filters=dumps(given) if given else None, **query)
    size = removed(answer, title)
    print(f"Total reclaimed space: {human_size(size)}")
    return 0
