"""Containers on the real kernel: what a program inside one sees, and what stays outside."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import stat
import struct
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiffin.errors import InvalidParameter, StartFailure
from tiffin.linux import pidfd as pidfds
from tiffin.linux import syscalls
from tiffin.linux.mounts import mountinfo
from tiffin.runtime.launch import enter, launch
from tiffin.runtime.launching import Stdio
from tiffin.runtime.native import plan, process_plan
from tiffin.runtime.settings import (
    NAMESPACES,
    Device,
    MountPoint,
    ProcessSettings,
    Resources,
)
from tiffin.storage.driver import Mount

pytestmark = pytest.mark.root

# The fixture's class lives in conftest.py, which importlib mode does not let tests import.
Kitchen = Any
Reader = Callable[[int, bytes], bytes]


def test_the_programs_exit_code_and_output_come_back(kitchen: Kitchen) -> None:
    result = kitchen.run("sh", "-c", "cat; echo err >&2; exit 7", input=b"in\n")
    assert (result.status, result.output) == (7, "in\nerr\n")


@pytest.mark.parametrize("join", [False, True])
def test_until_its_exec_nobody_can_look_into_a_child(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch, join: bool
) -> None:
    """It has the keeper's program and memory, and an exec's is in the container's pid namespace."""
    launched, settings = kitchen.background("sh", "-c", "echo ready; sleep 1000")

    def report(*_: object) -> None:
        os.write(1, b"dumpable" if syscalls.prctl(3) else b"hidden")
        os._exit(0)

    monkeypatch.setattr("tiffin.runtime.process.become", report)
    if join:
        assert kitchen.enter(launched, settings, "true").output == "hidden"
    else:
        assert kitchen.run("true").output == "hidden"


def test_a_bind_mounted_root_works_like_an_overlay(kitchen: Kitchen) -> None:
    rootfs = [Mount("bind", str(kitchen.root), ("rbind", "rw"))]
    result = kitchen.run("sh", "-c", "echo x > /tmp/made && ls /tmp", rootfs=rootfs)
    assert (result.status, result.output) == (0, "made\n")
    assert (kitchen.root / "tmp/made").read_text() == "x\n"


def test_a_read_only_bind_of_a_root_is_read_only(kitchen: Kitchen) -> None:
    for target in ("proc", "dev", "sys"):
        (kitchen.root / target).mkdir()
    rootfs = [Mount("bind", str(kitchen.root), ("rbind", "ro"))]
    result = kitchen.run("sh", "-c", "echo x > /tmp/made", rootfs=rootfs)
    assert result.status != 0
    assert "Read-only file system" in result.output


def test_writes_go_to_the_upper_directory_alone(kitchen: Kitchen) -> None:
    kitchen.run("sh", "-c", "echo x > /tmp/made; rm /etc/group")
    assert (kitchen.upper / "tmp/made").read_text() == "x\n"
    assert (kitchen.root / "etc/group").exists()


def test_the_host_never_sees_a_mount(kitchen: Kitchen) -> None:
    def ours() -> list[str]:
        # Other programs of the machine mount and unmount as they like.
        here = str(kitchen.directory)
        return [entry.mount_point for entry in mountinfo() if here in entry.mount_point]

    before = ours()
    launched, _ = kitchen.background("sh", "-c", "echo ready; sleep 60")
    assert ours() == before
    assert not os.listdir(kitchen.directory / "mountpoint")
    inside = [entry.mount_point for entry in mountinfo(launched.pid)]
    assert inside[0] == "/"
    assert not [path for path in inside if str(kitchen.directory) in path]


def test_the_container_is_alone(kitchen: Kitchen) -> None:
    script = "hostname; echo $$; ps | wc -l; ls /proc/1/ns >/dev/null; cat /proc/net/dev | wc -l"
    result = kitchen.run("sh", "-c", script, hostname="box")
    # ps: a header, the shell, ps, wc; net/dev: two lines of header and lo.
    assert result.output.split() == ["box", "1", "4", "3"]


def test_the_loopback_interface_is_up(kitchen: Kitchen) -> None:
    result = kitchen.run("ip", "-o", "addr", "show", "lo")
    assert "127.0.0.1/8" in result.output
    assert "LOWER_UP" in kitchen.run("ip", "-o", "link", "show", "lo").output


@pytest.mark.parametrize("kind", ["pid", "uts", "ipc", "network", "cgroup"])
def test_a_namespace_that_is_not_named_is_the_hosts(kitchen: Kitchen, kind: str) -> None:
    names = [name for name in NAMESPACES if name != kind]
    file = {"network": "net"}.get(kind, kind)
    result = kitchen.run("readlink", f"/proc/self/ns/{file}", namespaces=dict.fromkeys(names))
    assert result.output.strip() == os.readlink(f"/proc/self/ns/{file}")


@pytest.mark.parametrize("kind", ["pid", "uts", "ipc", "network"])
def test_a_namespace_can_be_another_containers(kitchen: Kitchen, kind: str) -> None:
    first, _ = kitchen.background("sh", "-c", "echo ready; sleep 60")
    file = {"network": "net"}.get(kind, kind)
    path = f"/proc/{first.pid}/ns/{file}"
    namespaces = dict.fromkeys(NAMESPACES) | {kind: path}
    for name in ("upper2", "work2"):
        (kitchen.directory / name).mkdir()
    options = ("lowerdir=lower", "upperdir=upper2", "workdir=work2")
    rootfs = [Mount("overlay", "overlay", options, str(kitchen.directory))]
    result = kitchen.run("readlink", f"/proc/self/ns/{file}", namespaces=namespaces, rootfs=rootfs)
    assert result.output.strip() == os.readlink(path)
    own = os.readlink("/proc/self/ns/pid")
    pid = os.fork()
    if pid == 0:
        os._exit(0 if os.readlink("/proc/self/ns/pid") == own else 1)
    assert os.waitpid(pid, 0)[1] == 0, "later children of the caller are its own namespace's again"


def test_file_systems_of_a_container(kitchen: Kitchen) -> None:
    launched, settings = kitchen.background("sh", "-c", "echo ready; sleep 60", shm_size=1 << 20)
    table = {entry.mount_point: entry for entry in mountinfo(launched.pid)}
    kinds = {path: table[path].fstype for path in table if path.count("/") <= 2}
    assert kinds["/"] == "overlay"
    assert kinds["/proc"] == "proc"
    assert kinds["/sys"] == "sysfs"
    assert "ro" in table["/sys"].options
    assert kinds["/dev"] == "tmpfs"
    assert kinds["/dev/pts"] == "devpts"
    assert kinds["/dev/mqueue"] == "mqueue"
    assert "size=1024k" in table["/dev/shm"].super_options
    groups = [entry for path, entry in table.items() if path.startswith("/sys/fs/cgroup")]
    assert groups
    assert all("ro" in entry.options for entry in groups)
    assert "ro" in table["/proc/sys"].options
    assert table["/proc/keys"].mount_point == "/proc/keys"
    masked = kitchen.enter(launched, settings, "cat", "/proc/keys")
    assert (masked.status, masked.output) == (0, "")


def test_default_devices_and_links(kitchen: Kitchen) -> None:
    script = (
        "for link in fd stdin ptmx; do readlink /dev/$link; done; "
        "stat -c %t:%T:%a /dev/null /dev/zero /dev/random /dev/urandom /dev/full /dev/tty; "
        "echo gone > /dev/null; echo x > /dev/full"
    )
    result = kitchen.run("sh", "-c", script)
    lines = result.output.split()
    assert lines[:3] == ["/proc/self/fd", "/proc/self/fd/0", "pts/ptmx"]
    assert lines[3:9] == ["1:3:666", "1:5:666", "1:8:666", "1:9:666", "1:7:666", "5:0:666"]
    assert "No space left on device" in result.output


def test_devices_that_are_not_allowed_cannot_be_opened(kitchen: Kitchen) -> None:
    if "devices" not in kitchen.hierarchy.by_name:
        pytest.skip("needs the devices controller of cgroup v1")
    script = "mknod /tmp/mem c 1 1 && cat /tmp/mem"
    result = kitchen.run("sh", "-c", script)
    assert result.status == 1
    assert "Operation not permitted" in result.output


def test_an_additional_device(kitchen: Kitchen) -> None:
    devices = [Device("/dev/my/null", "c", 1, 3, 0o600, 1000, 50)]
    result = kitchen.run("stat", "-c", "%t:%T %a %u %g", "/dev/my/null", devices=devices)
    assert result.output == "1:3 600 1000 50\n"
    with pytest.raises(InvalidParameter, match=r"error gathering device information.*no such"):
        Device.of_host("/dev/no-such-device")
    assert Device.of_host("/dev/zero", "/dev/z")[0] == Device("/dev/z", "c", 1, 5)


def test_capabilities_are_dockers_fourteen(kitchen: Kitchen) -> None:
    result = kitchen.run("grep", "Cap", "/proc/self/status")
    sets = dict(line.split() for line in result.output.splitlines())
    assert sets["CapEff:"] == sets["CapPrm:"] == sets["CapBnd:"] == "00000000a80425fb"
    assert int(sets["CapInh:"], 16) == int(sets["CapAmb:"], 16) == 0


def test_another_user_has_them_as_bounding_set_only(kitchen: Kitchen) -> None:
    result = kitchen.run("grep", "Cap", "/proc/self/status", user="cook")
    sets = dict(line.split() for line in result.output.splitlines())
    assert sets["CapBnd:"] == "00000000a80425fb"
    assert int(sets["CapEff:"], 16) == int(sets["CapPrm:"], 16) == int(sets["CapAmb:"], 16) == 0


def test_privileged_has_what_the_host_has(kitchen: Kitchen) -> None:
    result = kitchen.run("sh", "-c", "grep CapEff /proc/self/status; ls /dev", privileged=True)
    with open("/proc/self/status") as file:
        own = next(line for line in file if line.startswith("CapEff"))
    assert own in result.output
    assert "kmsg" in result.output.split()
    settings = kitchen.run("sh", "-c", "mount -t tmpfs x /tmp && echo ok", privileged=True)
    assert settings.output == "ok\n"


def test_no_new_privileges(kitchen: Kitchen) -> None:
    result = kitchen.run("grep", "NoNewPrivs", "/proc/self/status", no_new_privileges=True)
    assert result.output.split() == ["NoNewPrivs:", "1"]


@pytest.mark.parametrize(
    ("user", "groups", "expected"),
    [
        ("", [], "0 0 0 /root"),
        ("cook", [], "1000 100 50 100 /home/cook"),
        ("1000", [], "1000 100 50 100 /home/cook"),
        ("cook:waiters", [], "1000 60 60 /home/cook"),
        ("4711", [], "4711 0 0 /"),
        ("4711:8", ["waiters", "77"], "4711 8 8 60 77 /"),
    ],
)
def test_users_groups_and_home(
    kitchen: Kitchen, user: str, groups: list[str], expected: str
) -> None:
    script = 'echo $(id -u) $(id -g) $(id -G | tr " " "\n" | sort -n) $HOME'
    (kitchen.root / "bin/tr").symlink_to("busybox")
    (kitchen.root / "bin/sort").symlink_to("busybox")
    result = kitchen.run("sh", "-c", script, user=user, groups=groups)
    assert result.output.strip() == expected


def test_home_that_is_given_stays(kitchen: Kitchen) -> None:
    result = kitchen.run("sh", "-c", "echo $HOME", env=["PATH=/bin", "HOME=/x"])
    assert result.output == "/x\n"


def test_passwd_that_is_no_regular_file_is_not_read(kitchen: Kitchen) -> None:
    (kitchen.root / "etc/passwd").unlink()
    os.mkfifo(kitchen.root / "etc/passwd")
    result = kitchen.run("grep", "Uid", "/proc/self/status", user="5")
    assert result.output.split()[1] == "5"
    with pytest.raises(StartFailure, match="unable to find user cook: no matching entries"):
        kitchen.run("id", user="cook")


def test_environment_arguments_and_odd_bytes(kitchen: Kitchen) -> None:
    odd = os.fsdecode(b"\xff\xfe")
    env = ["PATH=/bin", "A=1=2", f"ODD={odd}", "EMPTY=", "A=3"]
    result = kitchen.run(
        "sh", "-c", 'printf "%s|" "$A" "$EMPTY" "$0"; env | grep -c ODD', "a b", env=env
    )
    assert result.output == "3||a b|1\n"


def test_the_working_directory_is_made_and_roots(kitchen: Kitchen) -> None:
    result = kitchen.run(
        "stat", "-c", "%n %u %a", "/srv/new/place", cwd="/srv/new/place", user="cook"
    )
    assert result.output == "/srv/new/place 0 755\n"
    assert kitchen.run("pwd", cwd="/srv/new").output == "/srv/new\n"


def test_a_working_directory_of_the_users_own(kitchen: Kitchen) -> None:
    home = kitchen.root / "home/cook"
    home.mkdir(parents=True)
    os.chown(home, 1000, 100)
    home.chmod(0o700)
    result = kitchen.run("pwd", cwd="/home/cook", user="cook", capabilities=["SETUID", "SETGID"])
    assert result.output == "/home/cook\n"


def test_no_working_directory_leads_out_over_a_descriptor(kitchen: Kitchen) -> None:
    outside = os.open(kitchen.directory, os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(outside, True)
    try:
        for number in {*range(3, 12), outside}:  # which is often one of the first
            (kitchen.root / f"w{number}").symlink_to(f"/proc/self/fd/{number}")
            with pytest.raises(StartFailure):
                kitchen.run("ls", cwd=f"/w{number}")
    finally:
        os.close(outside)


def test_only_the_streams_are_open(kitchen: Kitchen) -> None:
    extra = os.open("/", os.O_RDONLY)
    os.set_inheritable(extra, True)
    try:
        result = kitchen.run("sh", "-c", "ls /proc/1/fd; true")
    finally:
        os.close(extra)
    assert result.output.split() == ["0", "1", "2"]


def test_signals_and_umask_are_fresh(kitchen: Kitchen) -> None:
    old = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        result = kitchen.run("grep", "-E", "Sig(Ign|Blk)|Umask", "/proc/self/status")
    finally:
        signal.signal(signal.SIGUSR1, old)
    table = dict(line.split() for line in result.output.splitlines())
    assert table["Umask:"] == "0022"
    assert int(table["SigIgn:"], 16) == int(table["SigBlk:"], 16) == 0


def test_rlimits(kitchen: Kitchen) -> None:
    result = kitchen.run("sh", "-c", "ulimit -Sn; ulimit -Hn", rlimits=[("nofile", 64, 128)])
    assert result.output.split() == ["64", "128"]
    assert result.warnings == []


def test_rlimits_that_the_kernel_refuses_are_lowered_with_a_warning(kitchen: Kitchen) -> None:
    import resource

    highest = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = 1 << 30  # more than fs.nr_open allows
    result = kitchen.run("sh", "-c", "ulimit -Hn", rlimits=[("nofile", 64, wanted)])
    assert result.output.split() == [str(highest)]
    assert "ulimit nofile=64:1073741824" in result.warnings[0]


def test_oom_score(kitchen: Kitchen) -> None:
    result = kitchen.run("cat", "/proc/self/oom_score_adj", oom_score_adj=321)
    assert result.output == "321\n"


def test_sysctls(kitchen: Kitchen) -> None:
    sysctls = {"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"}
    files = [f"/proc/sys/{key.replace('.', '/')}" for key in sysctls]
    result = kitchen.run(
        "cat", *files, "/proc/sys/net/ipv4/ip_unprivileged_port_start", sysctls=sysctls
    )
    assert result.output.split() == ["1", "1", "0"]
    with pytest.raises(StartFailure, match=r"sysctl net\.no_such"):
        kitchen.run("true", sysctls={"net.no_such": "1"})


def test_read_only_root_leaves_mounts_writable(kitchen: Kitchen) -> None:
    mounts = [MountPoint("tmpfs", "tmpfs", "/run", ("mode=700",))]
    script = "touch /x; touch /run/x && touch /dev/shm/x && echo ok"
    result = kitchen.run("sh", "-c", script, readonly_rootfs=True, mounts=mounts, cwd="/made")
    assert "Read-only file system" in result.output
    assert result.output.endswith("ok\n")


def test_tmpfs_options(kitchen: Kitchen) -> None:
    options = ("size=64k", "mode=1700", "exec")
    mounts = [MountPoint("tmpfs", "tmpfs", "/a/b", options)]
    result = kitchen.run("grep", " /a/b ", "/proc/mounts", mounts=mounts)
    fields = result.output.split()
    assert fields[2] == "tmpfs"
    words = fields[3].split(",")
    assert {"rw", "nosuid", "nodev", "size=64k", "mode=1700"} <= set(words)
    assert "noexec" not in words


@pytest.fixture
def pantry(tmp_path: Path) -> Path:
    pantry = tmp_path / "pantry"
    pantry.mkdir()
    (pantry / "rice").write_text("rice\n")
    return pantry


def test_binds_of_directories_and_files(kitchen: Kitchen, pantry: Path) -> None:
    mounts = [
        MountPoint("bind", str(pantry), "/deep/er/pantry"),
        MountPoint("bind", str(pantry / "rice"), "/etc/made/rice", ("ro",)),
    ]
    script = (
        "cat /deep/er/pantry/rice /etc/made/rice; echo new > /deep/er/pantry/new; "
        "echo x > /etc/made/rice"
    )
    result = kitchen.run("sh", "-c", script, mounts=mounts)
    assert result.output.startswith("rice\nrice\n")
    assert "Read-only file system" in result.output
    assert (pantry / "new").read_text() == "new\n"
    assert (pantry / "rice").read_text() == "rice\n"


def test_a_bind_inside_a_bind_whatever_their_order(kitchen: Kitchen, pantry: Path) -> None:
    mounts = [
        MountPoint("bind", str(pantry / "rice"), "/p/inner/rice"),
        MountPoint("tmpfs", "tmpfs", "/p"),
    ]
    assert kitchen.run("cat", "/p/inner/rice", mounts=mounts).output == "rice\n"


def test_a_symlink_of_the_image_does_not_lead_a_mount_outside(
    kitchen: Kitchen, pantry: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (kitchen.root / "data").symlink_to(victim)
    (kitchen.root / "up").symlink_to("../../../../../../../../.." + str(victim))
    mounts = [
        MountPoint("bind", str(pantry), "/data/x"),
        MountPoint("bind", str(pantry), "/up/y"),
        MountPoint("bind", str(pantry / "rice"), "/up/z"),
    ]
    result = kitchen.run("cat", "/data/x/rice", "/up/y/rice", "/up/z", mounts=mounts)
    assert result.output == "rice\n" * 3
    assert list(victim.iterdir()) == []
    assert (kitchen.upper / str(victim)[1:] / "x").is_dir(), "made under the container's root"


def test_proc_and_sys_as_symlinks_stay_inside(kitchen: Kitchen, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    for name in ("proc", "sys", "dev"):
        (kitchen.root / name).symlink_to(victim / name)
    assert kitchen.run("true").status == 0
    assert list(victim.iterdir()) == []


def test_a_missing_bind_source_is_said(kitchen: Kitchen) -> None:
    mounts = [MountPoint("bind", "/no/such/source", "/x")]
    with pytest.raises(StartFailure, match="/no/such/source"):
        kitchen.run("true", mounts=mounts)


def test_a_bind_may_replace_shm_or_a_whole_dev(kitchen: Kitchen, pantry: Path) -> None:
    mounts = [MountPoint("bind", str(pantry), "/dev/shm")]
    assert kitchen.run("cat", "/dev/shm/rice", mounts=mounts).output == "rice\n"


def test_propagation_of_a_slave_bind(kitchen: Kitchen, tmp_path: Path) -> None:
    from tiffin.linux import syscalls

    source = tmp_path / "shared"
    source.mkdir()
    syscalls.mount("tmpfs", str(source), "tmpfs")
    try:
        syscalls.mount(None, str(source), None, syscalls.MS_SHARED)
        (source / "sub").mkdir()
        mounts = [MountPoint("bind", str(source), "/m", ("rbind", "rslave"))]
        launched, settings = kitchen.background("sh", "-c", "echo ready; sleep 60", mounts=mounts)
        syscalls.mount("tmpfs", str(source / "sub"), "tmpfs")
        (source / "sub/late").write_text("late")
        result = kitchen.enter(launched, settings, "cat", "/m/sub/late")
        assert result.output == "late"
        kitchen.close()
    finally:
        syscalls.umount(str(source / "sub"), syscalls.MNT_DETACH)
        syscalls.umount(str(source), syscalls.MNT_DETACH)


FAILURES = [
    (["nope"], {}, 127, r'exec: "nope": executable file not found in \$PATH'),
    (["/no/such"], {}, 127, r'exec: "/no/such": stat /no/such: no such file or directory'),
    (["/etc"], {}, 126, r'exec: "/etc": is a directory'),
    (["/etc/passwd"], {}, 126, r'exec: "/etc/passwd": permission denied'),
    (["/tmp/script"], {}, 127, r"exec /tmp/script: no such file or directory"),
    (["/tmp/garbage"], {}, 126, r"exec /tmp/garbage: exec format error"),
    (["true"], {"user": "nobody"}, 125, r"unable to find user nobody: no matching entries in"),
    (["true"], {"user": "0:nogroup"}, 125, r"unable to find group nogroup: no matching entries"),
    (["true"], {"cwd": "/etc/passwd"}, 126, r"/etc/passwd"),
]


@pytest.mark.parametrize(("args", "changes", "code", "sentence"), FAILURES)
@pytest.mark.parametrize("init", [False, True])
def test_what_cannot_be_started_leaves_a_docker_sentence_and_nothing_else(
    kitchen: Kitchen,
    args: list[str],
    changes: dict[str, Any],
    code: int,
    sentence: str,
    init: bool,
) -> None:
    (kitchen.root / "tmp/script").write_text("#!/no/interpreter\n")
    (kitchen.root / "tmp/garbage").write_bytes(b"\x00\x01garbage")
    for name in ("script", "garbage"):
        (kitchen.root / "tmp" / name).chmod(0o755)
    settings = kitchen.settings(*args, init=init, **changes)
    before, children = len(os.listdir("/proc/self/fd")), own_children()
    with open(os.devnull, "r+b") as null:
        stdio = Stdio((null.fileno(), null.fileno(), null.fileno()))
        with pytest.raises(StartFailure, match=sentence) as caught:
            launch(kitchen.plan(settings), stdio)
    assert caught.value.exit_code == code
    assert not kitchen.hierarchy.exists(settings.cgroup_name)
    assert len(os.listdir("/proc/self/fd")) == before
    assert own_children() <= children


def own_children() -> set[str]:
    """The processes that this one has started and not waited for."""
    tasks = Path("/proc/self/task").iterdir()
    return {child for task in tasks for child in (task / "children").read_text().split()}


def test_a_refused_limit_fails_the_start_and_leaves_nothing(kitchen: Kitchen) -> None:
    if "cpuset" not in kitchen.hierarchy.by_name:
        pytest.skip("the kernel has no cpuset controller, and nothing refuses the limit")
    settings = kitchen.settings("true", resources=Resources(cpuset_cpus="9999"))
    with pytest.raises(StartFailure, match=r"failed to create cgroup"):
        launch(kitchen.plan(settings), Stdio((0, 1, 2)))
    assert not kitchen.hierarchy.exists(settings.cgroup_name)


def test_limits_are_set(kitchen: Kitchen) -> None:
    if "memory" not in kitchen.hierarchy.by_name:
        pytest.skip("reads the files of cgroup v1")
    resources = Resources(
        memory=64 << 20,
        memory_swap=128 << 20,
        pids_limit=33,
        cpu_shares=512,
        cpu_quota=50000,
        cpu_period=100000,
        cpuset_cpus="0",
    )
    files = [
        "memory/memory.limit_in_bytes",
        "memory/memory.memsw.limit_in_bytes",
        "pids/pids.max",
        "cpu/cpu.shares",
        "cpu/cpu.cfs_quota_us",
        "cpuset/cpuset.cpus",
    ]
    result = kitchen.run("cat", *[f"/sys/fs/cgroup/{file}" for file in files], resources=resources)
    assert result.output.split() == ["67108864", "134217728", "33", "512", "50000", "0"]


def test_out_of_memory_is_counted(kitchen: Kitchen) -> None:
    settings = kitchen.settings(
        "sh",
        "-c",
        "x=xxxxxxxxxxxxxxxx; while true; do x=$x$x; done",
        resources=Resources(memory=16 << 20, memory_swap=16 << 20),
    )
    with open(os.devnull, "r+b") as null:
        launched = kitchen.start(settings, Stdio((null.fileno(),) * 3))
    os.waitid(os.P_PIDFD, launched.pidfd, os.WEXITED | os.WNOWAIT)
    assert kitchen.hierarchy.oom_kills(settings.cgroup_name) >= 1
    assert kitchen.finish(launched) == -signal.SIGKILL


def test_the_exit_status_is_known_to_who_is_no_parent(kitchen: Kitchen) -> None:
    launched, _ = kitchen.background("sh", "-c", "echo ready; sleep 60")
    watcher = os.pidfd_open(launched.pid)
    try:
        assert pidfds.exit_status(watcher) is None
        pidfds.send_signal(watcher, signal.SIGKILL)
        kitchen.finish(launched)
        release = tuple(int(part) for part in os.uname().release.split(".")[:2])
        expected = signal.SIGKILL if release >= (6, 15) else None
        assert pidfds.exit_status(watcher) == expected
        assert pidfds.send_signal(watcher, signal.SIGTERM) is False
    finally:
        os.close(watcher)


def test_a_terminal(kitchen: Kitchen, terminal_reader: Reader) -> None:
    script = "tty; stty size; test -t 0 && ls -l /dev/console; read line; echo got-$line"
    settings = kitchen.settings("sh", "-c", script, terminal=True, user="cook")
    launched = kitchen.start(settings, Stdio(None, (33, 99)))
    master = launched.terminal_fd
    assert master is not None
    seen = terminal_reader(master, b"/dev/console")
    assert b"/dev/pts/0\r\n33 99\r\n" in seen
    os.write(master, b"soup\n")
    assert b"got-soup" in terminal_reader(master, b"got-soup")
    assert kitchen.finish(launched) == 0


def test_the_terminal_is_the_controlling_one(kitchen: Kitchen, terminal_reader: Reader) -> None:
    settings = kitchen.settings(
        "sh",
        "-c",
        "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 1; done",
        terminal=True,
    )
    launched = kitchen.start(settings, Stdio(None))
    master = launched.terminal_fd
    terminal_reader(master, b"ready")
    os.write(master, b"\x03")
    assert b"caught" in terminal_reader(master, b"caught")
    assert kitchen.finish(launched) == 3


def test_resizing_reaches_the_program(kitchen: Kitchen, terminal_reader: Reader) -> None:
    script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.1; done"
    settings = kitchen.settings("sh", "-c", script, terminal=True)
    launched = kitchen.start(settings, Stdio(None, (10, 20)))
    master = launched.terminal_fd
    terminal_reader(master, b"ready")
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    assert b"40 100" in terminal_reader(master, b"40 100")
    assert kitchen.finish(launched) == 0


def test_a_failed_start_with_a_terminal_leaves_no_descriptor(kitchen: Kitchen) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StartFailure):
        kitchen.start(kitchen.settings("nope", terminal=True), Stdio(None))
    assert len(os.listdir("/proc/self/fd")) == before


def test_init_reaps_forwards_and_ends_with_the_programs_status(kitchen: Kitchen) -> None:
    script = "trap 'exit 9' USR1; (sleep 0.01 &) ; echo ready; while :; do sleep 0.05; done"
    launched, settings = kitchen.background("sh", "-c", script, init=True)
    table = kitchen.enter(launched, settings, "cat", "/proc/1/cmdline").output
    assert table.startswith("/sbin/docker-init\0--\0sh\0-c\0")
    status = kitchen.enter(launched, settings, "cat", "/proc/1/status").output
    assert "Name:\tdocker-init" in status
    assert Path(f"/proc/{launched.pid}/environ").read_bytes().strip(b"\0") == b""
    signal.pidfd_send_signal(launched.pidfd, signal.SIGUSR1)
    assert kitchen.finish(launched) == 9


def test_init_says_which_signal_killed_the_program(kitchen: Kitchen) -> None:
    result = kitchen.run("sh", "-c", "kill -TERM $$", init=True)
    assert result.status == 128 + signal.SIGTERM


def test_init_with_a_terminal(kitchen: Kitchen, terminal_reader: Reader) -> None:
    settings = kitchen.settings("sh", "-c", "tty; cat", terminal=True, init=True)
    launched = kitchen.start(settings, Stdio(None))
    terminal_reader(launched.terminal_fd, b"/dev/pts/0")
    os.write(launched.terminal_fd, b"\x03")
    assert kitchen.finish(launched) == 128 + signal.SIGINT


def test_entering_a_running_container(kitchen: Kitchen) -> None:
    launched, settings = kitchen.background("sh", "-c", "echo ready; sleep 60", hostname="box")
    result = kitchen.enter(
        launched,
        settings,
        "sh",
        "-c",
        "hostname; echo $X; pwd; id -u; ls /tmp; cat /proc/self/cgroup; exit 4",
        env=["PATH=/bin", "X=y"],
        cwd="/tmp",
        user="cook",
    )
    assert result.status == 4
    lines = result.output.splitlines()
    assert lines[:4] == ["box", "y", "/tmp", "1000"]
    assert all(line.endswith(":/") for line in lines[4:]), "its cgroup is the container's own root"
    for kind in ("pid", "mnt", "uts", "ipc", "net", "cgroup"):
        inside = kitchen.enter(launched, settings, "readlink", f"/proc/self/ns/{kind}").output
        assert inside.strip() == os.readlink(f"/proc/{launched.pid}/ns/{kind}")


def test_entering_with_a_terminal(kitchen: Kitchen, terminal_reader: Reader) -> None:
    launched, settings = kitchen.background("sh", "-c", "echo ready; sleep 60")
    process = process_plan(
        ProcessSettings(["sh", "-c", "tty; stty size"], env=["PATH=/bin"], terminal=True)
    )
    entrances = kitchen.hierarchy.entrances(settings.cgroup_name)
    entered = enter(launched.pidfd, process, Stdio(None, (7, 70)), entrances)
    assert entered.terminal_fd is not None
    assert b"/dev/pts/0\r\n7 70" in terminal_reader(entered.terminal_fd, b"7 70")
    assert os.waitpid(entered.pid, 0)[1] == 0
    os.close(entered.terminal_fd)
    os.close(entered.pidfd)


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (["nope"], 127, r'exec: "nope": executable file not found in \$PATH'),
        (["/etc"], 126, r'exec: "/etc": is a directory'),
    ],
)
def test_what_cannot_be_entered_says_so(
    kitchen: Kitchen, args: list[str], code: int, sentence: str
) -> None:
    launched, settings = kitchen.background("sh", "-c", "echo ready; sleep 60")
    with pytest.raises(StartFailure, match=sentence) as caught:
        kitchen.enter(launched, settings, *args)
    assert caught.value.exit_code == code
    with pytest.raises(
        StartFailure, match=r'chdir to cwd \("/none"\) failed: no such file'
    ) as caught:
        kitchen.enter(launched, settings, "true", cwd="/none")
    assert caught.value.exit_code == 127


def test_entering_a_container_that_has_ended(kitchen: Kitchen) -> None:
    launched, settings = kitchen.background("sh", "-c", "echo ready; sleep 60")
    signal.pidfd_send_signal(launched.pidfd, signal.SIGKILL)
    os.waitid(os.P_PIDFD, launched.pidfd, os.WEXITED | os.WNOWAIT)
    with pytest.raises(StartFailure, match="is not running"):
        kitchen.enter(launched, settings, "true")


def test_a_container_loads_no_code_of_its_own_into_the_child(kitchen: Kitchen) -> None:
    for place in ("usr/lib/python3.11", "usr/lib/python3"):
        (kitchen.root / place).mkdir(parents=True)
    assert kitchen.run("true").status == 0


def test_streams_may_be_sockets_and_belong_to_the_user(kitchen: Kitchen, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    out = os.open(fifo, os.O_RDWR)
    try:
        settings = kitchen.settings("sh", "-c", "echo hi > /dev/stderr; cat", user="cook")
        launched = kitchen.start(settings, Stdio((theirs.fileno(), theirs.fileno(), out)))
        theirs.close()
        assert os.read(out, 100) == b"hi\n", "/dev/stderr can be reopened by the user"
        assert stat.S_IMODE(os.fstat(out).st_mode) == 0o600
        ours.sendall(b"echo")
        ours.shutdown(socket.SHUT_WR)
        assert ours.recv(100) == b"echo"
        assert kitchen.finish(launched) == 0
    finally:
        ours.close()
        os.close(out)


def test_freezing_killing_and_statistics(kitchen: Kitchen) -> None:
    launched, settings = kitchen.background("sh", "-c", "sleep 60 & echo ready; wait")
    hierarchy, name = kitchen.hierarchy, settings.cgroup_name
    assert len(hierarchy.processes(name)) == 2
    hierarchy.freeze(name)
    assert hierarchy.frozen(name)
    hierarchy.thaw(name)
    assert not hierarchy.frozen(name)
    statistics = hierarchy.statistics(name)
    assert statistics["pids_stats"]["current"] == 2
    assert statistics["memory_stats"]["usage"] > 0
    assert statistics["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert hierarchy.delete(name) is False, "a group with processes stays"
    hierarchy.kill(name)
    assert kitchen.finish(launched) == -signal.SIGKILL


def test_without_cgroups_a_container_runs_too(kitchen: Kitchen) -> None:
    settings = kitchen.settings("true")
    dumped = plan(settings, str(kitchen.directory / "mountpoint"), None).dump()
    with open(os.devnull, "r+b") as null:
        launched = launch(dumped, Stdio((null.fileno(),) * 3))
    assert os.waitpid(launched.pid, 0)[1] == 0
    os.close(launched.pidfd)


def _state(pid: str) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_start_ends_with_the_caller(kitchen: Kitchen, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    planned = plan(kitchen.settings("true"), str(tmp_path / "mountpoint"), None).dump()
    planned["operations"] = [["join", "uts", str(fifo)]]  # opening it sleeps
    caller = os.fork()
    if caller == 0:
        try:
            launch(planned, Stdio((0, 1, 2)))
        finally:
            os._exit(1)
    children: list[str] = []
    while not children or _state(children[0]) != "S":
        assert os.waitpid(caller, os.WNOHANG) == (0, 0)
        children = Path(f"/proc/{caller}/task/{caller}/children").read_text().split()
    watchers = [os.pidfd_open(int(child)) for child in children]
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    ended = [bool(select.select([watcher], [], [], 20)[0]) for watcher in watchers]
    for watcher in watchers:
        pidfds.send_signal(watcher, signal.SIGKILL)
        os.close(watcher)
    assert ended == [True]
