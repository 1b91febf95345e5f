"""A build's cache in a folder: ``--cache-to type=local`` writes it, ``--cache-from`` reads it.

The folder has ``index.json`` (the steps: key, parts, the configuration after it, the diff IDs of
its layers) and ``blobs/sha256/DIFF`` (each layer's tar, in zstd). Layers of base images are not in
it: who builds has the base image, or the first key would not be found.

Rules: what is read is trusted as little as any archive: a layer must hash to its diff ID, or it is
refused. ``index.json`` is written last, by a rename, and what it does not name any more is removed.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from tiffin.build.backend import Layers
from tiffin.build.cache import BuildCache, Record
from tiffin.errors import CorruptArchive, InvalidParameter
from tiffin.image.config import ImageConfig, chain_ids

_VERSION = 1
_LEVEL = 3


class CacheFolder:
    """One folder."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._blobs = self._path / "blobs" / "sha256"
        self._steps: dict[str, dict[str, Any]] = {}

    def read(self) -> CacheFolder:
        """Read what steps there are; raises InvalidParameter for a folder that is no cache."""
        try:
            index = json.loads((self._path / "index.json").read_bytes())
            if index["version"] != _VERSION:
                raise InvalidParameter(f"the cache in {self._path} is of another version of tiffin")
            self._steps = {step["key"]: step for step in index["steps"]}
        except FileNotFoundError:
            self._steps = {}  # a first build has no cache yet
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidParameter(f"{self._path} is no build cache: {error}") from error
        return self

    def __contains__(self, key: str) -> bool:
        return key in self._steps

    def take(self, key: str, cache: BuildCache, layers: Layers) -> Record | None:
        """Bring a step's layers and its record into the engine; None if a layer is missing."""
        step = self._steps[key]
        parent: str | None = None
        size = 0
        for diff_id in step["diffs"]:
            known = layers.known(parent, diff_id)
            if known is None:
                blob = self._blobs / diff_id.removeprefix("sha256:")
                if not blob.is_file():
                    return None
                with open(blob, "rb") as file:
                    known = layers.ingest(cast(BinaryIO, file), parent, diff_id=diff_id)
            parent, size = known.chain_id, known.size
        config = base64.b64decode(step["config"])
        if ImageConfig.parse(config).chain_id != parent:
            raise CorruptArchive(f"the cache in {self._path} is damaged: {step['step']}")
        return cache.bring(
            key,
            step["parent"],
            step["step"],
            base64.b64decode(step["parts"]),
            config,
            parent,
            size if step["own"] else 0,
        )

    def write(
        self, keys: Iterable[str], cache: BuildCache, layers: Layers, without: Iterable[str]
    ) -> None:
        """Write the steps of a build; ``without`` are the chain IDs of base images."""
        self._blobs.mkdir(parents=True, exist_ok=True)
        skipped = set(without)
        steps: list[dict[str, Any]] = []
        wanted: set[str] = set()
        for key in dict.fromkeys(keys):
            found = cache.with_parts(key)
            if found is None:
                continue
            record, parts = found
            diffs = ImageConfig.parse(record.config).diff_ids
            for diff_id, chain in zip(diffs, chain_ids(diffs), strict=True):
                if chain not in skipped:
                    name = diff_id.removeprefix("sha256:")
                    wanted.add(name)
                    self._blob(name, chain, layers)
            steps.append(
                {
                    "key": record.key,
                    "parent": record.parent,
                    "step": record.step,
                    "parts": base64.b64encode(parts).decode(),
                    "config": base64.b64encode(record.config).decode(),
                    "diffs": list(diffs),
                    "own": record.size > 0,
                }
            )
        temporary = self._path / "index.json.new"
        temporary.write_text(json.dumps({"version": _VERSION, "steps": steps}, indent=1))
        temporary.replace(self._path / "index.json")
        for left in self._blobs.iterdir():
            if left.name not in wanted:
                left.unlink()

    def _blob(self, name: str, chain: str, layers: Layers) -> None:
        path = self._blobs / name
        if path.exists():
            return
        temporary = path.with_name(f"{name}.{os.getpid():x}")
        with (
            open(temporary, "wb") as file,
            zstandard.ZstdCompressor(_LEVEL).stream_writer(file, closefd=False) as packed,
        ):
            layers.write_tar(layers.get(chain), cast(BinaryIO, packed))
        temporary.replace(path)
