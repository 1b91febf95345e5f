"""A container's root that is nobody outside, over layers whose files nobody changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runtime.conftest import Kitchen
from tiffin.runtime.launching import Stdio
from tiffin.runtime.settings import MountPoint
from tiffin.storage.driver import Mount

pytestmark = pytest.mark.root
FIRST = 400 << 16
MAP = (FIRST, 65536)


def test_root_inside_is_another_outside(kitchen: Kitchen) -> None:
    script = "test $(id -u) = 0 && echo ready; sleep 1000"
    launched, _ = kitchen.background("sh", "-c", script, id_map=MAP)
    assert os.stat(f"/proc/{launched.pid}").st_uid == FIRST
    text = Path(f"/proc/{launched.pid}/status").read_text()
    rows = dict(line.split(":", 1) for line in text.splitlines())
    assert rows["Uid"].split() == [str(FIRST)] * 4
    assert rows["Groups"].split() == [str(FIRST)]


def test_files_keep_the_owners_that_the_image_knows(kitchen: Kitchen) -> None:
    os.chown(kitchen.root / "tmp", 0, 0)
    (kitchen.root / "cooks").write_text("soup\n")
    os.chown(kitchen.root / "cooks", 1000, 100)
    script = """
        stat -c '%u:%g' /etc/passwd /cooks /tmp /dev /dev/null /dev/shm /
        echo new > /tmp/made; chown 1000:100 /tmp/made; chown 5:6 /cooks; mkdir /folder
        stat -c '%u:%g' /tmp/made /cooks /folder
    """
    result = kitchen.run("sh", "-c", script, id_map=MAP)
    root = ["0:0"]
    assert result.output.split() == root + ["1000:100"] + root * 5 + ["1000:100", "5:6", "0:0"]
    upper = kitchen.upper
    for name, owner in (("tmp/made", (1000, 100)), ("cooks", (5, 6)), ("folder", (0, 0))):
        info = os.stat(upper / name)
        assert (info.st_uid, info.st_gid) == owner
    info = os.stat(kitchen.root / "cooks")
    assert (info.st_uid, info.st_gid) == (1000, 100)


def test_a_bind_mounted_root_is_mapped_too(kitchen: Kitchen) -> None:
    rootfs = [Mount("bind", str(kitchen.root), ("rbind",))]
    result = kitchen.run(
        "sh", "-c", "stat -c %u /etc/passwd; echo > /made", rootfs=rootfs, id_map=MAP
    )
    assert result.output == "0\n"
    assert os.stat(kitchen.root / "made").st_uid == 0


def test_another_user_and_its_streams(kitchen: Kitchen) -> None:
    script = "id -u; id -g; echo over > /dev/stderr; echo x > /tmp/mine"
    result = kitchen.run("sh", "-c", script, id_map=MAP, user="cook")
    assert result.output == "1000\n100\nover\n"
    assert os.stat(kitchen.upper / "tmp/mine").st_uid == 1000


def test_what_it_may_do_is_its_own(kitchen: Kitchen) -> None:
    """Capabilities count for what belongs to the namespace, and for nothing of the host's."""
    script = """
        hostname other && hostname
        ip link set lo down && echo network
        mount -t tmpfs none /tmp && echo mounted
        cat /proc/sys/kernel/hostname
        echo 1 > /proc/sys/vm/drop_caches || echo refused
        mknod /made b 7 0 || echo refused
    """
    result = kitchen.run(
        "sh",
        "-c",
        script,
        id_map=MAP,
        capabilities=["SYS_ADMIN", "NET_ADMIN", "MKNOD", "DAC_OVERRIDE"],
    )
    lines = [line for line in result.output.splitlines() if ":" not in line]
    assert lines == ["other", "network", "mounted", "other", "refused", "refused"]


def test_masked_paths_can_not_be_uncovered(kitchen: Kitchen) -> None:
    script = """
        umount /proc/keys || umount /proc/sys || umount /sys/firmware || umount /proc/bus ||
        mount -o remount,rw /proc/sys || mount -o bind,remount,rw /proc/sys ||
        echo kept; cat /proc/keys | wc -c
    """
    result = kitchen.run("sh", "-c", script, id_map=MAP, capabilities=["SYS_ADMIN"])
    assert result.output.split()[-2:] == ["kept", "0"]


def test_an_exec_is_in_the_user_namespace(kitchen: Kitchen) -> None:
    launched, settings = kitchen.background("sh", "-c", "echo ready; sleep 1000", id_map=MAP)
    script = "id -u; cat /proc/self/uid_map; echo over > /dev/stderr"
    result = kitchen.enter(launched, settings, "sh", "-c", script, remapped=(FIRST, FIRST))
    assert result.output.split() == ["0", "0", str(FIRST), "65536", "over"]


def test_a_terminal_belongs_to_the_user(kitchen: Kitchen, terminal_reader: Any) -> None:
    settings = kitchen.settings(
        "sh", "-c", "stat -c '%u:%g' /dev/console; tty", id_map=MAP, terminal=True
    )
    launched = kitchen.start(settings, Stdio(None))
    said = terminal_reader(launched.terminal_fd, b"\n/dev/")
    assert b"0:5" in said
    kitchen.finish(launched)


def test_volumes_are_mapped_where_asked(
    kitchen: Kitchen, tmp_path_factory: pytest.TempPathFactory
) -> None:
    volume = tmp_path_factory.mktemp("volume")
    mounts = [
        MountPoint("bind", str(volume), "/mapped", ("rbind", "idmap")),
        MountPoint("bind", str(volume), "/plain", ("rbind",)),
        MountPoint("tmpfs", "tmpfs", "/memory", ("uid=1000", "mode=700")),
    ]
    script = "stat -c %u /mapped /plain /memory; echo x > /mapped/made"
    result = kitchen.run("sh", "-c", script, id_map=MAP, mounts=mounts)
    assert result.output.split() == ["0", "65534", "1000"]
    assert os.stat(volume / "made").st_uid == 0


def test_an_init_in_a_user_namespace(kitchen: Kitchen) -> None:
    assert kitchen.run("sh", "-c", "id -u; exit 4", id_map=MAP, init=True).status == 4
