"""The very tar that a layer came as, out of its index and its files."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from tiffin.layer.index import Index
from tiffin.storage.driver import Whiteouts


def write_tar(
    index: Index, directory: Path, whiteouts: Whiteouts, stash: Path, output: int | BinaryIO
) -> None:
    """Write the layer's tar, byte for byte, to a descriptor or a stream.

    Raises CorruptArchive if a file that the index names is missing or has another size.
    """
    raise NotImplementedError
