"""The filter on system calls: on by default, in execs too, and as asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tiffin.errors import InvalidParameter

pytestmark = pytest.mark.root

STATUS = """
rows = dict(line.split(":", 1) for line in open("/proc/self/status"))
say({key: rows[key].strip() for key in ("Seccomp", "NoNewPrivs", "CapEff", "CapPrm", "CapBnd")})
"""
DOCKERS = "00000000a80425fb"
# keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING), unshare(CLONE_NEWUSER),
# socket(AF_ALG, SOCK_SEQPACKET)
CALLS = """
import platform
keyctl, unshare = {"x86_64": (250, 272), "aarch64": (219, 97)}[platform.machine()]
import socket
say([call(keyctl, 0, -3, 0), call(unshare, 0x10000000), attempt(socket.socket, 38, 5, 0)])
"""


def test_a_container_and_an_exec_are_filtered_and_hold_what_dockers_hold(prison: Any) -> None:
    expected = {
        "Seccomp": "2",
        "NoNewPrivs": "0",
        "CapEff": DOCKERS,
        "CapPrm": DOCKERS,
        "CapBnd": DOCKERS,
    }
    assert prison.attempt(STATUS) == expected
    assert prison.attempt_in(prison.background(), STATUS) == expected


def test_another_user_is_filtered_and_holds_nothing(prison: Any) -> None:
    for found in (
        prison.attempt(STATUS, User="1000"),
        prison.attempt_in(prison.background(), STATUS, User="1000"),
    ):
        assert (found["Seccomp"], found["CapEff"], found["CapPrm"]) == ("2", "0" * 16, "0" * 16)
        assert found["CapBnd"] == DOCKERS


def test_no_new_privileges_comes_with_the_filter(prison: Any) -> None:
    host = {"SecurityOpt": ["no-new-privileges"]}
    found = prison.attempt(STATUS, host=host, User="1000")
    assert (found["Seccomp"], found["NoNewPrivs"]) == ("2", "1")
    inside = prison.attempt_in(prison.background(host=host), STATUS)
    assert (inside["Seccomp"], inside["NoNewPrivs"], inside["CapEff"]) == ("2", "1", DOCKERS)


def test_an_init_is_filtered_like_its_program(prison: Any) -> None:
    container = prison.background(host={"Init": True})
    with open(f"/proc/{prison.pid(container)}/status") as file:
        rows = dict(line.split(":", 1) for line in file)
    assert rows["Seccomp"].strip() == "2"
    assert rows["CapEff"].strip() == DOCKERS


def test_keyrings_namespaces_and_the_kernels_crypto_are_out_of_reach(prison: Any) -> None:
    assert prison.attempt(CALLS) == ["EPERM", "EPERM", "EPERM"]
    assert prison.attempt_in(prison.background(), CALLS) == ["EPERM", "EPERM", "EPERM"]


def test_unconfined_and_privileged_are_not_filtered(prison: Any) -> None:
    unconfined = {"SecurityOpt": ["seccomp=unconfined"]}
    assert prison.attempt(STATUS, host=unconfined)["Seccomp"] == "0"
    assert prison.attempt(STATUS, host={"Privileged": True})["Seccomp"] == "0"
    builtin = {"Privileged": True, "SecurityOpt": ["seccomp=builtin"]}
    assert prison.attempt(STATUS, host=builtin)["Seccomp"] == "2"


def test_an_exec_of_a_filtered_container_is_filtered_also_if_privileged(prison: Any) -> None:
    found = prison.attempt_in(prison.background(), STATUS, Privileged=True)
    assert found["Seccomp"] == "2"
    assert int(found["CapEff"], 16) > int(DOCKERS, 16)


def test_a_profile_of_ones_own(prison: Any) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
            {"names": ["chroot"], "action": "SCMP_ACT_KILL_PROCESS"},
        ],
    }
    host = {"SecurityOpt": [f"seccomp={json.dumps(profile)}"]}
    script = "say(attempt(lambda: __import__('socket').sethostname('x')))"
    assert prison.attempt(script, host=host) == "ENOTSUP"
    script = "pid = os.fork()\nif not pid: os.chroot('/')\nsay(os.waitpid(pid, 0)[1])"
    assert prison.attempt(script, host=host) & 0x7F == 31


def test_what_is_no_profile_is_refused_at_creation(prison: Any) -> None:
    for text in ("{", '{"defaultAction": "SCMP_ACT_NONSENSE", "syscalls": [{"names": []}]}'):
        with pytest.raises(InvalidParameter, match="seccomp profile"):
            prison.create("true", host={"SecurityOpt": [f"seccomp={text}"]})
    with pytest.raises(InvalidParameter, match="security-opt"):
        prison.create("true", host={"SecurityOpt": ["nonsense=1"]})
