"""Everyday commands by the same docker CLI, and a crowd of clients (issue 8)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmark.engines import Client, Engine, EngineFailure, Podman, SocketEngine
from benchmark.hollow import hollow_engine
from benchmark.measurement import Comparison, Measure, Role, Side, Target, seconds
from benchmark.stage import Stage, ratio_of, role, run_words

CONTAINER = "benchmark-everyday"
LINES = 10 * (1 << 20)
LOG = f"busybox yes {'0123456789' * 10} | busybox head -n {LINES}"
"""1 GiB and 10 MiB of output, in lines of 101 bytes."""
CLIENTS = 64
CROWD_SECONDS = 60

QUARTER = (Target(Role.DOCKER_TO_TIFFIN, ratio=1 / 4, text="≤ 1/4"),)
HALF = (Target(Role.DOCKER_TO_TIFFIN, ratio=1 / 2, text="≤ 1/2"),)
_NO_SLOWER = (Target(Role.DOCKER_TO_TIFFIN, ratio=1.0, text="≤ 1"),)


def _clients(stage: Stage) -> list[tuple[Client, Role]]:
    """The docker CLI with each engine that has an API."""
    return [
        (client, Role.DOCKER_TO_TIFFIN if client.engine.tiffin else Role.PEER)
        for client in stage.clients(same_program=True, podman=False)
    ]


def _one_comparison(title: str, unit: str, targets: tuple[Target, ...]) -> Measure:
    return Measure("time", title, unit, targets)


def _execute(engine: Engine) -> None:
    body = json.dumps({"Cmd": ["true"], "AttachStdout": True, "AttachStderr": True}).encode()
    kind = "application/json"
    made = engine.request("POST", f"/containers/{CONTAINER}/exec", body, kind)
    number = json.loads(made)["Id"]
    engine.request("POST", f"/exec/{number}/start", b'{"Detach":false,"Tty":false}', kind)


@contextmanager
def execute(stage: Stage) -> Iterator[list[Comparison]]:
    """exec of a program that does nothing in a running container: the whole command."""
    stage.ensure("busybox")
    sides = []
    clients = stage.clients()
    first = {id(client.engine): client for client in clients}.values()
    for client in first:
        words = ["run", "-d", "--name", CONTAINER, "--network", "none", *run_words(client)]
        client(*words, "busybox", "sleep", "100000")
    hollow = ExitStack()
    try:
        for client in clients:
            once = seconds(partial(client, "exec", CONTAINER, "true"))
            sides.append(Side(client.label, role(client), once))
        host = hollow.enter_context(hollow_engine(stage.folder))
        command = next(client for client in clients if client.label.startswith("docker CLI"))
        nothing = seconds(partial(command.at(host), "exec", CONTAINER, "true"))
        sides.append(Side("docker CLI alone, with no engine's work", Role.INFORMATIVE, nothing))
        fifth = "≤ 1/5"
        targets = (
            ratio_of(Role.TIFFIN, 1 / 5, fifth),
            ratio_of(Role.DOCKER_TO_TIFFIN, 1 / 5, fifth),
        )
        whole = Measure("time", "`exec` of `true`: whole command", "ms", targets)
        asked = [
            Side(
                engine.name,
                Role.API if engine.tiffin else Role.PEER,
                seconds(partial(_execute, engine)),
            )
            for engine in stage.engines
            if not isinstance(engine, Podman)
        ]
        alone = Measure(
            "time",
            "the same, API alone (create, start, to the end of its output)",
            "ms",
            (ratio_of(Role.API, 1 / 5, fifth),),
        )
        yield [Comparison((whole,), sides), Comparison((alone,), asked)]
    finally:
        hollow.close()
        for client in first:
            client("rm", "-f", CONTAINER)


@contextmanager
def logs(stage: Stage) -> Iterator[list[Comparison]]:
    """docker logs of a GiB, in lines of 101 bytes."""
    stage.ensure("busybox")
    sides = []
    clients = _clients(stage)
    try:
        for client, role in clients:
            words = ["run", "--name", CONTAINER, "--network", "none", "busybox", "sh", "-c", LOG]
            client.discard(*words)
            size = client.count("logs", CONTAINER)
            if size != LINES * 101:
                raise EngineFailure(f"{client.label} gave {size} bytes of the log")
            once = seconds(partial(client.discard, "logs", CONTAINER))
            sides.append(Side(client.label, role, once))
        title = "`docker logs` of 1 GiB (ten million lines)"
        yield [Comparison((_one_comparison(title, "s", _NO_SLOWER),), sides)]
    finally:
        for client, _ in clients:
            client("rm", "-f", CONTAINER, check=False)


@contextmanager
def copy(stage: Stage) -> Iterator[list[Comparison]]:
    """docker cp of a GiB, in and out."""
    stage.ensure("busybox")
    large = stage.materials.files() / "large"
    copied = stage.folder / "copied"
    inwards, outwards = [], []
    clients = _clients(stage)
    try:
        for client, role in clients:
            client("create", "--name", CONTAINER, "--network", "none", "busybox", "true")
            into = seconds(partial(client, "cp", str(large), f"{CONTAINER}:/large"))
            inwards.append(Side(client.label, role, into))
            out = seconds(partial(client, "cp", f"{CONTAINER}:/large", str(copied)))
            outwards.append(Side(client.label, role, out, after=copied.unlink))
        yield [
            Comparison((_one_comparison("`docker cp` of 1 GiB in", "s", _NO_SLOWER),), inwards),
            Comparison((_one_comparison("the same, out", "s", _NO_SLOWER),), outwards),
        ]
    finally:
        for client, _ in clients:
            client("rm", "-f", CONTAINER, check=False)


def _resident(engine: SocketEngine) -> int:
    """Bytes that the engine's own processes hold, containers aside."""
    total = 0
    for pid in engine.processes():
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue  # it ended while we looked
        for line in text.splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
    return total


@contextmanager
def crowd(stage: Stage) -> Iterator[list[Comparison]]:
    """64 clients that each create, start, wait and remove for a minute; time a cycle."""
    stage.ensure("busybox")
    sides = []
    for engine in stage.engines:
        if isinstance(engine, Podman) or not isinstance(engine, SocketEngine):
            continue

        def measure(engine: SocketEngine = engine) -> dict[str, float]:
            before = _resident(engine)
            half = [
                sys.executable, "-m", "benchmark.crowd", str(engine.socket),
                str(CROWD_SECONDS), str(CLIENTS),
            ]  # fmt: skip
            folder = str(Path(__file__).parents[1])
            done = subprocess.run(
                half,
                env={**os.environ, "PYTHONPATH": folder},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise EngineFailure(f"{engine.name}: {done.stderr[-1000:]}")
            cycles = int(done.stdout)
            left = engine.request("GET", "/containers/json?all=1").strip()
            if left != b"[]":
                raise EngineFailure(f"{engine.name} has containers left: {left[:300]!r}")
            return {"time": CROWD_SECONDS / cycles, "memory": _resident(engine) - before}

        role = Role.API if engine.tiffin else Role.PEER
        sides.append(Side(engine.name, role, measure))
    third = (Target(Role.API, ratio=1 / 3, text="≤ 1/3"),)
    title = f"{CLIENTS} clients create, start, wait, remove for {CROWD_SECONDS} s"
    measures = (
        Measure("time", f"{title}: time a cycle", "ms", third),
        Measure("memory", "the same: what the engine's processes hold more afterwards", "MB"),
    )
    yield [Comparison(measures, sides)]
