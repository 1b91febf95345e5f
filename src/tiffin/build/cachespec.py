"""``--cache-from`` and ``--cache-to``: where a cache is, outside of the engine.

Written as in BuildKit, ``type=registry,ref=host/app:cache``; a name alone is an image's. A cache is
``registry`` (an artifact under a tag), ``local`` (an OCI layout in a folder) or ``inline`` (a part
of the image that is built; to be read as ``registry`` or by the name of an image that is here).

Source: BuildKit, "Export cache" and "Import cache".
"""

from __future__ import annotations

import csv
from dataclasses import dataclass

from tiffin.build.suggestion import nearest
from tiffin.errors import InvalidParameter, Unsupported

_KINDS = ("registry", "local", "inline")
_ELSEWHERE = ("gha", "s3", "azblob")
_KEYS = (
    "type", "ref", "src", "dest", "tag", "digest", "mode", "ignore-error", "compression",
    "compression-level", "force-compression", "image-manifest", "oci-mediatypes",
    "registry.insecure",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """One cache."""

    kind: str
    where: str = ""
    """A reference, or a folder's path."""
    tag: str = ""
    """What a folder's cache is called."""
    complete: bool = True
    """``mode=max``: all steps, and not only those that the image itself is made of."""
    ignore_error: bool = False
    """Whether the build goes on if the cache can't be written."""
    compression: str = "zstd"
    level: int | None = None

    @classmethod
    def source(cls, text: str) -> CacheSpec:
        """What ``--cache-from`` says; raises InvalidParameter, Unsupported."""
        if "=" not in text:
            return cls("registry", text)
        given = _fields(text, "--cache-from")
        if given["type"] == "inline":
            raise InvalidParameter(
                "--cache-from type=inline: name the image, as type=registry,ref=…"
            )
        where = given.get("ref" if given["type"] == "registry" else "src", "")
        if not where:
            raise InvalidParameter(
                f"--cache-from {text!r} needs {'ref' if given['type'] == 'registry' else 'src'}=…"
            )
        return cls(given["type"], where, given.get("digest") or given.get("tag", ""))

    @classmethod
    def target(cls, text: str) -> CacheSpec:
        """What ``--cache-to`` says; raises InvalidParameter, Unsupported."""
        if "=" not in text:
            return cls("registry", text)
        given = _fields(text, "--cache-to")
        kind = given["type"]
        where = given.get("ref" if kind == "registry" else "dest", "")
        if not where and kind != "inline":
            raise InvalidParameter(
                f"--cache-to {text!r} needs {'ref' if kind == 'registry' else 'dest'}=…"
            )
        mode = given.get("mode", "max")
        if mode not in ("min", "max"):
            raise InvalidParameter(f"--cache-to mode={mode}: min or max")
        level = given.get("compression-level", "")
        if level and not level.isdecimal():
            raise InvalidParameter(f"--cache-to compression-level={level}: a number")
        compression = given.get("compression", "zstd")
        return cls(
            kind,
            where,
            given.get("tag", ""),
            mode == "max" and kind != "inline",
            _true(given.get("ignore-error", "")),
            "none" if compression == "uncompressed" else compression,
            int(level) if level else None,
        )


def _fields(text: str, flag: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for part in next(csv.reader([text])):
        name, equals, value = part.partition("=")
        name = name.strip().lower()
        if name == "type" and value in _ELSEWHERE:
            raise Unsupported(f"{flag} type={value} is not supported yet: {', '.join(_KINDS)} are")
        if not equals:
            raise InvalidParameter(f"invalid {flag} {text!r}: {part!r} is no name=value")
        if name not in _KEYS:
            raise InvalidParameter(
                f"invalid {flag} {text!r}: unexpected key {name!r}{nearest(name, _KEYS)}"
            )
        given[name] = value
    kind = given.setdefault("type", "")
    if kind not in _KINDS:
        raise InvalidParameter(f"invalid {flag} {text!r}: its type is one of {', '.join(_KINDS)}")
    return given


def _true(text: str) -> bool:
    return text.lower() in ("1", "t", "true")
