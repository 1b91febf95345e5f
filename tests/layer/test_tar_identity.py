"""A tar that has been unpacked can be given back byte for byte, whoever made it."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layer.tars import Layer, tree
from tiffin.errors import CorruptArchive
from tiffin.layer.entry import Kind

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

names = st.lists(
    st.sampled_from(["a", "b", "c", "d", "é", "x" * 60, "udc80\udc80", "wh", ".wh", "..x", " "]),
    min_size=1,
    max_size=4,
).map("/".join)
prefixes = st.sampled_from(["", "./", "/", "a/../", "//"])
contents = st.one_of(
    st.binary(max_size=1200),
    st.integers(0, 3).map(lambda n: b"0123456789abcdef" * (40_000 * n)),
)
members = st.tuples(
    prefixes,
    names,
    st.sampled_from("fffffddllhpcwoF"),
    contents,
    names,
    st.integers(0, 0o7777),
    st.integers(0, 70_000),
    st.sampled_from([0, 1, 1_600_000_000, 1_600_000_000.123456789, 8_589_934_592, -3]),
)


def build(items: list[tuple], form: int) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=form, errors="surrogateescape") as tar:
        for prefix, name, kind, content, target, mode, owner, time in items:
            info = tarfile.TarInfo(prefix + name)
            info.mode, info.uid, info.gid, info.mtime = mode, owner, owner // 2, time
            info.uname = "käthe"
            data = b""
            if kind == "f":
                info.size, data = len(content), content
            elif kind == "F":
                info.type, info.size, data = tarfile.CONTTYPE, len(content), content
            elif kind == "d":
                info.type = tarfile.DIRTYPE
            elif kind in "lh":
                info.type = tarfile.SYMTYPE if kind == "l" else tarfile.LNKTYPE
                info.linkname = target
            elif kind == "p":
                info.type = tarfile.FIFOTYPE
            elif kind == "c":
                info.type, info.devmajor, info.devminor = tarfile.CHRTYPE, 1, 3
            elif kind == "w":
                info.name = os.path.join(os.path.dirname(info.name), ".wh." + target[:1])
            elif kind == "o":
                info.name = os.path.join(os.path.dirname(info.name), ".wh..wh..opq")
            if form == tarfile.PAX_FORMAT and kind in "fd" and mode % 3 == 0:
                info.pax_headers = {"SCHILY.xattr.user.note": "größe", "comment": "x" * 90}
            try:
                tar.addfile(info, io.BytesIO(data))
            except (ValueError, OverflowError):
                continue  # not to be said in this format
    return output.getvalue()


@quick
@given(st.lists(members, max_size=12), st.sampled_from(FORMATS), st.binary(max_size=600))
def test_any_tar_of_pythons_comes_back_the_same(items, form, trailer) -> None:
    tar = build(items, form) + trailer
    with tempfile.TemporaryDirectory() as home:
        try:
            layer = Layer(Path(home), tar)
        except CorruptArchive:
            return
        for entry in layer.index.effective():
            if entry.kind is not Kind.WHITEOUT:
                assert os.path.lexists(os.path.join(os.fsencode(layer.directory), entry.path))


@pytest.mark.parametrize("form", ["v7", "ustar", "gnu", "oldgnu", "pax", "posix"])
def test_gnu_tars_formats_come_back_the_same(tmp_path: Path, layer, form: str) -> None:
    source = tmp_path / "source"
    (source / "sub" / ("long" * 20)).mkdir(parents=True)
    (source / "file").write_bytes(os.urandom(3_000_000))
    (source / "sub" / "empty").touch()
    os.link(source / "file", source / "sub" / "linked")
    os.symlink("../file", source / "sub" / "pointer")
    if form != "v7":
        os.mkfifo(source / "pipe")
    if form not in ("v7", "ustar"):
        (source / "sub" / ("long" * 20) / ("name" * 40)).write_text("x")
        os.symlink("t" * 200, source / "far")
    archive = tmp_path / "source.tar"
    command = ["tar", f"--format={form}", "-C", str(source), "-cf", str(archive), "."]
    subprocess.run(command, check=True)
    made = layer(archive.read_bytes())
    wanted = {path: entry[4] for path, entry in tree(source).items()}
    assert {path: entry[4] for path, entry in made.tree().items()} == wanted
    link, file = made.directory / "sub" / "linked", made.directory / "file"
    assert link.stat().st_ino == file.stat().st_ino


@pytest.mark.parametrize("version", ["oldgnu", "0.0", "0.1", "1.0"])
def test_sparse_files_come_back_the_same(tmp_path: Path, layer, version: str) -> None:
    source = tmp_path / "holes"
    with source.open("wb") as file:
        for number in range(40):
            file.seek(number * 100_000)
            file.write(b"%d" % number * 50)
        file.truncate(5_000_000)
    archive = tmp_path / "holes.tar"
    options = (
        ["--format=oldgnu"] if version == "oldgnu" else [f"--sparse-version={version}", "-Hpax"]
    )
    command = ["tar", "--sparse", *options, "-C", str(tmp_path), "-cf", str(archive), "holes"]
    subprocess.run(command, check=True)
    assert archive.stat().st_size < 1_000_000
    made = layer(archive.read_bytes())
    unpacked = made.directory / "holes"
    assert unpacked.read_bytes() == source.read_bytes()
    assert unpacked.stat().st_blocks < 5_000_000 // 512
    entry = made.index.get(b"holes")
    assert entry is not None
    assert entry.size == 5_000_000


def test_a_file_larger_than_8_gib_is_read_in_base_256(tmp_path: Path, layer) -> None:
    source = tmp_path / "huge"
    with source.open("wb") as file:
        file.truncate((8 << 30) + 5)
        file.seek(4 << 30)
        file.write(b"middle")
    archive = tmp_path / "huge.tar"
    command = ["tar", "--sparse", "--format=oldgnu", "-C", str(tmp_path), "-cf", str(archive)]
    subprocess.run([*command, "huge"], check=True)
    made = layer(archive.read_bytes())
    entry = made.index.get(b"huge")
    assert entry is not None
    assert entry.size == (8 << 30) + 5
    assert (made.directory / "huge").stat().st_size == entry.size


@pytest.mark.parametrize("cut", [1, 100, 511])
def test_a_tar_that_ends_with_its_last_content_comes_back_the_same(layer, cut: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("f")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    data = buffer.getvalue()[: 1024 - cut]
    made = layer(data)
    assert [entry.path for entry in made.index.entries] == [b"f"]
    assert made.tar() == data
