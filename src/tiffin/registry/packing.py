"""Layers are packed for the way: gzip, zstd, or not at all.

The same tar packed twice by the same *recipe* (form, level, library) gives the same bytes; that is
what lets the digest of a layer stay what it was. gzip's levels 0 to 3 are isal's, which is several
times faster; 4 to 9 are zlib's.
"""

from __future__ import annotations

import zlib
from typing import Any

from tiffin.errors import InvalidParameter
from tiffin.image.manifest import OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD

DEFAULT_LEVELS = {"gzip": 1, "zstd": 3, "none": 0}
_LEVELS = {"gzip": range(10), "zstd": range(1, 23), "none": range(1)}
_TYPES = {"gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD, "none": OCI_LAYER}
_GZIP = 31
"""zlib's way to ask for a gzip header, which says no time."""


class Compression:
    """A form and a level."""

    def __init__(self, form: str = "", level: int | None = None) -> None:
        """What is not given is the default, and any other will do too, see :meth:`accepts`.

        Raises InvalidParameter for what there is not."""
        self._any_form = not form and level is None
        self._any_level = level is None
        form = form or "gzip"
        if form not in _LEVELS:
            raise InvalidParameter(f"unknown compression {form!r}: use gzip, zstd or none")
        if level is None:
            level = DEFAULT_LEVELS[form]
        if level not in _LEVELS[form]:
            span = _LEVELS[form]
            raise InvalidParameter(
                f"{form} has no level {level}: use {span.start} to {span.stop - 1}"
                if form != "none"
                else "without compression there is no level"
            )
        self.form = form
        self.level = level

    @property
    def media_type(self) -> str:
        """Of a layer that is packed so."""
        return _TYPES[self.form]

    def accepts(self, media_type: str, recipe: str | None) -> bool:
        """Whether a layer that is packed already is as was asked for: ``media_type`` is OCI's,
        ``recipe`` None where others packed it, by whatever level."""
        if self._any_form:
            return True
        return media_type == self.media_type and (self._any_level or recipe == self.recipe)

    @property
    def recipe(self) -> str:
        """What the bytes depend on, apart from the tar."""
        if self.form == "none":
            return "none"
        if self.form == "zstd":
            import zstandard

            library = f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}"
        elif self.level <= 3:
            import isal

            library = f"isal {isal.__version__}"
        else:
            library = f"zlib {zlib.ZLIB_RUNTIME_VERSION}"
        return f"{self.form} {self.level} {library}"

    @classmethod
    def of_recipe(cls, recipe: str) -> Compression | None:
        """What made a recipe, if it would be made the same way here today."""
        form, _, rest = recipe.partition(" ")
        level = rest.partition(" ")[0]
        try:
            found = cls(form, int(level) if level else None)
        except (InvalidParameter, ValueError):
            return None
        return found if found.recipe == recipe else None

    def packer(self) -> Any:
        """An object with ``compress(data)`` and ``flush()``, which give bytes."""
        if self.form == "zstd":
            import zstandard

            return zstandard.ZstdCompressor(level=self.level).compressobj()
        if self.form == "none":
            return _Plain()
        if self.level <= 3:
            from isal import isal_zlib

            return isal_zlib.compressobj(self.level, isal_zlib.DEFLATED, _GZIP)
        return zlib.compressobj(self.level, zlib.DEFLATED, _GZIP)


class _Plain:
    def compress(self, data: bytes | memoryview) -> bytes:
        return bytes(data)

    def flush(self) -> bytes:
        return b""
