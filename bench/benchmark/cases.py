"""The cases: what people do with a container engine, each with its target.

A case is a context manager that makes ready what it needs in every engine, gives comparisons, and
removes what it made.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmark import building, everyday, networking, registries
from benchmark.building import RESULT
from benchmark.engines import Client, Engine, EngineFailure, Podman, Tiffin
from benchmark.machine import available_memory
from benchmark.materials import SMALL_FILES
from benchmark.measurement import Comparison, Measure, Role, Side, Target, seconds
from benchmark.stage import BIG_ROOT, Case, Stage, ratio_of, role, run_words

_THIRD, _HALF = "≤ 1/3", "≤ 1/2"

MANY = 100
LISTED = 500
CONTAINER = "benchmark-container"


@contextmanager
def run(stage: Stage) -> Iterator[list[Comparison]]:
    """run --rm of a program that does nothing: the whole command, and the library."""
    stage.ensure("busybox")
    sides = []
    for client in stage.clients():
        words = ["run", "--rm", "--network", "none", *run_words(client), "busybox", "true"]
        sides.append(Side(client.label, role(client), seconds(partial(client, *words))))
    with ExitStack() as stack:
        from tiffin.engine import Engine as Library

        root = stage.folder / "library"
        library = stack.enter_context(Library(root))
        stack.callback(library.shutdown_keeper)
        with stage.materials.busybox().open("rb") as tar:
            library.images.import_(tar, "busybox")
        once = seconds(lambda: library.run("busybox", ["true"], network="none"))
        sides.insert(1, Side("library", Role.LIBRARY, once))
        targets = (
            ratio_of(Role.TIFFIN, 1 / 3, _THIRD),
            ratio_of(Role.LIBRARY, 1 / 8, "≤ 1/8"),
            *everyday.QUARTER,
        )
        measure = Measure("time", "`run --rm --network none busybox true`", "ms", targets)
        yield [Comparison((measure,), sides)]


@contextmanager
def start_many(stage: Stage) -> Iterator[list[Comparison]]:
    """100 containers started one after the other by the docker CLI: time and memory each."""
    stage.ensure("busybox")
    sides = []
    for client in stage.clients(same_program=True):
        ids: list[str] = []

        def measure(client: Client = client, ids: list[str] = ids) -> dict[str, float]:
            ids.clear()
            words = ["run", "-d", "--network", "none", *run_words(client), "busybox"]
            before = available_memory()
            start = time.perf_counter()
            for _ in range(MANY):
                ids.append(client(*words, "sleep", "600").strip())
            taken = time.perf_counter() - start
            held = before - available_memory()
            return {"time": taken / MANY, "memory": held / MANY}

        def after(client: Client = client, ids: list[str] = ids) -> None:
            client("rm", "-f", *ids)

        sides.append(Side(client.label, role(client), measure, after=after))
    title = f"{MANY} × `docker run -d --network none busybox sleep 600`"
    measures = (
        Measure(
            "time",
            f"{title}: time each",
            "ms",
            (ratio_of(Role.DOCKER_TO_TIFFIN, 1 / 6, "≤ 1/6"),),
        ),
        Measure(
            "memory",
            "the same: memory each",
            "MB",
            (ratio_of(Role.DOCKER_TO_TIFFIN, 1 / 4, "≤ 1/4"),),
        ),
    )
    yield [Comparison(measures, sides)]


def _commit(title: str, words: list[str]) -> Case:
    @contextmanager
    def case(stage: Stage) -> Iterator[list[Comparison]]:
        stage.ensure("busybox")
        files = str(stage.materials.files())
        sides = []
        for client in stage.clients():

            def before(client: Client = client) -> None:
                options = ["--network", "none", "-v", f"{files}:/files:ro", *run_words(client)]
                client("run", "--name", CONTAINER, *options, "busybox", *words)

            def after(client: Client = client) -> None:
                client("rm", "-f", CONTAINER)
                client("rmi", "-f", RESULT)

            once = seconds(partial(client, "commit", CONTAINER, RESULT))
            sides.append(Side(client.label, role(client), once, before, after))
        targets = (
            ratio_of(Role.TIFFIN, 1 / 3, _THIRD),
            ratio_of(Role.DOCKER_TO_TIFFIN, 1 / 3, _THIRD),
        )
        yield [Comparison((Measure("time", title, "ms", targets),), sides)]

    return case


_BOTH_HALF = (ratio_of(Role.TIFFIN, 1 / 2, _HALF), ratio_of(Role.DOCKER_TO_TIFFIN, 1 / 2, _HALF))


@contextmanager
def import_root(stage: Stage) -> Iterator[list[Comparison]]:
    """import of the tar of a Debian root file system."""
    stage.absent(BIG_ROOT)
    tar = str(stage.materials.debian())
    sides = []
    for client in stage.clients():
        once = seconds(partial(client, "import", tar, RESULT))
        remove = partial(client, "rmi", "-f", RESULT)
        sides.append(Side(client.label, role(client), once, after=remove))
    title = f"`import` of a Debian root of {Path(tar).stat().st_size / 1e6:.0f} MB"
    yield [Comparison((Measure("time", title, "s", _BOTH_HALF),), sides)]


@contextmanager
def save(stage: Stage) -> Iterator[list[Comparison]]:
    """save of the Debian image into a file."""
    stage.ensure(BIG_ROOT)
    target = stage.folder / "saved.tar"
    sides = []
    for client in stage.clients():
        once = seconds(partial(client, "save", "-o", str(target), BIG_ROOT))
        sides.append(Side(client.label, role(client), once, after=target.unlink))
    yield [Comparison((Measure("time", "`save` of it", "s", _BOTH_HALF),), sides)]


@contextmanager
def load(stage: Stage) -> Iterator[list[Comparison]]:
    """load of an archive with the Debian image; one archive for all engines."""
    stage.absent(BIG_ROOT)
    archive = stage.materials.archive()
    sides = []
    for client in stage.clients():
        once = seconds(partial(client, "load", "-i", str(archive)))
        remove = partial(client, "rmi", "-f", "archived:1")
        sides.append(Side(client.label, role(client), once, after=remove))
    yield [Comparison((Measure("time", "`load` of it", "s", _BOTH_HALF),), sides)]


def _forget_build(client: Client) -> None:
    """Leave nothing that a next build could find in a cache."""
    client("rmi", "-f", RESULT, check=False)
    client("image", "prune", "-f")
    if isinstance(client.engine, Tiffin):
        client.engine.clients[0]("builder", "prune", "-a", "-f")


@contextmanager
def build_warm(stage: Stage) -> Iterator[list[Comparison]]:
    """The README's Dockerfile, everything cached: whole commands, and the API's part alone."""
    stage.ensure(BIG_ROOT)
    context = str(stage.materials.application())
    tar = stage.materials.application_tar()
    sides, api = [], []
    for client in stage.clients(podman=False):
        once = seconds(partial(client, "build", "-t", RESULT, context))
        sides.append(Side(client.label, role(client), once))
    for engine in stage.engines:
        if isinstance(engine, Podman):
            continue

        def ask(engine: Engine = engine) -> None:
            answer = engine.request("POST", f"/build?t={RESULT}", tar, "application/x-tar")
            if b"errorDetail" in answer:
                raise EngineFailure(answer.decode(errors="replace"))

        kind = Role.API if engine.tiffin else Role.PEER
        api.append(Side(engine.name, kind, seconds(ask)))
    whole = Measure(
        "time",
        "`build` of the README's Dockerfile, warm: whole command",
        "ms",
        (
            Target(Role.TIFFIN, limit=0.060, text="< 60 ms"),
            ratio_of(Role.DOCKER_TO_TIFFIN, 1 / 2, _HALF),
        ),
    )
    alone = Measure(
        "time", "the same, `POST /build` alone", "ms", (ratio_of(Role.API, 1 / 2, _HALF),)
    )
    yield [Comparison((whole,), sides), Comparison((alone,), api)]
    for engine in stage.engines:
        if not isinstance(engine, Podman):
            _forget_build(engine.clients[-1])


@contextmanager
def build_cold(stage: Stage) -> Iterator[list[Comparison]]:
    """The README's Dockerfile, nothing cached."""
    stage.ensure(BIG_ROOT)
    context = str(stage.materials.application())
    sides = []
    for client in stage.clients(podman=False):

        def forget(client: Client = client) -> None:
            _forget_build(client.engine.clients[-1])

        once = seconds(partial(client, "build", "-t", RESULT, context))
        sides.append(Side(client.label, role(client), once, forget, forget))
    title = "the same, cold"
    yield [Comparison((Measure("time", title, "ms", _BOTH_HALF),), sides)]


_WRITE = "for i in 1 2 3 4 5 6 7 8 9; do dd if=/dev/zero of=/file$i bs=10k count=1; done"


@contextmanager
def listing(stage: Stage) -> Iterator[list[Comparison]]:
    """ps -a -s and system df -v with 500 containers: the API's answer, and the whole command."""
    stage.ensure("busybox")
    ids: dict[Engine, list[str]] = {}
    engines = [engine for engine in stage.engines if not isinstance(engine, Podman)]
    try:
        for engine in engines:
            ids[engine] = []
            body = {"Image": "busybox", "Cmd": ["sh", "-c", _WRITE]}
            body["HostConfig"] = {"NetworkMode": "none"}  # type: ignore[assignment]
            data = json.dumps(body).encode()
            for number in range(LISTED):
                answer = engine.request("POST", "/containers/create", data, "application/json")
                ids[engine].append(json.loads(answer)["Id"])
                if number % 10 == 0:
                    engine.request("POST", f"/containers/{ids[engine][-1]}/start")
            for started in ids[engine][::10]:
                engine.request("POST", f"/containers/{started}/wait")
        comparisons = []
        for title, words, path in (
            ("`ps -a -s`", ["ps", "-a", "-s"], "/containers/json?all=1&size=1"),
            ("`system df -v`", ["system", "df", "-v"], "/system/df"),
        ):
            answers = [
                Side(
                    engine.name,
                    Role.API if engine.tiffin else Role.PEER,
                    seconds(partial(engine.request, "GET", path)),
                )
                for engine in engines
            ]
            limit = (Target(Role.API, limit=0.1, text="≪ 100 ms"),)
            title = f"{title} with {LISTED} containers"
            comparisons.append(
                Comparison((Measure("time", f"{title}: the API's answer", "ms", limit),), answers)
            )
            commands = [
                Side(
                    client.label,
                    role(client),
                    seconds(partial(client, *words)),
                )
                for client in stage.clients(podman=False)
            ]
            # Issue 8 asks it of the list of containers.
            targets = everyday.HALF if words[0] == "ps" else ()
            whole = Measure("time", f"{title}: whole command", "ms", targets)
            comparisons.append(Comparison((whole,), commands))
        yield comparisons
    finally:
        for engine, made in ids.items():
            for identity in made:
                engine.request("DELETE", f"/containers/{identity}?force=1")


def _resident(pids: list[int]) -> int:
    """Bytes of memory that processes have taken for themselves, all together."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:
            continue
        total += sum(
            int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("RssAnon:")
        )
    return total


@contextmanager
def stdout(stage: Stage) -> Iterator[list[Comparison]]:
    """A container that writes 1 GiB of lines to its stdout: until it has ended, with json-file."""
    stage.ensure("busybox")
    lines = stage.materials.lines()
    sides = []
    for client in stage.clients(same_program=True, podman=False):

        def before(client: Client = client) -> None:
            options = ["--network", "none", "--log-driver", "json-file", "-v", f"{lines}:/lines:ro"]
            client("create", "--name", CONTAINER, *options, "busybox", "cat", "/lines")

        def measure(client: Client = client) -> dict[str, float]:
            held = _resident(client.engine.processes())
            start = time.perf_counter()
            client("start", CONTAINER)
            code = client("wait", CONTAINER).strip()
            taken = time.perf_counter() - start
            if code != "0":
                raise EngineFailure(f"{client.label}: the container ended with {code}")
            return {"time": taken, "memory": _resident(client.engine.processes()) - held}

        def after(client: Client = client) -> None:
            client("rm", "-f", CONTAINER)

        sides.append(Side(client.label, role(client), measure, before, after))
    title = "1 GiB of lines of 100 bytes to stdout, with json-file"
    measures = (
        Measure("time", title, "s", (ratio_of(Role.DOCKER_TO_TIFFIN, 1 / 2, _HALF),)),
        Measure(
            "memory",
            "the same: what the engine's processes hold more afterwards",
            "MB",
            (Target(Role.DOCKER_TO_TIFFIN, limit=4e6, text="≤ 4 MB"),),
        ),
    )
    yield [Comparison(measures, sides)]


@dataclass(frozen=True, slots=True)
class Entry:
    """A case in the list: how often it is worth its time, as a share of ``--runs``."""

    case: Case
    share: float
    text: str


CASES: dict[str, Entry] = {
    "run": Entry(run, 1.0, "run --rm of a program that does nothing"),
    "exec": Entry(everyday.execute, 1.0, "exec of a program that does nothing"),
    "start-100": Entry(start_many, 0.3, "100 × docker run -d: time and memory each"),
    "commit-large": Entry(
        _commit(
            "`commit` of a stopped container with a 1 GiB file",
            ["cp", "/files/large", "/large"],
        ),
        0.5,
        "commit of a container with a 1 GiB file",
    ),
    "commit-small": Entry(
        _commit(
            f"`commit` of one with {SMALL_FILES:,} small files",
            ["sh", "-c", "mkdir /small && tar -x -f /files/small.tar -C /small"],
        ),
        0.5,
        "commit of a container with 20,000 small files",
    ),
    "import": Entry(import_root, 0.5, "import of a Debian root file system"),
    "save": Entry(save, 0.5, "save of its image"),
    "load": Entry(load, 0.5, "load of its archive"),
    "build-warm": Entry(build_warm, 1.0, "build of a four-line Dockerfile, all cached"),
    "build-cold": Entry(build_cold, 0.5, "the same, nothing cached"),
    "build-warm-12": Entry(
        building.steps, 1.0, "build of a Dockerfile of twelve steps, all cached, beside BuildKit"
    ),
    "build-touch-one": Entry(
        building.touch_one, 0.5, "build after one of 20,000 files has changed, beside BuildKit"
    ),
    "build-two-stages": Entry(
        building.two_stages,
        0.5,
        "build of two stages that can run side by side, cold, beside BuildKit",
    ),
    "build-copy-many": Entry(
        building.copy_many, 0.5, "build that copies 20,000 small files, cold, beside BuildKit"
    ),
    "build-copy-large": Entry(
        building.copy_large, 0.3, "build that copies one file of 1 GiB, cold, beside BuildKit"
    ),
    "stdout": Entry(stdout, 0.3, "1 GiB to stdout with json-file: time, and memory afterwards"),
    "run-bridge": Entry(networking.run, 1.0, "the same on the default bridge, and its requests"),
    "network-remove": Entry(networking.remove, 0.3, "rm -f of 100 containers on a network"),
    "throughput": Entry(networking.throughput, 0.5, "iperf3 and round trips, also by a port"),
    "network-1000": Entry(networking.thousand, 0.1, "1,010 containers that fetch from neighbours"),
    "push": Entry(registries.push, 0.5, "push of the Debian image to an empty docker-registry"),
    "pull": Entry(registries.pull, 0.5, "pull of it, in one layer"),
    "pull-eight": Entry(registries.pull_eight, 0.5, "pull of the same in eight layers, beside one"),
    "image-copy": Entry(registries.copy, 0.5, "image copy to an OCI layout, beside skopeo"),
    "pull-large": Entry(registries.pull_large, 0.1, "pull of a layer of 4 GiB: time and memory"),
    "disk": Entry(registries.disk, 0.1, "what pulled images take on the disk"),
    "logs": Entry(everyday.logs, 0.3, "docker logs of 1 GiB"),
    "cp": Entry(everyday.copy, 0.5, "docker cp of 1 GiB, in and out"),
    "crowd": Entry(everyday.crowd, 0.1, "64 clients for a minute"),
    "listing": Entry(listing, 1.0, "ps -a -s and system df -v with 500 containers"),
}
