"""Chain IDs. Source: OCI image specification, ``config.md``, "Layer ChainID"."""

from __future__ import annotations

import hashlib
import re

from tiffin.errors import InvalidParameter

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")


def chain_id(parent: str | None, diff_id: str) -> str:
    """The chain ID of a layer on the stack ``parent``; raises InvalidParameter."""
    if not _SHA256.fullmatch(diff_id):
        raise InvalidParameter(
            f"invalid diff ID: {diff_id!r}: it must be sha256: and 64 hex digits"
        )
    if parent is None:
        return diff_id
    return "sha256:" + hashlib.sha256(f"{parent} {diff_id}".encode()).hexdigest()


def chain_ids(diff_ids: list[str]) -> list[str]:
    """The chain IDs of a stack of layers, the lowest first."""
    chains: list[str] = []
    for diff_id in diff_ids:
        chains.append(chain_id(chains[-1] if chains else None, diff_id))
    return chains
