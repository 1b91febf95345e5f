"""``docker diff``: added, changed, deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from layer.tars import make_tar
from layer.test_stacks import merged_view, overlay, stack
from tiffin.layer.capture import capture, own_entries
from tiffin.layer.changes import changes
from tiffin.storage.driver import Whiteouts

pytestmark = pytest.mark.root

BASE = make_tar(
    ("a", "d", 0), ("a/one", "f", b"1"), ("a/two", "f", b"2"), ("b", "d", 0), ("b/c", "d", 0),
    ("b/c/x", "f", b"x"), ("e", "d", 0), ("e/f", "f", b"f"), ("e/g", "f", b"g"), ("s", "l", "a"),
    ("a-b", "f", b"beside"),
)  # fmt: skip


@pytest.fixture
def base(tmp_path: Path):
    (tmp_path / "upper").mkdir(mode=0o755)
    layers, lower = stack(tmp_path, [BASE])
    return layers, lower, tmp_path / "upper"


def lines(found) -> list[str]:
    return [f"{change.kind} /{change.path.decode()}" for change in found]


def test_a_diff_lists_what_docker_lists(tmp_path: Path, base) -> None:
    layers, lower, upper = base
    with overlay(tmp_path, [layers[0].directory], upper) as merged:
        (merged / "a" / "one").write_text("changed")
        (merged / "new").mkdir()
        (merged / "new" / "file").write_text("")
        (merged / "new" / "sub").mkdir()
        (merged / "b" / "c" / "x").unlink()
        (merged / "b" / "c").rmdir()
        (merged / "s").unlink()
        (merged / "s").mkdir()
    found = lines(changes([own_entries(upper, Whiteouts.OVERLAY)], lower))
    assert found == [
        "C /a", "C /a/one", "C /b", "D /b/c", "A /new", "A /new/file", "A /new/sub", "C /s",
    ]  # fmt: skip


def test_a_directory_made_again_lists_what_is_gone_and_what_is_new(tmp_path: Path, base) -> None:
    layers, lower, upper = base
    with overlay(tmp_path, [layers[0].directory], upper) as merged:
        for name in ("f", "g"):
            (merged / "e" / name).unlink()
        (merged / "e").rmdir()
        (merged / "e").mkdir()
        (merged / "e" / "g").write_text("other")
        (merged / "e" / "h").write_text("")
    found = lines(changes([own_entries(upper, Whiteouts.OVERLAY)], lower))
    assert found == ["C /e", "D /e/f", "C /e/g", "A /e/h"]


def test_what_was_copied_up_and_not_changed_is_no_change(tmp_path: Path, base) -> None:
    layers, lower, upper = base
    with overlay(tmp_path, [layers[0].directory], upper) as merged:
        (merged / "e" / "f").chmod(0o600)
        (merged / "e" / "f").chmod(0o644)
    assert (upper / "e" / "f").exists()
    assert changes([own_entries(upper, Whiteouts.OVERLAY)], lower) == []


def test_frozen_layers_count_as_the_containers_own(tmp_path: Path, base) -> None:
    layers, lower, upper = base
    with overlay(tmp_path, [layers[0].directory], upper) as merged:
        (merged / "new").write_text("")
        (merged / "a" / "one").unlink()
        (merged / "b" / "c" / "x").unlink()
    frozen = capture(upper, Whiteouts.OVERLAY)
    second = tmp_path / "second"
    (second / "upper").mkdir(parents=True)
    with overlay(second, [layers[0].directory, upper], second / "upper") as merged:
        (merged / "new").unlink()
        (merged / "a" / "one").write_text("back")
    own = own_entries(second / "upper", Whiteouts.OVERLAY)
    found = lines(changes([frozen.effective(), own], lower))
    assert found == ["C /a", "C /a/one", "C /b", "C /b/c", "D /b/c/x"]


def test_everything_is_added_to_nothing(base) -> None:
    layers, _, _ = base
    found = changes([layers[0].index.effective()], None)
    assert {change.kind for change in found} == {"A"}
    assert lines(found)[:4] == ["A /a", "A /a-b", "A /a/one", "A /a/two"]


def test_whole_trees_are_compared(tmp_path: Path, base) -> None:
    layers, lower, _ = base
    from layer.tars import Layer

    old = Layer(tmp_path / "old", BASE, Whiteouts.NONE).directory
    new = Layer(tmp_path / "new", BASE, Whiteouts.NONE).directory
    (new / "a" / "one").write_text("changed")
    (new / "b" / "c" / "x").unlink()
    (new / "n").mkdir()
    (new / "n" / "m").write_text("")
    (new / "e" / "f").unlink()
    (new / "e" / "f").mkdir()
    own = own_entries(new, Whiteouts.NONE, lower_tree=old)
    assert lines(changes([own], lower)) == [
        "C /a", "C /a/one", "C /b", "C /b/c", "D /b/c/x", "C /e", "C /e/f", "A /n", "A /n/m",
    ]  # fmt: skip
    assert list(own_entries(old, Whiteouts.NONE, lower_tree=old)) == []
    index = capture(new, Whiteouts.NONE, lower_tree=old)
    assert [entry.path for entry in index.entries] == [
        b"a", b"a/one", b"b", b"b/c", b"b/c/x", b"e", b"e/f", b"n", b"n/m",
    ]  # fmt: skip
    assert merged_view(layers).entry(b"a") is not None
