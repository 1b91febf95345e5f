"""AUFS without its kernel: which mounts are asked for in which order, and what layers look like."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tiffin.layer.capture import own_entries
from tiffin.layer.entry import Kind
from tiffin.linux import syscalls
from tiffin.linux.mounts import parse_options
from tiffin.linux.recording import RecordingKernel
from tiffin.runtime import operations as op
from tiffin.storage.aufs import Aufs
from tiffin.storage.driver import Mount, Whiteouts

pytestmark = pytest.mark.root


@pytest.fixture
def aufs(tmp_path: Path) -> Aufs:
    """The driver on an empty folder."""
    return Aufs(tmp_path / "aufs")


def _layers(aufs: Aufs, count: int) -> tuple[str, ...]:
    names = []
    for number in range(count):
        aufs.prepare("next", tuple(names))
        aufs.commit("next", f"layer{number}")
        names.append(f"layer{number}")
    return tuple(names)


def _branch(aufs: Aufs, key: str) -> str:
    with aufs.own_directory(key) as directory:
        return str(directory.relative_to(aufs.home))


def _calls(mounts: list[Mount]) -> list[tuple[object, ...]]:
    """What the runtime does with them."""
    kernel = RecordingKernel()
    for mount in mounts:
        options = parse_options(mount.options)
        step = op.MountRoot(
            mount.fstype, mount.source, "/root", options.flags, options.data, mount.directory
        )
        step.execute(kernel)
    return kernel.calls


def test_a_container_is_one_writable_branch_on_read_only_ones(aufs: Aufs) -> None:
    layers = _layers(aufs, 2)
    aufs.prepare("c", layers)
    own, upper, base = (_branch(aufs, key) for key in ("c", "layer1", "layer0"))
    branches = f"br:{own}=rw:{upper}=ro+wh:{base}=ro+wh"
    data = f"{branches},xino=/dev/shm/aufs.xino,dio"
    assert _calls(aufs.mounts("c")) == [
        ("mount_root", "aufs", "none", "/root", 0, data, str(aufs.home))
    ]


def test_permissions_of_the_uppermost_directory_count_where_the_kernel_can(
    aufs: Aufs, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, ...]] = []

    def accept(_: Path, *options: str) -> str:
        tried.append(options)
        return ""

    monkeypatch.setattr("tiffin.storage.aufs._refused", accept)
    monkeypatch.setattr("tiffin.storage.aufs._known", lambda: True)
    aufs.prepare("c", None)
    data = f"br:{_branch(aufs, 'c')}=rw,xino=/dev/shm/aufs.xino,dio,dirperm1"
    for _ in range(2):
        assert _calls(aufs.mounts("c")) == [
            ("mount_root", "aufs", "none", "/root", 0, data, str(aufs.home))
        ]
    # It is asked once.
    assert tried == [("dirperm1",)]
    assert not list(aufs.home.glob("probe*"))
    support = Aufs.probe(aufs.home)
    assert support.works
    assert ("Dirperm1 Supported", "true") in support.features


def test_what_the_kernel_says_against_a_mount_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiffin.storage.aufs._known", lambda: True)
    support = Aufs.probe(tmp_path / "aufs")
    if "aufs" not in Path("/proc/filesystems").read_text():
        assert not support.works
        assert "refuses to mount AUFS" in support.reason
        assert "No such device" in support.reason


def test_a_view_is_read_only_and_has_no_writable_branch(aufs: Aufs) -> None:
    layers = _layers(aufs, 1)
    data = f"br:{_branch(aufs, 'layer0')}=ro+wh,xino=/dev/shm/aufs.xino,dio"
    wanted = ("mount_root", "aufs", "none", "/root", syscalls.MS_RDONLY, data, str(aufs.home))
    assert _calls(aufs.view(layers)) == [wanted]
    assert _calls(aufs.mounts("layer0")) == [wanted]


def test_branches_that_do_not_fit_into_a_page_are_appended_in_order(
    aufs: Aufs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiffin.storage.aufs._PAGE", 700)
    layers = _layers(aufs, 40)
    aufs.prepare("c", layers)
    calls = _calls(aufs.mounts("c"))
    first = str(calls[0][5])
    assert 380 < len(first) < 700 - 256
    branches = first.removeprefix("br:").split(",")[0].split(":")
    assert len(calls) < 10
    for call in calls[1:]:
        assert call[:5] == ("mount_root", "aufs", "none", "/root", syscalls.MS_REMOUNT)
        # There is room for a label yet.
        assert len(str(call[5])) < 700 - 256
        branches += [one.removeprefix("append:") for one in str(call[5]).split(",")]
    assert branches == [
        f"{_branch(aufs, 'c')}=rw",
        *(f"{_branch(aufs, key)}=ro+wh" for key in reversed(layers)),
    ]


def test_an_equal_layer_is_one_branch(aufs: Aufs) -> None:
    one, two = _layers(aufs, 2)
    aufs.prepare("c", (one, two, one))
    branches = aufs.mounts("c")[0].options[0].split(":")
    assert branches[2:] == [f"{_branch(aufs, one)}=ro+wh", f"{_branch(aufs, two)}=ro+wh"]


def test_what_aufs_keeps_for_itself_is_no_part_of_a_layer(aufs: Aufs) -> None:
    aufs.prepare("c", None)
    with aufs.own_directory("c") as own:
        (own / "kept").write_text("x" * 10)
        (own / ".wh..wh.aufs").touch()
        for name in (".wh..wh.plnk", ".wh..wh.orph"):
            (own / name).mkdir()
        os.link(own / "kept", own / ".wh..wh.plnk" / "12.34")
        os.link(own / ".wh..wh.aufs", own / ".wh.gone")
        (own / "d").mkdir()
        os.link(own / ".wh..wh.aufs", own / "d" / ".wh..wh..opq")
    usage = aufs.usage("c")
    assert (usage.size, usage.inodes) == (10, 2)
    aufs.commit("c", "layer")
    with aufs.own_directory("layer") as own:
        assert sorted(os.listdir(own)) == [".wh.gone", "d", "kept"]
        found = [(entry.path, entry.kind) for entry in own_entries(own, Whiteouts.AUFS)]
    assert found == [
        (b"gone", Kind.WHITEOUT),
        (b"d", Kind.DIRECTORY),
        (b"d", Kind.OPAQUE),
        (b"kept", Kind.FILE),
    ] or sorted(found) == sorted(
        [
            (b"gone", Kind.WHITEOUT),
            (b"d", Kind.DIRECTORY),
            (b"d", Kind.OPAQUE),
            (b"kept", Kind.FILE),
        ]
    )


def test_it_says_what_its_kernel_lacks(tmp_path: Path) -> None:
    support = Aufs.probe(tmp_path / "aufs")
    if "aufs" not in Path("/proc/filesystems").read_text():
        assert not support.works
        assert "patched with it" in support.reason
