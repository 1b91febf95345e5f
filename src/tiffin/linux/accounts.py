"""Who a container's process runs as: Docker's user string against passwd and group files.

The string is ``name``, ``uid``, ``name:group``, ``uid:gid`` and their mixtures; empty is root. A
name is looked up first; what is not found there must be a number. Without a group, the primary
group and the supplementary groups are those of the passwd and group files; with one, that group
alone. Pure functions of the files' bytes.

Source: passwd(5), group(5); the behaviour of ``docker run --user``.
"""

from __future__ import annotations

from tiffin.errors import InvalidParameter

MAXIMUM = (1 << 31) - 1


class Account:
    """A resolved user: ``uid``, ``gid``, ``groups`` (sorted, with the primary one), ``home``."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home

    def __repr__(self) -> str:
        return f"Account({self.uid}, {self.gid}, {self.groups}, {self.home!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Account) and repr(self) == repr(other)

    __hash__ = None  # type: ignore[assignment]


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _checked(number: int) -> int:
    if number > MAXIMUM:
        raise InvalidParameter(f"uids and gids must be in range 0-{MAXIMUM}")
    return number


def _rows(content: bytes, least: int) -> list[list[str]]:
    rows = []
    for line in content.decode("utf-8", "surrogateescape").split("\n"):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        fields = line.split(":")
        if len(fields) >= least:
            rows.append(fields)
    return rows


def resolve(
    user: str, passwd: bytes = b"", group: bytes = b"", additional: list[str] | None = None
) -> Account:
    """The account that ``user`` means; ``additional`` are more groups, by name or number.

    Raises InvalidParameter with Docker's sentence if a name is in neither file.
    """
    user_part, colon, group_part = user.partition(":")
    user_part = user_part or "0"
    as_number = _number(user_part)
    uid = as_number if as_number is not None else 0
    gid = 0
    home = "/"
    name = None
    for fields in _rows(passwd, 4):
        entry_uid = _number(fields[2])
        if entry_uid is None:
            continue
        if fields[0] == user_part or (as_number is not None and entry_uid == as_number):
            name = fields[0]
            uid = entry_uid
            gid = _number(fields[3]) or 0
            home = (fields[5] if len(fields) > 5 else "") or "/"
            break
    if name is None and as_number is None:
        raise InvalidParameter(
            f"unable to find user {user_part}: no matching entries in passwd file"
        )
    rows = [fields for fields in _rows(group, 3) if _number(fields[2]) is not None]
    groups: list[int] = []
    if colon and group_part:
        gid = _group(
            group_part,
            rows,
            f"unable to find group {group_part}: no matching entries in group file",
        )
    elif name is not None:
        groups = [
            int(fields[2]) for fields in rows if len(fields) > 3 and name in fields[3].split(",")
        ]
    for item in additional or ():
        groups.append(
            _group(item, rows, f"Unable to find group {item}: no matching entries in group file")
        )
    # The primary group is among them: otherwise a process could drop it, and with it what a file's
    # mode denies to the group alone (CVE-2022-36109).
    return Account(
        _checked(uid), _checked(gid), sorted({_checked(number) for number in (gid, *groups)}), home
    )


def _group(text: str, rows: list[list[str]], complaint: str) -> int:
    for fields in rows:
        if fields[0] == text:
            return int(fields[2])
    number = _number(text)
    if number is None:
        raise InvalidParameter(complaint)
    return number
