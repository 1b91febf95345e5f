"""``build --verify``: what differs first between two builds of the same inputs."""

from __future__ import annotations

import os
from collections.abc import Callable

from tiffin.build.tree import EmptyTree, LowerTree
from tiffin.image.config import ImageConfig
from tiffin.layer.entry import Entry, Kind

Lower = Callable[[str | None], LowerTree]


def difference(one: ImageConfig, other: ImageConfig, lower: Lower) -> str:
    """In words: the first step whose layers differ, and the first file in them; or what of the
    configuration differs; empty for nothing."""
    steps = [entry.created_by for entry in one.history if not entry.empty_layer]
    for number, (mine, theirs) in enumerate(zip(one.diff_ids, other.diff_ids, strict=False)):
        if mine == theirs:
            continue
        step = steps[number] if number < len(steps) else f"layer {number + 1}"
        first = _first(
            lower(one.chain_ids[number]) if one.chain_ids else EmptyTree(),
            lower(other.chain_ids[number]) if other.chain_ids else EmptyTree(),
            b"",
        )
        return f"{' '.join(step.split())}: {first or 'the order or form of its entries differs'}"
    if len(one.diff_ids) != len(other.diff_ids):
        return "the number of layers differs"
    first_document, second_document = one.to_document(), other.to_document()
    for name in sorted(first_document.keys() | second_document.keys()):
        if first_document.get(name) != second_document.get(name):
            return f"the files are the same; the configuration's {name} differs"
    return ""


def _first(one: LowerTree, other: LowerTree, path: bytes) -> str:
    mine = {entry.path: entry for entry in one.children(path)}
    theirs = {entry.path: entry for entry in other.children(path)}
    for name in sorted(mine.keys() | theirs.keys()):
        shown = f"/{os.fsdecode(name)}"
        before, after = mine.get(name), theirs.get(name)
        if before is None or after is None:
            return f"{shown} is in one of them only"
        what = _what(before, after)
        if what:
            return f"{shown} differs ({what})"
        if before.kind is Kind.DIRECTORY:
            inside = _first(one, other, name)
            if inside:
                return inside
    return ""


def _what(one: Entry, other: Entry) -> str:
    for what, is_same in (
        ("type", one.kind is other.kind),
        ("content", one.digest == other.digest and one.size == other.size),
        ("link target", one.target == other.target),
        ("mode", one.mode == other.mode),
        ("owner", (one.uid, one.gid) == (other.uid, other.gid)),
        ("extended attributes", (one.xattrs or None) == (other.xattrs or None)),
        ("device", one.device == other.device),
        ("time of modification", one.mtime_ns == other.mtime_ns),
    ):
        if not is_same:
            return what
    return ""
