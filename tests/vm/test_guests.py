"""The tests of limits, and of all runtimes, in guests with the other versions of cgroups."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tiffin.linux.cgroups import Hierarchy
from vm import guest

TESTS = Path(__file__).parents[1]
INSIDE = (
    "engine/test_limits.py",
    "engine/test_statistics.py",
    "engine/test_runtimes.py::test_output_and_exit_code",
    "engine/test_runtimes.py::test_options",
)


def test_limits_and_runtimes_hold_on_every_version_of_cgroups() -> None:
    # This machine's own is what the tests run on here.
    versions = {"1", "2"} - {Hierarchy.detect().version}
    if guest.KERNEL is None:
        pytest.skip("user-mode-linux is not installed")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        "--color=no",
    ]
    command += [str(TESTS / name) for name in INSIDE]
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(guest.run, version, command) for version in versions]
    for run in runs:
        code, output = run.result()
        assert code == 0, output
        found = re.search(r"(\d+) passed", output)
        assert found is not None and int(found[1]) > 30, output
