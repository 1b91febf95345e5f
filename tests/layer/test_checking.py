"""Layers are checked against their indexes, file by file, and put right where they can be."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import pytest

from layer.roots import Root, files_in, in_memory, ingest, tar_of
from tiffin.layer.checking import Problem, check
from tiffin.layer.store import LayerStore
from tiffin.storage.overlay2 import Overlay2
from tiffin.storage.vfs import Vfs

pytestmark = pytest.mark.root

_BASE = {"etc/passwd": "root", "etc/twin": "same", "data/b": "alone"}
_TOP = {"etc/passwd": None, "data/copy": "same", "new/file": "n"}


@pytest.fixture(params=[Overlay2, Vfs], ids=lambda kind: kind.name)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LayerStore]:
    """A store with two layers."""
    with in_memory(tmp_path / "memory") as place, Root(place, request.param).open() as opened:
        yield opened


def _nowhere(_: str) -> nullcontext[BinaryIO | None]:
    return nullcontext(None)


def _found(store: LayerStore, *, repair: bool = False, tar: bytes | None = None) -> list[Problem]:
    def fetch(_: str) -> nullcontext[BinaryIO | None]:
        return nullcontext(io.BytesIO(tar) if tar else None)

    problems = check(store, repair=repair, fetch=fetch, say=lambda *_: None).problems
    assert problems is not None
    return problems


def test_what_is_whole_has_no_problems(store: LayerStore) -> None:
    top = ingest(store, _TOP, ingest(store, _BASE))
    report = check(store, repair=False, fetch=_nowhere, say=lambda *_: None)
    assert (report.layers, report.problems) == (2, [])
    assert report.files >= 6
    assert top.driver == store.driver.name


def test_each_difference_is_named_and_repaired(store: LayerStore, tmp_path: Path) -> None:
    base = ingest(store, _BASE)
    top = ingest(store, _TOP, base)
    seen = files_in(store, top, tmp_path)
    with store.own_directory(base.snapshot) as own:
        (own / "etc/twin").write_text("SAME")
        (own / "etc/passwd").chmod(0o777)
        (own / "extra").mkdir()
        (own / "extra/file").touch()
    with store.own_directory(top.snapshot) as own:
        (own / "new/file").unlink()
    found = {(problem.path, problem.what) for problem in _found(store)}
    assert {
        ("etc/twin", "content"),
        ("etc/passwd", "mode"),
        ("extra", "extra"),
        ("new/file", "missing"),
    } <= found
    problems = _found(store, repair=True)
    repaired = {problem.path: problem.repaired for problem in problems}
    assert "data/copy of layer" in repaired["etc/twin"]
    assert repaired["etc/passwd"] == "the index"
    assert repaired["extra"] == "removed"
    # Nobody else has that content.
    assert repaired["new/file"] == ""
    assert {(one.path, one.what) for one in _found(store)} == {("new/file", "missing")}
    restored = _found(store, repair=True, tar=tar_of(_TOP))
    assert [one.repaired for one in restored] == ["a registry"]
    assert _found(store) == []
    assert files_in(store, top, tmp_path) == seen


def test_what_cannot_be_read_is_told_and_the_rest_is_checked(
    store: LayerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ingest(store, _BASE)
    with store.own_directory(base.snapshot) as own:
        inode = (own / "data/b").stat().st_ino
        (own / "etc/twin").write_text("SAME")
    real = hashlib.file_digest

    def failing(file: BinaryIO, name: str) -> object:
        if os.fstat(file.fileno()).st_ino == inode:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", failing)
    found = {problem.path: problem.what for problem in _found(store)}
    assert found == {"data/b": "unreadable (Input/output error)", "etc/twin": "content"}
    (bad,) = (one for one in _found(store, repair=True, tar=tar_of(_BASE)) if one.path == "data/b")
    assert bad.repaired == "a registry"


def test_why_a_repair_failed_is_said(store: LayerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    base = ingest(store, _BASE)
    with store.own_directory(base.snapshot) as own:
        (own / "data/b").unlink()
        folder = own / "data"

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "rename", full)
        (problem,) = _found(store, repair=True, tar=tar_of(_BASE))
        assert problem.what == "missing; its repair failed: [Errno 28] No space left on device"
        assert list(folder.iterdir()) == [], "nothing half made is left"


def test_a_lost_index_is_told(store: LayerStore) -> None:
    layer = ingest(store, _BASE)
    store.forget([layer.snapshot])
    (store.layers_folder / layer.snapshot / "index").unlink()
    (problem,) = _found(store)
    assert problem.what.startswith("index")
    assert problem.layer == layer.diff_id


def test_links_and_devices_are_put_right(tmp_path: Path) -> None:
    with in_memory(tmp_path / "memory") as place, Root(place, Overlay2).open() as store:
        layer = ingest(store, {"a": "x", "d/": None})
        store.prepare("c", layer.chain_id)
        with store.own_directory("c") as own:
            (own / "file").write_text("linked")
            os.link(own / "file", own / "link")
            (own / "symlink").symlink_to("file")
            os.mkfifo(own / "pipe")
        made = store.commit("c", layer.chain_id)
        with store.own_directory(made.snapshot) as own:
            (own / "link").unlink()
            (own / "link").write_text("linked")
            (own / "symlink").unlink()
            (own / "symlink").symlink_to("elsewhere")
            (own / "pipe").unlink()
        found = {(one.path, one.what, one.repaired) for one in _found(store, repair=True)}
        assert found == {
            ("link", "link", "the index"),
            ("symlink", "target", "the index"),
            ("pipe", "missing", "the index"),
        }
        assert _found(store) == []


def test_a_driver_that_is_not_the_chosen_one_is_checked_too(tmp_path: Path) -> None:
    with in_memory(tmp_path / "memory") as place:
        with Root(place, Vfs).open() as store:
            layer = ingest(store, _BASE)
            with store.own_directory(layer.snapshot) as own:
                (own / "data/b").unlink()
        with Root(place, Overlay2).open() as store:
            ingest(store, {"x": "y"})
            assert [(one.driver, one.path) for one in _found(store)] == [("vfs", "data/b")]
