"""Plans without root: which operations, in which order, and that plans survive JSON."""

from __future__ import annotations

import json
import stat
from typing import Any

import pytest

from tiffin.errors import InvalidParameter
from tiffin.linux import syscalls
from tiffin.linux.cgroups import Controller, Hierarchy
from tiffin.linux.recording import RecordingKernel
from tiffin.runtime.native import Plan, plan
from tiffin.runtime.operations import OPERATIONS, Operation, load
from tiffin.runtime.settings import (
    NAMESPACES,
    ContainerSettings,
    Device,
    MountPoint,
    ProcessSettings,
    Resources,
)
from tiffin.storage.driver import Mount

HYBRID = Hierarchy(
    [
        Controller(1, "/sys/fs/cgroup/cpu,cpuacct", ("cpu", "cpuacct")),
        Controller(1, "/sys/fs/cgroup/memory", ("memory",)),
        Controller(2, "/sys/fs/cgroup/unified", ()),
    ]
)
UNIFIED = Hierarchy([Controller(2, "/sys/fs/cgroup", ())])


def settings(**changes: Any) -> ContainerSettings:
    fields = ProcessSettings.__dataclass_fields__
    process = {key: changes.pop(key) for key in list(changes) if key in fields}
    overlay = Mount("overlay", "overlay", ("lowerdir=l/A:l/B", "upperdir=u"), "/storage")
    return ContainerSettings("abc", ProcessSettings(["sh"], **process), [overlay], **changes)


def recorded(planned: Plan) -> list[tuple[object, ...]]:
    kernel = RecordingKernel()
    for item in json.loads(json.dumps(planned.dump()))["operations"]:
        load(item).execute(kernel)
    return kernel.calls


def names(calls: list[tuple[object, ...]], *wanted: str) -> list[tuple[object, ...]]:
    return [call for call in calls if call[0] in wanted]


def test_the_order_of_a_default_container() -> None:
    calls = recorded(plan(settings(hostname="box"), "/keeper/rootfs", HYBRID))
    methods = [call[0] for call in calls]
    assert methods[:6] == [
        "unshare",
        "raise_interface",
        "set_hostname",
        "set_propagation",
        "mount_root",
        "enter_root",
    ]
    assert calls[3] == ("set_propagation", "/", syscalls.MS_REC | syscalls.MS_PRIVATE)
    assert calls[4] == (
        "mount_root",
        "overlay",
        "overlay",
        "/keeper/rootfs",
        0,
        "lowerdir=l/A:l/B,upperdir=u",
        "/storage",
    )
    targets = [call[3] for call in names(calls, "mount")]
    assert targets == ["/proc", "/dev", "/dev/pts", "/sys", "/dev/mqueue", "/dev/shm"]
    assert methods.index("write_parameter") < methods.index("protect") < methods.index("mask")
    assert methods[-1] == "pivot_root"


def test_every_namespace_is_asked_of_clone_but_the_cgroup_one() -> None:
    planned = plan(settings(), "/m", HYBRID)
    assert planned.flags == (
        syscalls.CLONE_NEWPID
        | syscalls.CLONE_NEWNS
        | syscalls.CLONE_NEWUTS
        | syscalls.CLONE_NEWIPC
        | syscalls.CLONE_NEWNET
    )
    assert recorded(planned)[0] == ("unshare", syscalls.CLONE_NEWCGROUP)


def test_namespaces_to_join_come_before_all_else() -> None:
    namespaces = dict.fromkeys(NAMESPACES) | {"network": "/proc/7/ns/net", "pid": "/proc/7/ns/pid"}
    planned = plan(settings(namespaces=namespaces), "/m", None)
    assert recorded(planned)[0] == ("join_namespace", "/proc/7/ns/net", syscalls.CLONE_NEWNET)
    assert planned.pid_namespace == "/proc/7/ns/pid"
    assert not planned.flags & (syscalls.CLONE_NEWNET | syscalls.CLONE_NEWPID)
    assert not names(recorded(planned), "raise_interface", "write_parameter")


def test_the_hosts_network_shows_the_hosts_sysfs_and_takes_no_net_sysctl() -> None:
    namespaces: dict[str, str | None] = dict.fromkeys(["mount", "pid", "ipc", "uts"])
    calls = recorded(plan(settings(namespaces=namespaces), "/m", None))
    assert ("/sys", "/sys") in [call[1:3] for call in names(calls, "attach_tree")]
    with pytest.raises(InvalidParameter, match="not allowed in host network namespace"):
        plan(settings(namespaces=namespaces, sysctls={"net.ipv4.ip_forward": "1"}), "/m")


def test_mount_points_are_sorted_by_depth_and_replace_defaults() -> None:
    mounts = [
        MountPoint("bind", "/host/deep", "/a/b/c", ("ro",)),
        MountPoint("tmpfs", "tmpfs", "/a/"),
        MountPoint("bind", "/host/shm", "/dev/shm"),
        MountPoint("bind", "/host/rro", "/z", ("rro", "nosuid", "bind")),
    ]
    calls = recorded(plan(settings(mounts=mounts), "/m", None))
    binds = names(calls, "attach_tree")
    ro, nosuid = syscalls.MOUNT_ATTR_RDONLY, syscalls.MOUNT_ATTR_NOSUID
    assert binds == [
        ("attach_tree", "/host/rro", "/z", False, ro | nosuid, True, 0, None),
        ("attach_tree", "/host/shm", "/dev/shm", True, 0, False, 0, None),
        ("attach_tree", "/host/deep", "/a/b/c", True, ro, False, 0, None),
    ]
    assert [call[3] for call in names(calls, "mount")].count("/dev/shm") == 0
    order = [
        call[3] if call[0] == "mount" else call[2] for call in names(calls, "mount", "attach_tree")
    ]
    assert order.index("/a") < order.index("/a/b/c")


def test_a_bind_that_propagates_is_copied_before_mounts_become_private() -> None:
    mounts = [MountPoint("bind", "/host", "/x", ("rslave",)), MountPoint("bind", "/o", "/y")]
    calls = recorded(plan(settings(mounts=mounts), "/m", None))
    methods = [call[0] for call in calls]
    assert methods.index("copy_tree") < methods.index("set_propagation")
    attach = names(calls, "attach_tree")[0]
    assert attach[6:] == (syscalls.MS_SLAVE | syscalls.MS_REC, "0")


def test_cgroups_are_bound_read_only_one_of_each_hierarchy() -> None:
    call = names(recorded(plan(settings(), "/m", HYBRID)), "bind_groups")[0]
    assert call[2] == [
        ["cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/tiffin/abc"],
        ["cpu", "@cpu,cpuacct"],
        ["cpuacct", "@cpu,cpuacct"],
        ["memory", "/sys/fs/cgroup/memory/tiffin/abc"],
        ["unified", "/sys/fs/cgroup/unified/tiffin/abc"],
    ]
    unified = names(recorded(plan(settings(), "/m", UNIFIED)), "attach_tree")
    assert unified[0][1:3] == ("/sys/fs/cgroup/tiffin/abc", "/sys/fs/cgroup")
    hosts = dict.fromkeys(name for name in NAMESPACES if name != "cgroup")
    shared = names(recorded(plan(settings(namespaces=hosts), "/m", UNIFIED)), "attach_tree")
    assert shared[0][1:3] == ("/sys/fs/cgroup", "/sys/fs/cgroup")


def test_the_groups_of_a_plan() -> None:
    limits = Resources(memory=1 << 26, pids_limit=5)
    device = Device("/dev/fuse", "c", 10, 229, access="rw")
    planned = plan(
        settings(resources=limits, devices=[device], device_rules=["c 4:* r"], cgroup="/a/b"),
        "/m",
        HYBRID,
    )
    assert planned.cgroup is not None
    assert planned.cgroup["name"] == "a/b"
    assert planned.cgroup["entrances"][-1] == "/sys/fs/cgroup/unified/a/b/cgroup.procs"
    assert planned.cgroup["entrances"][0] == "/sys/fs/cgroup/cpu,cpuacct/a/b/tasks"
    assert planned.cgroup["resources"] == {"memory": 1 << 26, "pids_limit": 5}
    assert planned.cgroup["devices"][-2:] == ["c 10:229 rw", "c 4:* r"]
    privileged = plan(settings(privileged=True), "/m", HYBRID)
    assert privileged.cgroup is not None
    assert privileged.cgroup["devices"] is None


def test_privileged_masks_nothing_and_sees_all_devices() -> None:
    calls = recorded(plan(settings(privileged=True), "/m", HYBRID))
    assert not names(calls, "mask", "protect")
    assert names(calls, "copy_host_devices")
    sysfs = next(call for call in names(calls, "mount") if call[1] == "sysfs")
    assert not sysfs[4] & syscalls.MS_RDONLY  # type: ignore[operator]


def test_the_working_directory_is_made_before_the_root_becomes_read_only() -> None:
    calls = recorded(plan(settings(cwd="/w/x", readonly_rootfs=True), "/m", None))
    methods = [call[0] for call in calls]
    assert methods.index("make_directory") < methods.index("set_read_only")
    assert ("set_read_only", "/") in calls


def test_the_terminal_is_opened_after_the_mounts() -> None:
    calls = recorded(plan(settings(terminal=True, console_size=(3, 4)), "/m", None))
    assert ("open_terminal", 3, 4) in calls


def test_devices_become_nodes() -> None:
    device = Device("/dev/x", "b", 7, 1, 0o640, 1, 2)
    calls = recorded(plan(settings(devices=[device]), "/m", None))
    assert ("make_node", "/dev/x", stat.S_IFBLK, 7, 1, 0o640, 1, 2) in calls


def test_a_plan_can_be_read_by_a_person() -> None:
    text = plan(
        settings(hostname="box", init=True, user="cook", resources=Resources(memory=5)),
        "/m",
        HYBRID,
    ).describe()
    assert "cgroup tiffin/abc (memory=5)" in text
    assert "clone with new namespaces: pid, mount, uts, ipc, network" in text
    assert "mount overlay overlay on /m lowerdir=l/A:l/B,upperdir=u (from /storage)" in text
    assert "hostname box" in text
    assert "user cook, capabilities CHOWN" in text
    assert "exec sh in / under an init" in text


@pytest.mark.parametrize("kind", OPERATIONS.values())
def test_every_operation_survives_json_and_describes_itself(kind: type[Operation]) -> None:
    operation = kind(*[1 for _ in kind.fields])
    again = load(json.loads(json.dumps(operation.dump())))
    assert type(again) is kind
    assert again.dump() == operation.dump()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"namespaces": {"pid": None}}, "mount namespace of its own"),
        ({"namespaces": {"mount": None, "moon": None}}, "unknown namespace moon"),
        ({"capabilities": ["FLY"]}, 'unknown capability: "FLY"'),
        ({"rlimits": [("spoons", 1, 2)]}, "invalid ulimit type: spoons"),
        ({"cwd": "relative"}, "needs to be an absolute path"),
        ({"mounts": [MountPoint("bind", "/x", "/")]}, "destination can't be '/'"),
        ({"sysctls": {"kernel.panic": "1"}}, "is not in a separate kernel namespace"),
        ({"sysctls": {"net./../x": "1"}}, "invalid sysctl"),
        ({"sysctls": {"net...x": "1"}}, "invalid sysctl"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidParameter, match=sentence):
        plan(settings(**changes), "/m")


def test_a_label_is_on_every_file_system_of_the_containers_own() -> None:
    label = "system_u:object_r:container_file_t:s0:c1,c2"
    mounts = [MountPoint("tmpfs", "tmpfs", "/t", ("size=1m",)), MountPoint("bind", "/h", "/h")]
    calls = recorded(plan(settings(mount_label=label, mounts=mounts), "/m", HYBRID))
    context = f'context="{label}"'
    labelled = {call[3] for call in names(calls, "mount") if context in str(call[5])}
    assert labelled == {"/dev", "/dev/pts", "/dev/shm", "/t"}
    assert str(names(calls, "mount_root")[0][5]).endswith(f",{context}")
    assert {call[2:] for call in names(calls, "mask")} == {(label,)}
