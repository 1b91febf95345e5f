"""A stack of layers looks the same to the kernel's overlay, to the merged view of the indexes, and
when it is unpacked into one whole tree."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layer.tars import Layer, make_tar, tree
from tiffin.errors import CorruptArchive, InvalidParameter, NotFound
from tiffin.layer.capture import capture
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.lower import StackedLayer, StackLower
from tiffin.linux import syscalls
from tiffin.storage.driver import Whiteouts

pytestmark = pytest.mark.root


@contextlib.contextmanager
def overlay(home: Path, layers: list[Path], upper: Path | None = None) -> Iterator[Path]:
    """The layers, the lowest first, mounted by the kernel."""
    target = home / "merged"
    target.mkdir()
    (home / "nothing").mkdir()
    lower = ":".join(str(path) for path in [*reversed(layers), home / "nothing"])
    options = f"lowerdir={lower},index=off,metacopy=off,redirect_dir=off"
    if upper is not None:
        (home / "work").mkdir()
        options += f",upperdir={upper},workdir={home / 'work'}"
    syscalls.mount("overlay", str(target), "overlay", 0, options)
    try:
        yield target
    finally:
        syscalls.umount(str(target))


def stack(home: Path, tars: list[bytes]) -> tuple[list[Layer], StackLower]:
    """Unpack tars over each other as overlay's own directories."""
    layers: list[Layer] = []
    lower = StackLower([])
    for number, tar in enumerate(tars):
        layers.append(Layer(home / f"layer{number}", tar, Whiteouts.OVERLAY, lower))
        lower = merged_view(layers)
    return layers, lower


def merged_view(layers: list[Layer]) -> StackLower:
    return StackLower(
        [StackedLayer(layer.index, partial(nullcontext, layer.directory)) for layer in layers]
    )


def view(lower: StackLower) -> dict[bytes, tuple[str, object]]:
    """Type and content of all that the merged view shows."""
    found: dict[bytes, tuple[str, object]] = {}
    todo = [b""]
    while todo:
        for entry in lower.children(todo.pop()):
            content: object = entry.target
            if entry.kind is Kind.FILE:
                with os.fdopen(lower.open(entry.path), "rb") as file:
                    content = file.read()
            elif entry.kind is Kind.DIRECTORY:
                content = (entry.mode, entry.mtime_ns)
                todo.append(entry.path)
            found[entry.path] = (entry.kind.value, content)
    return found


def seen(root: Path) -> dict[bytes, tuple[str, object]]:
    """The same, of a directory."""
    found: dict[bytes, tuple[str, object]] = {}
    for path, described in tree(root).items():
        mode = int(str(described[0]), 8)
        kind = {0o10: "f", 0o04: "d", 0o12: "l"}[mode >> 12]
        content = described[4]
        if kind == "d":
            content = (mode & 0o7777, described[3])
        found[path] = (kind, content)
    return found


names = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
member = st.tuples(names, st.sampled_from("ffdddlhwwo"), st.sampled_from("abcdefgh"), names)
layer_tars = st.lists(st.lists(member, max_size=7), min_size=2, max_size=3)


def layer_tar(items: list[tuple[str, str, str, str]]) -> bytes:
    members: list[tuple[str, str, object]] = []
    for name, kind, content, other in items:
        if kind == "w":
            parent, _, last = name.rpartition("/")
            name, kind = (f"{parent}/" if parent else "") + f".wh.{last}", "f"
        elif kind == "o":
            name, kind = f"{name}/.wh..wh..opq", "f"
        elif kind in "lh":
            content = other
        members.append((name, kind, content))
    return make_tar(*members)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(layer_tars)
def test_kernel_index_and_whole_tree_agree(items) -> None:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        tars = [layer_tar(entries) for entries in items]
        try:
            layers, lower = stack(home, tars)
        except CorruptArchive:
            return
        with overlay(home, [layer.directory for layer in layers]) as merged:
            kernel = seen(merged)
        assert view(lower) == kernel
        whole = home / "whole"
        whole.mkdir()
        below = StackLower([])
        for number, tar in enumerate(tars):
            single = Layer.__new__(Layer)
            single.__init__(home / "whole_layer", tar, Whiteouts.NONE, below)  # type: ignore[misc]
            below = merged_view(layers[: number + 1])
        assert seen(home / "whole_layer" / "own") == kernel


def test_deletions_show_nothing_of_what_is_below(tmp_path: Path) -> None:
    base = make_tar(("d", "d", 0), ("d/a", "f", b"1"), ("d/b", "f", b"2"), ("e", "f", b"3"))
    top = make_tar(("d/.wh.a", "f", b""), (".wh.e", "f", b""), ("d/c", "f", b"4"))
    layers, lower = stack(tmp_path, [base, top])
    assert lower.entry(b"d/a") is None
    assert lower.entry(b"e") is None
    assert [entry.path for entry in lower.children(b"d")] == [b"d/b", b"d/c"]
    status = (layers[1].directory / "e").lstat()
    assert (status.st_mode, status.st_rdev) == (0o020000, 0)
    with pytest.raises(NotFound, match="'d/a'"):
        lower.open(b"d/a")


def test_an_opaque_directory_hides_what_is_below_and_not_what_is_beside_it(tmp_path: Path) -> None:
    base = make_tar(("d", "d", 0), ("d/a", "f", b"1"))
    # The mark comes after a file of the same layer.
    top = make_tar(("d", "d", 0), ("d/c", "f", b"4"), ("d/.wh..wh..opq", "f", b""))
    layers, lower = stack(tmp_path, [base, top])
    assert [entry.path for entry in lower.children(b"d")] == [b"d/c"]
    assert os.getxattr(layers[1].directory / "d", "trusted.overlay.opaque") == b"y"


def test_an_opaque_root_hides_everything(tmp_path: Path) -> None:
    base = make_tar(("d", "d", 0), ("d/a", "f", b"1"), ("e", "f", b"3"))
    top = make_tar((".wh..wh..opq", "f", b""), ("d", "d", 0), ("f", "f", b"4"))
    layers, lower = stack(tmp_path, [base, top])
    assert layers[1].unpacked.needs_lower
    with overlay(tmp_path, [layer.directory for layer in layers]) as merged:
        assert seen(merged) == view(lower)
        assert sorted(os.listdir(merged)) == ["d", "f"]


def test_a_directory_that_a_layer_deletes_and_makes_again_is_new(tmp_path: Path) -> None:
    base = make_tar(("d", "d", 0), ("d/a", "f", b"1"))
    for top in (
        make_tar((".wh.d", "f", b""), ("d", "d", 0), ("d/c", "f", b"4")),
        make_tar((".wh.d", "f", b""), ("d/c", "f", b"4")),
        make_tar(("d", "d", 0), ("d/c", "f", b"4"), (".wh.d", "f", b"")),
    ):
        with tempfile.TemporaryDirectory(dir=tmp_path) as name:
            _, lower = stack(Path(name), [base, top])
            assert [entry.path for entry in lower.children(b"d")] == [b"d/c"]


def test_parents_that_a_layer_does_not_name_look_like_those_below(tmp_path: Path) -> None:
    base = make_tar(("d", "d", 0), ("d/e", "d", 0), mode=0o2711, uid=5, gid=6, mtime=77)
    layers, lower = stack(tmp_path, [base, make_tar(("d/e/new/x", "f", b""))])
    assert layers[1].unpacked.needs_lower
    status = (layers[1].directory / "d" / "e").stat()
    found = (status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime)
    assert found == (0o2711, 5, 6, 77)
    new = (layers[1].directory / "d" / "e" / "new").stat()
    assert (new.st_mode & 0o7777, new.st_uid, new.st_gid, new.st_mtime) == (0o755, 0, 0, 0)
    file = (layers[1].directory / "d" / "e" / "new" / "x").stat()
    assert file.st_gid == 0
    entry = lower.entry(b"d/e")
    assert entry is not None
    assert entry.mode == 0o2711


def test_a_file_goes_through_a_symlink_of_the_layer_below(tmp_path: Path) -> None:
    base = make_tar(("usr", "d", 0), ("usr/lib", "d", 0), ("lib", "l", "usr/lib"))
    layers, lower = stack(tmp_path, [base, make_tar(("lib/x", "f", b"1"))])
    assert (layers[1].directory / "usr" / "lib" / "x").read_bytes() == b"1"
    assert not os.path.lexists(layers[1].directory / "lib")
    assert layers[1].unpacked.needs_lower
    assert lower.read(b"/lib/x") == b"1"


def test_a_complete_layer_does_not_need_what_is_below(tmp_path: Path) -> None:
    base = make_tar(("d", "d", 0), ("d/a", "f", b"1"))
    layers, _ = stack(tmp_path, [base, make_tar(("d", "d", 0), ("d/.wh.a", "f", b""))])
    assert not layers[1].unpacked.needs_lower


def test_a_hard_link_to_a_file_of_a_layer_below_is_a_copy(tmp_path: Path) -> None:
    base = make_tar(("d", "d", 0), ("d/a", "f", b"content"), mode=0o4750, uid=3)
    layers, lower = stack(tmp_path, [base, make_tar(("h", "h", "d/a"))])
    assert layers[1].unpacked.needs_lower
    status = (layers[1].directory / "h").stat()
    assert (status.st_mode & 0o7777, status.st_uid) == (0o4750, 3)
    assert lower.read(b"h") == b"content"


def test_resolving_follows_links_inside_the_root_only(tmp_path: Path) -> None:
    base = make_tar(
        ("etc", "d", 0),
        ("etc/real", "f", b"x"),
        ("etc/passwd", "l", "/etc/real"),
        ("up", "l", "../../../etc"),
        ("loop", "l", "loop2"),
        ("loop2", "l", "loop"),
    )
    _, lower = stack(tmp_path, [base])
    assert lower.read(b"/up/passwd") == b"x"
    assert lower.read(b"up/../../up/./passwd") == b"x"
    link = lower.resolve(b"/up/passwd", follow=False)
    assert link is not None
    assert link.kind is Kind.SYMLINK
    assert lower.resolve(b"/etc/real/x") is None
    assert lower.resolve(b"/none") is None
    with pytest.raises(InvalidParameter, match="too many levels"):
        lower.resolve(b"/loop")
    with pytest.raises(InvalidParameter, match="too large"):
        lower.read(b"/etc/real", limit=0)


def test_marks_of_aufs_are_files(tmp_path: Path) -> None:
    tar = make_tar(
        ("d", "d", 0), (".wh.e", "f", b""), ("d/.wh..wh..opq", "f", b""), (".wh.x", "f", b""),
        ("x", "d", 0),
    )  # fmt: skip
    layer = Layer(tmp_path / "aufs", tar, Whiteouts.AUFS)
    assert set(layer.tree()) == {b"d", b"d/.wh..wh..opq", b".wh.e", b"x", b"x/.wh..wh..opq"}
    marks = {(entry.path, entry.kind) for entry in capture(layer.directory, Whiteouts.AUFS).entries}
    assert (b"e", Kind.WHITEOUT) in marks
    assert (b"d", Kind.OPAQUE) in marks
    assert (b"x", Kind.OPAQUE) in marks


def test_what_the_kernel_leaves_in_an_upper_is_captured_and_unpacked_again(tmp_path: Path) -> None:
    base = make_tar(
        *[(f"d{n}", "d", 0) for n in range(4)],
        *[(f"d{n}/f{m}", "f", f"{n}{m}") for n, m in itertools.product(range(4), range(3))],
    )
    layers, _ = stack(tmp_path, [base])
    upper = tmp_path / "upper"
    upper.mkdir(mode=0o755)
    with overlay(tmp_path, [layers[0].directory], upper) as merged:
        (merged / "d0" / "f0").write_text("changed")
        (merged / "d0" / "f1").unlink()
        for file in (merged / "d1").iterdir():
            file.unlink()
        (merged / "d1").rmdir()
        (merged / "d1").mkdir()
        (merged / "d1" / "new").write_text("new")
        os.setxattr(merged / "d1" / "new", "user.note", b"kept")
        os.link(merged / "d2" / "f0", merged / "linked")
        os.rename(merged / "d3" / "f0", merged / "moved")
        wanted = seen(merged)
        inode = (merged / "linked").stat().st_ino
        assert inode == (merged / "d2" / "f0").stat().st_ino
    index = capture(upper, Whiteouts.OVERLAY)
    assert Entry(b"d1", Kind.OPAQUE) in index.entries
    assert Entry(b"d0/f1", Kind.WHITEOUT) in index.entries
    captured = Layer.__new__(Layer)
    captured.index, captured.directory = index, upper
    captured.stash, captured.whiteouts = tmp_path / "stash", Whiteouts.OVERLAY
    again = Layer(tmp_path / "again", captured.tar(), Whiteouts.OVERLAY)
    assert again.index.canonical
    assert again.index == index
    (tmp_path / "second").mkdir()
    with overlay(tmp_path / "second", [layers[0].directory, again.directory]) as merged:
        assert seen(merged) == wanted
    whole = tmp_path / "whole"
    Layer(whole, base, Whiteouts.NONE)
    Layer(whole, captured.tar(), Whiteouts.NONE, merged_view(layers))
    assert seen(whole / "own") == wanted


@pytest.mark.parametrize("below", [["d"], ["f", "d"], []])
@pytest.mark.parametrize(
    "marks",
    [
        [("a/a", "f", "a", "a"), ("a", "w", "a", "a")],
        [("a", "w", "a", "a"), ("a/a", "f", "a", "a")],
        [("a", "o", "a", "a")],
        [("a/a", "f", "a", "a"), ("a", "o", "a", "a")],
        [("a", "o", "a", "a"), ("a/a", "f", "a", "a")],
    ],
)
def test_an_implied_directory_and_a_mark_in_either_order(below, marks, tmp_path: Path) -> None:
    tars = [layer_tar([("a", kind, "a", "a") for kind in below]), layer_tar(marks)]
    layers, lower = stack(tmp_path, tars)
    with overlay(tmp_path, [layer.directory for layer in layers]) as merged:
        kernel = seen(merged)
    assert view(lower) == kernel
