"""Against the real world: Debian's docker-registry, skopeo, dockerd and podman, both ways."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from command.conftest import Command
from conftest import busybox_tar, kill_keeper
from registry.conftest import Connect, MadeImage, Start, digest_of, layer_tar
from registry.faulty import FaultyProxy
from registry.test_client import htpasswd
from tiffin.image.manifest import OCI_MANIFEST
from tiffin.registry import upload
from tiffin.registry.access import Passwords, Tokens
from tiffin.registry.client import referrers_tag
from tiffin.registry.copying import Copy
from tiffin.registry.credentials import Credentials
from tiffin.registry.places import LayoutPlace, RegistryPlace
from tiffin.registry.protocol import Policy
from tiffin.registry.server import RegistryServer

pytestmark = [pytest.mark.root, pytest.mark.peer]


def need(program: str) -> None:
    """Skips where a peer is missing; fails on CI, which must have it."""
    if shutil.which(program) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{program} is not installed")
        pytest.skip(f"{program} is not installed")


def run(*words: str, code: int | None = 0, **options: Any) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, **options)
    if code is not None:
        assert done.returncode == code, f"{words}: {done.returncode} {done.stdout}{done.stderr}"
    return done.stdout


def eventually(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[str]:
    """The address of Debian's docker-registry."""
    need("docker-registry")
    port = free_port()
    settings = tmp_path / "registry.yml"
    settings.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path}/debian}},"
        " delete: {enabled: true}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", settings],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        eventually(answers)
        yield f"127.0.0.1:{port}"
    finally:
        end(process)


@pytest.fixture
def tiffin(root: Path, busybox: Path, tmp_path: Path) -> Iterator[Command]:
    """The command with an image ``shell``."""
    command = Command(root)
    command.environment["DOCKER_CONFIG"] = str(tmp_path / "docker")
    archive = tmp_path / "shell.tar"
    archive.write_bytes(busybox_tar())
    command("import", "--change", "CMD cat /etc/group", str(archive), "shell")
    yield command
    command.result("system", "shutdown", "--force")
    kill_keeper(root)


def test_debians_registry(
    tiffin: Command, debian: str, connect: Connect, server: RegistryServer
) -> None:
    client = connect(debian)
    tiffin("tag", "shell", f"{debian}/team/shell:1")
    line = tiffin("push", f"{debian}/team/shell:1").splitlines()[-1]
    digest = client.manifest("team/shell", "1").digest
    assert digest in line
    again = tiffin("push", f"{debian}/team/shell:1")
    assert "Layer already exists" in again
    tiffin("tag", "shell", f"{debian}/other:1")
    assert "Mounted from team/shell" in tiffin("push", f"{debian}/other:1")
    identity = tiffin.inspect(f"{debian}/team/shell:1")["Id"]
    tiffin("rmi", "-f", identity)
    tiffin("pull", f"{debian}/team/shell:1")
    assert tiffin.inspect(f"{debian}/team/shell:1")["Id"] == identity
    # Copies both ways, digests unchanged.
    tiffin("image", "copy", f"{debian}/team/shell:1", f"{server.address}/a:1")
    tiffin("image", "copy", f"{server.address}/a:1", f"{debian}/b:1")
    assert client.manifest("b", "1").digest == digest
    assert sorted(client.catalog()) == ["b", "other", "team/shell"]
    client.delete_manifest("b", digest)
    assert client.find_manifest("b", "1") is None


def test_referrers_at_debians_registry(debian: str, connect: Connect) -> None:
    client = connect(debian)
    image = MadeImage([layer_tar({"a": b"a"})])
    image.push(client, "app", "1")
    document = json.loads(image.manifest)
    document.update(mediaType=OCI_MANIFEST, artifactType="app/bom")
    document["subject"] = {"mediaType": "x", "digest": image.digest, "size": len(image.manifest)}
    raw = json.dumps(document).encode()
    client.put_manifest("app", digest_of(raw), raw, OCI_MANIFEST)
    (found,) = client.referrers("app", image.digest)
    assert found["digest"] == digest_of(raw)
    assert referrers_tag(image.digest) in list(client.tags("app"))


@pytest.mark.parametrize("kind", ["cut-head", "drop", "half", "500"])
def test_faults_before_debians_registry(
    debian: str, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # It gives an upload up whose connection breaks, and answers with whole URLs.
    monkeypatch.setattr(upload, "CHUNK", 100_000)
    image = MadeImage([layer_tar({"large": random.Random(1).randbytes(3_500_000)})])
    client = connect(debian)
    image.push(client, "app", "1")
    layout = LayoutPlace(tmp_path / "layout")
    Copy(RegistryPlace(client, "app"), layout).run("1", "1")
    at = 0
    while True:
        repository = f"copy{at}"
        with FaultyProxy(debian, kind, at=at) as proxy:
            Copy(layout, RegistryPlace(connect(proxy.address), repository)).run("1", "1")
            assert client.manifest(repository, "1").digest == image.digest
            if len(proxy.requests) <= at:
                break
        at += 1
    assert at >= 10


def test_skopeo(tiffin: Command, server: RegistryServer, debian: str, tmp_path: Path) -> None:
    need("skopeo")
    ours, theirs = f"docker://{server.address}", f"docker://{debian}"
    insecure = ("--src-tls-verify=false", "--dest-tls-verify=false")
    tiffin("tag", "shell", f"{server.address}/shell:1")
    tiffin("push", f"{server.address}/shell:1")
    seen = json.loads(run("skopeo", "inspect", "--tls-verify=false", f"{ours}/shell:1"))
    assert seen["RepoTags"] == ["1"]
    digest = seen["Digest"]
    # From ours to theirs, to a layout, and back: nothing changes.
    run("skopeo", "copy", "--all", *insecure, f"{ours}/shell:1", f"{theirs}/shell:1")
    run("skopeo", "copy", "--all", *insecure, f"{theirs}/shell:1", f"oci:{tmp_path}/layout:x")
    run("skopeo", "copy", "--all", *insecure, f"oci:{tmp_path}/layout:x", f"{ours}/back:1")
    back = json.loads(run("skopeo", "inspect", "--tls-verify=false", f"{ours}/back:1"))
    assert back["Digest"] == digest
    copied = tiffin("image", "copy", f"oci:{tmp_path}/layout:x", f"{server.address}/again:1")
    assert copied.splitlines()[-1] == digest
    tiffin("image", "copy", f"{server.address}/back:1", f"oci:{tmp_path}/ours:y")
    theirs_now = json.loads(run("skopeo", "inspect", f"oci:{tmp_path}/ours:y"))
    assert theirs_now["Digest"] == digest
    listed = json.loads(run("skopeo", "list-tags", "--tls-verify=false", f"{ours}/shell"))
    assert listed["Tags"] == ["1"]
    # zstd, as skopeo packs it.
    run("skopeo", "copy", "--dest-compress-format", "zstd", "--dest-compress", *insecure,
        f"oci:{tmp_path}/layout:x", f"{ours}/zstd:1")  # fmt: skip
    tiffin("pull", f"{server.address}/zstd:1")
    run("skopeo", "delete", "--tls-verify=false", f"{ours}/back:1")
    run("skopeo", "inspect", "--tls-verify=false", f"{ours}/back:1", code=1)


def test_podman(tiffin: Command, server: RegistryServer, tmp_path: Path) -> None:
    need("podman")
    podman = ("podman", "--root", f"{tmp_path}/podman", "--runroot", f"{tmp_path}/podrun",
              "--runtime", "runc", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs",
              "--events-backend", "none")  # fmt: skip
    once = ("run", "--rm", "--network", "none",
            "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")  # fmt: skip
    (tmp_path / "Dockerfile").write_text("FROM shell\nRUN echo built > /made\nCMD cat /made\n")
    tiffin("build", "-t", f"{server.address}/made:1", str(tmp_path))
    line = tiffin("push", f"{server.address}/made:1").splitlines()[-1]
    try:
        run(*podman, "pull", "--tls-verify=false", f"{server.address}/made:1")
        (seen,) = json.loads(run(*podman, "inspect", f"{server.address}/made:1"))
        assert seen["Digest"] in line
        assert seen["Id"] == tiffin.inspect(f"{server.address}/made:1")["Id"].partition(":")[2]
        assert run(*podman, *once, f"{server.address}/made:1") == "built\n"
        run(*podman, "tag", f"{server.address}/made:1", f"{server.address}/theirs:1")
        run(*podman, "push", "--tls-verify=false", f"{server.address}/theirs:1")
        pulled = tiffin("pull", f"{server.address}/theirs:1")
        assert seen["Digest"] in pulled
        ran = tiffin("run", "--rm", "--network", "none", f"{server.address}/theirs:1")
        assert ran == "built\n"
    finally:
        run(*podman, "rmi", "-af", code=None)
        run("umount", f"{tmp_path}/podman/overlay", code=None)


class Island:
    """A network of its own, with a dockerd and a registry of ours in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.host = f"unix://{folder}/d.sock"
        self.address = "127.0.0.1:5000"
        holder = self._start("unshare", "-n", "-m", "sh", "-c", "ip link set lo up; exec sleep 900")
        self.enter = ("nsenter", "-n", "-m", "-t", str(holder.pid))
        eventually(lambda: b"LOOPBACK,UP" in self._links())

    def _links(self) -> bytes:
        words = [*self.enter, "ip", "link"]
        return subprocess.run(words, capture_output=True, check=False).stdout

    def _start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        log = open(self.folder / "log", "ab")  # noqa: SIM115
        with log:
            process = subprocess.Popen(words, stdout=log, stderr=log, **options)
        self._processes.append(process)
        return process

    def start(self) -> None:
        folder = self.folder
        self._start(
            *(*self.enter, "dockerd", "--data-root", f"{folder}/data"),
            *("--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid", "-H", self.host),
            *("--iptables=false", "--ip6tables=false", "--bridge=none"),
        )
        source = str(Path(__file__).parents[2] / "src")
        self._start(
            *(*self.enter, sys.executable, "-m", "tiffin", "registry", "serve"),
            *("--listen", self.address, f"{folder}/registry"),
            env={**os.environ, "PYTHONPATH": source},
        )
        ping = ["docker", "-H", self.host, "version"]
        eventually(lambda: subprocess.run(ping, capture_output=True, check=False).returncode == 0)

    def docker(self, *words: str) -> str:
        return run("docker", "-H", self.host, *words)

    def close(self) -> None:
        for process in reversed(self._processes):
            end(process)


@pytest.fixture
def island(tmp_path: Path) -> Iterator[Island]:
    for program in ("dockerd", "docker", "nsenter", "ip"):
        need(program)
    made = Island(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_dockerd(tiffin: Command, island: Island, tmp_path: Path) -> None:
    # The daemon has to be started where the registry is.
    tiffin("system", "shutdown", "--force")
    tiffin.words = [*island.enter, *tiffin.words]
    (tmp_path / "Dockerfile").write_text("FROM shell\nRUN echo built > /made\nCMD cat /made\n")
    ours = f"{island.address}/ours:1"
    tiffin("build", "-t", ours, str(tmp_path))
    line = tiffin("push", ours).splitlines()[-1]
    assert island.docker("pull", ours).count("Pull complete") == 2
    seen = json.loads(island.docker("inspect", ours))[0]
    assert seen["RepoDigests"][0].partition("@")[2] in line
    assert seen["Id"] == tiffin.inspect(ours)["Id"]
    once = ("run", "--rm", "--network", "none")
    assert island.docker(*once, ours) == "built\n"
    # And the other way round.
    theirs = f"{island.address}/theirs:1"
    archive = tmp_path / "docker.tar"
    archive.write_bytes(busybox_tar())
    island.docker("import", "--change", "CMD echo theirs", str(archive), theirs)
    island.docker("push", theirs)
    digest = json.loads(island.docker("inspect", theirs))[0]["RepoDigests"][0].partition("@")[2]
    assert digest in tiffin("pull", theirs)
    assert tiffin(*once, theirs) == "theirs\n"
    # Docker's very image, pushed by tiffin under another name.
    other = f"{island.address}/copy:1"
    tiffin("tag", theirs, other)
    assert digest in tiffin("push", other)
    assert digest in island.docker("pull", other)


def test_dockers_command_line(
    tiffin: Command, start_registry: Start, connect: Connect, tmp_path: Path
) -> None:
    need("docker")
    passwords = Passwords(htpasswd(tmp_path))
    server = start_registry(policy=Policy(passwords, Tokens(tmp_path, passwords, "tests")))
    tiffin("version")
    environment = {**os.environ, "DOCKER_CONFIG": str(tmp_path / "docker-cli")}

    def docker(*words: str, code: int | None = 0, **options: Any) -> str:
        host = f"unix://{tiffin.root}/tiffin.sock"
        return run("docker", "-H", host, *words, code=code, env=environment, **options)

    name = f"{server.address}/shell:1"
    docker("tag", "shell", name)
    docker("push", name, code=1)
    docker("login", "-u", "user", "--password-stdin", server.address, input="secret")
    pushed = docker("push", name)
    digest = connect(server, Credentials("user", "secret")).manifest("shell", "1").digest
    assert f"1: digest: {digest} size: " in pushed
    docker("rmi", "-f", name, "shell")
    assert f"Digest: {digest}" in docker("pull", name)
    assert digest in docker("images", "--digests")
    docker("rmi", name)
    ran = docker("run", "--rm", "--network", "none", name, "echo", "pulled")
    assert ran == "pulled\n"
    docker("logout", server.address)
    docker("rmi", name)
    docker("pull", name, code=1)
