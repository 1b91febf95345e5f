"""Capability names and sets."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiffin.linux import capabilities


def test_dockers_default_set() -> None:
    assert len(capabilities.DEFAULT) == 14
    assert capabilities.mask(capabilities.DEFAULT) == 0xA80425FB


def test_names_with_and_without_prefix() -> None:
    assert capabilities.canonical("cap_net_raw") == "NET_RAW"
    assert capabilities.canonical("NET_RAW") == "NET_RAW"
    assert capabilities.canonical("FLY") is None
    assert capabilities.mask(["CAP_CHOWN", "kill"]) == 0b100001


@given(st.sets(st.sampled_from(capabilities.NAMES)))
def test_masks_and_names_are_inverse(names: set[str]) -> None:
    assert set(capabilities.names(capabilities.mask(list(names)))) == names


@pytest.mark.root
def test_what_this_process_holds_is_what_the_kernel_says() -> None:
    with open("/proc/self/status") as file:
        table = dict(line.split(":\t") for line in file if line.startswith("Cap"))
    assert capabilities.bounding() == int(table["CapBnd"], 16)
    assert capabilities.held() == int(table["CapPrm"], 16) & int(table["CapBnd"], 16)


@pytest.mark.root
def test_taking_a_smaller_set() -> None:
    wanted = capabilities.mask(["CHOWN", "SETPCAP"])
    pid = os.fork()
    if pid == 0:
        try:
            capabilities.drop_bounding(wanted)
            capabilities.take(wanted, wanted)
            same = capabilities.bounding() == capabilities.permitted() == wanted
            os._exit(0 if same else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
