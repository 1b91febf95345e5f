"""The cases of registries (issue 7): push, pull, copies, memory and disk.

The registry is Debian's docker-registry, on the loopback of each engine: one process in each
engine's network namespace, all for one folder where images are pulled, each with a folder of its
own, emptied before each round, where they are pushed.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from benchmark import packed
from benchmark.engines import Client, Engine, EngineFailure, Podman, SocketEngine, Tiffin
from benchmark.measurement import Comparison, Measure, Role, Side, Target, seconds
from benchmark.stage import BIG_ROOT, Stage, ratio_of, role, with_cpu

_PATIENCE = 30.0
_REPOSITORY = "debian"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_SETTINGS = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}, maxthreads: 100}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
_CPU = Measure("cpu", "the same: CPU time of client and daemon", "s")
_NEEDS_TLS = ("--tls-verify=false",)


class DockerRegistry:
    """A docker-registry on the loopback of an engine (None: of this process). A context manager."""

    def __init__(self, folder: Path, engine: Engine | None) -> None:
        """``folder`` holds its images, and may be shared."""
        self.folder = folder
        self._engine = engine if isinstance(engine, SocketEngine) else None
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"127.0.0.1:{_free_port()}"

    def __enter__(self) -> DockerRegistry:
        program = shutil.which("docker-registry")
        if program is None:
            raise EngineFailure("docker-registry is not installed")
        self.folder.mkdir(parents=True, exist_ok=True)
        port = self.address.rpartition(":")[2]
        settings = self.folder.with_name(f"{self.folder.name}-{port}.yml")
        settings.write_text(_SETTINGS.format(folder=self.folder, port=port))
        words = [program, "serve", str(settings)]
        probe: list[str] = []
        if self._engine is not None:
            probe = ["nsenter", "-n", "-t", str(self._engine.pid)]
        self._process = subprocess.Popen(
            [*probe, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + _PATIENCE
        test = [*probe, "bash", "-c", f": < /dev/tcp/127.0.0.1/{port}"]
        while subprocess.run(test, stderr=subprocess.DEVNULL, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise EngineFailure("docker-registry did not start")
            time.sleep(0.05)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def empty(self) -> None:
        """Forget all images."""
        for entry in os.listdir(self.folder):
            shutil.rmtree(self.folder / entry)

    def put(self, layout: Path, tag: str) -> None:
        """Store a layout's image; for a registry of this process's own loopback."""
        blobs, manifest = packed.blobs_of(layout)
        connection = http.client.HTTPConnection(self.address, timeout=600)
        for digest, path in blobs.items():
            answer = _ask(connection, "POST", f"/v2/{_REPOSITORY}/blobs/uploads/")
            place = urlsplit(urljoin(f"http://{self.address}/", answer.headers["Location"]))
            target = f"{place.path}?{place.query}&digest={digest}"
            with path.open("rb") as blob:
                headers = {"Content-Length": str(path.stat().st_size)}
                headers["Content-Type"] = "application/octet-stream"
                connection.request("PUT", target, blob, headers)
                _expect(connection.getresponse(), 201)
        headers = {"Content-Type": _MANIFEST}
        connection.request("PUT", f"/v2/{_REPOSITORY}/manifests/{tag}", manifest, headers)
        _expect(connection.getresponse(), 201)
        connection.close()


def _ask(
    connection: http.client.HTTPConnection, method: str, path: str
) -> http.client.HTTPResponse:
    connection.request(method, path, headers={"Content-Length": "0"})
    return _expect(connection.getresponse(), 202)


def _expect(answer: http.client.HTTPResponse, status: int) -> http.client.HTTPResponse:
    body = answer.read()
    if answer.status != status:
        raise EngineFailure(f"docker-registry answers {answer.status}: {body[:300]!r}")
    return answer


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _serving(stage: Stage, layouts: dict[str, Path]) -> Iterator[dict[Engine, DockerRegistry]]:
    """Registries on every engine's loopback, with images by tag in one folder for all."""
    folder = stage.folder / "registry"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        own = stack.enter_context(DockerRegistry(folder, None))
        for tag, layout in layouts.items():
            own.put(layout, tag)
        found: dict[Engine, DockerRegistry] = {}
        for engine in stage.engines:
            if isinstance(engine, SocketEngine):
                found[engine] = stack.enter_context(DockerRegistry(folder, engine))
            else:
                found[engine] = own
        yield found


def _insecurely(client: Client) -> tuple[str, ...]:
    return _NEEDS_TLS if isinstance(client.engine, Podman) else ()


def _peer(client: Client) -> Role:
    """Podman is a peer here."""
    return Role.PEER if isinstance(client.engine, Podman) else role(client)


@contextmanager
def push(stage: Stage) -> Iterator[list[Comparison]]:
    """push of the Debian image into an empty registry."""
    stage.ensure(BIG_ROOT)
    with ExitStack() as stack:
        registries = {}
        for number, engine in enumerate(stage.engines):
            folder = stage.folder / f"pushed{number}"
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            registries[engine] = stack.enter_context(DockerRegistry(folder, engine))
        sides = []
        for client in stage.clients():
            registry = registries[client.engine]
            name = f"{registry.address}/{_REPOSITORY}:1"
            client("tag", BIG_ROOT, name)
            once = with_cpu(client, "push", *_insecurely(client), name)
            sides.append(Side(client.label, role(client), once, before=registry.empty))
        sixth = "≤ 1/6"
        targets = (
            ratio_of(Role.TIFFIN, 1 / 6, sixth),
            ratio_of(Role.DOCKER_TO_TIFFIN, 1 / 6, sixth),
        )
        size = stage.materials.debian().stat().st_size / 1e6
        title = f"`push` of a Debian image of {size:.0f} MB to an empty docker-registry"
        yield [Comparison((Measure("time", title, "s", targets), _CPU), sides)]
    stage.absent(BIG_ROOT)


@contextmanager
def pull(stage: Stage) -> Iterator[list[Comparison]]:
    """pull of the Debian image, in one layer."""
    stage.absent(BIG_ROOT)
    with _serving(stage, {"1": stage.materials.packed(1)}) as registries:
        sides = []
        for client in stage.clients():
            name = f"{registries[client.engine].address}/{_REPOSITORY}:1"
            once = with_cpu(client, "pull", *_insecurely(client), name)
            remove = partial(client, "rmi", "-f", name)
            sides.append(Side(client.label, _peer(client), once, after=remove))
        third = "≤ 1/3"
        targets = (
            ratio_of(Role.TIFFIN, 1 / 3, third),
            ratio_of(Role.DOCKER_TO_TIFFIN, 1 / 3, third),
        )
        yield [Comparison((Measure("time", "`pull` of it, one layer", "s", targets), _CPU), sides)]


@contextmanager
def pull_eight(stage: Stage) -> Iterator[list[Comparison]]:
    """pull of the same bytes in eight layers, beside one."""
    stage.absent(BIG_ROOT)
    engine = stage.engines[0]
    layouts = {str(count): stage.materials.packed(count) for count in (1, 8)}
    with _serving(stage, layouts) as registries:
        client = engine.clients[0]
        sides = []
        for count in (8, 1):
            name = f"{registries[engine].address}/{_REPOSITORY}:{count}"
            once = seconds(partial(client, "pull", name))
            remove = partial(client, "rmi", "-f", name)
            kind = Role.TIFFIN if count == 8 else Role.PEER
            label = "tiffin" if count == 8 else "tiffin, one layer"
            sides.append(Side(label, kind, once, after=remove))
        target = (ratio_of(Role.TIFFIN, 0.8, "≤ 0.8"),)
        title = "`pull` of the same bytes in eight layers"
        yield [Comparison((Measure("time", title, "s", target),), sides)]


@contextmanager
def copy(stage: Stage) -> Iterator[list[Comparison]]:
    """image copy from a registry to an OCI layout, beside skopeo copy."""
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        raise EngineFailure("skopeo is not installed")
    engine = stage.engines[0]
    layouts = {str(count): stage.materials.packed(count) for count in (1, 8)}
    target = stage.folder / "layout"
    tool = Client("skopeo", [skopeo], Engine("skopeo", stage.folder), {})
    # The command itself copies, without a daemon: from this process's loopback.
    with (
        _serving(stage, layouts) as registries,
        DockerRegistry(registries[engine].folder, None) as own,
    ):
        comparisons = []
        for tag, text in (("1", "one layer"), ("8", "eight layers")):
            name = f"{own.address}/{_REPOSITORY}:{tag}"
            words = ("copy", "--src-tls-verify=false", f"docker://{name}", f"oci:{target}:1")
            ours = partial(engine.clients[0], "image", "copy", name, f"oci:{target}:1")
            remove = partial(shutil.rmtree, target)
            sides = [
                Side("tiffin", Role.TIFFIN, seconds(ours), after=remove),
                Side("skopeo", Role.PEER, seconds(partial(tool, *words)), after=remove),
            ]
            title = f"`image copy` of it, {text}, from docker-registry to an OCI layout"
            no_slower = (ratio_of(Role.TIFFIN, 1.0, "≤ 1"),)
            comparisons.append(Comparison((Measure("time", title, "s", no_slower),), sides))
        yield comparisons


@contextmanager
def pull_large(stage: Stage) -> Iterator[list[Comparison]]:
    """pull of a layer of 4 GiB: time, and the most memory that the daemon's processes have."""
    with _serving(stage, {"1": stage.materials.packed_large()}) as registries:
        sides = []
        for client in stage.clients(same_program=True, podman=False):
            name = f"{registries[client.engine].address}/{_REPOSITORY}:1"

            def measure(client: Client = client, name: str = name) -> dict[str, float]:
                for pid in client.engine.processes():
                    # The high-water mark begins anew.
                    Path(f"/proc/{pid}/clear_refs").write_text("5\n")
                start = time.perf_counter()
                client("pull", name)
                taken = time.perf_counter() - start
                peak = sum(map(_high_water, client.engine.processes()))
                return {"time": taken, "memory": peak}

            remove = partial(client, "rmi", "-f", name)
            sides.append(Side(client.label, role(client), measure, after=remove))
        limit = Target(Role.DOCKER_TO_TIFFIN, limit=200 << 20, text="< 200 MiB")
        title = "`docker pull` of a layer of 4 GiB, packed to an eighth"
        measures = (
            Measure("time", title, "s"),
            Measure("memory", "the same: the most memory of the daemon", "MiB", (limit,)),
        )
        yield [Comparison(measures, sides, warm=False)]


def _high_water(pid: int) -> int:
    """The most bytes that a process has had resident."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0  # it ended while we looked
    return sum(
        int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("VmHWM:")
    )


@contextmanager
def disk(stage: Stage) -> Iterator[list[Comparison]]:
    """What images take on the disk, once pulled."""
    stage.absent(BIG_ROOT)
    layouts = {str(count): stage.materials.packed(count) for count in (1, 8)}
    with _serving(stage, layouts) as registries:
        sides = []
        for client in stage.clients(same_program=True, podman=False):
            names = [
                f"{registries[client.engine].address}/{name}"
                for name in (f"{_REPOSITORY}:1", f"{_REPOSITORY}:8")
            ]
            whole = client.engine.folder / "data"
            contents = whole / "overlay2"
            if isinstance(client.engine, Tiffin):
                whole = client.engine.root
                contents = whole / "storage" / "overlay2"
            folders = {"contents": contents, "whole": whole}

            def measure(
                client: Client = client,
                names: list[str] = names,
                folders: dict[str, Path] = folders,
            ) -> dict[str, float]:
                before = {key: _used(folder) for key, folder in folders.items()}
                for name in names:
                    client("pull", name)
                return {key: _used(folder) - before[key] for key, folder in folders.items()}

            remove = partial(client, "rmi", "-f", *names)
            sides.append(Side(client.label, role(client), measure, after=remove))
        target = (ratio_of(Role.DOCKER_TO_TIFFIN, 1.0, "≤ 1"),)
        measures = (
            Measure("contents", "disk of both images, pulled: the overlay2 folder", "MB", target),
            Measure("whole", "the same: all that the engine keeps", "MB", target),
        )
        yield [Comparison(measures, sides, warm=False)]


def _used(folder: Path) -> int:
    """Bytes that a folder takes on the disk."""
    os.sync()
    words = ["du", "-s", "-x", "--block-size=1", str(folder)]
    return int(subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()[0])
