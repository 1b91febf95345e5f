"""A container's process: its user, capabilities, environment, limits, and what it inherits."""

from __future__ import annotations

import os
import signal

import pytest

from runtime.conftest import Kitchen
from tiffin.errors import StartFailure

pytestmark = pytest.mark.root


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
