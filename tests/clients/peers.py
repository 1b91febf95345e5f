"""The engines that clients are run against: a real dockerd, and tiffin."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from conftest import busybox_tar, kill_keeper

SOURCE = Path(__file__).parents[2] / "src"
OWN_NETWORK = ("unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "-")
"""What begins a command that is to be on a machine of its own, as far as networks go."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


class Peer:
    """A running engine, and how to bring it back to its first state."""

    def __init__(self, name: str, home: Path, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.home = home
        self.socket = home / "docker.sock"
        self.process = process
        self.environment = {
            **os.environ,
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_CONFIG": str(home / "config"),
            "DOCKER_BUILDKIT": "0",
            "LC_ALL": "C",
        }
        for variable in ("DOCKER_API_VERSION", "DOCKER_CONTEXT", "DOCKER_DEFAULT_PLATFORM"):
            self.environment.pop(variable, None)

    def request(self, method: str, path: str, body: bytes | None = None) -> Any:
        """One request of the API; its JSON answer, if it has one."""
        connection = _Connection(self.socket)
        try:
            kind = "application/json" if body and body.startswith(b"{") else "application/x-tar"
            connection.request(method, path, body, {"Content-Type": kind} if body else {})
            answer = connection.getresponse()
            data = answer.read()
            assert answer.status < 400 or answer.status in (404, 409), (method, path, data)
            return (
                json.loads(data)
                if data.startswith((b"{", b"[")) and data.count(b"\n") < 2
                else None
            )
        finally:
            connection.close()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                self.request("GET", "/_ping")
                return
            except OSError:
                assert self.process.poll() is None, (self.home / "log").read_text()[-3000:]
                assert time.monotonic() < deadline, "the engine does not answer"
                time.sleep(0.05)

    def prepare(self) -> None:
        """Give it the image ``busybox``."""
        changes = quote('CMD ["sh"]')
        path = f"/images/create?fromSrc=-&repo=busybox&tag=latest&changes={changes}"
        self.request("POST", path, busybox_tar())

    def reset(self) -> None:
        """Remove everything but the image ``busybox``."""
        for container in self.request("GET", "/containers/json?all=1"):
            if container["State"] == "paused":
                self.request("POST", f"/containers/{container['Id']}/unpause")
            self.request("DELETE", f"/containers/{container['Id']}?force=1&v=1")
        images = self.request("GET", "/images/json")
        if not any("busybox:latest" in (image["RepoTags"] or []) for image in images):
            self.prepare()
            images = self.request("GET", "/images/json")
        for image in images:
            tags = [tag for tag in image["RepoTags"] or [] if tag != "<none>:<none>"]
            for name in [tag for tag in tags if tag != "busybox:latest"] or [image["Id"]]:
                if tags != ["busybox:latest"]:
                    self.request("DELETE", f"/images/{quote(name)}?force=1")
        for volume in self.request("GET", "/volumes")["Volumes"] or []:
            self.request("DELETE", f"/volumes/{volume['Name']}?force=1")
        self.request("POST", "/build/prune?all=1")
        for network in self.request("GET", "/networks"):
            if network["Name"] not in ("none", "host", "bridge"):
                self.request("DELETE", f"/networks/{network['Id']}")


def _home() -> Path:
    # A short path: the address of a unix socket has at most 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="tc-", dir="/tmp"))
    (home / "config").mkdir()
    return home


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _running(name: str, home: Path, command: Sequence[str]) -> Iterator[Peer]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        peer = Peer(name, home, process)
        peer.wait_until_ready()
        peer.prepare()
        yield peer
        peer.reset()
    finally:
        _stop(process)
        kill_keeper(home / "root")
        for namespace in (home / "exec/netns").glob("*"):
            # dockerd leaves the one of the network "host" mounted.
            subprocess.run(["umount", str(namespace)], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def dockerd(*, own_network: bool = False) -> Iterator[Peer]:
    """A real dockerd in a network namespace of its own, with the image ``busybox``.

    Without ``own_network`` it has no bridge, only the networks ``none`` and ``host``.
    """
    home = _home()
    command = [
        *(*OWN_NETWORK, "dockerd", "--data-root", str(home / "data")),
        *("--exec-root", str(home / "exec"), "--pidfile", str(home / "pid")),
        *("-H", f"unix://{home}/docker.sock", "--iptables=false"),
    ]
    with _running("dockerd", home, command + ([] if own_network else ["--bridge=none"])) as peer:
        yield peer


@contextmanager
def tiffin(*, own_network: bool = False) -> Iterator[Peer]:
    """A tiffin daemon with the image ``busybox``."""
    home = _home()
    command = [
        *(OWN_NETWORK if own_network else []),
        *(sys.executable, "-m", "tiffin", "--root", str(home / "root")),
        *("serve", "-H", f"unix://{home}/docker.sock"),
    ]
    with _running("tiffin", home, command) as peer:
        yield peer
        text = (home / "log").read_text()
        assert "Traceback" not in text, text[-3000:]
