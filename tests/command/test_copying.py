"""Files go into a container and come back as they were."""

from __future__ import annotations

import os
from pathlib import Path

from command.conftest import Command

# cap_net_raw=ep, as setcap(8) writes it (linux/capability.h, revision 2).
CAPABLE = bytes.fromhex("0100000200200000000000000000000000000000")


def test_what_a_program_may_do_goes_along(tiffin: Command, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "in").mkdir(parents=True)
    program = here / "in/program"
    program.write_bytes(b"#!")
    os.chown(program, 1000, 1000)
    program.chmod(0o755)
    os.setxattr(program, "security.capability", CAPABLE)
    tiffin("create", "--name", "job", "busybox", "true")
    tiffin("cp", "-a", str(here), "job:/there")
    tiffin("cp", "-a", "job:/there", str(tmp_path / "back"))
    back = tmp_path / "back/in/program"
    assert os.getxattr(back, "security.capability") == CAPABLE
    assert (back.stat().st_uid, back.stat().st_mode & 0o7777) == (1000, 0o755)
