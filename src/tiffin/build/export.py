"""A merged tree as one tar: what ``--output type=tar`` and ``type=local`` get."""

from __future__ import annotations

from dataclasses import replace
from typing import BinaryIO

from tiffin.build.tree import LowerTree
from tiffin.layer import tarwriter
from tiffin.layer.entry import Entry, Kind

_BLOCK = 1 << 20


def write_tree(tree: LowerTree, output: BinaryIO) -> None:
    """Write every entry, sorted, and the tar's end."""
    _directory(tree, b"", output)
    output.write(tarwriter.TRAILER)


def _directory(tree: LowerTree, path: bytes, output: BinaryIO) -> None:
    for entry in tree.children(path):
        if entry.kind is Kind.WHITEOUT:
            continue
        output.write(tarwriter.header(replace(entry, size=_size(entry))))
        if entry.kind is Kind.FILE and entry.size:
            with open(tree.open(entry.path), "rb") as file:
                while block := file.read(_BLOCK):
                    output.write(block)
            output.write(bytes(tarwriter.padding(entry.size)))
        elif entry.kind is Kind.DIRECTORY:
            _directory(tree, entry.path, output)


def _size(entry: Entry) -> int:
    return entry.size if entry.kind is Kind.FILE else 0
