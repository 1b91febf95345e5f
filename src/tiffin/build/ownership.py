"""Whose the files of a step are: ``--chown``, ``--chmod``, and the user of a WORKDIR.

Names are looked up in the image's own ``/etc/passwd`` and ``/etc/group``. A number alone is user
and group at once; a name alone brings its primary group.

Source: the Dockerfile reference, "COPY --chown --chmod".
"""

from __future__ import annotations

import re

from tiffin.build.tree import LowerTree, resolve
from tiffin.errors import InvalidParameter
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


_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[rwxXst]*|[ugo]))+)")
_ACTION = re.compile(r"([-+=])([ugo]|[rwxXst]*)")
_SHIFTS = {"u": 6, "g": 3, "o": 0}


class Mode:
    """What ``--chmod`` says: permissions in octal, or changes to them as chmod(1) has them."""

    def __init__(self, text: str) -> None:
        """Raises InvalidParameter."""
        self._octal: int | None = None
        self._changes: list[tuple[str, str, str]] = []
        if re.fullmatch(r"0*[0-7]{1,4}", text):
            self._octal = int(text, 8)
            return
        for clause in text.split(","):
            match = _CLAUSE.fullmatch(clause)
            if match is None:
                raise InvalidParameter(
                    f"invalid chmod parameter: '{text}'. it should be octal string and between 0 "
                    "and 07777, or changes as in u=rwX,go-w"
                )
            who = match[1].replace("a", "ugo") or "ugo"
            self._changes += [(who, *each) for each in _ACTION.findall(match[2])]

    def of(self, mode: int, *, directory: bool) -> int:
        """The permissions of what had ``mode``."""
        if self._octal is not None:
            return self._octal
        for who, sign, what in self._changes:
            bits = mask = 0
            for each in dict.fromkeys(who):
                shift = _SHIFTS[each]
                mask |= 7 << shift
                if what and what in "ugo":
                    bits |= (mode >> _SHIFTS[what] & 7) << shift
                    continue
                for letter, bit in (("r", 4), ("w", 2), ("x", 1)):
                    if letter in what:
                        bits |= bit << shift
                if "X" in what and (directory or mode & 0o111):
                    bits |= 1 << shift
                if "s" in what and each in "ug":
                    bits |= 0o4000 if each == "u" else 0o2000
                if "t" in what:
                    bits |= 0o1000
            if sign == "+":
                mode |= bits
            elif sign == "-":
                mode &= ~bits
            else:
                mode = mode & ~mask | bits
        return mode & 0o7777


def mode_of(chmod: str) -> Mode | None:
    """What ``--chmod`` says; None for nothing. Raises InvalidParameter."""
    return Mode(chmod) if chmod else None


def read(image: LowerTree, path: bytes) -> bytes:
    """A small file of an image; empty where there is none."""
    entry = image.entry(resolve(image, path))
    if entry is None or entry.kind is not Kind.FILE:
        return b""
    with open(image.open(entry.path), "rb") as file:
        return file.read(_LARGEST_FILE)
