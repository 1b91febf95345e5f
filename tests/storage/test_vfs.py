"""What vfs does beyond the conformance suite: contents shared between whole trees."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

from storage import actions as act
from storage.actions import Stack
from tiffin.layer.capture import own_entries
from tiffin.storage.driver import StorageDriver
from tiffin.storage.overlay import Overlay
from tiffin.storage.overlay2 import Overlay2
from tiffin.storage.vfs import Vfs

pytestmark = pytest.mark.root

_FIEMAP = 0xC020660B


def _first_extent(path: Path) -> int:
    """Where the file's first bytes lie on the device."""
    request = struct.pack("=QQLLLL", 0, 2**64 - 1, 1, 0, 1, 0) + b"\0" * 56
    with path.open("rb") as file:
        answer = fcntl.ioctl(file, _FIEMAP, request)
    assert struct.unpack_from("=L", answer, 20)[0] == 1, "the file has an extent"
    return int(struct.unpack_from("=Q", answer, 40)[0])


def test_copies_share_their_contents_where_the_file_system_can(
    reflink_root: Path, tmp_path: Path
) -> None:
    home = reflink_root / "vfs"
    assert dict(Vfs.probe(home).features)["Reflinks"] == "true"
    stack = Stack(Vfs(home), tmp_path)
    size = 48 << 20
    stack.layer(lambda tree: (tree / "large").write_bytes(os.urandom(1 << 20) * (size >> 20)))
    os.sync()
    before = os.statvfs(home).f_bfree
    for number in range(12):
        stack.driver.prepare(f"c{number}", stack.parent)
    os.sync()
    taken = (before - os.statvfs(home).f_bfree) * os.statvfs(home).f_frsize
    assert taken < size
    with stack.driver.own_directory("c1") as one, stack.driver.own_directory("layer0") as lower:
        assert _first_extent(one / "large") == _first_extent(lower / "large")
        with (one / "large").open("r+b") as file:
            file.write(b"own")
            os.fsync(file.fileno())
        assert _first_extent(one / "large") != _first_extent(lower / "large")
        assert (lower / "large").read_bytes()[:3] != b"own"


def test_a_copy_of_every_kind_of_file_on_such_a_file_system(
    reflink_root: Path, tmp_path: Path
) -> None:
    stack = Stack(Vfs(reflink_root / "kinds"), tmp_path)
    stack.layer(
        act.write("file", "x" * 100_000),
        act.link("linked", "file"),
        act.write("empty"),
        act.symlink("symlink", "file"),
        act.set_xattr("file", "user.note", b"kept"),
        act.make_device("null", 0o020000, 1, 3),
        act.set_times("file", 10**18 + 5),
    )
    with stack.viewed() as tree:
        wanted = act.state(tree, times=True)
    with stack.writable() as tree:
        assert act.state(tree, times=True) == wanted
        assert (tree / "file").stat().st_nlink == 2


@pytest.mark.parametrize("kind", [Vfs, Overlay2, Overlay], ids=lambda kind: kind.name)
def test_access_control_lists_of_xfs_are_like_others(
    xfs_place: Path, tmp_path: Path, kind: type[StorageDriver]
) -> None:
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHi", tag, rights, who)
        for tag, rights, who in ((1, 7, -1), (2, 4, 1000), (4, 5, -1), (16, 5, -1), (32, 0, -1))
    )
    stack = Stack(kind(xfs_place / tmp_path.name / kind.name), tmp_path)
    for name in ("first", "second"):
        stack.layer(
            act.make_directory("d"),
            act.set_xattr("d", "system.posix_acl_default", acl),
            act.write(f"d/{name}"),
        )
    with stack.writable() as tree:
        (tree / "d/first").write_text("changed")
    with stack.driver.own_directory("container") as own:
        names = {
            name
            for entry in own_entries(own, stack.driver.whiteouts)
            for name in entry.xattrs or ()
        }
    assert names <= {"system.posix_acl_access", "system.posix_acl_default"}
    assert names


def test_overlay2_works_on_these_file_systems_too(reflink_root: Path, tmp_path: Path) -> None:
    assert Overlay2.probe(reflink_root / "overlay2").works
    stack = Stack(Overlay2(reflink_root / "overlay2"), tmp_path)
    stack.layer(act.write("d/file", "lower"))
    stack.layer(act.delete("d"), act.write("d/new"))
    with stack.writable() as tree:
        assert os.listdir(tree / "d") == ["new"]
