"""The cases of networks: bridges, throughput, a thousand containers that talk, and their removal.

Each engine is on a machine of its own here: a network namespace with its own bridges and rules.
What comes from outside comes from a further one, on a wire with it.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmark.engines import Engine, EngineFailure, SocketEngine, UnixConnection
from benchmark.machine import available_memory
from benchmark.measurement import Comparison, Measure, Role, Side, Target, seconds
from benchmark.stage import Stage, ratio_of, role

Output = TypeVar("Output")

NETWORK = "benchmark-network"
REMOVED = 100
MANY = 1010
"""More than one bridge takes."""
BYTES = 1 << 30
ROUND_TRIPS = 10_000
PORT, TRIPS = 5201, 7000
_HOST, _OUTSIDE = "198.51.100.1", "198.51.100.2"

_ANSWER = f"""
import socket
s = socket.create_server(("0.0.0.0", {TRIPS}))
while True:
    c, _ = s.accept()
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while d := c.recv(64):
        c.sendall(d)
"""
_ASK = f"""
import socket, sys, time
s = socket.create_connection((sys.argv[1], {TRIPS}))
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for count in (500, {ROUND_TRIPS}):
    start = time.perf_counter()
    for _ in range(count):
        s.sendall(b"x")
        s.recv(64)
print((time.perf_counter() - start) / {ROUND_TRIPS})
"""


def _with_api(stage: Stage) -> list[SocketEngine]:
    return [engine for engine in stage.engines if isinstance(engine, SocketEngine)]


def _api_role(engine: Engine) -> Role:
    return Role.API if engine.tiffin else Role.PEER


def _post(engine: Engine, path: str, body: object = None) -> bytes:
    data = json.dumps({} if body is None else body).encode()
    return engine.request("POST", path, data, "application/json")


# -- run ------------------------------------------------------------------------------------


def _run_by_requests(engine: SocketEngine) -> None:
    """What ``docker run --rm busybox true`` asks for, without docker."""
    engine.request("GET", "/_ping")
    body = {
        "Image": "busybox",
        "Cmd": ["true"],
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": {"AutoRemove": True, "NetworkMode": "default"},
    }
    key = json.loads(_post(engine, "/containers/create", body))["Id"]
    with socket.socket(socket.AF_UNIX) as attached:
        attached.settimeout(60)
        attached.connect(str(engine.socket))
        attached.sendall(
            f"POST /containers/{key}/attach?stdout=1&stderr=1&stream=1 HTTP/1.1\r\nHost: docker\r\n"
            "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n".encode()
        )
        if b" 101 " not in attached.recv(4096).partition(b"\r\n")[0]:
            raise EngineFailure(f"{engine.name}: no attaching to {key}")
        waiting = UnixConnection(engine.socket)
        try:
            waiting.request("POST", f"/containers/{key}/wait?condition=removed")
            answer = waiting.getresponse()
            engine.request("POST", f"/containers/{key}/start")
            while attached.recv(4096):
                pass
            if json.loads(answer.read())["StatusCode"]:
                raise EngineFailure(f"{engine.name}: true has failed")
        finally:
            waiting.close()


@contextmanager
def run(stage: Stage) -> Iterator[list[Comparison]]:
    """run --rm on the default bridge: the whole command, and the requests that docker makes."""
    stage.ensure("busybox")
    commands = [
        Side(client.label, role(client), seconds(partial(client, "run", "--rm", "busybox", "true")))
        for client in stage.clients(podman=False)
    ]
    requests = [
        Side(engine.name, _api_role(engine), seconds(partial(_run_by_requests, engine)))
        for engine in _with_api(stage)
    ]
    title = "`run --rm busybox true`, on the default bridge"
    yield [
        Comparison(
            (
                Measure(
                    "time",
                    f"{title}: whole command",
                    "ms",
                    (ratio_of(Role.TIFFIN, 1 / 3, "≤ 1/3"),),
                ),
            ),
            commands,
        ),
        Comparison(
            (
                Measure(
                    "time",
                    "the same: the docker CLI's requests alone",
                    "ms",
                    (ratio_of(Role.API, 1 / 5, "≤ 1/5"),),
                ),
            ),
            requests,
        ),
    ]


# -- removal --------------------------------------------------------------------------------


@contextmanager
def remove(stage: Stage) -> Iterator[list[Comparison]]:
    """rm -f of 100 containers of a network, half of them with a published port."""
    stage.ensure("busybox")
    sides = []
    for client in stage.clients(same_program=True, podman=False):
        ids: list[str] = []
        networks: list[str] = []
        engine = client.engine

        def before(
            engine: Engine = engine, ids: list[str] = ids, networks: list[str] = networks
        ) -> None:
            network = f"{NETWORK}-{len(networks)}"
            networks.append(network)
            _post(engine, "/networks/create", {"Name": network})
            for number in range(REMOVED):
                host: dict[str, object] = {"NetworkMode": network}
                if number % 2:
                    host["PortBindings"] = {"80/tcp": [{}]}
                body = {"Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": host}
                ids.append(json.loads(_post(engine, "/containers/create", body))["Id"])
                engine.request("POST", f"/containers/{ids[-1]}/start")

        def measure(work: Callable[..., str] = client, ids: list[str] = ids) -> dict[str, float]:
            start = time.perf_counter()
            work("rm", "-f", *ids)
            return {"time": (time.perf_counter() - start) / REMOVED}

        def after(
            engine: Engine = engine, ids: list[str] = ids, networks: list[str] = networks
        ) -> None:
            for key in ids:
                try:
                    engine.request("DELETE", f"/containers/{key}?force=1")
                except EngineFailure:
                    continue  # as it should be: it is gone
            ids.clear()
            try:
                engine.request("DELETE", f"/networks/{networks[-1]}")
            except EngineFailure:
                # dockerd at times keeps an endpoint of one of so many that went at once.
                if engine.tiffin:
                    raise

        sides.append(Side(client.label, role(client), measure, before, after))
    title = f"`docker rm -f` of {REMOVED} containers of a network, every second with a port: each"
    targets = (ratio_of(Role.DOCKER_TO_TIFFIN, 1 / 5, "≤ 1/5"),)
    yield [Comparison((Measure("time", title, "ms", targets),), sides)]


# -- throughput -----------------------------------------------------------------------------


@contextmanager
def _outside(engine: SocketEngine) -> Iterator[list[str]]:
    """A machine on a wire with an engine's: what begins a command there."""
    process = subprocess.Popen(["unshare", "-n", "sleep", "100000"])
    try:
        _until_own_network(process.pid)
        own, theirs = str(process.pid), str(engine.pid)
        _ip("link", "add", "wire0", "netns", own, "type", "veth", "peer", "wire0", "netns", theirs)
        for pid, address in ((own, _OUTSIDE), (theirs, _HOST)):
            enter = ["nsenter", "-n", "-t", pid]
            _ip("address", "add", f"{address}/24", "dev", "wire0", enter=enter)
            _ip("link", "set", "wire0", "up", enter=enter)
        yield ["nsenter", "-n", "-t", own]
    finally:
        process.kill()
        process.wait()


def _until_own_network(pid: int) -> None:
    deadline = time.monotonic() + 30
    while os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        if time.monotonic() > deadline:
            raise EngineFailure("unshare -n did nothing")
        time.sleep(0.01)


def _ip(*words: str, enter: list[str] | None = None) -> None:
    subprocess.run([*(enter or []), "ip", *words], check=True)


def _output(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineFailure(f"{' '.join(words)[:100]}: {done.stdout}{done.stderr}"[:1000])
    return done.stdout


def _iperf(where: list[str], address: str) -> float:
    """Seconds for BYTES, from the client to the server; tried until the server listens."""
    words = [*where, "iperf3", "-c", address, "-p", str(PORT), "-n", str(BYTES), "-J"]
    report = json.loads(_retry(lambda: _output(words)))
    return BYTES * 8 / float(report["end"]["sum_received"]["bits_per_second"])


def _round_trip(where: list[str], address: str) -> float:
    words = [*where, sys.executable, "-c", _ASK, address]
    return float(_retry(lambda: _output(words)))


def _retry(work: Callable[[], Output]) -> Output:
    deadline = time.monotonic() + 60
    while True:
        try:
            return work()
        except EngineFailure:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _start(stack: ExitStack, words: list[str]) -> None:
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)


@contextmanager
def throughput(stage: Stage) -> Iterator[list[Comparison]]:
    """iperf3 and round trips between two containers of a network, and through a published port.

    The programs run in the containers' networks, and else beside each other: in the engines' own
    control groups their shares of the processors would depend on what else runs in those.
    """
    stage.ensure("busybox")
    sides = []
    with ExitStack() as stack:
        for engine in _with_api(stage):
            client = engine.clients[-1]
            client("network", "create", NETWORK)
            stack.callback(client, "network", "rm", NETWORK)
            inside = {}
            for name, publish in (
                ("server", ["-p", f"{PORT}:{PORT}", "-p", f"{TRIPS}:{TRIPS}"]),
                ("asker", []),
            ):
                options = ["--name", name, "--network", NETWORK, *publish]
                client("run", "-d", *options, "busybox", "sleep", "100000")
                stack.callback(client, "rm", "-f", name)
                pid = client("inspect", "-f", "{{.State.Pid}}", name).strip()
                inside[name] = ["nsenter", "-n", "-t", pid]
            template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
            address = client("inspect", "-f", template, "server").strip()
            _start(stack, [*inside["server"], "iperf3", "-s", "-p", str(PORT)])
            _start(stack, [*inside["server"], sys.executable, "-c", _ANSWER])
            outside = stack.enter_context(_outside(engine))

            def measure(
                neighbour: list[str] = inside["asker"],
                outside: list[str] = outside,
                address: str = address,
            ) -> dict[str, float]:
                return {
                    "between": _iperf(neighbour, address),
                    "trip": _round_trip(neighbour, address),
                    "port": _iperf(outside, _HOST),
                    "port-trip": _round_trip(outside, _HOST),
                }

            sides.append(Side(engine.name, _api_role(engine), measure))
        # A tenth of grace: the sides are the kernel's own, and differ by chance alone.
        same = (Target(Role.API, ratio=1.1, text="no worse (± 10 %)"),)
        yield [
            Comparison(
                (
                    Measure("between", "1 GiB from container to container (iperf3)", "s", same),
                    Measure("trip", "a byte there and back between them", "µs", same),
                    Measure("port", "1 GiB from outside through a published port", "s", same),
                    Measure("port-trip", "a byte there and back through it", "µs", same),
                ),
                sides,
            )
        ]


# -- a thousand -----------------------------------------------------------------------------


@contextmanager
def thousand(stage: Stage) -> Iterator[list[Comparison]]:
    """1,010 containers on one network: starts, memory, and each fetches from its neighbour."""
    stage.ensure("busybox")
    engine = next(one for one in _with_api(stage) if one.tiffin)
    ids: list[str] = []

    def before() -> None:
        _post(engine, "/networks/create", {"Name": NETWORK})

    def measure() -> dict[str, float]:
        free = available_memory()
        starts = []
        for number in range(MANY):
            page = f"echo c{number} > /tmp/index.html; exec httpd -f -h /tmp"
            body = {
                "Image": "busybox",
                "Cmd": ["sh", "-c", page],
                "HostConfig": {"NetworkMode": NETWORK},
            }
            start = time.perf_counter()
            answer = _post(engine, f"/containers/create?name=c{number}", body)
            ids.append(json.loads(answer)["Id"])
            engine.request("POST", f"/containers/{ids[-1]}/start")
            starts.append(time.perf_counter() - start)
        held = free - available_memory() - sum(map(partial(_own_memory, engine), ids))
        asked = time.perf_counter()
        for number, key in enumerate(ids):
            name = f"c{(number + 1) % MANY}"
            _fetch(engine, key, name)
        asked = time.perf_counter() - asked
        tenth, last = statistics.median(starts[5:15]), statistics.median(starts[-10:])
        removal = time.perf_counter()
        engine.clients[-1]("rm", "-f", *ids)
        removal = time.perf_counter() - removal
        ids.clear()
        return {
            "tenth": tenth,
            "last": last,
            "growth": last / tenth,
            "memory": held / MANY,
            "fetch": asked / MANY,
            "removal": removal / MANY,
        }

    def after() -> None:
        for key in ids:
            engine.request("DELETE", f"/containers/{key}?force=1")
        ids.clear()
        _retry(partial(engine.request, "DELETE", f"/networks/{NETWORK}"))

    title = f"{MANY:,} containers on one network"
    yield [
        Comparison(
            (
                Measure("tenth", f"{title}: create and start, about the tenth", "ms"),
                Measure("last", "the same, the last ten", "ms"),
                Measure(
                    "growth",
                    "the latter to the former",
                    "×",
                    (Target(Role.API, limit=1.5, text="≤ 1.5"),),
                ),
                Measure(
                    "memory",
                    "memory each, beyond their own processes",
                    "MiB",
                    (Target(Role.API, limit=0.7 * (1 << 20), text="≤ 0.7 MiB"),),
                ),
                Measure("fetch", "each resolves its neighbour and fetches a page (exec)", "ms"),
                Measure("removal", "removal of all: each", "ms"),
            ),
            [Side(engine.name, Role.API, measure, before, after)],
            warm=False,
        )
    ]


def _own_memory(engine: Engine, key: str) -> int:
    """What a container's first process holds by itself, in bytes: its pages, and their tables."""
    pid = json.loads(engine.request("GET", f"/containers/{key}/json"))["State"]["Pid"]
    process = Path(f"/proc/{pid}")
    lines = (process / "smaps_rollup").read_text() + (process / "status").read_text()
    held = dict(line.split(":", 1) for line in lines.splitlines() if ":" in line)
    return sum(int(held[name].split()[0]) * 1024 for name in ("Pss", "VmPTE"))


def _fetch(engine: Engine, key: str, name: str) -> None:
    """Fetch a page from ``name`` in a container; raises EngineFailure unless it is that one's."""
    body = {"Cmd": ["wget", "-q", "-O", "-", f"http://{name}/"], "AttachStdout": True}
    deadline = time.monotonic() + 60
    while True:
        exec_id = json.loads(_post(engine, f"/containers/{key}/exec", body))["Id"]
        got = _post(engine, f"/exec/{exec_id}/start", {"Detach": False, "Tty": False})
        if got[8:].strip() == name.encode():
            return
        if time.monotonic() > deadline:
            raise EngineFailure(f"{name} is not reached from {key[:12]}: {got!r}")
