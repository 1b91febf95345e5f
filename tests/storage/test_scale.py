"""Every driver: a thousand containers on one image, a full disk, the same digests as the others."""

from __future__ import annotations

import errno
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

from storage import actions as act
from storage.actions import Stack
from tiffin.errors import StorageFull
from tiffin.layer.capture import capture
from tiffin.linux import syscalls
from tiffin.storage.driver import StorageDriver
from tiffin.storage.drivers import find

pytestmark = pytest.mark.root

_FULL = (errno.ENOSPC, errno.EDQUOT)


def test_a_thousand_containers_on_one_image(stack: Stack) -> None:
    driver = stack.driver
    stack.layer(act.write("file", "lower"), act.write("d/other"))
    # All of them on the usual driver, and on every other one in guests or when asked for.
    count = 1000 if driver.name == "overlay2" or "TIFFIN_TEST_FULL" in os.environ else 60
    keys = [f"c{number}" for number in range(count)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: driver.prepare(key, stack.parent), keys))
    for key in (keys[0], keys[count // 2], keys[-1]):
        with stack.mounted(key) as tree:
            assert (tree / "file").read_text() == "lower"
            (tree / "file").write_text(key)
        driver.release(key)
    with stack.mounted(keys[1]) as tree:
        assert (tree / "file").read_text() == "lower"
    driver.release(keys[1])
    assert len(list(driver.keys())) == count + 1
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(driver.remove, keys))
    assert list(driver.keys()) == stack.layers


@pytest.mark.parametrize("name", ["overlay2", "overlay", "fuse-overlayfs", "vfs"])
def test_a_full_disk_loses_nothing_and_can_be_cleared(tmp_path: Path, name: str) -> None:
    place = tmp_path / "small"
    place.mkdir()
    syscalls.mount("tmpfs", str(place), "tmpfs", 0, "size=16m,nr_inodes=4000")
    try:
        kind = find(name)
        if not kind.probe(place / name).works:
            pytest.skip(kind.probe(place / name).reason)
        driver = kind(place / name)
        stack = Stack(driver, tmp_path)
        stack.layer(act.write("file", "kept"))
        with stack.writable() as tree:
            (tree / "own").write_text("kept too")
            with pytest.raises(OSError) as caught, (tree / "big").open("wb") as file:
                while True:
                    file.write(bytes(1 << 20))
                    file.flush()
                    os.fsync(file.fileno())
            assert caught.value.errno in _FULL
        driver.release("container")
        made = []
        try:
            for number in range(5000):
                driver.prepare(f"more{number}", stack.parent)
                made.append(f"more{number}")
        except (OSError, StorageFull) as error:
            assert isinstance(error, StorageFull) or error.errno in _FULL
        assert len(made) < 5000
        with stack.mounted("container") as tree:
            assert (tree / "own").read_text() == "kept too"
            assert (tree / "file").read_text() == "kept"
        driver.release("container")
        for key in [*made, "container"]:
            driver.remove(key)
        driver.sweep()
        assert list(driver.keys()) == stack.layers
        driver.prepare("again", stack.parent)
        driver.close()
    finally:
        syscalls.umount(str(place), syscalls.MNT_DETACH)


def test_access_control_lists_stay(stack: Stack, tmp_path: Path) -> None:
    # Version 2; owner rwx, user 1000 r--, group r-x, mask r-x, others ---.
    entries = [(1, 7, -1), (2, 4, 1000), (4, 5, -1), (16, 5, -1), (32, 0, -1)]
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHi", tag, rights, who) for tag, rights, who in entries
    )
    fill = [
        act.write("file", "x", 0o750),
        act.set_xattr("file", "system.posix_acl_access", acl),
        act.make_directory("d"),
        act.set_xattr("d", "system.posix_acl_default", acl),
        act.write("d/inherits"),
    ]
    plain = tmp_path / "plain"
    plain.mkdir()
    try:
        for action in fill:
            action(plain)
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP
        pytest.skip("the file system has no access control lists")
    stack.layer(*fill)
    stack.layer(act.write("above"))
    act.write("above")(plain)
    with stack.writable() as tree:
        assert act.state(tree) == act.state(plain)
        (tree / "file").write_text("written to")
        (tree / "d/more").write_text("inherits too")
        (plain / "file").write_text("written to")
        (plain / "d/more").write_text("inherits too")
        assert act.state(tree) == act.state(plain)


def test_the_same_changes_make_the_same_digest_as_on_every_other_driver(
    driver: StorageDriver, tmp_path: Path
) -> None:
    if not act.may_make_devices(tmp_path):
        pytest.skip("the digest is that of a layer with a device node")
    past = 10**18
    base = [
        act.write("keep/a", "a", 0o640),
        act.write("change/b", "b"),
        act.write("gone/c", "c"),
        act.symlink("link", "keep/a"),
        act.change_owner("keep/a", 5, 6),
    ]
    changes = [
        act.write("change/b", "changed"),
        act.delete("gone/c"),
        act.write("new/d", "d", 0o755),
        act.link("new/e", "new/d"),
        act.symlink("new/f", "../keep"),
        act.set_xattr("new/d", "user.note", b"1"),
        act.make_device("new/null", 0o020000, 1, 3),
    ]
    times = ["change/b", "new/d", "new/f", "new/null", "new", "change", "gone", "."]
    stack = Stack(driver, tmp_path)
    stack.layer(*base, *(act.set_times(path, past) for path in ("change", "gone", "keep", ".")))
    with stack.writable() as tree:
        for action in (*changes, *(act.set_times(path, past + 5) for path in times)):
            action(tree)
    with driver.own_directory("container") as own:
        below = nullcontext(None) if driver.layered else driver.own_directory("layer0")
        with below as lower:
            index = capture(own, driver.whiteouts, lower_tree=lower)
    found = [(entry.path, entry.kind.value, entry.digest[:4].hex()) for entry in index.entries]
    # The root's own attributes are the usual ones, or the layer would name it.
    assert [path for path, _, _ in found] == [
        b"change",
        b"change/b",
        b"gone",
        b"gone/c",
        b"new",
        b"new/d",
        b"new/e",
        b"new/f",
        b"new/null",
    ], found
    assert index.diff_id == _DIGEST, found


_DIGEST = "sha256:b5031943eee47b26991178d09eb1291868937354e210e007bb2559f34712acc0"
