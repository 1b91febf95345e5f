"""Mount options and the table of mounts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tiffin.linux import syscalls
from tiffin.linux.mounts import (
    describe_flags,
    mountinfo,
    parse_mountinfo,
    parse_options,
    read_only_executable,
)


def test_options_are_split_into_flags_propagation_and_data() -> None:
    options = parse_options(["ro", "nosuid", "size=5m", "rslave", "mode=700", "rw", ""])
    assert options.flags == syscalls.MS_NOSUID, "the later rw wins over ro"
    assert options.propagation == syscalls.MS_SLAVE | syscalls.MS_REC
    assert options.data == "size=5m,mode=700"


def test_options_start_from_given_flags() -> None:
    assert parse_options(["exec"], syscalls.MS_NOEXEC | syscalls.MS_NODEV).flags == (
        syscalls.MS_NODEV
    )


def test_flags_have_words() -> None:
    assert describe_flags(0) == "rw"
    assert describe_flags(syscalls.MS_RDONLY | syscalls.MS_NODEV) == "ro,nodev"


def test_mountinfo_lines() -> None:
    line = (
        "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:2 - ext3 /dev/a\\134b "
        "rw,errors=continue\n"
    )
    (entry,) = parse_mountinfo(line)
    assert (entry.id, entry.parent, entry.root) == (36, 35, "/mnt1")
    assert entry.mount_point == "/mnt 2"
    assert entry.source == "/dev/a\\b"
    assert entry.fstype == "ext3"
    assert entry.propagation == ["master:1", "shared:2"]
    assert entry.super_options == ["rw", "errors=continue"]


def test_the_mounts_of_this_process() -> None:
    assert "/" in [entry.mount_point for entry in mountinfo()]


@pytest.mark.root
def test_a_program_started_read_only_cannot_be_overwritten_through_proc(tmp_path: Path) -> None:
    program = tmp_path / "sleep"
    shutil.copy("/bin/sleep", program)
    fd = read_only_executable(str(program))
    process = subprocess.Popen(
        [str(program), "60"], executable=f"/proc/self/fd/{fd}", pass_fds=[fd]
    )
    os.close(fd)
    try:
        handle = os.open(f"/proc/{process.pid}/exe", os.O_PATH)
    finally:
        process.kill()
        process.wait()
    try:
        # With the process gone the file is not busy any more, so that only the mount protects it.
        with pytest.raises(OSError, match="Read-only"):
            os.open(f"/proc/self/fd/{handle}", os.O_WRONLY)
        os.close(os.open(program, os.O_WRONLY))
    finally:
        os.close(handle)
