"""The same containers with every runtime that the machine has."""

from __future__ import annotations

import io
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import busybox_tar, kill_keeper
from tiffin.engine import Engine
from tiffin.errors import InvalidParameter, StartFailure, Unsupported
from tiffin.linux import capabilities
from tiffin.linux.cgroups import Hierarchy
from tiffin.runtime import foreign

pytestmark = pytest.mark.root


def usable(name: str) -> str:
    """Why a runtime can't be used here; empty if it can."""
    if name == "native":
        return ""
    if foreign.find(name) is None:
        return f"{name} is not installed"
    return ""


@pytest.fixture(scope="module", params=["native", *foreign.NAMES])
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if reason := usable(name):
        pytest.skip(reason)
    return name


class Kitchen:
    def __init__(self, engine: Engine, runtime: str) -> None:
        self.engine = engine
        self.runtime = runtime

    def create(self, *command: str, host: dict[str, Any] | None = None, **config: Any) -> str:
        host = {"Runtime": self.runtime, "NetworkMode": "none", **(host or {})}
        body = {"Image": "busybox", "Cmd": list(command), "HostConfig": host, **config}
        return str(self.engine.containers.create(body)["Id"])

    def run(
        self, script: str, host: dict[str, Any] | None = None, **config: Any
    ) -> tuple[int, list[str]]:
        """The exit code and the output's lines."""
        container = self.create("sh", "-c", script, host=host, **config)
        waiter = self.engine.containers.wait_later(container, "next-exit")
        self.engine.containers.start(container)
        answer = waiter.result(30)
        assert answer is not None
        text = b"".join(data for _, data in self.engine.containers.logs(container)[1])
        self.engine.containers.remove(container)
        return answer["StatusCode"], text.decode().split("\n")[:-1]


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[Engine]:
    """One engine for all of them: what a test leaves would show in the next one."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    root = tmp_path_factory.mktemp("runtimes") / "root"
    with Engine(root) as opened:
        opened.images.import_(io.BytesIO(busybox_tar()), "busybox", changes=["CMD sh"])
        yield opened
        opened.shutdown_keeper()
    kill_keeper(root)


@pytest.fixture
def kitchen(common: Engine, runtime: str) -> Iterator[Kitchen]:
    yield Kitchen(common, runtime)
    for row in common.containers.list(all=True):
        common.containers.remove(row["Id"], force=True, volumes=True)
    state = Path(foreign.STATE, runtime)
    for folder in ("state", "bundles"):
        assert not (state / folder).exists() or os.listdir(state / folder) == []


def test_output_and_exit_code(kitchen: Kitchen) -> None:
    assert kitchen.run("echo out; echo err >&2; exit 3") == (3, ["out", "err"])


def test_who_and_where_it_is(kitchen: Kitchen) -> None:
    script = "id -u; id -g; echo $HOME $A; pwd; hostname; echo $$"
    code, lines = kitchen.run(script, User="user", Env=["A=b"], WorkingDir="/made", Hostname="box")
    assert (code, lines) == (0, ["1000", "1000", "/home b", "/made", "box", "1"])


def test_it_is_kept_in_alike(kitchen: Kitchen) -> None:
    script = """
        grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status
        cat /proc/keys | wc -c
        touch /proc/sys/kernel/x 2>/dev/null || echo refused
        mount -t tmpfs x /tmp 2>/dev/null || echo refused
        ls /dev | grep -v core | sort | tr '\\n' ' '; echo
        cat /proc/sys/net/ipv4/ip_unprivileged_port_start
    """
    code, lines = kitchen.run(script)
    assert code == 0
    assert lines[:7] == [
        "CapInh:\t0000000000000000",
        "CapPrm:\t00000000a80425fb",
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t0",
        "Seccomp:\t2",
    ]
    assert lines[7:10] == ["0", "refused", "refused"]
    assert lines[10].split() == [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero",
    ]  # fmt: skip
    assert lines[11] == "0"


def test_options(kitchen: Kitchen) -> None:
    host = {
        "CapDrop": ["ALL"],
        "ReadonlyRootfs": True,
        "Tmpfs": {"/t": "size=1m"},
        "Binds": ["pots:/v", "pots:/r:ro"],
        "Memory": 64 << 20,
        "PidsLimit": 50,
        "OomScoreAdj": 300,
        "ShmSize": 2 << 20,
        "GroupAdd": ["4321"],
        "SecurityOpt": ["no-new-privileges", "seccomp=unconfined"],
        "Ulimits": [{"Name": "nofile", "Soft": 99, "Hard": 100}],
        "Sysctls": {"net.ipv4.ip_forward": "1"},
    }
    script = """
        grep -E '^(CapEff|Seccomp:|NoNewPrivs)' /proc/self/status | tr '\\n' ' '; echo
        touch /x 2>/dev/null || echo read-only; touch /t/x && touch /v/x && echo made
        touch /r/y 2>/dev/null || echo read-only
        cd /sys/fs/cgroup  # of version 1 or 2
        cat memory/memory.limit_in_bytes pids/pids.max 2>/dev/null || cat memory.max pids.max
        cat /proc/self/oom_score_adj; df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2
        id -G | tr ' ' '\\n' | grep 4321; ulimit -n; cat /proc/sys/net/ipv4/ip_forward
    """
    code, lines = kitchen.run(script, host=host)
    assert lines == [
        "CapEff:\t0000000000000000 NoNewPrivs:\t1 Seccomp:\t0 ",
        "read-only",
        "made",
        "read-only",
        str(64 << 20),
        "50",
        "300",
        "2048",
        "4321",
        "99",
        "1",
    ]
    assert code == 0


def test_everything_for_a_privileged_one(kitchen: Kitchen) -> None:
    script = """
        grep -E '^(CapEff|Seccomp:)' /proc/self/status | tr '\\n' ' '; echo
        find /dev -type b -o -type c | grep -v pts | sort | tr '\\n' ' '; echo
        mkdir /m && mount -t tmpfs x /m && echo mounted; test -w /proc/sys/kernel/hostname && echo w
    """
    code, lines = kitchen.run(script, host={"Privileged": True})
    held = capabilities.held()
    assert lines[0] == f"CapEff:\t{held:016x} Seccomp:\t0 "
    hosts = {
        f"{folder}/{name}"
        for folder, _, names in os.walk("/dev")
        for name in names
        if stat.S_IFMT(os.lstat(f"{folder}/{name}").st_mode) in (stat.S_IFBLK, stat.S_IFCHR)
    }
    hosts = {name for name in hosts if not name.startswith("/dev/pts/")}
    assert hosts - {"/dev/console", "/dev/ptmx"} <= set(lines[1].split())
    assert (lines[2:], code) == (["mounted", "w"], 0)


def test_namespaces_of_the_host_and_of_another_container(kitchen: Kitchen) -> None:
    names = "for n in pid ipc uts net cgroup; do readlink /proc/self/ns/$n; done"
    host = {f"{kind}Mode": "host" for kind in ("Pid", "Ipc", "UTS", "Network", "Cgroupns")}
    code, lines = kitchen.run(names, host=host)
    kinds = ("pid", "ipc", "uts", "net", "cgroup")
    assert (code, lines) == (0, [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds])
    first = kitchen.create("sleep", "1000")
    kitchen.engine.containers.start(first)
    pid = kitchen.engine.containers.inspect(first)["State"]["Pid"]
    theirs = {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds}
    host = {"PidMode": f"container:{first}", "NetworkMode": f"container:{first}"}
    code, lines = kitchen.run(names, host=host)
    assert code == 0
    assert (lines[0], lines[3]) == (theirs["pid"], theirs["net"])
    assert lines[1] != theirs["ipc"] and lines[2] != theirs["uts"]


def test_devices_and_paths_of_the_host(kitchen: Kitchen, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("soup\n")
    host = {
        "Devices": [
            {"PathOnHost": "/dev/full", "PathInContainer": "/dev/pot", "CgroupPermissions": "rwm"}
        ],
        "Binds": [f"{tmp_path}/file:/with space/file:ro", f"{tmp_path}/file:/proc/uptime"],
    }
    script = """
        stat -c %t:%T /dev/pot; cat '/with space/file' /proc/uptime
        mknod /disk b 1 0; cat /disk 2>&1 | grep -o 'not permitted'
        grep ' /with' /proc/self/mountinfo | cut -d ' ' -f 6 | cut -d , -f 1
    """
    code, lines = kitchen.run(script, host=host)
    assert (code, lines) == (0, ["1:7", "soup", "soup", "not permitted", "ro"])


def test_a_terminal_is_a_controlling_one(kitchen: Kitchen) -> None:
    """Its keys are signals: the foreground of the container gets them."""
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    container = kitchen.create("sh", "-c", script, Tty=True, OpenStdin=True, User="user")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        kitchen.engine.containers.attach(container, theirs, stdin=True, stdout=True, stderr=True)
        kitchen.engine.containers.start(container)
        data = b""
        while b"ready" not in data:
            data += ours.recv(100)
        ours.sendall(b"\x03")
        while b"caught" not in data:
            data += ours.recv(100)
    assert kitchen.engine.containers.wait(container)["StatusCode"] == 9


def test_the_environment_is_what_was_asked_for(kitchen: Kitchen) -> None:
    code, lines = kitchen.run("env | grep -v ^_ | sort", Env=["A=two\nlines", "B="])
    wanted = ["A=two", "B=", "HOME=/root", "PWD=/", "lines"]
    assert code == 0
    assert [line for line in lines if not line.startswith(("PATH", "HOSTNAME", "SHLVL"))] == wanted


def test_nothing_else_is_open(kitchen: Kitchen) -> None:
    code, lines = kitchen.run("for n in /proc/self/fd/*; do echo ${n##*/}; done | sort")
    assert code == 0 and set(lines) <= {"0", "1", "2", "3", "*"}


@pytest.mark.parametrize(
    ("command", "code"), [("nosuch", 127), ("/etc/passwd", 126), ("/no/such", 127)]
)
def test_a_program_that_can_not_be_run(kitchen: Kitchen, command: str, code: int) -> None:
    container = kitchen.create(command)
    with pytest.raises(StartFailure) as failure:
        kitchen.engine.containers.start(container)
    assert failure.value.exit_code == code
    assert command in failure.value.message
    # By these the docker command knows which code to end with.
    known = {
        127: ("executable file not found", "no such file or directory"),
        126: ("permission denied", "is a directory", "not a directory"),
    }
    assert any(text in failure.value.message for text in known[code])
    state = kitchen.engine.containers.inspect(container)["State"]
    assert (state["Status"], state["ExitCode"]) == ("created", code)


def test_a_terminal(kitchen: Kitchen) -> None:
    code, lines = kitchen.run("tty; test -t 1 && echo yes; stat -c %t:%T /dev/console", Tty=True)
    assert code == 0
    assert [line.strip() for line in lines][:2] == ["/dev/pts/0", "yes"]


def test_stdin_execs_signals_and_pausing(kitchen: Kitchen) -> None:
    containers = kitchen.engine.containers
    script = "trap 'exit 7' TERM; read a; echo got $a; while :; do sleep 0.1; done"
    container = kitchen.create("sh", "-c", script, OpenStdin=True)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        containers.attach(container, theirs, stdin=True, stdout=True, stderr=True)
        containers.start(container)
        ours.sendall(b"soup\n")
        data = b""
        while b"got soup" not in data:
            data += ours.recv(100)
    made = containers.exec_create(
        container, {"Cmd": ["sh", "-c", "echo $$; exit 4"], "AttachStdout": True}
    )
    code, out, _ = containers.exec_output(made["Id"])
    assert code == 4 and int(out) > 1
    containers.pause(container)
    assert containers.inspect(container)["State"]["Paused"]
    containers.unpause(container)
    containers.stop(container)
    assert containers.inspect(container)["State"]["ExitCode"] == 7
    names = Hierarchy.detect().directories(f"tiffin/{container}")
    assert not any(os.path.exists(name) for name in names)


def test_what_only_the_native_runtime_does_is_refused(kitchen: Kitchen) -> None:
    for host in ({"Init": True}, {"UsernsMode": "private"}):
        container = kitchen.create("true", host=host)
        if kitchen.runtime == "native":
            kitchen.engine.containers.start(container)
            continue
        with pytest.raises(Unsupported, match=kitchen.runtime):
            kitchen.engine.containers.start(container)


def test_an_unknown_runtime_is_refused(engine: Engine) -> None:
    for name in ("nonsense", "../bin/sh", "lxc-start"):
        with pytest.raises(InvalidParameter, match="runtime"):
            Kitchen(engine, name).create("true")
