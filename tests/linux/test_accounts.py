"""Docker's user strings against passwd and group files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiffin.errors import InvalidParameter
from tiffin.linux.accounts import MAXIMUM, Account, resolve

PASSWD = b"""\
# a comment
root:x:0:0:root:/root:/bin/sh
broken line
cook:x:1000:100:cook:/home/cook:/bin/sh
homeless:x:1001:100:::
4242:x:7:8::/odd:/bin/sh
nouid:x::1::/:
"""
GROUP = b"""\
root:x:0:
users:x:100:
kitchen:x:50:cook,root
waiters:x:60:
broken
77:x:5:
"""


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", Account(0, 0, [0, 50], "/root")),
        ("root", Account(0, 0, [0, 50], "/root")),
        ("cook", Account(1000, 100, [50, 100], "/home/cook")),
        ("1000", Account(1000, 100, [50, 100], "/home/cook")),
        ("cook:", Account(1000, 100, [50, 100], "/home/cook")),
        ("cook:waiters", Account(1000, 60, [60], "/home/cook")),
        ("cook:9", Account(1000, 9, [9], "/home/cook")),
        ("1234", Account(1234, 0, [0], "/")),
        ("1234:5678", Account(1234, 5678, [5678], "/")),
        (":waiters", Account(0, 60, [60], "/root")),
        ("homeless", Account(1001, 100, [100], "/")),
        # A name of digits is a name before it is a number.
        ("4242", Account(7, 8, [8], "/odd")),
        ("0:77", Account(0, 5, [5], "/root")),
    ],
)
def test_user_strings(user: str, expected: Account) -> None:
    assert resolve(user, PASSWD, GROUP) == expected


def test_additional_groups_by_name_and_number() -> None:
    account = resolve("cook", PASSWD, GROUP, ["waiters", "9", "kitchen"])
    assert account.groups == [9, 50, 60, 100]


@pytest.mark.parametrize(
    ("user", "additional", "sentence"),
    [
        ("foo", [], "unable to find user foo: no matching entries in passwd file"),
        ("cook:foo", [], "unable to find group foo: no matching entries in group file"),
        ("cook", ["foo"], "Unable to find group foo: no matching entries in group file"),
        ("-1", [], "unable to find user -1: no matching entries in passwd file"),
        (str(MAXIMUM + 1), [], "uids and gids must be in range 0-2147483647"),
        ("0:99999999999", [], "uids and gids must be in range 0-2147483647"),
    ],
)
def test_what_cannot_be_found_is_said_as_docker_says_it(
    user: str, additional: list[str], sentence: str
) -> None:
    with pytest.raises(InvalidParameter) as caught:
        resolve(user, PASSWD, GROUP, additional)
    assert caught.value.message == sentence


def test_without_files_numbers_work() -> None:
    assert resolve("5:6") == Account(5, 6, [6], "/")


@given(st.text(max_size=20), st.binary(max_size=300), st.binary(max_size=300))
def test_no_file_breaks_it(user: str, passwd: bytes, group: bytes) -> None:
    try:
        account = resolve(user, passwd, group)
    except InvalidParameter:
        return
    assert 0 <= account.uid <= MAXIMUM
    assert 0 <= account.gid <= MAXIMUM
    assert account.groups == sorted(set(account.groups))
