"""The file systems of containers: the root, what is mounted in it, devices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.conftest import Kitchen
from tiffin.errors import InvalidParameter, StartFailure
from tiffin.linux import syscalls
from tiffin.linux.mounts import mountinfo
from tiffin.runtime.settings import (
    Device,
    MountPoint,
)
from tiffin.storage.driver import Mount

pytestmark = pytest.mark.root


def test_a_bind_mounted_root_works_like_an_overlay(kitchen: Kitchen) -> None:
    rootfs = [Mount("bind", str(kitchen.root), ("rbind", "rw"))]
    result = kitchen.run("sh", "-c", "echo x > /tmp/made && ls /tmp", rootfs=rootfs)
    assert (result.status, result.output) == (0, "made\n")
    assert (kitchen.root / "tmp/made").read_text() == "x\n"


def test_a_read_only_bind_of_a_root_is_read_only(kitchen: Kitchen) -> None:
    for target in ("proc", "dev", "sys"):
        (kitchen.root / target).mkdir()
    rootfs = [Mount("bind", str(kitchen.root), ("rbind", "ro"))]
    result = kitchen.run("sh", "-c", "echo x > /tmp/made", rootfs=rootfs)
    assert result.status != 0
    assert "Read-only file system" in result.output


def test_writes_go_to_the_upper_directory_alone(kitchen: Kitchen) -> None:
    kitchen.run("sh", "-c", "echo x > /tmp/made; rm /etc/group")
    assert (kitchen.upper / "tmp/made").read_text() == "x\n"
    assert (kitchen.root / "etc/group").exists()


def test_the_host_never_sees_a_mount(kitchen: Kitchen) -> None:
    def ours() -> list[str]:
        # Other programs of the machine mount and unmount as they like.
        here = str(kitchen.directory)
        return [entry.mount_point for entry in mountinfo() if here in entry.mount_point]

    before = ours()
    launched, _ = kitchen.background("sh", "-c", "echo ready; sleep 60")
    assert ours() == before
    assert not os.listdir(kitchen.directory / "mountpoint")
    inside = [entry.mount_point for entry in mountinfo(launched.pid)]
    assert inside[0] == "/"
    assert not [path for path in inside if str(kitchen.directory) in path]


def test_file_systems_of_a_container(kitchen: Kitchen) -> None:
    launched, settings = kitchen.background("sh", "-c", "echo ready; sleep 60", shm_size=1 << 20)
    table = {entry.mount_point: entry for entry in mountinfo(launched.pid)}
    kinds = {path: table[path].fstype for path in table if path.count("/") <= 2}
    assert kinds["/"] == "overlay"
    assert kinds["/proc"] == "proc"
    assert kinds["/sys"] == "sysfs"
    assert "ro" in table["/sys"].options
    assert kinds["/dev"] == "tmpfs"
    assert kinds["/dev/pts"] == "devpts"
    assert kinds["/dev/mqueue"] == "mqueue"
    assert "size=1024k" in table["/dev/shm"].super_options
    groups = [entry for path, entry in table.items() if path.startswith("/sys/fs/cgroup")]
    assert groups
    assert all("ro" in entry.options for entry in groups)
    assert "ro" in table["/proc/sys"].options
    assert table["/proc/keys"].mount_point == "/proc/keys"
    masked = kitchen.enter(launched, settings, "cat", "/proc/keys")
    assert (masked.status, masked.output) == (0, "")


def test_default_devices_and_links(kitchen: Kitchen) -> None:
    script = (
        "for link in fd stdin ptmx; do readlink /dev/$link; done; "
        "stat -c %t:%T:%a /dev/null /dev/zero /dev/random /dev/urandom /dev/full /dev/tty; "
        "echo gone > /dev/null; echo x > /dev/full"
    )
    result = kitchen.run("sh", "-c", script)
    lines = result.output.split()
    assert lines[:3] == ["/proc/self/fd", "/proc/self/fd/0", "pts/ptmx"]
    assert lines[3:9] == ["1:3:666", "1:5:666", "1:8:666", "1:9:666", "1:7:666", "5:0:666"]
    assert "No space left on device" in result.output


def test_devices_that_are_not_allowed_cannot_be_opened(kitchen: Kitchen) -> None:
    if "devices" not in kitchen.hierarchy.by_name:
        pytest.skip("needs the devices controller of cgroup v1")
    script = "mknod /tmp/mem c 1 1 && cat /tmp/mem"
    result = kitchen.run("sh", "-c", script)
    assert result.status == 1
    assert "Operation not permitted" in result.output


def test_an_additional_device(kitchen: Kitchen) -> None:
    devices = [Device("/dev/my/null", "c", 1, 3, 0o600, 1000, 50)]
    result = kitchen.run("stat", "-c", "%t:%T %a %u %g", "/dev/my/null", devices=devices)
    assert result.output == "1:3 600 1000 50\n"
    with pytest.raises(InvalidParameter, match=r"error gathering device information.*no such"):
        Device.of_host("/dev/no-such-device")
    assert Device.of_host("/dev/zero", "/dev/z")[0] == Device("/dev/z", "c", 1, 5)


def test_read_only_root_leaves_mounts_writable(kitchen: Kitchen) -> None:
    mounts = [MountPoint("tmpfs", "tmpfs", "/run", ("mode=700",))]
    script = "touch /x; touch /run/x && touch /dev/shm/x && echo ok"
    result = kitchen.run("sh", "-c", script, readonly_rootfs=True, mounts=mounts, cwd="/made")
    assert "Read-only file system" in result.output
    assert result.output.endswith("ok\n")


def test_tmpfs_options(kitchen: Kitchen) -> None:
    options = ("size=64k", "mode=1700", "exec")
    mounts = [MountPoint("tmpfs", "tmpfs", "/a/b", options)]
    result = kitchen.run("grep", " /a/b ", "/proc/mounts", mounts=mounts)
    fields = result.output.split()
    assert fields[2] == "tmpfs"
    words = fields[3].split(",")
    assert {"rw", "nosuid", "nodev", "size=64k", "mode=1700"} <= set(words)
    assert "noexec" not in words


@pytest.fixture
def pantry(tmp_path: Path) -> Path:
    pantry = tmp_path / "pantry"
    pantry.mkdir()
    (pantry / "rice").write_text("rice\n")
    return pantry


def test_binds_of_directories_and_files(kitchen: Kitchen, pantry: Path) -> None:
    mounts = [
        MountPoint("bind", str(pantry), "/deep/er/pantry"),
        MountPoint("bind", str(pantry / "rice"), "/etc/made/rice", ("ro",)),
    ]
    script = (
        "cat /deep/er/pantry/rice /etc/made/rice; echo new > /deep/er/pantry/new; "
        "echo x > /etc/made/rice"
    )
    result = kitchen.run("sh", "-c", script, mounts=mounts)
    assert result.output.startswith("rice\nrice\n")
    assert "Read-only file system" in result.output
    assert (pantry / "new").read_text() == "new\n"
    assert (pantry / "rice").read_text() == "rice\n"


def test_a_bind_inside_a_bind_whatever_their_order(kitchen: Kitchen, pantry: Path) -> None:
    mounts = [
        MountPoint("bind", str(pantry / "rice"), "/p/inner/rice"),
        MountPoint("tmpfs", "tmpfs", "/p"),
    ]
    assert kitchen.run("cat", "/p/inner/rice", mounts=mounts).output == "rice\n"


def test_a_symlink_of_the_image_does_not_lead_a_mount_outside(
    kitchen: Kitchen, pantry: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (kitchen.root / "data").symlink_to(victim)
    (kitchen.root / "up").symlink_to("../../../../../../../../.." + str(victim))
    mounts = [
        MountPoint("bind", str(pantry), "/data/x"),
        MountPoint("bind", str(pantry), "/up/y"),
        MountPoint("bind", str(pantry / "rice"), "/up/z"),
    ]
    result = kitchen.run("cat", "/data/x/rice", "/up/y/rice", "/up/z", mounts=mounts)
    assert result.output == "rice\n" * 3
    assert list(victim.iterdir()) == []
    assert (kitchen.upper / str(victim)[1:] / "x").is_dir(), "made under the container's root"


def test_proc_and_sys_as_symlinks_stay_inside(kitchen: Kitchen, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    for name in ("proc", "sys", "dev"):
        (kitchen.root / name).symlink_to(victim / name)
    assert kitchen.run("true").status == 0
    assert list(victim.iterdir()) == []


def test_a_missing_bind_source_is_said(kitchen: Kitchen) -> None:
    mounts = [MountPoint("bind", "/no/such/source", "/x")]
    with pytest.raises(StartFailure, match="/no/such/source"):
        kitchen.run("true", mounts=mounts)


def test_a_bind_may_replace_shm_or_a_whole_dev(kitchen: Kitchen, pantry: Path) -> None:
    mounts = [MountPoint("bind", str(pantry), "/dev/shm")]
    assert kitchen.run("cat", "/dev/shm/rice", mounts=mounts).output == "rice\n"


def test_propagation_of_a_slave_bind(kitchen: Kitchen, tmp_path: Path) -> None:

    source = tmp_path / "shared"
    source.mkdir()
    syscalls.mount("tmpfs", str(source), "tmpfs")
    try:
        syscalls.mount(None, str(source), None, syscalls.MS_SHARED)
        (source / "sub").mkdir()
        mounts = [MountPoint("bind", str(source), "/m", ("rbind", "rslave"))]
        launched, settings = kitchen.background("sh", "-c", "echo ready; sleep 60", mounts=mounts)
        syscalls.mount("tmpfs", str(source / "sub"), "tmpfs")
        (source / "sub/late").write_text("late")
        result = kitchen.enter(launched, settings, "cat", "/m/sub/late")
        assert result.output == "late"
        kitchen.close()
    finally:
        syscalls.umount(str(source / "sub"), syscalls.MNT_DETACH)
        syscalls.umount(str(source), syscalls.MNT_DETACH)
