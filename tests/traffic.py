"""Containers that talk, for tests: web servers, clients, and what is left on the host."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from conftest import processes
from tiffin.engine import Engine
from tiffin.network import rtnetlink
from tiffin.network.namespace import Namespace

HTTPD = "mkdir -p /w; echo {} > /w/index.html; exec httpd -f -p {} -h /w"
HOST_BRIDGE = "172.17.0.1"
OUTSIDE, HOST = "198.51.100.2", "198.51.100.1"


class Echo:
    """A server that says to whoever connects where the connection came from."""

    def __init__(self, place: Namespace | None, port: int) -> None:
        with place.visit() if place is not None else nullcontext():
            self._socket = socket.create_server(("0.0.0.0", port))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, peer = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.sendall(peer[0].encode() + b"\n")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


def clear_networks() -> None:
    """Leave nothing of earlier tests, which leave networks behind when they kill engines.

    The namespace stays the same: the library that sets rules belongs to the one it began in.
    """
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    with rtnetlink.Socket() as kernel:
        for link in kernel.links():
            made = link.kind in ("bridge", "veth", "macvlan", "ipvlan", "dummy", "vlan")
            if made and kernel.link(link.name) is not None:
                kernel.run(rtnetlink.delete_link(link.name))


def create(engine: Engine, command: str, network: str = "bridge", **options: Any) -> str:
    """A container that runs a shell command; its ID."""
    name = options.pop("name", None)
    endpoint = options.pop("endpoint", None)
    config = options.pop("config", {})
    body = {
        "Image": "busybox",
        "Cmd": ["sh", "-c", command],
        **config,
        "HostConfig": {"NetworkMode": network, **options},
    }
    if endpoint is not None:
        body["NetworkingConfig"] = {"EndpointsConfig": {network: endpoint}}
    return str(engine.containers.create(body, name)["Id"])


def start(engine: Engine, command: str, network: str = "bridge", **options: Any) -> str:
    container = create(engine, command, network, **options)
    engine.containers.start(container)
    return container


def serve(
    engine: Engine, word: str, network: str = "bridge", port: int = 80, **options: Any
) -> str:
    """A container whose web server says a word; it answers when this returns."""
    container = start(engine, HTTPD.format(word, port), network, name=word, **options)
    eventually(lambda: inside(engine, container, f"wget -q -O - http://127.0.0.1:{port}/"))
    return container


def inside(engine: Engine, container: str, command: str) -> str:
    """The output of a shell command in a running container; empty if it failed."""
    key = engine.containers.exec_create(
        container, {"Cmd": ["sh", "-c", command], "AttachStdout": True, "AttachStderr": False}
    )["Id"]
    code, output, _ = engine.containers.exec_output(key)
    return output.decode() if code == 0 else ""


def client(engine: Engine, command: str, network: str = "bridge") -> tuple[int, str]:
    """Run a shell command in a new container of a network."""
    done = engine.run("busybox", ["sh", "-c", command], network=network)
    return done.exit_code, done.stdout.decode()


def fetch(address: str, port: int, seconds: float = 5) -> str:
    """A page, from where the calling thread is."""
    connection = http.client.HTTPConnection(address, port, timeout=seconds)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode().strip()
    finally:
        connection.close()


def reaches(address: str, port: int) -> bool:
    """Whether anybody answers a connection within a moment."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(0.5)
        try:
            sock.connect((address, port))
        except OSError:
            return False
    return True


def eventually(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return result


def address(engine: Engine, container: str, network: str = "bridge", version: int = 4) -> str:
    view = engine.containers.inspect(container)["NetworkSettings"]["Networks"][network]
    return str(view["IPAddress" if version == 4 else "GlobalIPv6Address"])


def refused(engine: Engine, container: str, target: str, port: int = 80) -> bool:
    """Whether a container can't connect, silence included."""
    return not inside(engine, container, f"nc -w 1 {target} {port} </dev/null && echo yes")


def fetch_or_nothing(where: str, port: int) -> str:
    try:
        return fetch(where, port, 1)
    except (OSError, http.client.HTTPException):
        return ""


def leftovers() -> tuple[list[str], str]:
    """Interfaces (but the loopback and the tests' own), and nftables, of the host."""
    with rtnetlink.Socket() as kernel:
        names = [link.name for link in kernel.links() if link.name not in ("lo", "wire")]
    done = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
    return names, done.stdout


def porters(root: Path) -> list[int]:
    return processes(b"porter/__main__.py", os.fsencode(root))


def child_engine(root: Path, work: Callable[[Engine], None]) -> None:
    """Do something with an engine in another process, which is killed right after."""
    pid = os.fork()
    if pid == 0:
        try:
            work(Engine(root))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
