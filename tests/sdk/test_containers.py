"""Containers by the SDK, over a daemon's socket and in process alike."""

from __future__ import annotations

import io
import tarfile
import threading
import time

import pytest

import tiffin
from tiffin import types
from tiffin.errors import (
    Conflict,
    ContainerError,
    ImageNotFound,
    InvalidParameter,
    NotFound,
    StartFailure,
    TimedOut,
    Unreachable,
)

pytestmark = pytest.mark.root


def tar_of(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def test_run_gives_what_was_said(client: tiffin.Client) -> None:
    assert client.containers.run("busybox", "echo 'hello world'") == b"hello world\n"
    (left,) = client.containers.list(all=True)
    assert left.status == "exited"
    assert client.containers.run("busybox", ["sh", "-c", "echo o; echo e >&2"]) == b"o\n"
    both = client.containers.run("busybox", ["sh", "-c", "echo o; echo e >&2"], stderr=True)
    assert sorted(both.split()) == [b"e", b"o"]


def test_run_with_remove_leaves_nothing(client: tiffin.Client) -> None:
    assert client.containers.run("busybox", "echo a", remove=True) == b"a\n"
    assert client.containers.run("busybox", "echo a", auto_remove=True) == b"a\n"
    with pytest.raises(ContainerError):
        client.containers.run("busybox", "false", remove=True)
    with pytest.raises(StartFailure):
        client.containers.run("busybox", "/no/such", remove=True)
    assert client.containers.list(all=True) == []


def test_failures_have_names(client: tiffin.Client) -> None:
    with pytest.raises(ContainerError) as failed:
        client.containers.run("busybox", ["sh", "-c", "echo no >&2; exit 3"])
    assert failed.value.exit_status == 3
    assert failed.value.stderr == b"no\n"
    assert failed.value.container.status == "created"
    with pytest.raises(StartFailure) as refused:
        client.containers.run("busybox", "nosuchprogram")
    assert refused.value.exit_code == 127
    with pytest.raises(ImageNotFound):
        client.containers.create("no-such-image")
    with pytest.raises(NotFound):
        client.containers.get("nosuch")
    with pytest.raises(InvalidParameter, match="together"):
        client.containers.run("busybox", network="a", network_mode="none")
    with pytest.raises(TypeError, match="'nonsense'"):
        client.containers.run("busybox", nonsense=1)  # type: ignore[call-overload]
    container = client.containers.run("busybox", "sleep 60", detach=True)
    with pytest.raises(Conflict):
        container.remove()


def test_a_stream_comes_while_the_container_runs(client: tiffin.Client) -> None:
    with client.containers.run(
        "busybox", ["sh", "-c", "echo first; read x; echo $x; exit 2"],
        stream=True, remove=True, stdin_open=True,
    ) as output:  # fmt: skip
        assert next(output) == b"first\n"
        (container,) = client.containers.list()
        with container.attach_socket(params={"stdin": True, "stream": True}) as connection:
            connection.sendall(b"second\n")
            assert next(output) == b"second\n"
        with pytest.raises(ContainerError):
            next(output)
    assert client.containers.list(all=True) == []


def test_a_stream_that_is_left_takes_its_container_along(client: tiffin.Client) -> None:
    with client.containers.run(
        "busybox", "sh -c 'echo a; sleep 600'", stream=True, remove=True
    ) as o:
        assert next(o) == b"a\n"
    assert client.containers.list(all=True) == []


def test_detached_and_as_a_context(client: tiffin.Client) -> None:
    with client.containers.run("busybox", "sleep 600", detach=True, name="one") as container:
        assert (container.name, container.short_id) == ("one", container.id[:12])
        container.reload()
        assert container.status == "running"
        assert client.containers.get("one") == container
        assert container.image.tags == ["busybox:latest"]
        assert [each.name for each in client.containers.list(filters={"name": "one"})] == ["one"]
        (sparse,) = client.containers.list(sparse=True)
        assert (sparse.name, sparse.status) == ("one", "running")
    assert client.containers.list(all=True) == []
    gone = client.containers.run("busybox", "true", detach=True, remove=True)
    with gone:
        gone.wait(condition="removed", timeout=60)


def test_settings_arrive(client: tiffin.Client, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("host")
    (folder / "f").write_text("from the host\n")
    container = client.containers.create(
        "busybox",
        "cat /in/f /t/g",
        environment={"A": "1", "B": None, "C": "x y"},
        volumes={str(folder): {"bind": "/in", "mode": "ro"}, "vol": {"bind": "/v"}},
        mounts=[types.Mount("/t", None, type="tmpfs", tmpfs_size="1m")],
        ports={"80/tcp": 8080, 53: ("127.0.0.1", 5353), "9/udp": None, "7": [1, ("0.0.0.0", 2)]},
        labels=["seen"],
        mem_limit="64m",
        ulimits=[types.Ulimit(name="nofile", soft=10, hard=20)],
        log_config=types.LogConfig(type="json-file", config={"max-size": "1m"}),
        healthcheck={"test": "true", "interval": 10**9},
        restart_policy={"Name": "on-failure", "MaximumRetryCount": 1},
        entrypoint="env",
        hostname="box",
        user=1000,
        cap_drop=["ALL"],
        extra_hosts={"h": "1.2.3.4"},
        devices=["/dev/null:/dev/nothing"],
        sysctls={"net.ipv4.ip_forward": 1},
        tmpfs={"/tt": "size=1m"},
        init=True,
    )
    config, host = container.attrs["Config"], container.attrs["HostConfig"]
    assert {"A=1", "C=x y"} <= set(config["Env"])
    assert container.labels == {"seen": ""}
    assert config["Cmd"] == ["cat", "/in/f", "/t/g"] and config["Entrypoint"] == ["env"]
    assert config["User"] == "1000" and config["Hostname"] == "box"
    assert config["Healthcheck"]["Test"] == ["CMD-SHELL", "true"]
    assert host["Binds"] == [f"{folder}:/in:ro", "vol:/v:rw"]
    assert host["PortBindings"]["80/tcp"] == [{"HostIp": "", "HostPort": "8080"}]
    assert host["PortBindings"]["53/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": "5353"}]
    assert [each["HostPort"] for each in host["PortBindings"]["7/tcp"]] == ["1", "2"]
    assert host["Memory"] == 64 << 20
    assert host["Ulimits"] == [{"Name": "nofile", "Soft": 10, "Hard": 20}]
    assert host["LogConfig"]["Config"] == {"max-size": "1m"}
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 1}
    assert host["ExtraHosts"] == ["h:1.2.3.4"] and host["CapDrop"] == ["ALL"]
    assert host["Devices"][0]["PathInContainer"] == "/dev/nothing"
    assert host["Sysctls"] == {"net.ipv4.ip_forward": "1"} and host["Init"] is True
    assert host["Tmpfs"] == {"/tt": "size=1m"}
    assert host["Mounts"][0]["TmpfsOptions"]["SizeBytes"] == 1 << 20


def test_exec_in_every_form(client: tiffin.Client) -> None:
    with client.containers.run("busybox", "sleep 600", detach=True) as container:
        script = ["sh", "-c", "echo out; echo err >&2; exit 4"]
        code, output = container.exec_run(script)
        assert code == 4 and sorted(output.split()) == [b"err", b"out"]
        assert container.exec_run(script, demux=True) == (4, (b"out\n", b"err\n"))
        assert container.exec_run("true", demux=True) == (0, (None, None))
        code, pieces = container.exec_run(script, stream=True, demux=True)
        assert code is None and set(pieces) == {(b"out\n", None), (None, b"err\n")}
        assert b"".join(container.exec_run("echo a b", stream=True).output) == b"a b\n"
        told = container.exec_run(
            "sh -c 'echo $A; pwd; id -u'", environment={"A": "v"}, workdir="/tmp", user="1000"
        )
        assert told.output == b"v\n/tmp\n1000\n"
        assert container.exec_run("test -t 1", tty=True).exit_code == 0
        assert container.exec_run("touch /made", detach=True) == (None, b"")
        with container.exec_run("cat", stdin=True, tty=True, socket=True).output as connection:
            connection.sendall(b"typed\n\x04")
            heard = b""
            while b"typed\r\ntyped\r\n" not in heard and (part := connection.recv(100)):
                heard += part
        code, output = container.exec_run("nosuch")
        assert code == 127 and b"executable file not found" in output


def test_logs_and_attach(client: tiffin.Client) -> None:
    script = ["sh", "-c", "echo 1; echo 2 >&2; sleep 0.1; echo 3; read x; echo $x"]
    with client.containers.create("busybox", script, stdin_open=True) as container:
        attached = container.attach(stream=True, demux=True)
        container.start()
        with container.attach_socket(params={"stdin": True, "stream": True}) as connection:
            connection.sendall(b"4\n")
            said = list(attached)
        assert b"".join(out for out, _ in said if out) == b"1\n3\n4\n"
        assert (None, b"2\n") in said
        container.wait()
        assert container.logs(stderr=False) == b"1\n3\n4\n"
        assert container.logs(stdout=False) == b"2\n"
        assert container.logs(tail=1) == b"4\n"
        assert container.logs(since=time.time() + 100) == b""
        assert container.logs(timestamps=True, tail=1).endswith(b"Z 4\n")
        with container.logs(stream=True, follow=True, stderr=False) as lines:
            assert list(lines) == [b"1\n", b"3\n", b"4\n"]
    with client.containers.create("busybox", "echo x", tty=True) as terminal:
        terminal.start()
        terminal.wait()
        assert terminal.logs() == b"x\r\n"


def test_files_in_and_out(client: tiffin.Client) -> None:
    with client.containers.create("busybox") as container:
        big = b"0123456789abcdef" * (1 << 18)
        assert container.put_archive("/tmp", tar_of("big", big))
        pieces, status = container.get_archive("/tmp/big", chunk_size=100_000)
        assert (status["name"], status["size"]) == ("big", len(big))
        parts = list(pieces)
        assert max(map(len, parts)) <= 100_000
        with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as tar:
            member = tar.extractfile("big")
            assert member is not None and member.read() == big
        assert {"Path": "/tmp/big", "Kind": 1} in container.diff()
        with container.export() as whole:
            assert len(next(whole)) > 0
        with pytest.raises(NotFound):
            container.get_archive("/nosuch")
        with pytest.raises(NotFound):
            container.put_archive("/nosuch", tar_of("f", b""))


def test_the_life_of_a_container(client: tiffin.Client) -> None:
    with client.containers.run("busybox", "sleep 600", detach=True) as container:
        container.pause()
        container.reload()
        assert container.status == "paused"
        container.unpause()
        container.rename("renamed")
        assert "sleep" in container.top()["Processes"][0][-1]
        container.update(mem_limit="32m", memswap_limit="32m")
        container.reload()
        assert container.name == "renamed"
        assert container.attrs["HostConfig"]["Memory"] == 32 << 20
        with pytest.raises(TypeError, match="'hostname'"):
            container.update(hostname="x")
        container.start()  # it runs: nothing happens
        with pytest.raises(TimedOut):
            container.wait(timeout=0.05)
        container.restart(timeout=0)
        container.kill("SIGTERM")
        container.kill()
        assert container.wait()["StatusCode"] == 137
        container.stop()  # it has ended
        image = container.commit("made", "here", message="m", changes=["ENV A=b", "CMD echo $A"])
        assert image.tags == ["made:here"]
    assert client.containers.run("made:here", remove=True) == b"b\n"


def test_a_container_that_ends_may_be_committed(client: tiffin.Client) -> None:
    for _ in range(20):
        with client.containers.run("busybox", "touch /f", detach=True) as container:
            client.images.remove(container.commit().id, force=True)


def test_statistics(client: tiffin.Client) -> None:
    with client.containers.run("busybox", "sleep 600", detach=True) as container:
        assert container.stats(stream=False)["memory_stats"]["usage"] > 0
        with container.stats(decode=True) as readings:
            assert next(readings)["pids_stats"]["current"] == 1
        with container.stats() as lines:
            assert next(lines).startswith(b"{")


def test_prune(client: tiffin.Client) -> None:
    client.containers.run("busybox", "true", labels={"one": "1"})
    client.containers.run("busybox", "true")
    assert len(client.containers.prune({"label": "one"})["ContainersDeleted"]) == 1
    assert len(client.containers.list(all=True)) == 1


def test_many_threads_share_a_client(client: tiffin.Client) -> None:
    outcomes = []

    def work(number: int) -> None:
        for round_ in range(3):
            text = f"{number}.{round_}"
            command = f"echo {text}"
            got = client.containers.run("busybox", command, remove=True, network_mode="none")
            outcomes.append(got.decode().strip() == text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [True] * 24


def test_a_closed_client_says_so(sdk_roots: object, daemon_client: tiffin.Client) -> None:
    with tiffin.connect(root=f"{sdk_roots}/daemon") as other:
        assert other.ping()
    with pytest.raises(Unreachable, match="closed"):
        other.ping()
    with pytest.raises(Unreachable, match="Cannot connect"):
        tiffin.connect(f"unix://{sdk_roots}/nosuch")
