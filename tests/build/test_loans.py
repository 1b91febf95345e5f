"""RUN with mounts, networks and limits, in real containers."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from command.conftest import eventually
from tiffin.engine import Engine, agents
from tiffin.engine.builds import BuildOptions
from tiffin.errors import BuildFailure, InvalidParameter, NotFound
from tiffin.linux.cgroups import Hierarchy

pytestmark = pytest.mark.root


class Builds:
    """Builds of one engine and one context, and what they printed."""

    def __init__(self, engine: Engine, context: Path) -> None:
        self.engine = engine
        self.context = context
        self.messages: list[dict[str, Any]] = []

    def __call__(self, dockerfile: str, **options: Any) -> str:
        self.messages = []
        (self.context / "Dockerfile").write_text(dockerfile)
        cancelled = options.pop("cancelled", lambda: False)
        return self.engine.builds.build(
            BuildOptions(**options), self.context, self.messages.append, cancelled=cancelled
        )

    @property
    def text(self) -> str:
        return "".join(message.get("stream", "") for message in self.messages)

    def layers(self, image: str) -> list[list[str]]:
        """The paths of each layer above the base."""
        store = self.engine._layers
        chain = store.chain(self.engine.images.find(image).top)
        return [
            [os.fsdecode(entry.path) for entry in store.index(layer).entries] for layer in chain[1:]
        ]


@pytest.fixture
def build(engine: Engine, tmp_path: Path) -> Builds:
    context = tmp_path / "context"
    context.mkdir()
    return Builds(engine, context)


def test_heredocs(build: Builds) -> None:
    (build.context / "a").write_text("a\n")
    build(
        "FROM busybox\n"
        "RUN <<EOF\necho one\n  echo two > /two\nEOF\n"
        "RUN cat <<A <<'B' > /b\na\nA\n$b\nB\n"
        "RUN <<EOF\n#!/bin/sh\necho I am $0\nEOF\n"
        "RUN sh <<-EOF\n\techo by hand\n\tEOF\n"
        "ARG v=1\n"
        "COPY a <<c <<'d' /conf/\n\"$v\"\nc\n$v\nd\n"
        "COPY <<-EOF /one\n\tno tab\nEOF\n"
        "RUN cat /two /b /conf/a /conf/c /conf/d /one\n"
    )
    assert "one\n" in build.text
    assert "I am /dev/pipes/EOF\n" in build.text
    assert "by hand\n" in build.text
    assert 'two\n$b\na\n"1"\n$v\nno tab\n' in build.text


def test_a_script_is_part_of_the_key(build: Builds) -> None:
    build("FROM busybox\nRUN <<EOF\n#!/bin/sh\necho 1\nEOF\n")
    build("FROM busybox\nRUN <<EOF\n#!/bin/sh\necho 2\nEOF\n")
    assert "2\n" in build.text and "Using cache" not in build.text


def test_mounts_leave_nothing_in_the_layer(build: Builds) -> None:
    (build.context / "sub").mkdir()
    (build.context / "sub" / "file").write_text("content\n")
    (build.context / "out").write_text("ignored")
    (build.context / ".dockerignore").write_text("out\n")
    image = build(
        "FROM busybox\n"
        "RUN --mount=type=bind,target=/src/deep cat /src/deep/sub/file; ls /src/deep\n"
        "RUN --mount=source=sub/file,target=/etc/file cat /etc/file\n"
        "RUN --mount=target=/rw,rw echo x > /rw/new\n"
        "RUN --mount=type=tmpfs,target=/var/t,size=1m echo x > /var/t/x; df /var/t | tail -1\n"
        "RUN --mount=type=cache,target=/var/cache/c echo kept > /var/cache/c/x\n"
        "RUN --mount=type=cache,target=/var/cache/c cat /var/cache/c/x; echo y > /var/y\n"
    )
    assert "content\nDockerfile\nsub\n" in build.text
    assert "kept\n" in build.text
    assert "1024" in build.text
    assert build.layers(image) == [[], [], [], [], [], ["var", "var/y"]]
    assert not (build.context / "new").exists()


def test_a_bound_file_is_part_of_the_key(build: Builds) -> None:
    dockerfile = "FROM busybox\nRUN --mount=target=/src cat /src/a\n"
    (build.context / "a").write_text("1\n")
    build(dockerfile)
    build(dockerfile)
    assert "Using cache" in build.text
    (build.context / "a").write_text("2\n")
    build(dockerfile)
    assert "2\n" in build.text
    assert "Not cached: RUN /bin/sh -c cat /src/a: a changed (content)" in build.text


def test_a_bind_from_a_stage_and_an_image(build: Builds) -> None:
    image = build(
        "FROM busybox AS other\nRUN mkdir /o && echo stage > /o/f\n"
        "FROM busybox\n"
        "RUN --mount=from=other,source=/o,target=/mnt cat /mnt/f\n"
        "RUN --mount=from=busybox,source=/etc/passwd,target=/p head -1 /p\n"
        "RUN --mount=type=cache,from=other,source=/o,target=/c cat /c/f; echo more > /c/f\n"
        "RUN --mount=type=cache,target=/c cat /c/f\n"
    )
    assert "stage\n" in build.text and "root:x:0:0" in build.text and "more\n" in build.text
    assert build.layers(image) == [[], [], [], []]


def test_secrets_reach_nothing_but_the_command(build: Builds, engine: Engine, root: Path) -> None:
    word = "open-sesame-4711"
    image = build(
        "FROM busybox\n"
        "RUN --mount=type=secret,id=a,mode=440,uid=1000,gid=1000 "
        "stat -c '%a %u %g' /run/secrets/a; wc -c < /run/secrets/a > /size\n"
        "RUN --mount=type=secret,id=a,env=TOKEN,target=/root/.token "
        '[ "$TOKEN" = "$(cat /root/.token)" ] && echo same\n'
        "RUN --mount=type=secret,id=none ls /run/secrets 2>&1 || true\n",
        secrets={"a": word.encode()},
    )
    assert "440 1000 1000\n" in build.text and "same\n" in build.text
    assert build.layers(image) == [["size"], [], []]
    assert word not in build.text
    assert word.encode() not in engine.images.find(image).config.to_bytes()
    engine._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert word.encode() not in path.read_bytes(), path
    assert not list(Path("/dev/shm").glob("tiffin-build-*"))
    build((build.context / "Dockerfile").read_text(), secrets={"a": b"another"})
    assert build.text.count("Using cache") == 3


def _listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def test_an_agent_is_lent(build: Builds, tmp_path: Path) -> None:
    with _listening(tmp_path / "agent"):
        image = build(
            "FROM busybox\nRUN --mount=type=ssh,mode=666,uid=1000 echo $SSH_AUTH_SOCK; "
            "stat -c '%a %u %F' $SSH_AUTH_SOCK\n"
            "RUN --mount=type=ssh,id=b,target=/s --mount=type=ssh ls /s $SSH_AUTH_SOCK\n",
            ssh={"default": str(tmp_path / "agent"), "b": str(tmp_path / "agent")},
        )
    assert "/run/buildkit/ssh_agent.0\n666 1000 socket\n" in build.text
    assert build.layers(image) == [[], []]


def test_what_is_said_to_a_lent_socket_reaches_the_agent(tmp_path: Path) -> None:
    with _listening(tmp_path / "agent") as listener:

        def answer() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(connection.recv(100).upper())

        thread = threading.Thread(target=answer)
        thread.start()
        with agents.forwarded(str(tmp_path / "agent"), tmp_path / "lent", mode=0o600, uid=0, gid=0):
            for _ in range(2):
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(tmp_path / "lent"))
                    client.sendall(b"hello")
                    assert client.recv(100) == b"HELLO"
                    assert client.recv(100) == b""
        thread.join()
    assert not (tmp_path / "lent").exists()


def test_a_locked_cache_is_used_by_one_at_a_time(build: Builds) -> None:
    step = (
        "RUN --mount=type=cache,target=/c,sharing=locked "
        "[ ! -e /c/busy ] && touch /c/busy && sleep 0.3 && rm /c/busy # {}\n"
    )
    build(
        f"FROM busybox AS a\n{step.format(1)}FROM busybox AS b\n{step.format(2)}"
        "FROM busybox\nCOPY --from=a /etc/passwd /a\nCOPY --from=b /etc/passwd /b\n"
    )


def test_a_private_cache_is_used_by_one_only(build: Builds, engine: Engine) -> None:
    step = (
        "RUN --mount=type=cache,target=/c,sharing=private [ ! -e /c/x ] && touch /c/x && {} # {}\n"
    )
    wait = "sleep 1"
    build(
        f"FROM busybox AS a\n{step.format(wait, 1)}FROM busybox AS b\n{step.format(wait, 2)}"
        "FROM busybox\nCOPY --from=a /etc/passwd /a\nCOPY --from=b /etc/passwd /b\n"
    )
    mounts = [each for each in engine.builds.cache() if each["Type"] == "exec.cachemount"]
    assert len(mounts) == 2


def test_cache_folders_are_counted_and_pruned(build: Builds, engine: Engine, root: Path) -> None:
    build(
        "FROM busybox\nRUN --mount=type=cache,target=/c dd if=/dev/zero of=/c/z bs=1000 count=5\n"
    )
    (mount,) = [each for each in engine.builds.cache() if each["Type"] == "exec.cachemount"]
    assert mount["Size"] == 5000 and mount["Description"] == "mount / from exec /c"
    kept = engine.builds.records.prune(everything=True, filters={"type": ["regular"]})
    assert mount["ID"] not in kept["CachesDeleted"]
    pruned = engine.builds.records.prune(everything=True, filters={"type": ["exec.cachemount"]})
    assert pruned == {"CachesDeleted": [mount["ID"]], "SpaceReclaimed": 5000}
    assert not list((root / "build-cache").iterdir())


def test_network_limits_and_hosts(build: Builds) -> None:
    build(
        "FROM busybox\nRUN --network=none ip -o link | wc -l\n"
        "RUN grep extra /etc/hosts; df -k /dev/shm | tail -1; sh -c 'ulimit -n'\n"
        "RUN hostname\n",
        host={
            "ExtraHosts": ["extra:10.1.2.3"],
            "ShmSize": 1 << 20,
            "Ulimits": [{"Name": "nofile", "Soft": 77, "Hard": 77}],
        },
        build_args={"BUILDKIT_SANDBOX_HOSTNAME": "kitchen"},
    )
    assert "10.1.2.3\textra\n" in build.text
    assert " 1024 " in build.text and "77\n" in build.text
    assert "kitchen\n" in build.text


def test_insecure_must_be_allowed_and_then_is(build: Builds) -> None:
    dockerfile = "FROM busybox\nRUN --security=insecure mount -t tmpfs none /tmp && echo mounted\n"
    build(dockerfile, allow=["security.insecure"])
    assert "mounted\n" in build.text


def test_independent_stages_run_side_by_side(build: Builds) -> None:
    # Each waits for the other: side by side is the only way to the end.
    def step(mine: str, other: str) -> str:
        return (
            f"FROM busybox AS {mine}\nRUN --mount=type=cache,target=/c touch /c/{mine}; "
            f"for i in $(seq 200); do [ -e /c/{other} ] && exit 0; sleep 0.05; done; exit 1\n"
        )

    build(
        step("a", "b") + step("b", "a") + "FROM busybox\nCOPY --from=a /etc/passwd /a\n"
        "COPY --from=b /etc/passwd /b\n",
        jobs=2,
    )
    text = build.text
    assert text.index("Step 2/7") < text.index("Step 3/7"), "their lines are not mixed up"


def test_one_stage_fails_and_the_others_end(build: Builds, engine: Engine) -> None:
    started = time.monotonic()
    with pytest.raises(BuildFailure, match="non-zero code: 7"):
        build(
            "FROM busybox AS a\nRUN sleep 60\nFROM busybox AS b\nRUN sleep 0.2; exit 7\n"
            "FROM busybox\nCOPY --from=a / /\nCOPY --from=b / /\n"
        )
    assert time.monotonic() - started < 30
    assert [
        entry for entry in engine._lifecycle.keeper.list() if entry["status"] == "running"
    ] == []


def test_two_builds_make_a_step_once(engine: Engine, tmp_path: Path) -> None:
    dockerfile = "FROM busybox\nRUN --mount=type=cache,target=/c echo x >> /c/log; sleep 0.5\n"
    builds = []
    for number in range(2):
        context = tmp_path / f"c{number}"
        context.mkdir()
        builds.append(Builds(engine, context))
    threads = [threading.Thread(target=each, args=(dockerfile,)) for each in builds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("Using cache" in each.text for each in builds) == 1
    builds[0]("FROM busybox\nRUN --mount=type=cache,target=/c wc -l < /c/log\n")
    assert "\n1\n" in builds[0].text


def test_a_cancelled_build_leaves_nothing(build: Builds, engine: Engine, root: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(BuildFailure, match="Build cancelled"):
        build(
            "FROM busybox\nRUN --mount=type=secret,id=a --mount=target=/x,rw sleep 60\n",
            cancelled=stop.is_set,
            secrets={"a": b"b"},
        )
    assert [each["id"] for each in engine._lifecycle.keeper.list()] == []
    assert not list((root / "containers").iterdir())
    assert not list((root / "work").iterdir())
    assert not list(Path("/dev/shm").glob("tiffin-build-*"))


def test_a_failed_step_can_be_looked_at(build: Builds, engine: Engine) -> None:
    (build.context / "file").write_text("bound\n")
    with pytest.raises(BuildFailure, match="non-zero code: 3"):
        build(
            "FROM busybox\nENV A=1\nWORKDIR /w\n"
            "RUN --mount=target=/m --mount=type=secret,id=s echo half > done; exit 3\n",
            debug="plain",
            secrets={"s": b"hidden"},
        )
    failed = next(
        each["aux"]["Failed"] for each in build.messages if "Failed" in each.get("aux", {})
    )
    inspected = engine.containers.inspect(failed)
    assert inspected["Config"]["Cmd"] == ["/bin/sh"]
    assert "A=1" in inspected["Config"]["Env"]
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            engine.containers.attach(failed, theirs, stdin=True, stdout=True, stderr=True)
        waiter = engine.containers.wait_later(failed, "next-exit")
        engine.containers.start(failed)
        ours.sendall(b"pwd; cat done /m/file; echo A is $A; ls /run/secrets\n")
        ours.shutdown(socket.SHUT_WR)
        output = b""
        while part := ours.recv(4096):
            output += part
        waiter.result(10)
    for line in (b"/w\n", b"half\n", b"bound\n", b"A is 1\n", b"No such file"):
        assert line in output
    engine.containers.remove(failed)


def test_a_stage_is_bound_as_it_is(build: Builds, engine: Engine, root: Path) -> None:
    build(
        "FROM busybox AS made\n"
        "RUN mkdir -p /out/deep && echo one > /out/deep/f && chown 7:8 /out && "
        "echo gone > /out/gone && ln -s deep/f /out/link && echo single > /single\n"
        "RUN rm /out/gone && echo two > /out/second\n"
        "FROM busybox\n"
        "RUN --mount=from=made,source=/out,target=/m cat /m/link /m/second; ls /m; "
        "stat -c %u:%g /m; touch /m/x 2>&1 || echo read-only\n"
        "RUN --mount=from=made,source=/out,target=/m,rw echo new > /m/deep/f; rm -r /m/second; "
        "cat /m/deep/f; ls /m\n"
        "RUN --mount=from=made,source=/out,target=/m cat /m/second; cat /m/deep/f\n"
        "RUN --mount=from=made,target=/m ls /m/bin/busybox && cat /m/out/second\n"
        "RUN --mount=from=made,source=/single,target=/one cat /one\n"
        "RUN --mount=from=busybox,source=/etc,target=/other ls /other/passwd\n"
    )
    text = build.text
    assert "one\ntwo\ndeep\nlink\nsecond\n7:8\n" in text and "read-only\n" in text
    assert "new\ndeep\nlink\n" in text
    assert "two\none\n" in text, "what was written is thrown away"
    assert "/m/bin/busybox\ntwo\n" in text
    assert "single\n" in text and "/other/passwd\n" in text
    assert not list((root / "work").iterdir())
    rows = engine._layers.database.all("SELECT key FROM snapshots WHERE key LIKE 'm%'")
    assert rows == []


def test_what_is_written_to_a_bound_context_is_thrown_away(build: Builds) -> None:
    (build.context / "sub").mkdir()
    (build.context / "sub" / "f").write_text("kept\n")
    build(
        "FROM busybox\nRUN --mount=target=/m,rw echo changed > /m/sub/f; cat /m/sub/f\n"
        "RUN --mount=source=sub,target=/m cat /m/f\n"
        "RUN --mount=source=sub/f,target=/m,rw echo again > /m; cat /m\n"
    )
    assert "changed\n" in build.text and "kept\n" in build.text and "again\n" in build.text
    assert (build.context / "sub" / "f").read_text() == "kept\n"


def test_limits_are_the_kernel_s(build: Builds) -> None:
    """Seen from inside: what the cgroup says, whatever the version, and what it does."""
    build(
        "FROM busybox\n"
        "RUN cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory.max 2>/dev/null; "
        "cat cpu/cpu.cfs_quota_us cpu.max 2>/dev/null; cat cpuset/cpuset.cpus cpuset.cpus "
        "2>/dev/null; cat cpu/cpu.shares cpu.weight 2>/dev/null; df -k /dev/shm | tail -1\n",
        host={
            "Memory": 32 << 20,
            "MemorySwap": 32 << 20,
            "CpuQuota": 40_000,
            "CpuPeriod": 80_000,
            "CpusetCpus": "0",
            "CpuShares": 512,
            "ShmSize": 3 << 20,
        },
    )
    lines = build.text.splitlines()
    assert str(32 << 20) in lines
    assert "40000" in lines or "40000 80000" in lines
    assert "0" in lines and ("512" in lines or "20" in lines)
    assert " 3072 " in build.text


def test_a_command_that_takes_too_much_memory_is_killed(build: Builds) -> None:
    with pytest.raises(BuildFailure, match="non-zero code: 137"):
        build(
            "FROM busybox\nRUN exec dd if=/dev/zero of=/dev/null bs=64M count=1\n",
            host={"Memory": 16 << 20, "MemorySwap": 16 << 20},
        )


def test_a_cgroup_of_one_s_own(build: Builds) -> None:
    name = f"tiffin-test-{os.getpid()}"
    try:
        build(
            "FROM busybox\nRUN cat /proc/1/cgroup\nRUN grep NoNewPrivs: /proc/self/status\n",
            host={"CgroupParent": f"/{name}/deep", "SecurityOpt": ["no-new-privileges"]},
        )
        for directory in Hierarchy.detect().directories(f"{name}/deep"):
            assert not [each for each in os.scandir(directory) if each.is_dir()]
        assert Hierarchy.detect().directories(f"{name}/deep"), "it was made there"
    finally:
        Hierarchy.detect().delete(name)
    assert "NoNewPrivs:\t1" in build.text
    with pytest.raises(InvalidParameter, match="invalid cgroup parent"):
        build("FROM busybox\nRUN true # 2\n", host={"CgroupParent": "a/../b"})


def test_a_network_by_its_name(build: Builds, engine: Engine) -> None:
    engine.networks.create({"Name": "kitchen", "IPAM": {"Config": [{"Subnet": "10.93.7.0/24"}]}})
    try:
        build("FROM busybox\nRUN ip -4 addr\n", network_mode="kitchen")
        assert "inet 10.93.7." in build.text
        assert engine._lifecycle.keeper.list() == []
        assert engine.networks.inspect("kitchen")["Containers"] == {}
    finally:
        engine.networks.remove("kitchen")
    with pytest.raises(NotFound, match="network kitchen not found"):
        build("FROM busybox\nRUN echo gone\n", network_mode="kitchen")


def test_a_second_build_makes_the_step_when_the_first_is_cancelled(
    engine: Engine, tmp_path: Path
) -> None:
    dockerfile = (
        "FROM busybox\nRUN --mount=type=cache,target=/c echo x >> /c/log; "
        "until [ -e /c/go ]; do sleep 0.05; done\n"
    )
    builds = []
    for number in range(2):
        context = tmp_path / f"c{number}"
        context.mkdir()
        builds.append(Builds(engine, context))
    stop = threading.Event()
    ends: list[str] = []

    def first() -> None:
        with pytest.raises(BuildFailure, match="Build cancelled"):
            builds[0](dockerfile, cancelled=stop.is_set)
        ends.append("first")

    threads = [threading.Thread(target=first)]
    threads[0].start()
    (log,) = eventually(lambda: list((engine.root.path / "build-cache").glob("*/log")))
    eventually(lambda: log.read_text())
    threads.append(threading.Thread(target=lambda: builds[1](dockerfile)))
    threads[1].start()
    eventually(lambda: "Step 2/2" in builds[1].text)
    assert "Running in" not in builds[1].text, "it waits for the first one"
    stop.set()
    eventually(lambda: "Running in" in builds[1].text)
    (log.parent / "go").touch()
    for thread in threads:
        thread.join()
    assert log.read_text() == "x\nx\n" and ends == ["first"]
