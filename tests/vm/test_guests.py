"""Tests in guests: of limits, and of all runtimes, with the other versions of cgroups; of networks
with kinds of interfaces, and a protocol, that few machines have."""

from __future__ import annotations

import re
import shlex
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


PYTEST = [
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "-p",
    "no:cacheprovider",
    "--tb=short",
    "--color=no",
]


def test_limits_and_runtimes_hold_on_every_version_of_cgroups() -> None:
    # This machine's own is what the tests run on here.
    versions = {"1", "2"} - {Hierarchy.detect().version}
    if guest.KERNEL is None:
        pytest.skip("user-mode-linux is not installed")
    command = [*PYTEST, *(str(TESTS / name) for name in INSIDE)]
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(guest.run, version, command) for version in versions]
    for run in runs:
        code, output = run.result()
        assert code == 0, output
        found = re.search(r"(\d+) passed", output)
        assert found is not None and int(found[1]) > 30, output


def test_interfaces_and_ports_that_few_kernels_have() -> None:
    if guest.KERNEL is None:
        pytest.skip("user-mode-linux is not installed")
    script = (
        "from tiffin.network import rtnetlink as r\n"
        "import os, socket\n"
        "socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()\n"
        "with r.Socket() as s:\n"
        "    s.run(r.new_veth('one', 0, 'two'))\n"
        "    one, here = s.link('one').index, os.open('/proc/self/ns/net', os.O_RDONLY)\n"
        "    s.run(r.new_vlan('one.7', one, 7))\n"
        "    s.run(r.new_child('child', one, 'ipvlan', 'l2', 'private', namespace=here))\n"
    )
    tests = [str(TESTS / "network" / name) for name in ("test_children.py", "test_ports.py")]
    words = [shlex.join([sys.executable, "-c", script]), shlex.join([*PYTEST, *tests])]
    modules = ("veth", "bridge", "sctp", "ipvlan", "macvlan", "8021q")
    code, output = guest.run("1", ["sh", "-c", " && ".join(words)], modules=modules)
    assert code == 0, output
    assert "passed" in output
