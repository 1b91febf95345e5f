"""``RUN --mount=type=…``: what is lent to one command, and is no part of its layer.

A mount is written as fields of CSV, ``type=cache,target=/root/.cache,sharing=locked``. Fields may
hold variables, but for ``from``; what a field says is checked once they are replaced.

Source: the Dockerfile reference, "RUN --mount".
"""

from __future__ import annotations

import csv
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tiffin.build.substitution import substitute
from tiffin.build.suggestion import nearest
from tiffin.errors import InvalidParameter
from tiffin.units import Malformed, parse_size

TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
SHARING = ("shared", "private", "locked")

_ALIASES = {
    "src": "source",
    "dst": "target",
    "destination": "target",
    "ro": "readonly",
    "rw": "readwrite",
}
_KEYS = (
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "readwrite",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "env",
)
_ALONE = ("readonly", "readwrite", "required")
_ONLY = {
    "sharing": ("cache",),
    "required": ("secret", "ssh"),
    "size": ("tmpfs",),
    "mode": ("secret", "ssh", "cache"),
    "uid": ("secret", "ssh", "cache"),
    "gid": ("secret", "ssh", "cache"),
    "env": ("secret",),
}
"""The keys that only some types have."""


@dataclass(frozen=True, slots=True)
class RunMount:
    """One mount."""

    text: str = field(compare=False)
    """As written, variables replaced where they are."""
    type: str = "bind"
    source_stage: str = ""
    """``from``: a stage, a named context or an image; empty for the build context (bind), or an
    empty folder (cache)."""
    source: str = ""
    target: str = ""
    readonly: bool = True
    id: str = ""
    sharing: str = "shared"
    required: bool = False
    size: int = 0
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    env: str = ""

    def substituted(self, variables: Mapping[str, str], escape: str = "\\") -> RunMount:
        """The mount with variables replaced; raises InvalidParameter."""
        if "$" not in self.text:
            return self
        fields = []
        for each in _fields(self.text):
            key, sign, value = each.partition("=")
            fields.append(f"{key}{sign}{substitute(value, variables, escape)}")
        return parse_mount(_joined(fields))

    def resolved(self, working_directory: str) -> RunMount:
        """The mount with its defaults: an absolute target, an id."""
        from dataclasses import replace

        name, target = self.id, self.target
        if self.type == "secret":
            name = name or self.source or posixpath.basename(target)
            if not target and not self.env:
                target = f"/run/secrets/{posixpath.basename(name)}"
        elif self.type == "ssh":
            name = name or "default"
        elif self.type == "cache":
            name = name or posixpath.normpath(target)
        if target:
            target = posixpath.normpath(posixpath.join("/", working_directory, target))
            target = "/" + target.lstrip("/")
        return replace(self, id=name, target=target)


def _fields(text: str) -> list[str]:
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise InvalidParameter(f"failed to parse csv mounts: {error}") from None
    return rows[0] if rows else []


def _joined(fields: list[str]) -> str:
    return ",".join(
        '"' + each.replace('"', '""') + '"' if "," in each or '"' in each else each
        for each in fields
    )


def parse_mount(text: str) -> RunMount:
    """What a mount says. With variables in it, only what does not depend on them.

    Raises InvalidParameter.
    """
    given: dict[str, str] = {}
    later = False
    for each in _fields(text):
        key, sign, value = each.partition("=")
        key = key.lower()
        key = _ALIASES.get(key, key)
        if key not in _KEYS:
            raise InvalidParameter(f"unexpected key '{key}' in '{each}'{nearest(key, _KEYS)}")
        if not sign and key not in _ALONE:
            raise InvalidParameter(f"invalid field '{each}' must be a key=value pair")
        if "$" in value:
            if key == "from":
                raise InvalidParameter(
                    "'from' doesn't support variable expansion, define alias stage instead"
                )
            later = True
        given[key] = value if sign else "true"
    if later:
        return RunMount(text, source_stage=given.get("from", ""))
    return _checked(text, given)


def _checked(text: str, given: dict[str, str]) -> RunMount:
    kind = given.get("type", "bind").lower()
    if kind not in TYPES:
        raise InvalidParameter(f'unsupported mount type "{kind}"{nearest(kind, TYPES)}')
    for key in given:
        if kind not in _ONLY.get(key, (kind,)):
            raise InvalidParameter(f"unexpected key '{key}' for mount type '{kind}'")
    sharing = given.get("sharing", "shared").lower()
    if sharing not in SHARING:
        raise InvalidParameter(f'unsupported sharing value "{sharing}"{nearest(sharing, SHARING)}')
    readonly = kind not in ("cache", "tmpfs")
    if "readonly" in given:
        readonly = _truth("readonly", given["readonly"])
    if "readwrite" in given:
        readonly = not _truth("readwrite", given["readwrite"])
    mount = RunMount(
        text,
        kind,
        given.get("from", ""),
        given.get("source", ""),
        given.get("target", ""),
        readonly,
        given.get("id", ""),
        sharing,
        _truth("required", given.get("required", "false")),
        _size(given.get("size", "")),
        _number("mode", given["mode"], 8) if "mode" in given else None,
        _number("uid", given.get("uid", "0"), 10),
        _number("gid", given.get("gid", "0"), 10),
        given.get("env", ""),
    )
    if kind == "secret":
        if mount.source_stage:
            raise InvalidParameter("secret mount should not have a from")
        if not (mount.source or mount.target or mount.id):
            raise InvalidParameter("invalid secret mount. one of source, target required")
        if mount.source and mount.id:
            raise InvalidParameter("both source and id can't be set")
    elif kind != "ssh" and not mount.target:
        raise InvalidParameter(f"invalid {kind} mount: a target is required")
    return mount


def _truth(key: str, text: str) -> bool:
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise InvalidParameter(f"invalid value for {key}: {text}")


def _number(key: str, text: str, base: int) -> int:
    digits = r"[0-7]{1,6}" if base == 8 else r"\d{1,9}"
    if not re.fullmatch(digits, text):
        raise InvalidParameter(f"invalid value {text} for {key}")
    return int(text, base)


def _size(text: str) -> int:
    if not text:
        return 0
    try:
        return parse_size(text)
    except Malformed as error:
        raise InvalidParameter(f"invalid value for size: {text}") from error
