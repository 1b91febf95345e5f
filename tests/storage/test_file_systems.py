"""The file system that a container sees, with each storage driver of the table."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import actions as act
from storage.actions import Stack
from tiffin.storage.driver import StorageDriver

pytestmark = pytest.mark.root


@pytest.mark.parametrize("depth", [1, 2, 3, 30, 127])
def test_stacks_of_many_layers(stack: Stack, depth: int) -> None:
    driver = stack.driver
    for number in range(depth):
        driver.prepare("next", stack.parent)
        with driver.own_directory("next") as directory:
            (directory / f"file{number}").write_text(str(number))
            (directory / "top").write_text(str(number))
        driver.commit("next", f"layer{number}")
        stack.layers.append(f"layer{number}")
    with stack.writable() as tree:
        assert (tree / "top").read_text() == str(depth - 1)
        assert len(os.listdir(tree)) == depth + 1
        assert (tree / "file0").read_text() == "0"
        (tree / "file0").write_text("changed")
        (tree / "top").unlink()
        assert len(os.listdir(tree)) == depth
    with stack.viewed() as tree:
        assert (tree / "file0").read_text() == "0"


def test_the_same_layer_twice_in_a_stack(stack: Stack) -> None:
    if not stack.driver.layered:
        # A layer that is a whole tree has one place only.
        return
    stack.layer(act.write("d/a", "first"), act.write("d/b", "first"))
    stack.layer(act.write("d/a", "second"), act.delete("d/b"), act.write("d/c", "second"))
    stack.layers.append("layer0")
    with stack.writable() as tree:
        assert (tree / "d/a").read_text() == "first"
        assert (tree / "d/b").read_text() == "first"
        assert (tree / "d/c").read_text() == "second"


COPY_UPS = {
    "write": act.write("d/file", "changed"),
    "append": act.append("d/file", "more"),
    "chmod": act.change_mode("d/file", 0o600),
    "chown": act.change_owner("d/file", 1000, 1001),
    "setxattr": act.set_xattr("d/file", "user.note", b"value"),
    "utime": act.set_times("d/file", 10**18 + 1),
    "truncate": lambda tree: os.truncate(tree / "d/file", 3),
    "rename": act.move("d/file", "d/renamed"),
    "rename away": act.move("d/file", "moved"),
    "rename directory": act.move("d", "e"),
    "link": act.link("d/linked", "d/file"),
    "unlink": act.delete("d/file"),
    "delete directory": act.delete("d"),
    "chmod directory": act.change_mode("d", 0o700),
    "chown symlink": act.change_owner("d/symlink", 7, 8),
}


@pytest.mark.parametrize("name", COPY_UPS)
def test_first_writes_copy_up_and_never_touch_the_layer(
    stack: Stack, tmp_path: Path, name: str
) -> None:
    fill = [
        act.write("d/file", "lower", 0o4755),
        act.set_xattr("d/file", "user.lower", b"\0\1"),
        act.symlink("d/symlink", "file"),
        act.write("d/e/deep"),
        act.set_times("d/file", 10**18 + 987_654_321),
    ]
    layer = stack.layer(*fill)
    plain = tmp_path / "plain"
    plain.mkdir()
    for action in fill:
        action(plain)
    with stack.mounted(layer) as tree:
        before = act.state(tree, times=True)
    with stack.writable() as tree:
        COPY_UPS[name](tree)
        COPY_UPS[name](plain)
        assert act.state(tree) == act.state(plain)
    with stack.mounted("container") as tree:
        assert act.state(tree) == act.state(plain)
    with stack.mounted(layer) as tree:
        assert act.state(tree, times=True) == before


REPLACEMENTS = {
    "file by directory": [act.delete("file"), act.make_directory("file/inside")],
    "directory by file": [act.delete("d"), act.write("d", "a file")],
    "directory by symlink": [act.delete("d"), act.symlink("d", "elsewhere")],
    "symlink by directory": [act.delete("symlink"), act.write("symlink/new")],
    "directory again": [act.delete("d"), act.make_directory("d")],
    "directory again, filled": [act.delete("d"), act.write("d/new"), act.write("d/a", "other")],
    "directory gone and back": [act.move("d", "away"), act.move("away", "d")],
    "emptied": [act.delete("d/a"), act.delete("d/sub")],
    "directory over directory": [act.delete("d"), act.move("other", "d")],
    "file over file": [act.move("file", "d/a")],
}


@pytest.mark.parametrize("name", REPLACEMENTS)
@pytest.mark.parametrize("split", [False, True], ids=["one layer", "a layer each"])
def test_deleted_and_replaced(stack: Stack, tmp_path: Path, name: str, split: bool) -> None:
    if (stack.driver.name, name, split) == ("fuse-overlayfs", "directory gone and back", True):
        pytest.xfail("fuse-overlayfs 1.10 shows what a layer below has in a directory just made")
    fill = [
        act.write("file", "lower"),
        act.write("d/a", "lower"),
        act.write("d/b", "lower"),
        act.write("d/sub/c", "lower"),
        act.write("other/x", "lower"),
        act.symlink("symlink", "d"),
    ]
    plain = tmp_path / "plain"
    plain.mkdir()
    stack.layer(*fill)
    for action in [*fill, *REPLACEMENTS[name]]:
        action(plain)
    for actions in [[one] for one in REPLACEMENTS[name]] if split else [REPLACEMENTS[name]]:
        stack.layer(*actions)
    with stack.viewed() as tree:
        assert act.state(tree) == act.state(plain)
    with stack.writable() as tree:
        assert act.state(tree) == act.state(plain)


def test_every_kind_of_file_with_all_attributes_survives_layers(
    stack: Stack, tmp_path: Path
) -> None:
    past = 10**18 + 123_456_789
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    devices = act.may_make_devices(tmp_path)
    timed = {"suid", "symlink", "pipe", "sub/file", "sub", "sticky"} | (
        {"null"} if devices else set()
    )
    fill = [
        act.write("suid", "x", 0o4755),
        act.write("sgid", "x", 0o2755),
        act.write("closed", "x", 0o000),
        act.make_directory("sticky", 0o1777),
        act.write("owned", "x"),
        act.change_owner("owned", 12345, 54321),
        act.write("caps", "x", 0o755),
        act.set_xattr("caps", "security.capability", capability),
        act.set_xattr("owned", "user.empty", b""),
        act.set_xattr("sticky", "user.directory", b"d" * 200),
        act.symlink("symlink", "to/nowhere"),
        act.change_owner("symlink", 5, 6),
        *(
            [
                act.make_device("null", stat.S_IFCHR, 1, 3),
                act.make_device("disk", stat.S_IFBLK, 7, 200),
            ]
            if devices
            else []
        ),
        act.make_device("pipe", stat.S_IFIFO, 0, 0),
        act.make_device("socket", stat.S_IFSOCK, 0, 0),
        act.write("sub/file", "x"),
        act.write("name with \n newline and \udcff", "x"),
        *(act.set_times(path, past) for path in sorted(timed - {"sub", "sticky"})),
        act.set_times("sub", past + 1),
        act.set_times("sticky", past + 2),
    ]
    plain = tmp_path / "plain"
    plain.mkdir()
    for action in fill:
        action(plain)
    stack.layer(*fill)
    stack.layer(act.write("above"))
    act.write("above")(plain)
    with stack.writable() as tree:
        seen, wanted = act.state(tree, times=True), act.state(plain, times=True)
        assert {path: seen[path] for path in timed} == {path: wanted[path] for path in timed}
        assert act.state(tree) == act.state(plain)


def test_the_root_directory_keeps_owner_and_mode(stack: Stack) -> None:
    stack.layer(act.change_mode(".", 0o750), act.change_owner(".", 3, 4))
    stack.layer(act.write("file"))
    with stack.writable() as tree:
        status = tree.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o750, 3, 4)


def test_hard_links_of_a_layer_stay_links(stack: Stack) -> None:
    stack.layer(act.write("a", "linked"), act.link("b", "a"), act.link("c", "a"))
    stack.layer(act.write("other"))
    with stack.writable() as tree:
        status = (tree / "a").stat()
        assert status.st_ino == (tree / "b").stat().st_ino
        # The first overlay driver's joined trees are hard links too.
        assert status.st_nlink == 3 or stack.driver.name == "overlay"
        (tree / "new").write_text("1")
        os.link(tree / "new", tree / "new2")
        (tree / "new2").write_text("22")
        assert (tree / "new").read_text() == "22"
    with stack.viewed() as tree:
        assert (tree / "c").read_text() == "linked"


def test_holes_stay_holes(stack: Stack) -> None:
    def sparse(tree: Path) -> None:
        with (tree / "sparse").open("wb") as file:
            file.write(b"start")
            file.seek(32 << 20)
            file.write(b"middle")
            file.truncate(64 << 20)

    stack.layer(sparse)
    stack.layer(act.write("other"))
    with stack.writable() as tree:
        status = (tree / "sparse").stat()
        assert status.st_size == 64 << 20
        assert status.st_blocks * 512 < 1 << 20
        with (tree / "sparse").open("rb") as file:
            assert file.read(5) == b"start"
            file.seek(32 << 20)
            assert file.read(10) == b"middle\0\0\0\0"


def test_open_files_across_the_first_write(stack: Stack) -> None:
    stack.layer(act.write("file", "lower"), act.write("log", "1\n"))
    with stack.writable() as tree, (tree / "file").open("rb") as reader:
        with (tree / "file").open("r+b") as writer:
            writer.write(b"UPPER")
            writer.flush()
            assert (tree / "file").read_bytes() == b"UPPER"
        # Overlayfs keeps an open reader on the layer's file, a plain directory does not.
        assert reader.read() in (b"lower", b"UPPER")
        with (tree / "log").open("ab") as one, (tree / "log").open("ab") as two:
            for stream, line in ((one, b"2\n"), (two, b"3\n"), (one, b"4\n")):
                stream.write(line)
                stream.flush()
        assert (tree / "log").read_bytes() == b"1\n2\n3\n4\n"
        with (tree / "file").open("r+b") as file:
            (tree / "file").unlink()
            file.seek(0)
            assert file.read() == b"UPPER"
        assert not (tree / "file").exists()


def test_memory_maps(stack: Stack) -> None:
    stack.layer(act.write("file", "0123456789"))
    with stack.writable() as tree:
        protection = mmap.PROT_READ
        with (
            (tree / "file").open("rb") as file,
            mmap.mmap(file.fileno(), 0, prot=protection) as view,
        ):
            assert view[:4] == b"0123"
        with (tree / "file").open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            view[:4] = b"abcd"
            view.flush()
        assert (tree / "file").read_text() == "abcd456789"
    with stack.viewed() as tree:
        assert (tree / "file").read_text() == "0123456789"


# Random operations, compared with a plain directory.

_NAMES = st.sampled_from(["a", "b", "c"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)
_OPERATIONS = st.one_of(
    st.builds(act.write, _PATHS, st.sampled_from(["one", "two"])),
    st.builds(act.append, _PATHS, st.just("more")),
    st.builds(act.make_directory, _PATHS),
    st.builds(act.delete, _PATHS),
    st.builds(act.delete, _PATHS),
    st.builds(act.symlink, _PATHS, _NAMES),
    st.builds(act.rename, _PATHS, _PATHS),
    st.builds(act.change_mode, _PATHS, st.sampled_from([0o600, 0o755])),
    st.builds(act.set_xattr, _PATHS, st.just("user.note"), st.sampled_from([b"1", b"2"])),
)

# A hard link of a layer is a file of its own once it is written to in a layer above, on overlayfs;
# so links are made in the last layer only.
_LAST = st.one_of(_OPERATIONS, st.builds(act.link, _PATHS, _PATHS))


def _attempt(action: act.Action, tree: Path) -> str:
    """What the action fails with, by name; nothing if it works."""
    try:
        action(tree)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    return ""


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    layers=st.lists(st.lists(_OPERATIONS, max_size=12), max_size=3),
    last=st.lists(_LAST, min_size=1, max_size=12),
)
def test_random_operations_do_what_they_do_in_a_plain_directory(
    driver: StorageDriver, layers: list[list[act.Action]], last: list[act.Action]
) -> None:
    # On the driver's own file system.
    with tempfile.TemporaryDirectory(dir=driver.home.parent) as name:
        place = Path(name)
        plain = place / "plain"
        plain.mkdir()
        stack = Stack(driver, place)
        try:
            for operations in [*layers, last]:
                driver.prepare("next", stack.parent)
                with stack.mounted("next") as tree:
                    for operation in operations:
                        assert _attempt(operation, tree) == _attempt(operation, plain)
                    assert act.state(tree) == act.state(plain)
                driver.commit("next", f"layer{len(stack.layers)}")
                stack.layers.append(f"layer{len(stack.layers)}")
                with stack.viewed() as tree:
                    assert act.state(tree) == act.state(plain)
        finally:
            for key in list(driver.keys()):
                driver.remove(key)
