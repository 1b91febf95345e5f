"""The firewall's library, in a process that forks."""

from __future__ import annotations

import os
import signal

import pytest

from tiffin.network.firewall import nftables

pytestmark = pytest.mark.root

TABLE = "add table inet tiffin_forked\ndelete table inet tiffin_forked\n"


def test_a_forked_process_takes_no_answers_of_its_parent_s() -> None:
    assert nftables.run(TABLE) == ""
    pid = os.fork()
    if pid == 0:
        while True:
            nftables.run(TABLE)
    try:
        assert {nftables.run(TABLE) for _ in range(300)} == {""}
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert nftables.run(TABLE) == ""
