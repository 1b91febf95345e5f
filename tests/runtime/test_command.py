"""``tiffin-runtime``: the specification's operations, and other engines on top of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tiffin
from tiffin.runtime.record import Record, started

pytestmark = pytest.mark.root
SOURCE = Path(tiffin.__file__).parents[1]
NAMESPACES = ("pid", "mount", "uts", "ipc", "network", "cgroup")


def eventually(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Counter:
    """Runs the command on a bundle."""

    def __init__(self, directory: Path, root: Path) -> None:
        self.bundle = directory
        self.root = root
        self.names: set[str] = set()

    def config(self, *args: str, **changes: Any) -> dict[str, Any]:
        config: dict[str, Any] = {
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "hostname": "box",
            "process": {
                "args": list(args),
                "env": ["PATH=/bin"],
                "cwd": "/",
                "user": {"uid": 0, "gid": 0},
                **changes.pop("process", {}),
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "options": ["mode=755"]},
                {
                    "destination": "/dev/pts",
                    "type": "devpts",
                    "options": ["newinstance", "ptmxmode=0666"],
                },
                *changes.pop("mounts", []),
            ],
            "linux": {
                "namespaces": [{"type": kind} for kind in NAMESPACES],
                "cgroupsPath": f"/tiffin-test/{os.getpid()}",
                **changes.pop("linux", {}),
            },
            **changes,
        }
        (self.bundle / "config.json").write_text(json.dumps(config))
        return config

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tiffin.runtime.entry", "--root", str(self.root), *words]
        output = self.bundle / "output"
        # Not a pipe: a container that was left behind would keep it open.
        with output.open("w+") as file:
            done = subprocess.run(
                command,
                cwd=self.bundle,
                env={**os.environ, "PYTHONPATH": str(SOURCE)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=60,
                check=False,
            )
            file.seek(0)
            done.stdout = file.read()
        assert not check or done.returncode == 0, done.stdout
        return done

    def state(self, name: str) -> str:
        status: str = json.loads(self("state", name).stdout)["status"]
        return status


@pytest.fixture
def counter(tmp_path: Path, kitchen: Any) -> Iterator[Counter]:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    shutil.copytree(kitchen.root, bundle / "rootfs", symlinks=True)
    made = Counter(bundle, tmp_path / "state")
    try:
        yield made
    finally:
        for name in json.loads(made("list", "--format", "json").stdout):
            made("delete", "--force", name["id"])
        kitchen.hierarchy.delete("tiffin-test")


def test_run_gives_the_output_and_the_exit_code(counter: Counter) -> None:
    counter.config("sh", "-c", "hostname; id -u; echo $$; exit 5")
    done = counter("run", "one", check=False)
    assert (done.returncode, done.stdout.split()) == (5, ["box", "0", "1"])
    assert json.loads(counter("list", "--format", "json").stdout) == []


def test_the_life_of_a_container(counter: Counter) -> None:
    counter.config("sh", "-c", "echo run > /ran; trap 'exit 3' TERM; while :; do sleep 0.05; done")
    counter("create", "--pid-file", "pid", "one")
    assert counter.state("one") == "created"
    assert not (counter.bundle / "rootfs/ran").exists()
    pid = json.loads(counter("state", "one").stdout)["pid"]
    assert (counter.bundle / "pid").read_text() == str(pid)
    counter("start", "one")
    eventually((counter.bundle / "rootfs/ran").exists)
    assert counter.state("one") == "running"
    assert "already running" in counter("start", "one", check=False).stdout
    assert counter("exec", "one", "sh", "-c", "exit 6", check=False).returncode == 6
    assert pid in json.loads(counter("ps", "--format", "json", "one").stdout)
    if subprocess.run(["ps", "-ef"], capture_output=True, check=False).returncode == 0:
        # In some guests the program does not work.
        assert str(pid) in counter("ps", "one").stdout
    counter("pause", "one")
    assert counter.state("one") == "paused"
    counter("resume", "one")
    counter("update", "--pids-limit", "77", "one")
    stats = json.loads(counter("events", "--stats", "one").stdout)
    assert stats["data"]["pids_stats"]["limit"] == 77
    assert counter("delete", "one", check=False).returncode != 0
    counter("kill", "one", "TERM")
    eventually(lambda: counter.state("one") == "stopped")
    assert counter("kill", "one", "TERM", check=False).returncode != 0
    counter("delete", "one")
    assert "does not exist" in counter("state", "one", check=False).stdout


def test_a_created_container_can_be_killed_and_deleted(counter: Counter) -> None:
    counter.config("sleep", "100")
    counter("create", "one")
    counter("kill", "one", "KILL")
    eventually(lambda: counter.state("one") == "stopped")
    counter("delete", "one")
    counter("create", "two")
    assert "not stopped" in counter("delete", "two", check=False).stdout
    counter("delete", "--force", "two")


def test_what_a_killed_create_has_left_can_be_deleted(counter: Counter) -> None:
    counter.config("true")
    left = counter.root / "half"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    refused = counter("create", "half", check=False)
    assert refused.returncode == 1 and "already exists" in refused.stdout
    counter("delete", "--force", "half")
    assert not left.exists()
    # runc's delete without force says so, too, and removes it all the same.
    left.mkdir()
    refused = counter("delete", "half", check=False)
    assert refused.returncode == 1 and "does not exist" in refused.stdout
    assert not left.exists()


def test_an_exec_whose_terminal_nobody_takes_leaves_nothing(counter: Counter) -> None:
    counter.config("sleep", "1000")
    counter("create", "box")
    counter.names.add("box")
    counter("start", "box")
    refused = counter(
        "exec", "--tty", "--console-socket", "/no/such", "box", "sleep", "1000", check=False
    )
    assert refused.returncode == 1 and "No such file" in refused.stdout
    (pid,) = json.loads(counter("ps", "--format", "json", "box").stdout)
    assert pid == json.loads(counter("state", "box").stdout)["pid"]


def test_what_an_exec_is_given(counter: Counter) -> None:
    counter.config("sleep", "1000", process={"capabilities": {"bounding": ["CAP_KILL"]}})
    counter("create", "box")
    counter.names.add("box")
    counter("start", "box")
    script = "grep -E '^(NoNewPrivs|CapBnd|CapEff|Groups)' /proc/self/status"
    plain = counter("exec", "box", "sh", "-c", script).stdout.split()
    assert plain == ["Groups:", "CapEff:", f"{32:016x}", "CapBnd:", f"{32:016x}",
                     "NoNewPrivs:", "0"]  # fmt: skip
    more = ("--no-new-privs", "--cap", "CAP_CHOWN", "--cap=CAP_FOWNER", "-g", "50", "-g", "60")
    given = counter("exec", *more, "box", "sh", "-c", script).stdout.split()
    assert given == ["Groups:", "50", "60", "CapEff:", f"{9:016x}", "CapBnd:", f"{41:016x}",
                     "NoNewPrivs:", "1"]  # fmt: skip


def test_no_later_process_of_the_same_number_is_meant(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as other:
        record = Record(str(tmp_path), "box")
        record.content = {"pid": other.pid, "started": started(other.pid) - 1}
        record.signal(signal.SIGKILL)
        with pytest.raises(ProcessLookupError), record.process():
            pass
        assert other.poll() is None
        record.content["started"] += 1
        record.signal(signal.SIGKILL)
        assert other.wait() == -signal.SIGKILL


def test_hooks_are_run_in_their_order(counter: Counter) -> None:
    log = counter.bundle / "log"
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    hooks: dict[str, Any] = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", f"(echo {kind}; cat; echo) >> {log}"]}]
        for kind in kinds
    }
    inside = [{"path": "/bin/sh", "args": ["sh", "-c", "echo startContainer > /seen"]}]
    counter.config("cat", "/seen", hooks={**hooks, "startContainer": inside})
    assert counter("run", "one").stdout == "startContainer\n"
    lines = log.read_text().split()
    assert [word for word in lines if word in kinds] == list(kinds)
    states = [json.loads(line) for line in log.read_text().split("\n") if line.startswith("{")]
    assert [state["status"] for state in states] == [
        "created",
        "creating",
        "creating",
        "running",
        "stopped",
    ]
    assert {state["id"] for state in states} == {"one"}
    assert all(state["bundle"] == str(counter.bundle) for state in states)


def test_a_hook_that_fails_leaves_nothing(counter: Counter) -> None:
    counter.config("true", hooks={"createRuntime": [{"path": "/bin/false"}]})
    done = counter("create", "one", check=False)
    assert done.returncode == 1 and "createRuntime hook /bin/false" in done.stdout
    assert json.loads(counter("list", "--format", "json").stdout) == []
    slow = [{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]
    counter.config("true", hooks={"prestart": slow})
    assert "took longer" in counter("create", "one", check=False).stdout


def test_what_the_process_is_given(counter: Counter) -> None:
    (counter.bundle / "rootfs/writable").mkdir()
    process = {
        "user": {"uid": 1000, "gid": 100, "additionalGids": [50, 60], "umask": 0o27},
        "cwd": "/tmp",
        "noNewPrivileges": True,
        "oomScoreAdj": 100,
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": 50, "hard": 60},
            {"type": "RLIMIT_AS", "soft": 1 << 33, "hard": 1 << 34},
        ],
        "capabilities": {
            "bounding": ["CAP_KILL", "CAP_CHOWN"],
            "permitted": ["CAP_KILL"],
            "inheritable": ["CAP_KILL"],
            "effective": ["CAP_KILL"],
            "ambient": ["CAP_KILL"],
        },
    }
    script = """
        id -u; id -g; id -G; pwd; umask; ulimit -n; cat /proc/self/oom_score_adj
        grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status
    """
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["sethostname"], "action": "SCMP_ACT_ERRNO"}],
    }
    counter.config("sh", "-c", script, process=process, linux={"seccomp": profile})
    lines = counter("run", "one").stdout.split("\n")
    assert lines[0:2] == ["1000", "100"]
    assert set(lines[2].split()) == {"100", "50", "60"}
    assert lines[3:7] == ["/tmp", "0027", "50", "100"]
    kill, both = "0000000000000020", "0000000000000021"
    words = dict(line.split(":\t") for line in lines[7:] if line)
    assert words == {
        "CapInh": kill,
        "CapPrm": kill,
        "CapEff": kill,
        "CapBnd": both,
        "CapAmb": kill,
        "NoNewPrivs": "1",
        "Seccomp": "2",
    }


def test_a_user_namespace_of_the_configuration(counter: Counter) -> None:
    first = 500 << 16
    mapping = [{"containerID": 0, "hostID": first, "size": 65536}]
    linux = {
        "namespaces": [{"type": kind} for kind in (*NAMESPACES, "user")],
        "uidMappings": mapping,
        "gidMappings": mapping,
    }
    for folder, _, names in os.walk(counter.bundle / "rootfs"):
        for name in [".", *names]:
            os.chown(os.path.join(folder, name), first, first, follow_symlinks=False)
    counter.bundle.chmod(0o755)
    for parent in counter.bundle.parents:
        if parent.name.startswith("pytest") or "test_" in parent.name:
            parent.chmod(0o755)
    counter.config("sh", "-c", "id -u; cat /proc/self/uid_map; echo x > /made", linux=linux)
    assert counter("run", "one").stdout.split() == ["0", "0", str(first), "65536"]
    assert os.stat(counter.bundle / "rootfs/made").st_uid == first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ociVersion": "2.0"}, "ociVersion"),
        ({"process": {"cwd": "tmp"}}, "absolute"),
        ({"process": {"args": []}}, "args"),
        ({"process": {"terminal": True}}, "console-socket"),
        ({"process": {"rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]}}, "rlimit"),
        ({"linux": {"namespaces": [{"type": "mount"}, {"type": "time"}]}}, "time namespace"),
        ({"linux": {"rootfsPropagation": "sideways"}}, "sideways"),
        (
            {
                "linux": {
                    "namespaces": [
                        {"type": "mount"},
                        {"type": "uts"},
                        {"type": "ipc", "path": "/proc/1/ns/uts"},
                    ]
                }
            },
            "join ipc namespace",
        ),
        ({"linux": {"namespaces": [{"type": "mount"}] * 2}}, "duplicated"),
        ({"process": {"args": ["nosuch"]}}, "executable file not found"),
    ],
)
def test_what_can_not_be_done_is_refused(
    counter: Counter, changes: dict[str, Any], said: str
) -> None:
    counter.config("true", **changes)
    done = counter("create", "one", check=False)
    assert done.returncode == 1 and said in done.stdout
    assert json.loads(counter("list", "--format", "json").stdout) == []


def test_ids_and_errors(counter: Counter) -> None:
    counter.config("sleep", "100")
    counter("create", "one")
    assert "already exists" in counter("create", "one", check=False).stdout
    assert "invalid container ID" in counter("create", "../x", check=False).stdout
    log = counter.bundle / "log"
    done = counter("--log", str(log), "--log-format", "json", "start", "no", check=False)
    assert done.returncode == 1
    assert json.loads(log.read_text())["msg"] == "container does not exist"
    counter("delete", "--force", "no")


@pytest.mark.parametrize("joined", [False, True])
def test_a_mount_namespace_of_others(counter: Counter, joined: bool) -> None:
    """Its mounts show there, and are gone with the container; nothing else is."""
    other = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", "echo ready; exec sleep 1000"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        namespaces = [{"type": kind} for kind in NAMESPACES if kind != "mount"]
        if joined:
            namespaces.append({"type": "mount", "path": f"/proc/{other.pid}/ns/mnt"})
        script = "readlink /proc/self/ns/mnt; ls /; while :; do sleep 0.05; done"
        counter.config("sh", "-c", script, linux={"namespaces": namespaces, "seccomp": None})
        counter("create", "one")
        pid = json.loads(counter("state", "one").stdout)["pid"]
        where = os.readlink(f"/proc/{other.pid if joined else 'self'}/ns/mnt")
        assert os.readlink(f"/proc/{pid}/ns/mnt") == where
        assert os.readlink(f"/proc/{pid}/root").endswith("bundle/rootfs")
        refused = counter("exec", "one", "true", check=False)
        assert refused.returncode and "shares its mount namespace" in refused.stdout
        counter("delete", "--force", "one")
        for place in (f"/proc/{other.pid}/mountinfo", "/proc/self/mountinfo"):
            assert str(counter.bundle) not in Path(place).read_text()
    finally:
        other.kill()
        other.wait()
        other.stdout.close()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("propagation", "found"),
    [("private", ""), ("shared", "shared:"), ("rslave", ""), ("unbindable", "unbindable")],
)
def test_how_the_roots_mounts_propagate(counter: Counter, propagation: str, found: str) -> None:
    counter.config(
        "sh",
        "-c",
        "grep -E '^([^ ]+ ){4}/ ' /proc/self/mountinfo",
        linux={"rootfsPropagation": propagation},
    )
    fields = counter("run", "one").stdout.split(" - ")[0].split()[6:]
    assert [field.rstrip("0123456789") for field in fields] == ([found] if found else [])


def test_limits_of_every_kind(counter: Counter) -> None:
    files = {
        "memory": {"memory.limit_in_bytes": 64 << 20, "memory.swappiness": 7},
        "cpu": {"cpu.shares": 512},
        "pids": {"pids.max": 50},
    }
    resources = {
        "memory": {"limit": 64 << 20, "swappiness": 7},
        "cpu": {"shares": 512},
        "pids": {"limit": 50},
    }
    linux = {"resources": resources}
    path = f"tiffin-test/{os.getpid()}"
    counter.config("sleep", "100", linux=linux)
    counter("create", "one")
    for controller, limits in files.items():
        for name, value in limits.items():
            file = Path("/sys/fs/cgroup", controller, path, name)
            if file.exists():
                assert file.read_text().strip() == str(value)
    counter("delete", "--force", "one")


def test_features_and_a_configuration_to_start_from(counter: Counter) -> None:
    features = json.loads(counter("features").stdout)
    assert "createContainer" in features["hooks"]
    assert features["linux"]["seccomp"]["enabled"] is True
    (counter.bundle / "config.json").unlink(missing_ok=True)
    counter("spec")
    assert counter("run", "one").returncode == 0


DOCKERD = """
set -e
ip link set lo up
dockerd --data-root "$D/data" --exec-root "$D/exec" --pidfile "$D/pid" -H "unix://$D/s" \
    --iptables=false --bridge=none --add-runtime "tiffin=$D/runtime" > "$D/log" 2>&1 &
trap 'kill $(cat "$D/pid"); wait' EXIT
export DOCKER_HOST="unix://$D/s"
for _ in $(seq 150); do docker version > /dev/null 2>&1 && break; sleep 0.2; done
tar -C "$ROOTFS" -c . | docker import - busybox > /dev/null
set +e
run() { docker run --runtime tiffin --network none "$@"; }
run --rm busybox sh -c 'grep Seccomp: /proc/self/status; exit 4'; echo "code $?"
run -d --name pot busybox sleep 100 > /dev/null
docker exec pot sh -c 'echo exec; exit 3'; echo "code $?"
docker pause pot; docker unpause pot
docker update -m 96m --memory-swap 96m pot > /dev/null
docker exec pot cat /sys/fs/cgroup/memory/memory.limit_in_bytes
docker stats --no-stream --format '{{.MemUsage}}' pot | grep -o 96MiB
docker top pot | grep -o 'sleep 100'
run -d --name trap busybox \
    sh -c 'trap "exit 9" USR1; echo up; while :; do sleep 0.1; done' > /dev/null
until docker logs trap | grep -q up; do sleep 0.1; done
docker kill -s USR1 trap; docker wait trap; docker rm trap
run --rm -t busybox tty
run --rm busybox nosuch 2> /dev/null; echo "code $?"
echo in | run --rm -i -m 64m busybox cat - /sys/fs/cgroup/memory/memory.limit_in_bytes
docker rm -f pot
"""
PODMAN = """
ip link set lo up
P="podman --root $D/root --runroot $D/run --runtime $D/runtime --cgroup-manager cgroupfs"
P="$P --events-backend none --storage-driver vfs"
tar -C "$ROOTFS" -c . | $P import -q - busybox > /dev/null 2>&1
run() { $P run --network none "$@"; }
run --rm localhost/busybox sh -c 'grep Seccomp: /proc/self/status; exit 4'; echo "code $?"
run -d --name pot localhost/busybox sleep 100 > /dev/null
$P exec pot sh -c 'echo exec; exit 3'; echo "code $?"
$P pause pot; $P unpause pot
$P update -m 96m --memory-swap 96m pot > /dev/null
$P exec pot cat /sys/fs/cgroup/memory/memory.limit_in_bytes
$P stats --no-stream --format '{{.MemUsage}}' pot | grep -q '^[1-9].*B / ' && echo 96MiB
$P top pot -eo args 2> /dev/null | grep -o 'sleep 100'
run -d --name trap localhost/busybox \
    sh -c 'trap "exit 9" USR1; echo up; while :; do sleep 0.1; done' > /dev/null
until $P logs trap | grep -q up; do sleep 0.1; done
$P kill -s USR1 trap; $P wait trap; $P rm trap > /dev/null; echo trap
mkdir "$D/hooks"
echo 'cat >> "$1"' > "$D/hook"
for stage in createRuntime createContainer poststart poststop; do
    echo '{"version": "1.0.0", "hook": {"path": "/bin/sh", "args": ["sh", "'$D/hook'",
        "'$D/$stage'"]}, "when": {"always": true}, "stages": ["'$stage'"]}' > "$D/hooks/$stage.json"
done
$P --hooks-dir "$D/hooks" run --rm --network none localhost/busybox true
for stage in createRuntime createContainer poststart poststop; do
    grep -o '"status": *"[a-z]*"' "$D/$stage" | tr -d ' '
done
run --rm -t localhost/busybox tty
run --rm localhost/busybox nosuch 2> /dev/null; echo "code $?"
echo in | run --rm -i -m 64m localhost/busybox cat - /sys/fs/cgroup/memory/memory.limit_in_bytes
$P rm -f -t 0 pot
"""


@pytest.mark.peer
@pytest.mark.parametrize(("engine", "script"), [("dockerd", DOCKERD), ("podman", PODMAN)])
def test_another_engine_uses_it(
    counter: Counter, tmp_path_factory: pytest.TempPathFactory, engine: str, script: str
) -> None:
    if shutil.which(engine) is None or (engine == "dockerd" and shutil.which("docker") is None):
        pytest.skip(f"needs {engine}")
    if not os.path.isdir("/sys/fs/cgroup/memory"):
        pytest.skip("knows the files of cgroup version 1")
    # A short path: a unix socket's is at most 108 bytes long.
    place = tmp_path_factory.mktemp("e")
    runtime = place / "runtime"
    runtime.write_text(
        f'#!/bin/sh\nPYTHONPATH={SOURCE} exec {sys.executable} -m tiffin.runtime.entry "$@"\n'
    )
    runtime.chmod(0o755)
    done = subprocess.run(
        ["unshare", "-n", "-m", "bash", "-c", script],
        env={**os.environ, "D": str(place), "ROOTFS": str(counter.bundle / "rootfs")},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    lines = [line.strip() for line in done.stdout.split("\n") if line.strip()]
    pot = lines[4]
    hooked = [f'"status":"{status}"' for status in ("creating", "creating", "running", "stopped")]
    assert lines == [
        "Seccomp:\t2",
        "code 4",
        "exec",
        "code 3",
        pot,
        pot,
        str(96 << 20),
        "96MiB",
        "sleep 100",
        "trap" if engine == "dockerd" else lines[9],
        "9",
        "trap",
        *(hooked if engine == "podman" else ()),
        "/dev/pts/0",
        "code 127",
        "in",
        str(64 << 20),
        "pot" if engine == "dockerd" else lines[-1],
    ], done.stdout + done.stderr
