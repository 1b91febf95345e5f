"""overlay2 beyond the conformance suite: more layers than a page has room for; user namespaces."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from storage import actions as act
from storage.actions import Stack
from storage.conftest import loop_mounted
from tiffin.errors import InvalidParameter
from tiffin.linux import overlayfs, syscalls
from tiffin.storage.driver import Whiteouts
from tiffin.storage.fuse_overlayfs import FuseOverlayfs
from tiffin.storage.overlay import Overlay
from tiffin.storage.overlay2 import Overlay2

pytestmark = pytest.mark.root

TESTS = Path(__file__).parents[1]
_on_the_host = pytest.mark.skipif(
    Path("/proc/self/uid_map").read_text().split()[2] != "4294967295",
    reason="the tests run in a user namespace themselves",
)


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    """An empty stack; skips where overlayfs does not work."""
    place = tmp_path / "root" / "overlay2"
    support = Overlay2.probe(place)
    if not support.works:
        pytest.skip(support.reason)
    return Stack(Overlay2(place), tmp_path)


def _layers(stack: Stack, count: int) -> None:
    for number in range(count):
        stack.driver.prepare("next", None)
        with stack.driver.own_directory("next") as own:
            (own / f"file{number}").touch()
            (own / "top").write_text(str(number))
        stack.driver.commit("next", f"layer{number}")
        stack.layers.append(f"layer{number}")


def test_as_many_layers_as_the_kernel_stacks(stack: Stack) -> None:
    if not overlayfs.takes_one_by_one():
        pytest.skip("the kernel has no lowerdir+ (Linux 6.7)")
    _layers(stack, overlayfs.MOST)
    with stack.writable() as tree:
        assert len(os.listdir(tree)) == overlayfs.MOST + 1
        assert (tree / "top").read_text() == str(overlayfs.MOST - 1)
        (tree / "file0").unlink()
        (tree / "top").write_text("changed")
    with stack.viewed() as tree:
        assert (tree / "top").read_text() == str(overlayfs.MOST - 1)
        assert (tree / "file0").exists()
        with pytest.raises(OSError, match="Read-only"):
            (tree / "new").touch()
    stack.driver.prepare("above", None)
    stack.driver.commit("above", "above")
    with pytest.raises(InvalidParameter, match="max depth exceeded: overlayfs stacks 500 layers"):
        stack.driver.prepare("more", (*stack.layers, "above"))


def test_an_older_kernel_takes_what_fits_and_refuses_the_rest(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlayfs, "takes_one_by_one", lambda: False)
    _layers(stack, 300)
    stack.layers, refused = stack.layers[:250], stack.layers
    with stack.writable() as tree:
        assert len(os.listdir(tree)) == 251
    with pytest.raises(InvalidParameter, match=r"300 layers do not fit .* before Linux 6\.7"):
        stack.driver.view(tuple(refused))


@pytest.mark.parametrize("page", [overlayfs.PAGE, 16], ids=["as one text", "one by one"])
def test_both_ways_of_mounting_show_the_same(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    if page == 16 and not overlayfs.takes_one_by_one():
        pytest.skip("the kernel has no lowerdir+ (Linux 6.7)")
    monkeypatch.setattr(overlayfs, "PAGE", page)
    stack.layer(act.write("d/a", "lower"), act.write("d/b"))
    stack.layer(act.delete("d"), act.write("d/c", "upper"))
    with stack.writable() as tree:
        assert act.state(tree).keys() == {"d", "d/c"}
        (tree / "d/c").write_text("changed")
    with stack.viewed() as tree:
        assert (tree / "d/c").read_text() == "upper"
        with pytest.raises(OSError, match="Read-only"):
            (tree / "new").touch()


def test_a_label_keeps_its_commas(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str | None]] = []
    monkeypatch.setattr(overlayfs, "PAGE", 16)
    monkeypatch.setattr(
        "tiffin.linux.detached.configure",
        lambda _context, _kind, name, value: told.append((name, value)),
    )
    with pytest.raises(OSError, match="overlay"):
        # Nothing was configured, so there is nothing that could be mounted.
        overlayfs.mount(
            "overlay",
            str(stack.place),
            syscalls.MS_RDONLY,
            'lowerdir=a:b,context="system_u:object_r:x:s0:c1,c2",index=off',
        )
    assert told == [
        ("source", "overlay"),
        ("ro", None),
        ("lowerdir+", "a"),
        ("lowerdir+", "b"),
        ("context", "system_u:object_r:x:s0:c1,c2"),
        ("index", "off"),
    ]


@pytest.mark.parametrize("kind", [Overlay2, Overlay, FuseOverlayfs], ids=lambda kind: kind.name)
def test_a_size_is_a_quota_where_the_file_system_counts(
    tmp_path: Path, kind: type[Overlay2]
) -> None:
    with ExitStack() as mounts:
        try:
            place = mounts.enter_context(loop_mounted("xfs", tmp_path, "loop,prjquota"))
        except subprocess.CalledProcessError:
            pytest.skip("the kernel has no XFS with quotas")
        support = kind.probe(place / "root" / kind.name)
        if not support.works:
            assert os.environ.get("CI") != "true", support.reason
            pytest.skip(support.reason)
        assert ("Quota", "true") in support.features
        driver = kind(place / "root" / kind.name)
        stack = Stack(driver, tmp_path)
        stack.layer(act.write("large", "x" * (12 << 20)))
        driver.prepare("c", stack.parent)
        driver.limit("c", 8 << 20)
        with stack.mounted("c") as tree:
            (tree / "fits").write_bytes(bytes(4 << 20))
            # Other containers and the image are not counted; what is copied up from it is.
            for action in (
                lambda: (tree / "more").write_bytes(bytes(6 << 20)),
                lambda: (tree / "large").open("r+b").close(),
            ):
                with pytest.raises(OSError) as caught:
                    action()
                assert caught.value.errno in (errno.ENOSPC, errno.EDQUOT)
        driver.limit("c", 64 << 20)
        with stack.mounted("c") as tree:
            (tree / "more").write_bytes(bytes(6 << 20))
        driver.remove("c")
        driver.close()


_IN_A_USER_NAMESPACE = """
import sys
from pathlib import Path
from storage import actions as act
from storage.actions import Stack
from tiffin.layer.capture import capture
from tiffin.storage.driver import Whiteouts
from tiffin.storage.overlay2 import Overlay2

place = Path(sys.argv[1])
support = Overlay2.probe(place / "root" / "overlay2")
assert support.works, support.reason
assert ("userxattr", "true") in support.features
driver = Overlay2(place / "root" / "overlay2")
assert driver.whiteouts is Whiteouts.USER_OVERLAY
stack = Stack(driver, place)
stack.layer(act.write("d/a", "lower"), act.write("gone"), act.set_xattr("d", "user.note", b"1"))
stack.layer(act.delete("d"), act.delete("gone"), act.write("d/b", "upper"))
with stack.viewed() as tree:
    assert act.state(tree).keys() == {"d", "d/b"}, act.state(tree)
with driver.own_directory("layer1") as own:
    found = [(entry.path, entry.kind.name, entry.xattrs) for entry in
             capture(own, driver.whiteouts).entries]
assert found == [
    (b"d", "DIRECTORY", None), (b"d", "OPAQUE", None), (b"d/b", "FILE", None),
    (b"gone", "WHITEOUT", None),
], found
"""


def _in_a_user_namespace(place: Path, program: str) -> None:
    """Run Python with ``place`` as its argument, which belongs to the namespace's root."""
    for part in (place, *place.parents):
        # pytest closes its folders to others.
        if part.stat().st_mode & 0o5 != 0o5:
            part.chmod(part.stat().st_mode | 0o5)
    os.chown(place, 1000, 1000)
    python = [sys.executable, "-c", program, str(place)]
    done = subprocess.run(
        [sys.executable, str(TESTS / "vm" / "rootless.py"), *python],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@_on_the_host
def test_in_a_user_namespace_the_attributes_are_the_users(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    _in_a_user_namespace(mine, _IN_A_USER_NAMESPACE)
    # Whoever opens the root later keeps to them.
    driver = Overlay2(mine / "root" / "overlay2")
    assert driver.whiteouts is Whiteouts.USER_OVERLAY
    stack = Stack(driver, tmp_path)
    stack.layers = ["layer0", "layer1"]
    with stack.writable() as tree:
        assert act.state(tree).keys() == {"d", "d/b"}
        act.delete("d")(tree)
        act.write("d/c")(tree)
    with driver.own_directory("container") as own:
        assert os.getxattr(own / "d", "user.overlay.opaque") == b"y"
    assert ("userxattr", "true") in Overlay2.probe(driver.home).features


_REFUSED = """
import sys
from pathlib import Path
from tiffin.storage.overlay2 import Overlay2

support = Overlay2.probe(Path(sys.argv[1], "root", "overlay2"))
assert not support.works
assert "have trusted attributes" in support.reason, support.reason
"""


@_on_the_host
def test_in_a_user_namespace_layers_of_the_hosts_root_are_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    driver = Overlay2(mine / "root" / "overlay2")
    assert driver.whiteouts is Whiteouts.OVERLAY
    os.chown(mine / "root", 1000, 1000)
    os.chown(driver.home, 1000, 1000)
    _in_a_user_namespace(mine, _REFUSED)
