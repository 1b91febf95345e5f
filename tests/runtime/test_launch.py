"""Containers on the real kernel: how they start and end, and what keeps them apart."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from runtime.conftest import Kitchen, Streams
from tiffin.errors import StartFailure
from tiffin.linux import pidfd as pidfds
from tiffin.linux import syscalls
from tiffin.runtime.launch import launch, launching, working_inside
from tiffin.runtime.launching import Begun, Ended, Readable, Stdio
from tiffin.runtime.native import plan
from tiffin.runtime.operations import Terminal
from tiffin.runtime.settings import (
    NAMESPACES,
    Resources,
)
from tiffin.storage.driver import Mount

pytestmark = pytest.mark.root


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


def test_a_child_is_held_from_its_birth_on(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else there would be a child that nobody can kill, or another one be killed in its place."""

    def refuse(_: int, flags: int = 0) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert kitchen.run("echo", "here").output == "here\n"


def test_a_start_that_is_given_up_kills_nobody_elses_process(kitchen: Kitchen) -> None:
    """The child has been reaped by then, and its number may be another one's."""
    with Streams(b"") as streams:
        start = launching(kitchen.plan(settings := kitchen.settings("true")), streams.stdio)
        begun = next(start)
        assert isinstance(begun, Begun)
        os.kill(begun.pid, signal.SIGKILL)
        os.waitpid(begun.pid, 0)
        other = _fork_as(begun.pid)
        try:
            start.close()
            assert os.waitpid(other, os.WNOHANG) == (0, 0)
        finally:
            os.kill(other, signal.SIGKILL)
            os.waitpid(other, 0)
    kitchen.hierarchy.kill(settings.cgroup_name)
    assert kitchen.hierarchy.delete(settings.cgroup_name)


def _fork_as(pid: int) -> int:
    """A child that sleeps, of this very number."""
    arguments = syscalls._CloneArgs(exit_signal=signal.SIGCHLD)
    number = ctypes.c_int(pid)
    arguments.set_tid, arguments.set_tid_size = ctypes.addressof(number), 1
    other = syscalls._clone3(arguments)
    if other == 0:
        try:
            signal.pause()
        finally:
            os._exit(0)
    assert other == pid
    return other


def test_work_inside_that_is_given_up_leaves_no_terminal(kitchen: Kitchen) -> None:
    launched, _ = kitchen.background("sh", "-c", "echo ready; sleep 1000")
    before = sorted(os.listdir("/proc/self/fd"))
    work = working_inside(launched.pidfd, [Terminal(24, 80)])
    step = next(work)
    assert isinstance(step, Begun)
    while not isinstance(step, Ended):
        if isinstance(step, Readable):
            select.select([step.fd], [], [])
        step = next(work)
    os.waitpid(step.pid, 0)
    work.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def leaked() -> Iterator[int]:
    """A folder of the host that is open, and stays so over an exec: what must never be."""
    folder = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    number = fcntl.fcntl(folder, fcntl.F_DUPFD, 50)
    os.close(folder)
    yield number
    os.close(number)


@pytest.mark.parametrize("join", [False, True])
def test_no_descriptor_is_handed_down(kitchen: Kitchen, leaked: int, join: bool) -> None:
    words = ("ls", "/proc/self/fd")
    if join:
        said = kitchen.enter(*kitchen.background("sh", "-c", "echo ready; sleep 1000"), *words)
    else:
        said = kitchen.run(*words)
    assert set(said.output.split()) <= {"0", "1", "2", "3"}


@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("closed", [True, False])
def test_no_working_directory_is_the_hosts(
    kitchen: Kitchen, leaked: int, join: bool, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2024-21626: it is closed, and were it not, what lies above the root is refused."""
    cwd = f"/proc/self/fd/{leaked}"
    started = kitchen.background("sh", "-c", "echo ready; sleep 1000") if join else None
    if not closed:
        monkeypatch.setattr(syscalls, "close_range", lambda *_: None)
    with pytest.raises(StartFailure, match=r"chdir to cwd|cross-device"):
        if started is not None:
            kitchen.enter(*started, "true", cwd=cwd)
        else:
            launch(kitchen.plan(kitchen.settings("true", cwd=cwd)), Stdio((0, 1, 2)))


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
        signal.pidfd_send_signal(watcher, signal.SIGKILL)
        kitchen.finish(launched)
        release = tuple(int(part) for part in os.uname().release.split(".")[:2])
        expected = signal.SIGKILL if release >= (6, 15) else None
        assert pidfds.exit_status(watcher) == expected
    finally:
        os.close(watcher)


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
        # Whoever takes orphans may have waited for it already.
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(watcher, signal.SIGKILL)
        os.close(watcher)
    assert ended == [True]
