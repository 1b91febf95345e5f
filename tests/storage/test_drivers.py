"""Which storage driver is taken, and what is said when one can't be."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.actions import mounted
from tiffin.errors import InvalidParameter, Unsupported
from tiffin.storage import drivers
from tiffin.storage.driver import Support
from tiffin.storage.filesystem import file_system_name
from tiffin.storage.overlay2 import Overlay2
from tiffin.storage.vfs import Vfs

pytestmark = pytest.mark.root


def test_the_first_that_works_is_taken(tmp_path: Path) -> None:
    assert drivers.choose(tmp_path).name == "overlay2"
    assert [name for name, _ in drivers.survey(tmp_path)] == ["overlay2", "vfs"]


def test_a_driver_is_taken_by_name(tmp_path: Path) -> None:
    assert isinstance(drivers.choose(tmp_path, "vfs"), Vfs)
    assert isinstance(drivers.choose(tmp_path, "overlay"), Overlay2)


def test_without_a_name_a_root_keeps_its_driver(tmp_path: Path) -> None:
    drivers.choose(tmp_path)
    drivers.choose(tmp_path, "vfs").prepare("one", None)
    assert drivers.choose(tmp_path).name == "vfs"


def test_an_unknown_driver_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match=r"driver not supported: floppy.*overlay2, vfs"):
        drivers.choose(tmp_path, "floppy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["btrfs", "ZFS", "aufs", "devicemapper", "fuse-overlayfs"])
def test_a_driver_that_will_come_is_refused_as_such(tmp_path: Path, name: str) -> None:
    with pytest.raises(Unsupported, match=f"{name.lower()} is not there yet"):
        drivers.choose(tmp_path, name)


def test_a_driver_that_can_not_work_says_what_is_missing(tmp_path: Path) -> None:
    # Overlayfs refuses another overlayfs as its upper directory.
    outer = Overlay2(tmp_path / "outer")
    outer.prepare("one", None)
    with mounted(outer.mounts("one"), tmp_path / "root") as root:
        with pytest.raises(InvalidParameter, match=r"overlay2 does not work under .*overlayfs"):
            drivers.choose(root, "overlay2")
        assert drivers.choose(root).name == "vfs"


def test_where_none_works_every_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for driver in (Overlay2, Vfs):
        reason = Support(False, f"no {driver.name} today")
        monkeypatch.setattr(driver, "probe", classmethod(lambda cls, home, r=reason: r))
    with pytest.raises(InvalidParameter, match="overlay2: no overlay2 today; vfs: no vfs today"):
        drivers.choose(tmp_path)


def test_a_probe_leaves_nothing(tmp_path: Path) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    for _, support in drivers.survey(tmp_path):
        assert support.works
        assert dict(support.features)["Backing Filesystem"] != "unknown"
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["storage"]


def test_the_file_system_under_a_path(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(
        "1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
        "2 1 0:5 / /var/with\\040space rw - xfs /dev/sdb rw\n"
        "3 1 0:6 / /var/over rw - tmpfs none rw\n"
        "4 3 0:7 / /var/over rw - overlay none rw\n"
    )
    for path, name in (
        ("/usr/lib", "extfs"),
        ("/var/with space/deep/down", "xfs"),
        ("/var/with spaces", "extfs"),
        ("/var/over", "overlayfs"),
    ):
        assert file_system_name(Path(path), mountinfo) == name
