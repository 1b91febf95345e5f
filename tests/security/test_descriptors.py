"""Nothing of the host's is open in a container, and its processes can't be had hold of."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from tiffin.errors import StartFailure

pytestmark = pytest.mark.root

# The folder that is being read is closed by the time that it is looked at.
OPEN = """
say({name: attempt(os.readlink, f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")})
"""


def beyond_the_streams(found: dict[str, str]) -> list[str]:
    assert {"0", "1", "2"} <= set(found)
    return [to for name, to in found.items() if int(name) > 2 and to != "ENOENT"]


@pytest.mark.parametrize("init", [False, True])
def test_a_container_has_its_three_streams_and_nothing_else_open(prison: Any, init: bool) -> None:
    assert beyond_the_streams(prison.attempt(OPEN, host={"Init": init})) == []


def test_the_init_has_nothing_of_the_host_open(prison: Any) -> None:
    container = prison.background(host={"Init": True})
    opened = os.listdir(f"/proc/{prison.pid(container)}/fd")
    assert set(opened) == {"0", "1", "2"}


def test_an_exec_has_its_three_streams_and_nothing_else_open(prison: Any) -> None:
    container = prison.background()
    assert beyond_the_streams(prison.attempt_in(container, OPEN)) == []


@pytest.mark.parametrize("first", [True, False])
def test_no_working_directory_leads_out_over_a_descriptor(prison: Any, first: bool) -> None:
    """CVE-2024-21626: a working directory of /proc/self/fd/N, where N is the host's."""
    container = None if first else prison.background()
    for number in range(3, 24):
        directory = f"/proc/self/fd/{number}"
        with pytest.raises(StartFailure):
            if container is None:
                prison.attempt("say(os.getcwd())", WorkingDir=directory)
            else:
                prison.run(container, "cat", "../../../etc/shadow", WorkingDir=directory)


def test_the_program_of_the_keeper_can_not_be_overwritten(
    prison: Any, keeper_pid: Callable[[], int]
) -> None:
    """CVE-2019-5736: what is had hold of through /proc/PID/exe can be written to once it doesn't
    run any more. A change of the mode is refused for the same reason, without waiting for that."""
    prison.background()
    held = os.open(f"/proc/{keeper_pid()}/exe", os.O_PATH)
    try:
        path = f"/proc/self/fd/{held}"
        with pytest.raises(OSError, match="Read-only") as refused:
            os.chmod(path, os.stat(path).st_mode & 0o7777)
        assert refused.value.errno == errno.EROFS
    finally:
        os.close(held)
