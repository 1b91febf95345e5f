"""Capturing a directory: the digest depends on the tree alone, and the tar makes the tree again."""

from __future__ import annotations

import io
import os
import random
import socket
import stat
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layer.tars import Layer, tree
from tiffin.errors import InvalidParameter, Unsupported
from tiffin.layer.assemble import write_tar
from tiffin.layer.capture import capture
from tiffin.layer.entry import Kind
from tiffin.layer.index import Index
from tiffin.storage.driver import Whiteouts

pytestmark = pytest.mark.root

NAMES = [b"a", b"a-b", b"a.b", b"b", "é".encode(), b"\xff\xfe", b"n" * 101, b"m" * 250]
nodes = st.dictionaries(
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(b"/".join),
    st.tuples(
        st.sampled_from("fffdlph"),
        st.binary(max_size=3000),
        st.integers(0, 0o7777),
        st.sampled_from([(0, 0), (1000, 100), (3_000_000, 4_000_000_000)]),
        st.sampled_from([0, 1, 999_999_999, 1_600_000_000_123_456_789, -1, -1_500_000_000]),
        st.sampled_from([{}, {"user.a": b"\0\1"}, {"user.b": b"x" * 300, "trusted.c": b"="}]),
    ),
    max_size=12,
)


def plant(root: Path, items: dict, order: list[bytes]) -> None:
    """Make a tree, in the order given."""
    top = os.fsencode(root)
    made: list[bytes] = []
    later = []
    for name in order:
        kind, content, mode, owner, time, xattrs = items[name]
        path = os.path.join(top, name)
        if kind == "h":
            later.append((name, path))
            continue
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if kind == "f":
                with open(path, "wb") as file:
                    file.write(content * 40)
                made.append(path)
            elif kind == "d":
                os.makedirs(path, exist_ok=True)
            elif kind == "l":
                os.symlink(content.replace(b"\0", b"") or b"x", path)
            else:
                os.mkfifo(path)
        except (FileExistsError, IsADirectoryError, NotADirectoryError):
            continue
        os.lchown(path, *owner)
        if kind != "l":
            os.chmod(path, mode)
        if kind in "fd":
            for key, value in xattrs.items():
                os.setxattr(path, key, value)
    for number, (_name, path) in enumerate(sorted(later)):
        if made and os.path.isdir(os.path.dirname(path)) and not os.path.lexists(path):
            os.link(sorted(made)[number % len(made)], path)
    for directory, folders, files in os.walk(top, topdown=False):
        for name in folders + files:
            path = os.path.join(directory, name)
            relative = os.path.relpath(path, top)
            time = items[relative][4] if relative in items else 5
            if os.lstat(path).st_nlink > 1 and not os.path.isdir(path):
                time = 7
            os.utime(path, ns=(time, time), follow_symlinks=False)


def tar_of(index: Index, directory: Path) -> bytes:
    output = io.BytesIO()
    write_tar(index, directory, Path("/nonexistent"), output)
    return output.getvalue()


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(nodes, st.randoms())
def test_a_tree_survives_and_its_digest_is_its_own(items, chance: random.Random) -> None:
    # Whether a path can be made depends on what is there; names that shut others out go last.
    order = sorted(items, key=lambda name: (-name.count(b"/"), name))
    with tempfile.TemporaryDirectory() as name:
        first, second = Path(name, "first"), Path(name, "second")
        for place in (first, second):
            place.mkdir(mode=0o755)
        plant(first, items, order)
        index = capture(first, Whiteouts.OVERLAY)
        # The same tree, made in another order.
        levels: dict[int, list[bytes]] = {}
        for path in order:
            levels.setdefault(path.count(b"/"), []).append(path)
        shuffled = []
        for level in sorted(levels, reverse=True):
            chance.shuffle(levels[level])
            shuffled += levels[level]
        plant(second, items, shuffled)
        if tree(second) == tree(first):
            assert capture(second, Whiteouts.OVERLAY) == index
        tar = tar_of(index, first)
        again = Layer(Path(name, "again"), tar)
        assert again.tree() == tree(first)
        assert again.index.canonical
        assert again.index == index
        assert capture(again.directory, Whiteouts.OVERLAY) == index
        with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as readable:
            assert [os.fsencode(info.name) for info in readable] == [
                entry.path for entry in index.entries
            ]


def test_sockets_and_overlays_own_attributes_are_left_out(tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "d").mkdir(parents=True)
    os.setxattr(own / "d", "trusted.overlay.impure", b"y")
    os.setxattr(own / "d", "trusted.overlay.origin", b"\0")
    os.setxattr(own / "d", "trusted.other", b"kept")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(own / "s"))
        index = capture(own, Whiteouts.OVERLAY)
    assert [entry.path for entry in index.entries] == [b"d"]
    assert index.entries[0].xattrs == {"trusted.other": b"kept"}


@pytest.mark.parametrize("name", ["redirect", "metacopy"])
@pytest.mark.parametrize(
    ("style", "prefix"), [(Whiteouts.OVERLAY, "trusted"), (Whiteouts.USER_OVERLAY, "user")]
)
def test_what_only_another_mount_can_read_is_refused(
    tmp_path: Path, name: str, style: Whiteouts, prefix: str
) -> None:
    (tmp_path / "d").mkdir()
    os.setxattr(tmp_path / "d", f"{prefix}.overlay.{name}", b"x")
    with pytest.raises(Unsupported, match=f"'d' has the attribute {prefix}.overlay.{name}"):
        capture(tmp_path, style)


def test_a_file_named_like_a_whiteout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".wh.x").touch()
    with pytest.raises(InvalidParameter, match=r"'d/.wh.x' can't be part of a layer"):
        capture(tmp_path, Whiteouts.OVERLAY)


def test_capabilities_acls_and_devices_are_kept(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir(mode=0o755)
    capability = b"\x01\x00\x00\x02\x00\x20\x00\x00" + bytes(12)
    acl = bytes.fromhex("02000000" "01000600ffffffff" "02000400e8030000" "04000400ffffffff"
                        "10000400ffffffff" "20000400ffffffff")  # fmt: skip
    (own / "ping").write_text("x")
    os.setxattr(own / "ping", "security.capability", capability)
    (own / "dir").mkdir()
    os.setxattr(own / "dir", "system.posix_acl_default", acl)
    (own / "dir" / "plain").touch(mode=0o644)
    os.removexattr(own / "dir" / "plain", "system.posix_acl_access")
    (own / "dir" / "plain").chmod(0o644)
    (own / "dir" / "sub").mkdir()
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        os.removexattr(own / "dir" / "sub", name)
    os.mknod(own / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    index = capture(own, Whiteouts.OVERLAY)
    again = Layer(tmp_path / "again", tar_of(index, own))
    assert again.tree() == tree(own)
    entry = again.index.get(b"ping")
    assert entry is not None
    assert entry.xattrs == {"security.capability": capability}
    assert again.index.entries[-1].kind in (Kind.FILE, Kind.CHARACTER_DEVICE)


def test_the_root_is_an_entry_only_when_it_is_unusual(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert capture(tmp_path, Whiteouts.OVERLAY).entries == []
    tmp_path.chmod(0o1777)
    index = capture(tmp_path, Whiteouts.OVERLAY)
    assert [(entry.path, entry.mode) for entry in index.entries] == [(b"", 0o1777)]
