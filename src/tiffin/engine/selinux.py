"""SELinux: the labels of a container's processes and files, on hosts that have it.

The host's policy says what containers are labelled (``contexts/lxc_contexts``). Two categories of
each container's own keep it from another one's files. ``--security-opt label=…`` changes a part of
them, or takes them away.

Source: the policy's lxc_contexts file; selinux(8); what Docker makes of ``label=``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

from tiffin.errors import InvalidParameter

_ENFORCE = "/sys/fs/selinux/enforce"
_CONFIG = "/etc/selinux"
_CATEGORIES = 1024
_PARTS = ("user", "role", "type", "level")
_NEVER = frozenset(
    f"/{name}"
    for name in (
        "", "bin", "boot", "dev", "etc", "home", "lib", "lib64", "proc", "root", "run", "sbin",
        "srv", "sys", "tmp", "usr", "var", "var/lib", "var/log",
    )
)  # fmt: skip
"""Folders of the host that are not labelled anew, whoever asks."""


def enabled() -> bool:
    """Whether the host's kernel enforces SELinux labels."""
    return os.path.exists(_ENFORCE)


def labels(options: Iterable[str], identity: str) -> tuple[str, str]:
    """The labels of a container's processes and of its files; empty where it has none.

    ``options`` are the values of ``label=``; ``identity`` is the container's, which its categories
    are made of. Raises InvalidParameter for an option that isn't known.
    """
    chosen: dict[str, str] = {}
    off = False
    for text in options:
        name, _, value = text.partition(":")
        if text in ("disable", "nested"):
            off = off or text == "disable"
        elif name not in (*_PARTS, "filetype") or not value:
            raise InvalidParameter(f'invalid --security-opt: "label={text}"')
        else:
            chosen[name] = value
    if off or not enabled():
        return "", ""
    process, file = _contexts()
    level = chosen.get("level") or _level(identity)
    own = process.split(":", 3)
    own += [""] * (4 - len(own))
    for place, name in enumerate(_PARTS[:3]):
        own[place] = chosen.get(name, own[place])
    own[3] = level
    theirs = file.split(":", 3)
    theirs += [""] * (4 - len(theirs))
    theirs[2] = chosen.get("filetype", theirs[2])
    theirs[3] = level
    return ":".join(own), ":".join(theirs)


def _level(identity: str) -> str:
    """Two categories, the same for each start of a container."""
    number = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
    first, second = number % _CATEGORIES, number // _CATEGORIES % (_CATEGORIES - 1)
    second += second >= first
    return f"s0:c{min(first, second)},c{max(first, second)}"


def _contexts() -> tuple[str, str]:
    policy = _fields(f"{_CONFIG}/config").get("SELINUXTYPE", "targeted")
    found = _fields(f"{_CONFIG}/{policy}/contexts/lxc_contexts")
    return (
        found.get("process", "system_u:system_r:container_t:s0"),
        found.get("file", "system_u:object_r:container_file_t:s0"),
    )


def _fields(path: str) -> dict[str, str]:
    """Lines of ``NAME = "value"``."""
    try:
        with open(path) as file:
            rows = [line.partition("=") for line in file if not line.lstrip().startswith("#")]
    except FileNotFoundError:
        return {}
    return {name.strip(): value.strip().strip('"') for name, equals, value in rows if equals}


def relabel(path: str, label: str, *, shared: bool) -> None:
    """Give a host's folder, or file, and all in it a container's label (``-v …:Z``), or the one
    that all containers may use (``:z``). Raises InvalidParameter for a folder of the system."""
    if not label:
        return
    real = os.path.realpath(path)
    if real in _NEVER:
        raise InvalidParameter(f"SELinux relabeling of {path} is not allowed")
    if shared:
        label = ":".join([*label.split(":", 3)[:3], "s0"])
    value = label.encode() + b"\0"
    os.setxattr(real, "security.selinux", value, follow_symlinks=False)
    for folder, folders, files in os.walk(real):
        for name in (*folders, *files):
            os.setxattr(f"{folder}/{name}", "security.selinux", value, follow_symlinks=False)
