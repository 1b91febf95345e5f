"""Capabilities, devices, limits and parameters, as asked for."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tiffin.errors import InvalidParameter
from tiffin.linux import capabilities

pytestmark = pytest.mark.root

CAPABILITIES = """
rows = dict(line.split(":", 1) for line in open("/proc/self/status"))
say([int(rows[key], 16) for key in ("CapEff", "CapBnd", "CapInh", "CapAmb")])
"""


def held(prison: Any, **host: Any) -> set[str]:
    effective, bounding, inheritable, ambient = prison.attempt(CAPABILITIES, host=host)
    assert (effective, inheritable, ambient) == (bounding, 0, 0)
    return set(capabilities.names(bounding))


def test_capabilities_are_added_and_dropped(prison: Any) -> None:
    default = set(capabilities.DEFAULT)
    everything = set(capabilities.names(capabilities.held()))
    assert held(prison, CapAdd=["SYS_TIME", "cap_net_admin"]) == default | {"SYS_TIME", "NET_ADMIN"}
    assert held(prison, CapDrop=["MKNOD", "CAP_NET_RAW"]) == default - {"MKNOD", "NET_RAW"}
    assert held(prison, CapDrop=["ALL"]) == set()
    assert held(prison, CapDrop=["ALL"], CapAdd=["CHOWN"]) == {"CHOWN"}
    assert held(prison, CapAdd=["ALL"]) == everything
    assert held(prison, CapAdd=["ALL"], CapDrop=["SYS_ADMIN"]) == everything - {"SYS_ADMIN"}


def test_a_privileged_container_has_what_the_host_can_give(prison: Any) -> None:
    """Also where the host itself does not have everything."""
    assert held(prison, Privileged=True) == set(capabilities.names(capabilities.held()))
    script = """
say([
    os.access("/proc/sys/kernel/hostname", os.W_OK),
    os.path.exists("/dev/null"),
    [line.split()[5].split(",")[0] for line in open("/proc/self/mountinfo") if " /sys " in line],
])
"""
    assert prison.attempt(script, host={"Privileged": True}) == [True, True, ["rw"]]


def test_an_unknown_capability_is_refused(prison: Any) -> None:
    with pytest.raises(InvalidParameter, match="unknown capability"):
        prison.attempt("say(1)", host={"CapAdd": ["COOK"]})


MAKE = """
os.mknod("/memory", 0o20666, os.makedev(1, 1))
say([attempt(os.open, "/memory", os.O_RDONLY), attempt(os.open, "/dev/null", os.O_RDWR) > 2])
"""


def test_device_rules_allow_more(prison: Any) -> None:
    """/dev/mem (1:1): with the rule it is no longer the device group that refuses it."""
    assert prison.attempt(MAKE) == ["EPERM", True]
    full = "os.mknod('/x', 0o20666, os.makedev(10, 200)); say(attempt(os.open, '/x', os.O_RDWR))"
    refused = prison.attempt(full)
    allowed = prison.attempt(full, host={"DeviceCgroupRules": ["c 10:* rwm"]})
    assert refused == "EPERM"
    assert allowed != "EPERM"


def test_a_device_of_the_host(prison: Any) -> None:
    host = {
        "Devices": [
            {"PathOnHost": "/dev/full", "PathInContainer": "/dev/pot", "CgroupPermissions": "r"}
        ]
    }
    script = "say([os.stat('/dev/pot').st_rdev, attempt(os.write, os.open('/dev/pot', 2), b'x')])"
    number, said = prison.attempt(script, host=host)
    assert number == os.stat("/dev/full").st_rdev
    # It is among the default devices, which may be written to: full it is.
    assert said == "ENOSPC"


def test_groups_limits_and_scores_hold_for_execs_too(prison: Any) -> None:
    host = {
        "GroupAdd": ["extra", "4321"],
        "OomScoreAdj": 500,
        "Ulimits": [{"Name": "nofile", "Soft": 111, "Hard": 222}],
    }
    script = """
import resource
say([os.getgroups(), open("/proc/self/oom_score_adj").read(),
     resource.getrlimit(resource.RLIMIT_NOFILE)])
"""
    container = prison.background(host=host)
    for found in (prison.attempt(script, host=host), prison.attempt_in(container, script)):
        groups, score, limits = found
        assert {2000, 4321} <= set(groups)
        assert (score, limits) == ("500\n", [111, 222])


def test_parameters_of_its_own_namespaces_only(prison: Any) -> None:
    script = "say(open('/proc/sys/net/ipv4/ip_forward').read())"
    host = {"Sysctls": {"net.ipv4.ip_forward": "1"}}
    assert prison.attempt(script, host=host) == "1\n"
    for key in ("vm.overcommit_memory", "kernel.core_pattern", "net/ipv4/../../kernel/x"):
        with pytest.raises(InvalidParameter):
            prison.attempt("say(1)", host={"Sysctls": {key: "1"}})
    with pytest.raises(InvalidParameter, match="host network namespace"):
        prison.attempt("say(1)", host={**host, "NetworkMode": "host"})


def test_a_read_only_root_and_a_tmpfs(prison: Any) -> None:
    script = """
say([attempt(open, place, "w") if place else 0 for place in ("/x", "/etc/x", "/etc/hosts-x")]
    + [bool(open("/run/x", "w"))])
"""
    host = {"ReadonlyRootfs": True, "Tmpfs": {"/run": ""}}
    assert prison.attempt(script, host=host) == ["EROFS", "EROFS", "EROFS", True]


def test_labels_that_the_host_does_not_have_are_noted(prison: Any) -> None:
    body = {
        "Image": "busybox",
        "HostConfig": {"SecurityOpt": ["apparmor=kitchen", "label=type:cook_t"]},
    }
    made = prison.engine.containers.create(body)
    enabled = os.path.exists("/sys/module/apparmor/parameters/enabled")
    assert any("SELinux" in text for text in made["Warnings"])
    assert enabled or any("kitchen" in text for text in made["Warnings"])


def test_the_init_ends_with_its_program(prison: Any) -> None:
    container = prison.create("sh", "-c", "echo $$; exit 5", host={"Init": True})
    prison.engine.containers.start(container)
    assert prison.engine.containers.wait(container)["StatusCode"] == 5
