"""The load test in short form; ``bench/soak`` is the long one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "bench/soak"


def test_a_crowd_loses_nothing_while_daemon_and_keeper_are_killed(busybox: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    command = [sys.executable, str(SOAK), "--containers", "16", "--seconds", "12", "--rate", "10"]
    done = subprocess.run(
        [*command, "--kill-every", "3"], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 containers" in done.stdout
    assert done.stdout.rstrip().endswith("0 problems")
