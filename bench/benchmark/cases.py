"""The cases: what people do with a container engine, each with its target.

A case is a context manager that makes ready what it needs in every engine, gives comparisons, and
removes what it made.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmark.engines import Client, Engine, EngineFailure, Podman, Tiffin
from benchmark.machine import available_memory
from benchmark.materials import SMALL_FILES, Materials
from benchmark.measurement import Comparison, Measure, Role, Side, Target, seconds

MANY = 100
LISTED = 500
BIG_ROOT = "ubuntu:18.04"
RESULT = "benchmark-result"
CONTAINER = "benchmark-container"


@dataclass(slots=True)
class Stage:
    """What cases play on."""

    folder: Path
    materials: Materials
    engines: list[Engine]

    def clients(self, *, same_program: bool = False, podman: bool = True) -> list[Client]:
        """Every way to reach an engine; ``same_program``: by the docker CLI alone."""
        found = []
        for engine in self.engines:
            if isinstance(engine, Podman) and not podman:
                continue
            for client in engine.clients:
                if not (same_program and client.label in ("tiffin",)):
                    found.append(client)
        return found

    def ensure(self, image: str) -> None:
        """Have the image in every engine."""
        tar = self.materials.busybox() if image == "busybox" else self.materials.debian()
        for engine in self.engines:
            client = engine.clients[0]
            if not client("images", "-q", image).strip():
                client("import", str(tar), image)

    def absent(self, image: str) -> None:
        """Have the image, and its layer, in no engine: else it would be found, and not made."""
        for engine in self.engines:
            engine.clients[0]("rmi", "-f", image, check=False)
            if isinstance(engine, Tiffin):
                engine.clients[0]("builder", "prune", "-a", "-f")


def role(client: Client) -> Role:
    """What a client's side is."""
    if isinstance(client.engine, Podman):
        return Role.INFORMATIVE
    if isinstance(client.engine, Tiffin):
        return Role.TIFFIN if client.label == "tiffin" else Role.DOCKER_TO_TIFFIN
    return Role.PEER


def _run_words(client: Client) -> list[str]:
    """Podman would raise limits, which not every machine lets even root do."""
    if not isinstance(client.engine, Podman):
        return []
    return ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]


Case = Callable[[Stage], AbstractContextManager[list[Comparison]]]

_THIRD, _HALF = "≤ 1/3", "≤ 1/2"


def _ratio(role: Role, ratio: float, text: str) -> Target:
    return Target(role, ratio=ratio, text=text)


@contextmanager
def run(stage: Stage) -> Iterator[list[Comparison]]:
    """run --rm of a program that does nothing: the whole command, and the library."""
    stage.ensure("busybox")
    sides = []
    for client in stage.clients():
        words = ["run", "--rm", "--network", "none", *_run_words(client), "busybox", "true"]
        sides.append(Side(client.label, role(client), seconds(partial(client, *words))))
    with ExitStack() as stack:
        from tiffin import Engine as Library

        root = stage.folder / "library"
        library = stack.enter_context(Library(root))
        stack.callback(library.shutdown_keeper)
        with stage.materials.busybox().open("rb") as tar:
            library.images.import_(tar, "busybox")
        once = seconds(lambda: library.run("busybox", ["true"], network="none"))
        sides.insert(1, Side("library", Role.LIBRARY, once))
        targets = (_ratio(Role.TIFFIN, 1 / 3, _THIRD), _ratio(Role.LIBRARY, 1 / 8, "≤ 1/8"))
        measure = Measure("time", "`run --rm --network none busybox true`", "ms", targets)
        yield [Comparison((measure,), sides)]


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
        words = ["run", "-d", "--name", CONTAINER, "--network", "none", *_run_words(client)]
        client(*words, "busybox", "sleep", "100000")
    try:
        for client in clients:
            once = seconds(partial(client, "exec", CONTAINER, "true"))
            sides.append(Side(client.label, role(client), once))
        fifth = "≤ 1/5"
        targets = (
            _ratio(Role.TIFFIN, 1 / 5, fifth),
            _ratio(Role.DOCKER_TO_TIFFIN, 1 / 5, fifth),
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
            (_ratio(Role.API, 1 / 5, fifth),),
        )
        yield [Comparison((whole,), sides), Comparison((alone,), asked)]
    finally:
        for client in first:
            client("rm", "-f", CONTAINER)


@contextmanager
def start_many(stage: Stage) -> Iterator[list[Comparison]]:
    """100 containers started one after the other by the docker CLI: time and memory each."""
    stage.ensure("busybox")
    sides = []
    for client in stage.clients(same_program=True):
        ids: list[str] = []

        def measure(client: Client = client, ids: list[str] = ids) -> dict[str, float]:
            ids.clear()
            words = ["run", "-d", "--network", "none", *_run_words(client), "busybox"]
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
            (_ratio(Role.DOCKER_TO_TIFFIN, 1 / 6, "≤ 1/6"),),
        ),
        Measure(
            "memory",
            "the same: memory each",
            "MB",
            (_ratio(Role.DOCKER_TO_TIFFIN, 1 / 4, "≤ 1/4"),),
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
                options = ["--network", "none", "-v", f"{files}:/files:ro", *_run_words(client)]
                client("run", "--name", CONTAINER, *options, "busybox", *words)

            def after(client: Client = client) -> None:
                client("rm", "-f", CONTAINER)
                client("rmi", "-f", RESULT)

            once = seconds(partial(client, "commit", CONTAINER, RESULT))
            sides.append(Side(client.label, role(client), once, before, after))
        targets = (
            _ratio(Role.TIFFIN, 1 / 3, _THIRD),
            _ratio(Role.DOCKER_TO_TIFFIN, 1 / 3, _THIRD),
        )
        yield [Comparison((Measure("time", title, "ms", targets),), sides)]

    return case


_BOTH_HALF = (_ratio(Role.TIFFIN, 1 / 2, _HALF), _ratio(Role.DOCKER_TO_TIFFIN, 1 / 2, _HALF))


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
            _ratio(Role.DOCKER_TO_TIFFIN, 1 / 2, _HALF),
        ),
    )
    alone = Measure(
        "time", "the same, `POST /build` alone", "ms", (_ratio(Role.API, 1 / 2, _HALF),)
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
            comparisons.append(
                Comparison((Measure("time", f"{title}: whole command", "ms"),), commands)
            )
        yield comparisons
    finally:
        for engine, made in ids.items():
            for identity in made:
                engine.request("DELETE", f"/containers/{identity}?force=1")


@dataclass(frozen=True, slots=True)
class Entry:
    """A case in the list: how often it is worth its time, as a share of ``--runs``."""

    case: Case
    share: float
    text: str


CASES: dict[str, Entry] = {
    "run": Entry(run, 1.0, "run --rm of a program that does nothing"),
    "exec": Entry(execute, 1.0, "exec of a program that does nothing in a running container"),
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
    "listing": Entry(listing, 1.0, "ps -a -s and system df -v with 500 containers"),
}
