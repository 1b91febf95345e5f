"""What LXC is told, without root; and the starter that it executes."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from tiffin.errors import StartFailure, Unsupported
from tiffin.linux.cgroups import Controller, Hierarchy
from tiffin.runtime import starter
from tiffin.runtime.lxc_config import configuration, divide, seccomp_policy
from tiffin.runtime.native import plan
from tiffin.runtime.settings import (
    ContainerSettings,
    Device,
    MountPoint,
    ProcessSettings,
)
from tiffin.storage.driver import Mount

HYBRID = Hierarchy(
    [
        Controller(1, "/sys/fs/cgroup/cpu,cpuacct", ("cpu", "cpuacct")),
        Controller(1, "/sys/fs/cgroup/devices", ("devices",)),
        Controller(2, "/sys/fs/cgroup/unified", ()),
    ]
)
ROOT = {"uid": 0, "gid": 0, "groups": [10, 20]}


def planned(**changes: Any) -> dict[str, Any]:
    fields = ProcessSettings.__dataclass_fields__
    process = {key: changes.pop(key) for key in list(changes) if key in fields}
    rootfs = [Mount("overlay", "overlay", ("lowerdir=l",), "/s")]
    settings = ContainerSettings("abc", ProcessSettings(["sh"], **process), rootfs, **changes)
    result = plan(settings, "/m", HYBRID).dump()
    return {**result, "runtime": {"mountpoint": "/m"}}


def rows(made: dict[str, Any], account: dict[str, Any] = ROOT) -> dict[str, list[str]]:
    text = configuration(made, account, ["an entry"], "cgroup.devices", "/p")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" = ")
        found.setdefault(key.removeprefix("lxc."), []).append(value)
    return found


def test_a_default_container() -> None:
    found = rows(planned(hostname="box"))
    assert found["rootfs.path"] == ["dir:/m"]
    assert found["uts.name"] == ["box"]
    assert found["namespace.clone"] == ["mnt cgroup pid uts ipc net"]
    assert (found["net.0.type"], found["net.0.flags"]) == (["empty"], ["up"])
    assert found["cgroup.dir.container"] == ["tiffin/abc"]
    assert found["cgroup.devices.deny"] == ["a"] and "c 1:3 rwm" in found["cgroup.devices.allow"]
    assert found["cap.keep"][0].split()[:2] == ["chown", "dac_override"]
    assert found["init.groups"] == ["10,20"]
    assert (found["mount.entry"], found["seccomp.profile"]) == (["an entry"], ["/p"])
    assert found["monitor.signal.pdeath"] == ["0"]


def test_what_was_asked_for() -> None:
    namespaces = dict.fromkeys(("mount", "ipc")) | {"network": "/n", "pid": "/proc/7/ns/pid"}
    made = planned(
        namespaces=namespaces,
        hostname="box",
        capabilities=[],
        rlimits=[("nofile", 5, -1)],
        no_new_privileges=True,
        apparmor="kitchen",
        selinux="a:b:c:s0",
        devices=[Device("/dev/pot", "c", 10, 200)],
    )
    found = rows(made, {"uid": 5, "gid": 6, "groups": []})
    assert found["namespace.clone"] == ["mnt ipc"]
    assert found["namespace.share.net"] == ["/n"]
    assert found["namespace.share.pid"] == ["/proc/7/ns/pid"]
    assert found["cap.keep"] == ["none"]
    assert found["prlimit.nofile"] == ["5:unlimited"]
    assert (found["init.uid"], found["init.gid"], found["no_new_privs"]) == (["5"], ["6"], ["1"])
    assert (found["apparmor.profile"], found["selinux.context"]) == (["kitchen"], ["a:b:c:s0"])
    assert "c 10:200 rwm" in found["cgroup.devices.allow"]
    assert "init.groups" not in found and "net.0.type" not in found and "uts.name" not in found


def test_a_privileged_one_keeps_everything() -> None:
    found = rows(planned(privileged=True))
    assert "cap.keep" not in found and "cgroup.devices.deny" not in found


def test_who_mounts_what() -> None:
    mounts = [
        MountPoint("bind", "/h/a file", "/v"),
        MountPoint("bind", "/h/up time", "/proc/uptime", ("ro",)),
        MountPoint("tmpfs", "tmpfs", "/t"),
    ]
    parts = divide(planned(mounts=mounts)["operations"])
    targets = [entry.split()[1] for entry in parts.entries]
    assert targets == [
        "proc", "sys", "sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/cpu",
        "sys/fs/cgroup/cpuacct", "sys/fs/cgroup/devices", "sys/fs/cgroup/unified", "dev/mqueue",
        "proc/uptime",
    ]  # fmt: skip
    assert parts.entries[-1] == "/h/up\\040time proc/uptime none rbind,ro 0 0"
    link = parts.entries[4].split()
    assert link[0] == "/sys/fs/cgroup/cpu,cpuacct/tiffin/abc" and ",ro," in link[3]
    before = [operation.describe() for operation in parts.before]
    assert any("/v" in line for line in before) and any("/t" in line for line in before)
    names = [operation.name for operation in parts.after]
    assert names[0] == "propagate" and names.index("sysctl") < names.index("protect")
    assert "mask" in names and "read-only" in names


@pytest.mark.parametrize("target", ["/proc/self/attr", "/proc/sys"])
def test_nothing_is_mounted_inside_proc(target: str) -> None:
    made = planned(mounts=[MountPoint("bind", "/h", target)])
    with pytest.raises(StartFailure, match="inside /proc"):
        divide(made["operations"])


def test_what_it_can_not_do_is_refused_by_name() -> None:
    made = planned(mounts=[MountPoint("bind", "/h", "/v", ("rbind", "rshared"))])
    with pytest.raises(Unsupported, match=r"/v.*lxc"):
        divide(made["operations"])
    with pytest.raises(Unsupported, match="line break"):
        rows(planned(hostname="a\nlxc.hook.start-host = /bin/evil"))
    with pytest.raises(Unsupported, match="SCMP_ACT_LOG"):
        seccomp_policy({"defaultAction": "SCMP_ACT_LOG"})
    with pytest.raises(Unsupported, match="SECCOMP_FILTER_FLAG_LOG"):
        seccomp_policy({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]})


def test_a_seccomp_profile() -> None:
    argument = {"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    twice = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (8, 9)]
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [argument]},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": twice},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["ptrace"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        ],
    }
    assert seccomp_policy(profile).splitlines() == [
        "2",
        "allowlist errno 1",
        "[all]",
        "read allow",
        "write allow",
        "clone allow [0,0,SCMP_CMP_MASKED_EQ,2114060288]",
        "personality allow [0,8,SCMP_CMP_EQ]",
        "personality allow [0,9,SCMP_CMP_EQ]",
        "clone3 errno 38",
    ]


class Started:
    """A starter that was begun in a child, as LXC does it."""

    def __init__(self, path: str, args: list[str], terminal: str = "") -> None:
        program = starter.open_program()
        self.reader, writer = os.pipe()
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.dup2(writer, 1)
                os.dup2(theirs.fileno(), 20)
                os.dup2(program, 21)
                os.dup2(20, starter.CHANNEL)
                os.dup2(21, starter.PROGRAM)
                for number in (20, 21):
                    os.close(number)
                words = starter.arguments(["A=b c", "D="], path, args, terminal)
                os.execve(words[0], words, {"container": "lxc"})
            finally:
                os._exit(99)
        for fd in (program, writer):
            os.close(fd)
        theirs.close()
        self.ours.settimeout(60)

    def end(self) -> tuple[int, str]:
        with open(self.reader, encoding="utf-8") as file:
            text = file.read()
        self.ours.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), text


def test_the_starter_waits_and_becomes_the_program() -> None:
    script = 'env | grep -v PWD; echo "$0|$1|$2"; ls /proc/self/fd | wc -l'
    started = Started("/bin/sh", ["shell", "-c", script, "zero", "", "two words"])
    assert started.ours.recv(10) == b"/"
    started.ours.send(b"g")
    assert started.ours.recv(10) == b""
    code, text = started.end()
    lines = text.splitlines()
    assert code == 0
    assert sorted(line for line in lines if "=" in line and not line.startswith("_=")) == [
        "A=b c",
        "D=",
    ]
    assert "zero||two words" in lines


def test_the_starter_opens_the_terminal_itself() -> None:
    started = Started("/bin/sh", ["sh", "-c", "echo lost; exit 3"], "/dev/null")
    assert started.ours.recv(10) == b"/"
    started.ours.send(b"g")
    assert started.end() == (3, "")


def test_the_starter_tells_why_it_can_not_go_on() -> None:
    started = Started("/no/such", ["x"])
    assert started.ours.recv(10) == b"/"
    started.ours.send(b"g")
    assert started.ours.recv(10) == bytes([2])
    assert started.end() == (125, "")


def test_the_starter_ends_with_whoever_waits_for_it() -> None:
    started = Started("/bin/true", ["true"])
    assert started.ours.recv(10) == b"/"
    started.ours.close()
    assert started.end() == (125, "")


def test_a_machine_without_a_starter_is_told() -> None:
    with pytest.raises(Unsupported, match="mips"):
        starter.image("mips")
    assert starter.image("aarch64")[18:20] == (183).to_bytes(2, "little")
