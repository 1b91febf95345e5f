"""No tar, however it is made, writes outside its directory; broken ones are refused by name."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layer.tars import Layer, make_tar
from tiffin.errors import CorruptArchive, DigestMismatch, StorageFull, TiffinError
from tiffin.layer.unpack import unpack
from tiffin.storage.driver import Whiteouts


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    place = tmp_path / "outside"
    place.mkdir()
    (place / "secret").write_text("secret")
    return place


def untouched(outside: Path) -> bool:
    return os.listdir(outside) == ["secret"] and (outside / "secret").read_text() == "secret"


def test_a_file_through_an_absolute_symlink_stays_inside(layer, outside: Path) -> None:
    made = layer(make_tar(("a", "l", str(outside)), ("a/x", "f", b"1")))
    assert untouched(outside)
    assert (made.directory / str(outside)[1:] / "x").read_bytes() == b"1"


def test_a_file_through_a_climbing_symlink_stays_inside(layer, outside: Path) -> None:
    made = layer(make_tar(("d", "d", 0), ("d/a", "l", "../../../.."), ("d/a/x", "f", b"1")))
    assert (made.directory / "x").read_bytes() == b"1"
    assert untouched(outside)


def test_a_symlink_is_replaced_not_written_through(layer, outside: Path) -> None:
    made = layer(make_tar(("a", "l", f"{outside}/secret"), ("a", "f", b"1")))
    assert (made.directory / "a").read_bytes() == b"1"
    assert untouched(outside)


def test_a_directory_swapped_for_a_symlink_leads_nowhere(layer, outside: Path) -> None:
    tar = make_tar(
        ("d", "d", 0),
        ("d/old", "f", b"0"),
        ("d", "l", str(outside)),
        ("d/secret", "f", b"mine"),
        ("d/sub", "d", 0),
    )
    made = layer(tar)
    assert untouched(outside)
    assert (made.directory / str(outside)[1:] / "secret").read_bytes() == b"mine"


def test_times_are_not_set_through_a_swapped_directory(layer, outside: Path) -> None:
    before = outside.stat().st_mtime_ns
    layer(make_tar(("d", "d", 0), ("d/e", "d", 0), ("d/e/f", "f", b""), ("d", "l", str(outside))))
    assert outside.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/../x", "./.."])
def test_a_name_that_climbs_out_is_refused_by_name(layer, name: str) -> None:
    with pytest.raises(CorruptArchive, match=r"would leave the root") as caught:
        layer(make_tar((name, "f", b"")))
    assert name in caught.value.message


def test_a_name_that_climbs_inside_is_fine(layer) -> None:
    made = layer(make_tar(("a/../b", "f", b"1"), ("/c", "f", b"2"), ("././d//e", "f", b"3")))
    assert set(made.tree()) == {b"b", b"c", b"d", b"d/e"}


@pytest.mark.parametrize("target", ["/etc/passwd", "etc/passwd", "missing"])
def test_a_hard_link_to_what_is_not_in_the_layer_is_refused(layer, target: str) -> None:
    with pytest.raises(CorruptArchive, match="'h' is a hard link"):
        layer(make_tar(("h", "h", target)))


def test_a_hard_link_that_climbs_out_is_refused(layer) -> None:
    with pytest.raises(CorruptArchive, match="would leave the root"):
        layer(make_tar(("h", "h", "../../etc/passwd")))


def test_a_hard_link_through_a_symlink_finds_the_inside_only(layer, outside: Path) -> None:
    with pytest.raises(CorruptArchive, match="hard link"):
        layer(make_tar(("a", "l", str(outside)), ("h", "h", "a/secret")))
    made = layer(make_tar(("r", "d", 0), ("r/f", "f", b"1"), ("a", "l", "/r"), ("h", "h", "a/f")))
    assert (made.directory / "h").read_bytes() == b"1"


def test_a_hard_link_to_a_symlink_links_the_symlink(layer, outside: Path) -> None:
    made = layer(make_tar(("a", "l", f"{outside}/secret"), ("h", "h", "a")))
    assert os.readlink(made.directory / "h") == f"{outside}/secret"
    assert untouched(outside)


def test_a_loop_of_symlinks_is_refused(layer) -> None:
    with pytest.raises(CorruptArchive, match="too many levels of symbolic links"):
        layer(make_tar(("a", "l", "b"), ("b", "l", "a"), ("a/x", "f", b"")))


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh...", "d/.wh..", "d/.wh."])
def test_a_whiteout_of_nothing_or_of_a_parent_is_refused(layer, name: str) -> None:
    with pytest.raises(CorruptArchive, match="names no file"):
        layer(make_tar((name, "f", b"")))


def test_a_whiteout_of_a_name_with_dots_is_fine(layer) -> None:
    made = layer(make_tar((".wh....", "f", b""), (".wh...x", "f", b"")))
    assert set(made.tree()) == {b"...", b"..x"}


def test_a_file_inside_a_whiteout_is_refused(layer) -> None:
    with pytest.raises(CorruptArchive, match="lies inside a whiteout"):
        layer(make_tar((".wh.d/x", "f", b"")))


def test_a_file_used_as_a_directory_is_refused(layer) -> None:
    with pytest.raises(CorruptArchive, match="'a' is used as a directory"):
        layer(make_tar(("a", "f", b""), ("a/b", "f", b"")))


def test_a_device_that_means_deleted_is_refused(layer) -> None:
    with pytest.raises(CorruptArchive, match="'n' is a character device 0/0"):
        layer(make_tar(("n", "c", (0, 0))))


def test_overlays_own_attributes_are_not_taken_from_a_tar(layer) -> None:
    headers = {
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.user.overlay.redirect": "/etc",
        "SCHILY.xattr.user.a": "b",
    }
    made = layer(make_tar(("d", "d", 0), pax_headers=headers))
    # What overlayfs reads in a user namespace is an attribute like others elsewhere.
    assert sorted(os.listxattr(made.directory / "d")) == ["user.a", "user.overlay.redirect"]
    made = layer(make_tar(("d", "d", 0), pax_headers=headers), Whiteouts.USER_OVERLAY)
    assert os.listxattr(made.directory / "d") == ["user.a"]


def test_names_too_long_or_too_deep_are_refused(layer) -> None:
    for name in ("x" * 300, "d/" * 3000 + "x", "d/" * 400 + "x"):
        with pytest.raises(CorruptArchive):
            layer(make_tar((name, "f", b"")))


def test_a_wrong_digest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DigestMismatch, match="sha256:00 was expected"):
        unpack(
            io.BytesIO(make_tar(("a", "f", b"1"))),
            tmp_path,
            Whiteouts.OVERLAY,
            expect_diff_id="sha256:00",
            stash=tmp_path / "stash",
        )


SAMPLE = make_tar(
    ("d", "d", 0),
    ("d/é" + "n" * 120, "f", b"data" * 400),
    ("s", "l", "t" * 150),
    ("b", "f", b"x" * 3_000_000),
    ("h", "h", "b"),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damage_is_refused_or_harmless_and_never_a_traceback(tmp_path_factory, data) -> None:
    home = tmp_path_factory.mktemp("damage")
    headers = [at for at in range(0, len(SAMPLE), 512) if at < 10_000 or at > len(SAMPLE) - 12_000]
    block = data.draw(st.sampled_from(headers))
    damaged = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[block + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        # With a checksum that fits, so that the damage is looked at.
        header = damaged[block : block + 512]
        header[148:156] = b" " * 8
        if len(header) == 512:
            damaged[block + 148 : block + 156] = b"%06o\0 " % sum(header)
    try:
        Layer(home, bytes(damaged[: len(SAMPLE)]))
    except TiffinError as error:
        assert error.message


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(1, len(SAMPLE.rstrip(b"\0")) - 512))
def test_a_truncated_tar_is_refused(tmp_path_factory, length: int) -> None:
    try:
        layer = Layer(tmp_path_factory.mktemp("cut"), SAMPLE[:length])
    except CorruptArchive:
        return
    # It may end between two entries, and in what fills up the last content's block.
    assert not any(SAMPLE[length : length + -length % 512])
    assert len(layer.index.entries) < 5


@given(st.binary(min_size=512, max_size=2000).filter(lambda data: any(data[:512])))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_no_tar_is_refused(tmp_path_factory, data: bytes) -> None:
    with pytest.raises(CorruptArchive):
        Layer(tmp_path_factory.mktemp("none"), data)


def test_what_is_no_tar_is_called_so(layer) -> None:
    with pytest.raises(CorruptArchive, match="not a tar archive"):
        layer(b"just some text " * 100)


@pytest.mark.root
def test_a_full_disk_says_so(tmp_path: Path) -> None:
    from tiffin.linux import syscalls

    place = tmp_path / "small"
    place.mkdir()
    syscalls.mount("tmpfs", str(place), "tmpfs", 0, "size=1m")
    try:
        with pytest.raises(StorageFull, match="no space left"):
            unpack(
                io.BytesIO(make_tar(("a", "f", b"x" * 3_000_000))),
                place,
                Whiteouts.OVERLAY,
                stash=tmp_path / "stash",
            )
    finally:
        syscalls.umount(str(place))
