"""Whose the files of a step are: ``--chown``, ``--chmod``, and the user of a WORKDIR.

Names are looked up in the image's own ``/etc/passwd`` and ``/etc/group``. A number alone is user
and group at once; a name alone brings its primary group.

Source: the Dockerfile reference, "COPY --chown --chmod".
"""

from __future__ import annotations

import re

from tiffin.build.tree import LowerTree, resolve
from tiffin.errors import InvalidParameter, Unsupported
from tiffin.layer.entry import Kind
from tiffin.linux import accounts

_LARGEST_FILE = 16 << 20


def owner_of(user: str, image: LowerTree) -> tuple[int, int] | None:
    """The uid and gid that ``user`` (``name:group`` and its other forms) means in an image.

    None for no user at all. Raises InvalidParameter if a name is not in the image.
    """
    if not user:
        return None
    name, colon, group = user.partition(":")
    if name.isdecimal() and not colon:
        group = name
    if name.isdecimal() and group.isdecimal():
        account = accounts.resolve(f"{name}:{group}")  # without opening a file
    else:
        passwd, groups = read(image, b"etc/passwd"), read(image, b"etc/group")
        account = accounts.resolve(user, passwd, groups)
    return account.uid, account.gid


def mode_of(chmod: str) -> int | None:
    """The permissions that ``--chmod`` says; None for nothing."""
    if not chmod:
        return None
    if re.fullmatch(r"0?[0-7]{1,4}", chmod):
        return int(chmod, 8)
    if re.fullmatch(r"[ugoa]*[-+=][rwxXstugo,=+\-]*", chmod):
        raise Unsupported(f"symbolic --chmod={chmod} is not supported yet: write it in octal")
    raise InvalidParameter(f"invalid chmod parameter: '{chmod}'. it should be octal string")


def read(image: LowerTree, path: bytes) -> bytes:
    """A small file of an image; empty where there is none."""
    entry = image.entry(resolve(image, path))
    if entry is None or entry.kind is not Kind.FILE:
        return b""
    with open(image.open(entry.path), "rb") as file:
        return file.read(_LARGEST_FILE)
