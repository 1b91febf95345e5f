"""``--squash``: what a build has put on its base, as one layer.

The new layer holds the difference between the base's merged tree and the result's. The history
keeps its entries, without layers, and one more that says what was merged, as Docker's has it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from tiffin.build.session import Session, State
from tiffin.build.tree import LowerTree
from tiffin.image.config import HistoryEntry, ImageConfig
from tiffin.image.moment import format_moment
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.index import order_key
from tiffin.layer.writer import LayerWriter


def squashed(session: Session, state: State) -> tuple[ImageConfig, str | None]:
    """The configuration and the top layer of the squashed image."""
    config = state.config
    before = 0 if state.base is None else config.chain_ids.index(state.base) + 1
    if len(config.diff_ids) - before < 2:
        return config, state.top
    old, new = session.lower(state.base), session.lower(state.top)

    def fill(writer: LayerWriter) -> None:
        changed = sorted(differences(old, new), key=lambda entry: order_key(entry.path))
        for entry in changed:
            if entry.kind is not Kind.FILE:
                writer.add(entry)
                continue
            fd = new.open(entry.path)
            try:
                writer.add(entry, fd)
            finally:
                os.close(fd)

    layer = session.backend.layers.write(state.base, fill)
    return _with_one_layer(config, before, layer.diff_id), layer.chain_id


def _with_one_layer(config: ImageConfig, before: int, diff_id: str) -> ImageConfig:
    kept: list[HistoryEntry] = []
    layers = 0
    for entry in config.history:
        if not entry.empty_layer:
            layers += 1
        kept.append(
            entry
            if entry.empty_layer or layers <= before
            else HistoryEntry(
                created=entry.created,
                created_by=entry.created_by,
                author=entry.author,
                comment=entry.comment,
                empty_layer=True,
            )
        )
    moment = config.created or format_moment(0)
    merged = HistoryEntry(created=moment, comment=f"merge to {diff_id}", empty_layer=False)
    diff_ids = [*config.diff_ids[:before], diff_id]
    config = config.with_field("rootfs", {"type": "layers", "diff_ids": diff_ids})
    return config.with_field("history", [entry.to_document() for entry in [*kept, merged]])


def differences(old: LowerTree, new: LowerTree, path: bytes = b"") -> Iterator[Entry]:
    """The entries that turn ``old`` into ``new``: what is new or changed, and whiteouts."""
    were = {entry.path: entry for entry in old.children(path)}
    for entry in new.children(path):
        was = were.pop(entry.path, None)
        if was is None or _facts(was) != _facts(entry):
            yield entry
        if entry.kind is Kind.DIRECTORY:
            yield from differences(old, new, entry.path)
    for gone in were.values():
        yield Entry(gone.path, Kind.WHITEOUT)


def _facts(entry: Entry) -> tuple[object, ...]:
    mtime = entry.mtime_ns
    return (
        entry.kind,
        entry.mode,
        entry.uid,
        entry.gid,
        mtime,
        entry.size,
        entry.target,
        entry.device,
        entry.digest,
        entry.xattrs or None,
    )
