"""The same containers with every runtime that the machine has."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tiffin import Engine
from tiffin.errors import InvalidParameter, StartFailure, Unsupported
from tiffin.linux.cgroups import Hierarchy
from tiffin.runtime import foreign

pytestmark = pytest.mark.root


def usable(name: str) -> str:
    """Why a runtime can't be used here; empty if it can."""
    if name == "native":
        return ""
    if foreign.find(name) is None:
        return f"{name} is not installed"
    if name == "crun" and Hierarchy.detect().version == "hybrid":
        return "crun refuses hybrid cgroups"
    return ""


@pytest.fixture(params=["native", *foreign.NAMES])
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


@pytest.fixture
def kitchen(engine: Engine, runtime: str) -> Iterator[Kitchen]:
    yield Kitchen(engine, runtime)
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
        cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max
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


@pytest.mark.parametrize(
    ("command", "code"), [("nosuch", 127), ("/etc/passwd", 126), ("/no/such", 127)]
)
def test_a_program_that_can_not_be_run(kitchen: Kitchen, command: str, code: int) -> None:
    container = kitchen.create(command)
    with pytest.raises(StartFailure) as failure:
        kitchen.engine.containers.start(container)
    assert failure.value.exit_code == code
    assert command in failure.value.message
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
