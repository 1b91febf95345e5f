"""What every storage driver must do: the same tests for each driver of the table."""

from __future__ import annotations

import errno
import mmap
import os
import re
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import actions as act
from storage.actions import Stack
from storage.killing import Arm, killed_at, steps
from tiffin.errors import Conflict, InvalidParameter, NotFound
from tiffin.storage.driver import StorageDriver

pytestmark = pytest.mark.root


# The life of snapshots.


def test_a_writable_snapshot_shows_its_parent_and_keeps_its_own_changes(stack: Stack) -> None:
    stack.layer(act.write("etc/base", "base"))
    with stack.writable("one") as tree:
        assert (tree / "etc/base").read_text() == "base"
        (tree / "etc/base").write_text("changed")
        (tree / "new").write_text("new")
    with stack.mounted("one") as tree:
        assert (tree / "etc/base").read_text() == "changed"
        assert (tree / "new").read_text() == "new"
    with stack.writable("two") as tree:
        assert (tree / "etc/base").read_text() == "base"
        assert not (tree / "new").exists()


def test_two_snapshots_mounted_at_once_never_see_each_other(stack: Stack) -> None:
    stack.layer(act.write("shared", "lower"))
    with stack.writable("one") as first, stack.writable("two") as second:
        (first / "shared").write_text("one")
        (second / "only-two").touch()
        assert (second / "shared").read_text() == "lower"
        assert not (first / "only-two").exists()


def test_a_snapshot_without_parent_is_an_empty_writable_tree(stack: Stack) -> None:
    with stack.writable() as tree:
        assert os.listdir(tree) == []
        (tree / "file").touch()
        assert os.listdir(tree) == ["file"]


def test_a_committed_snapshot_is_seen_read_only(stack: Stack) -> None:
    name = stack.layer(act.write("file", "kept"))
    with stack.mounted(name) as tree:
        assert (tree / "file").read_text() == "kept"
        with pytest.raises(OSError) as caught:
            (tree / "file").write_text("no")
        assert caught.value.errno == errno.EROFS


def test_a_view_shows_the_stack_read_only_and_leaves_nothing(stack: Stack) -> None:
    stack.layer(act.write("a", "1"), act.write("b", "1"))
    stack.layer(act.write("b", "2"), act.delete("a"))
    before = sorted(stack.driver.keys())
    with stack.viewed() as tree:
        assert act.state(tree).keys() == {"b"}
        assert (tree / "b").read_text() == "2"
        with pytest.raises(OSError) as caught:
            (tree / "c").touch()
        assert caught.value.errno == errno.EROFS
    assert sorted(stack.driver.keys()) == before


def test_a_committed_snapshot_goes_by_its_new_name_alone(stack: Stack) -> None:
    driver = stack.driver
    driver.prepare("draft", None)
    driver.commit("draft", "final")
    assert list(driver.keys()) == ["final"]
    with pytest.raises(NotFound):
        driver.mounts("draft")


def test_keys_that_exist_are_refused(driver: StorageDriver) -> None:
    driver.prepare("one", None)
    driver.commit("one", "layer")
    driver.prepare("two", None)
    with driver.own_directory("two") as directory:
        (directory / "kept").touch()
    for key in ("two", "layer"):
        with pytest.raises(Conflict, match=key):
            driver.prepare(key, None)
    with pytest.raises(Conflict, match="layer"):
        driver.commit("two", "layer")
    with driver.own_directory("two") as directory:
        assert os.listdir(directory) == ["kept"]
    driver.commit("two", "other")


def test_what_does_not_exist_is_refused_by_name(driver: StorageDriver) -> None:
    parent: str | tuple[str, ...] = ("absent",) if driver.layered else "absent"
    with pytest.raises(NotFound, match="absent"):
        driver.prepare("one", parent)
    assert list(driver.keys()) == []
    with pytest.raises(NotFound, match="absent"):
        driver.commit("absent", "name")
    with pytest.raises(NotFound, match="absent"):
        driver.mounts("absent")
    with pytest.raises(NotFound, match="absent"):
        driver.view(("absent",))
    with pytest.raises(NotFound, match="absent"):
        driver.usage("absent")
    driver.remove("absent")


def test_a_writable_snapshot_is_no_parent(driver: StorageDriver) -> None:
    driver.prepare("open", None)
    with pytest.raises(NotFound, match="not committed"):
        driver.prepare("child", ("open",) if driver.layered else "open")


@pytest.mark.parametrize("key", ["", "..", "a/b", "A", "x" * 101, "a b", ".hidden"])
def test_a_key_that_is_no_key_is_refused(driver: StorageDriver, key: str) -> None:
    with pytest.raises(InvalidParameter):
        driver.prepare(key, None)
    driver.prepare("good", None)
    with pytest.raises(InvalidParameter):
        driver.commit("good", key)


def test_a_removed_snapshot_is_gone_with_all_its_files(stack: Stack, tmp_path: Path) -> None:
    driver = stack.driver
    stack.layer(act.write("lower"))
    # What is kept of a stack that was seen (overlay's joined trees) is made now.
    with stack.writable("first"):
        pass
    driver.remove("first")
    before = sorted(str(path) for path in driver.home.rglob("*"))
    with stack.writable() as tree:
        (tree / "upper").touch()
        (tree / "lower").unlink()
    driver.remove("container")
    driver.remove("container")
    assert sorted(str(path) for path in driver.home.rglob("*")) == before
    driver.prepare("container", stack.parent)


def test_a_tree_deeper_than_a_path_may_be_is_measured_copied_and_removed(stack: Stack) -> None:
    name, depth = "n" * 200, 60
    stack.driver.prepare("deep", None)
    with stack.driver.own_directory("deep") as directory:
        fd = os.open(directory, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir(name, dir_fd=fd)
            below = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        for file in ("first", "second"):
            with open(os.open(file, os.O_WRONLY | os.O_CREAT, dir_fd=fd), "w") as stream:
                stream.write("x" * 1000)
        os.link("first", "third", src_dir_fd=fd, dst_dir_fd=fd)
        os.close(fd)
    usage = stack.driver.usage("deep")
    assert (usage.size, usage.inodes) == (2000, depth + 2)
    stack.driver.commit("deep", "layer0")
    stack.layers.append("layer0")
    stack.driver.prepare("child", stack.parent)
    if not stack.driver.layered:
        assert stack.driver.usage("child") == usage
    for key in ("child", "layer0"):
        stack.driver.remove(key)
    assert list(stack.driver.home.rglob(f"{name}*")) == []


def test_usage_counts_content_once_and_no_directories_or_whiteouts(stack: Stack) -> None:
    if stack.driver.layered:
        stack.layer(act.write("gone", "x" * 5000))
    with stack.writable() as tree:
        if stack.driver.layered:
            (tree / "gone").unlink()
        (tree / "directory").mkdir()
        (tree / "directory/file").write_bytes(b"x" * 1000)
        os.link(tree / "directory/file", tree / "linked")
        (tree / "symlink").symlink_to("0123456789")
        with (tree / "sparse").open("wb") as file:
            file.truncate(1 << 20)
    usage = stack.driver.usage("container")
    assert usage.size == 1000 + 10 + (1 << 20)
    assert usage.inodes == 4


def test_threads_prepare_and_remove_at_once(stack: Stack) -> None:
    driver = stack.driver
    stack.layer(act.write("file"))
    stack.layer(act.write("other"))

    def live(number: int) -> None:
        for turn in range(8):
            key = f"c{number}-{turn}"
            driver.prepare(key, stack.parent)
            with driver.own_directory(key) as directory:
                (directory / "own").write_text(key)
            assert driver.mounts(key)
            if turn % 2:
                driver.remove(key)
            else:
                driver.commit(key, f"done{number}-{turn}")
            driver.sweep()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(live, range(8)))
    done = {f"done{number}-{turn}" for number in range(8) for turn in range(0, 8, 2)}
    assert set(driver.keys()) == done | set(stack.layers)
    for key in done:
        with driver.own_directory(key) as directory:
            assert (directory / "own").exists()


def test_of_threads_that_prepare_one_key_a_single_one_wins(driver: StorageDriver) -> None:
    def prepare(_: int) -> bool:
        try:
            driver.prepare("same", None)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(prepare, range(16))) == 1
    assert driver.mounts("same")


def test_a_new_driver_on_the_same_folder_knows_everything(stack: Stack) -> None:
    stack.layer(act.write("file", "kept"))
    with stack.writable() as tree:
        (tree / "file").write_text("changed")
    stack.driver = type(stack.driver)(stack.driver.home)
    assert sorted(stack.driver.keys()) == ["container", "layer0"]
    with stack.mounted("container") as tree:
        assert (tree / "file").read_text() == "changed"


def test_killed_at_any_line_nothing_but_the_snapshot_in_hand_is_lost(
    stack: Stack, tmp_path: Path
) -> None:
    driver = stack.driver
    stack.layer(act.write("file", "lower"), act.write("d/e/f"), act.link("d/link", "file"))
    kept = _kept(driver)

    def live(arm: Arm) -> None:
        arm()
        fresh = type(driver)(driver.home)
        fresh.prepare("victim", stack.parent)
        with fresh.own_directory("victim") as directory:
            (directory / "own").write_text("x")
        fresh.commit("victim", "done")
        fresh.prepare("other", None)
        fresh.remove("done")
        fresh.remove("other")

    deaths = 0
    for step in steps():
        if not killed_at(step, live, ["storage/"]):
            break
        deaths += 1
        for key in list(driver.keys()):
            if key == "layer0":
                continue
            try:
                driver.mounts(key)
            except NotFound:
                pass
            else:
                # What can be mounted is whole.
                with stack.mounted(key) as tree:
                    assert key == "other" or (tree / "d/e/f").exists()
            driver.remove(key)
        driver.sweep()
        assert _kept(driver) == kept, f"killed at line {step}"
    assert deaths > 20


def _kept(driver: StorageDriver) -> dict[str, tuple[object, ...]]:
    """All that lies in the driver's folder, but whole joined trees of overlay, which may stay."""
    found = {
        f"{place.name}/{path}": what
        for place in driver.home.iterdir()
        if place.is_dir() and place.name != "pool"
        for path, what in act.state(place).items()
    }
    return {path: what for path, what in found.items() if not re.match("joined/[^~]*$", path)}


# The file system that a container sees.


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
