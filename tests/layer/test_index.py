"""The index: what is in effect, and its file. And the oddities that tars hold."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from layer.tars import make_tar
from tiffin.errors import CorruptArchive, NotFound
from tiffin.layer.assemble import write_tar
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.index import Index
from tiffin.storage.driver import Whiteouts

pytestmark = pytest.mark.root

ODD = make_tar(
    ("d/file", "f", b"before its directory"),
    ("d", "d", 0),
    ("d/file", "f", b"a second time"),
    ("x", "f", b"replaced by a directory"),
    ("x", "d", 0),
    ("y", "d", 0),
    ("y/z", "f", b"goes with its directory"),
    ("y", "f", b"is a file"),
    ("l", "h", "y"),
    ("y", "l", "elsewhere"),
)


def test_the_last_entry_of_a_path_counts_and_the_tar_comes_back(layer) -> None:
    made = layer(ODD)
    index = made.index
    assert (made.directory / "d" / "file").read_bytes() == b"a second time"
    assert (made.directory / "l").read_bytes() == b"is a file"
    entry = index.get(b"d/file")
    assert entry is not None
    assert entry.size == len(b"a second time")
    assert index.get(b"y/z") is None
    assert [found.path for found in index.children(b"")] == [b"d", b"l", b"x", b"y"]
    assert made.stash.stat().st_size > 0
    assert index.size == sum(
        status.st_size
        for status in (os.lstat(made.directory / name) for name in ("d/file", "l", "y"))
    )
    assert index.inodes == 5
    linked = index.content(b"l")
    assert linked is not None
    assert (linked.kind, linked.size) == (Kind.FILE, len(b"is a file"))


def test_an_index_survives_its_file(tmp_path: Path, layer) -> None:
    headers = {"SCHILY.xattr.user.a": "b"}
    for tar in (ODD, make_tar(("d", "d", 0), pax_headers=headers), make_tar()):
        index = layer(tar).index
        index.save(tmp_path / "index")
        assert Index.load(tmp_path / "index") == index


def test_a_missing_or_damaged_index_is_named(tmp_path: Path, layer) -> None:
    path = tmp_path / "index"
    with pytest.raises(NotFound, match="index"):
        Index.load(path)
    layer(ODD).index.save(path)
    data = path.read_bytes()
    for damaged in (b"", data[:9], data[:40], b"x" + data[1:], data[:30] + b"\0" + data[31:]):
        path.write_bytes(damaged)
        with pytest.raises(CorruptArchive, match="index"):
            Index.load(path)


def test_a_file_that_changed_under_the_index_is_named(layer) -> None:
    made = layer(make_tar(("a", "f", b"1234")))
    (made.directory / "a").write_bytes(b"12")
    with pytest.raises(CorruptArchive, match="shorter"):
        made.tar()
    (made.directory / "a").unlink()
    with pytest.raises(CorruptArchive, match="'a' of a layer can't be read"):
        made.tar()


def test_a_canonical_tar_needs_no_raw_bytes(tmp_path: Path, layer) -> None:
    index = layer(make_tar(("a", "f", b"1"), ("b", "d", 0), form=tarfile.GNU_FORMAT)).index
    assert not index.canonical
    made = layer(make_tar(("a", "f", b"1"), ("a-", "l", "x")))
    entries = list(made.index.effective())
    again = Index("", 0, entries)
    output = io.BytesIO()
    with pytest.raises(CorruptArchive, match="instead of 0"):
        write_tar(again, made.directory, tmp_path / "none", output)
    canonical = layer(output.getvalue()).index
    assert canonical.canonical
    assert canonical.raw == b""


@pytest.mark.parametrize("trailer", [bytes(512), bytes(3_000_000), b"garbage" * 10, b"x" * 200_000])
def test_what_follows_the_end_comes_back(layer, trailer: bytes) -> None:
    made = layer(make_tar(("a", "f", b"1")) + trailer)
    assert [entry.path for entry in made.index.entries] == [b"a"]


def test_an_empty_stream_is_an_empty_layer(layer) -> None:
    assert layer(b"").index.entries == []
    assert layer(make_tar(("a", "f", b"1"))[:1024]).index.entries[0].path == b"a"


def test_global_headers_hold_for_all_that_follow(layer) -> None:
    output = io.BytesIO()
    with tarfile.open(
        fileobj=output,
        mode="w",
        format=tarfile.PAX_FORMAT,
        pax_headers={"mtime": "12.5", "comment": "x"},
    ) as tar:
        tar.addfile(tarfile.TarInfo("a"))
        info = tarfile.TarInfo("b")
        info.pax_headers = {"mtime": "7.25"}
        tar.addfile(info)
    made = layer(output.getvalue())
    assert [entry.mtime_ns for entry in made.index.entries] == [12_500_000_000, 7_250_000_000]
    assert (made.directory / "a").stat().st_mtime_ns == 12_500_000_000


def test_names_are_bytes(layer) -> None:
    output = io.BytesIO()
    with tarfile.open(
        fileobj=output, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape"
    ) as tar:
        info = tarfile.TarInfo(os.fsdecode(b"\xff" * 150))
        info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(b"\xfe" * 120)
        tar.addfile(info)
    made = layer(output.getvalue())
    assert made.index.entries[0].path == b"\xff" * 150
    assert os.readlink(os.fsencode(made.directory) + b"/" + b"\xff" * 150) == b"\xfe" * 120


def test_aufs_hard_link_folder_is_read_and_not_kept(layer) -> None:
    tar = make_tar(
        (".wh..wh.plnk", "d", 0),
        (".wh..wh.plnk/7.1", "f", b"content"),
        (".wh..wh.aufs", "f", b""),
        ("a", "h", ".wh..wh.plnk/7.1"),
        ("b", "h", ".wh..wh.plnk/7.1"),
    )
    made = layer(tar)
    assert set(made.tree()) == {b"a", b"b"}
    assert (made.directory / "b").read_bytes() == b"content"
    entry = made.index.get(b"a")
    assert entry is not None
    assert (entry.kind, entry.size) == (Kind.FILE, 7)


def test_old_directories_are_told_by_their_slash(layer) -> None:
    tar = bytearray(make_tar(("dir/", "d", 0), form=tarfile.USTAR_FORMAT))
    tar[156] = 0
    tar[148:156] = b" " * 8
    tar[148:156] = b"%06o\0 " % sum(tar[:512])
    assert layer(bytes(tar)).index.entries[0].kind is Kind.DIRECTORY


def test_contents_that_links_and_directories_carry_are_not_taken_for_headers(layer) -> None:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("d")
        info.type = b"D"
        info.size = 600
        tar.addfile(info, io.BytesIO(b"Yname\0" * 100))
        tar.addfile(tarfile.TarInfo("after"))
    made = layer(output.getvalue())
    assert [entry.path for entry in made.index.entries] == [b"d", b"after"]


def test_an_unknown_type_is_refused_by_name(layer) -> None:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("strange")
        info.type = b"Q"
        tar.addfile(info)
    with pytest.raises(CorruptArchive, match="unknown type 'Q' after 'strange'"):
        layer(output.getvalue())


def test_a_layer_reads_through_a_decompressor(tmp_path: Path) -> None:
    from tiffin.layer.compression import decompressed
    from tiffin.layer.unpack import unpack

    tar = make_tar(("a", "f", os.urandom(4_000_000)))
    unpacked = unpack(
        decompressed(io.BytesIO(gzip.compress(tar, 1))),
        tmp_path,
        Whiteouts.OVERLAY,
        stash=tmp_path / "stash",
    )
    assert unpacked.index.tar_size == len(tar)


def test_entries_in_effect_are_sorted_and_links_point_to_the_first() -> None:
    file = Entry(b"z", Kind.FILE, 0o644, size=1, digest=b"x" * 32)
    index = Index(
        "",
        0,
        [file, Entry(b"a", Kind.HARDLINK, target=b"z"), Entry(b"d/e", Kind.OPAQUE)],
    )
    assert [(e.path, e.kind, e.target) for e in index.effective()] == [
        (b"a", Kind.FILE, b""),
        (b"d/e", Kind.OPAQUE, b""),
        (b"z", Kind.HARDLINK, b"a"),
    ]
    assert index.implied == {b"d", b"d/e"}
