"""Which storage driver is taken, and what is said when one can't be."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.actions import mounted
from tiffin.errors import InvalidParameter
from tiffin.storage import drivers
from tiffin.storage.driver import Support
from tiffin.storage.filesystem import file_system_name
from tiffin.storage.overlay import Overlay
from tiffin.storage.overlay2 import Overlay2
from tiffin.storage.vfs import Vfs

pytestmark = pytest.mark.root


def test_the_first_that_works_is_taken(tmp_path: Path) -> None:
    driver = drivers.choose(tmp_path)
    assert (driver.name, driver.why) == ("overlay2", "the first of the table that works here")
    names = [driver.name for driver, _, _ in drivers.DRIVERS]
    assert names.index("overlay2") < names.index("fuse-overlayfs") < names.index("vfs")


def test_a_driver_is_taken_by_name(tmp_path: Path) -> None:
    assert isinstance(drivers.choose(tmp_path, "VFS"), Vfs)
    assert type(drivers.choose(tmp_path, "overlay")) is Overlay


def test_without_a_name_a_root_keeps_its_driver(tmp_path: Path) -> None:
    drivers.choose(tmp_path)
    (tmp_path / "used").mkdir()
    Vfs(drivers.home(tmp_path / "used", "vfs")).prepare("one", None)
    driver = drivers.choose(tmp_path / "used")
    assert (driver.name, driver.why) == ("vfs", "the root was used with it before")


def test_what_was_asked_for_stays_chosen_and_what_it_held_stays(tmp_path: Path) -> None:
    drivers.choose(tmp_path).prepare("one", None)
    assert drivers.choose(tmp_path, "vfs").why == "it was asked for"
    chosen = drivers.choose(tmp_path)
    assert (chosen.name, chosen.why) == ("vfs", "it was asked for earlier for this root")
    both = drivers.Drivers(tmp_path, chosen)
    assert [driver.name for driver in both.all()] == ["vfs", "overlay2"]
    assert list(both.get("overlay2").keys()) == ["one"]
    both.choose(both.get("overlay2"))
    assert drivers.choose(tmp_path).name == "overlay2"


def test_settings_belong_to_a_driver(tmp_path: Path) -> None:
    assert drivers.parse_settings(["btrfs.min_space=1g"]) == {"btrfs.min_space": "1g"}
    with pytest.raises(InvalidParameter, match=r"unknown storage option: floppy=1.*btrfs.min_sp"):
        drivers.parse_settings(["floppy=1"])
    with pytest.raises(InvalidParameter, match=r"vfs has no option btrfs\.min_space"):
        drivers.choose(tmp_path, "vfs", {"btrfs.min_space": "1g"})


def test_an_unknown_driver_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match=r"driver not supported: floppy.*overlay2, .*vfs"):
        drivers.choose(tmp_path, "floppy")
    assert list(tmp_path.iterdir()) == []


def test_a_driver_that_can_not_work_says_what_is_missing(tmp_path: Path) -> None:
    # Overlayfs refuses another overlayfs as its upper directory.
    outer = Overlay2(tmp_path / "outer")
    outer.prepare("one", None)
    with mounted(outer.mounts("one"), tmp_path / "root") as root:
        with pytest.raises(InvalidParameter, match=r"overlay2 does not work under .*overlayfs"):
            drivers.choose(root, "overlay2")
        driver = drivers.choose(root)
        assert driver.name in ("fuse-overlayfs", "vfs")
        assert "overlay2: " in driver.why


def test_where_none_works_every_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for driver, _, _ in drivers.DRIVERS:
        reason = Support(False, f"no {driver.name} today")
        monkeypatch.setattr(
            driver, "probe", classmethod(lambda cls, home, settings=None, r=reason: r)
        )
    with pytest.raises(InvalidParameter, match=r"overlay2: no overlay2 today; .*vfs: no vfs today"):
        drivers.choose(tmp_path)


def test_a_probe_leaves_nothing(tmp_path: Path) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    for driver, _, _ in drivers.DRIVERS:
        name = driver.name
        support = drivers.probe(driver, drivers.home(tmp_path, name))
        assert support.reason
        if support.works:
            assert dict(support.features)["Backing Filesystem"] != "unknown"
            said = dict(support.features).keys()
            assert {"Native Diff", "Native Overlay Diff"} & said, name
            assert {"Backing Filesystem", "Quota", "Reflinks", "Using metacopy"} <= said, name
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
