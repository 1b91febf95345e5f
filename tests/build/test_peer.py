"""The same Dockerfiles, built by tiffin and by a real dockerd's two builders, compared."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from build.dockerfiles import CASES, FILES, Case
from conftest import busybox_tar, kill_keeper
from tiffin.build.dockerignore import read_patterns
from tiffin.client.sources import folder_tar
from tiffin.engine import Engine
from tiffin.engine.builds import BuildOptions

pytestmark = [pytest.mark.peer, pytest.mark.root]

MOMENT = 1_500_000_000

CONTAINERS_OWN = (".dockerenv", "dev", "proc", "sys")
"""What `docker export` has of the container, and not of the image."""
CONTAINERS_FILES = ("etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab")

_SCRATCH = {"WorkingDir": "the classic builder has none on scratch, BuildKit has /"}
_ROOTS = "the classic builder makes directories as root, BuildKit and tiffin as the image's user"
_PLACES = "BuildKit of 20.10 leaves the places of mounts in the layer; later ones take them out too"

DIFFERENCES: dict[tuple[str, str], dict[str, str]] = {
    ("from", "buildkit"): {"Env": "BuildKit adds PATH also where nothing is built on the base"},
    ("run-mount-cache", "buildkit"): {"var/c": _PLACES},
    ("run-mount-bind", "buildkit"): {"mnt": _PLACES, "mnt/in": _PLACES},
    ("run-mount-tmpfs", "buildkit"): {"scratch": _PLACES},
    ("substitution", "classic"): {"w": _ROOTS, "w/dir": _ROOTS},
    ("user-workdir", "classic"): {"home/w": _ROOTS, "home/w/x": _ROOTS},
    ("volume-write", "classic"): {"v/b": "the classic builder drops what is written to a volume"},
    ("add-chown", "classic"): {"t": "the classic builder has --chown for files alone"},
    ("copy-link", "buildkit"): {
        "x": "with dockerd's own image store --link is passed over; else the new directory counts"
    },
    ("scratch", "classic"): _SCRATCH,
    ("scratch-from-stage", "classic"): _SCRATCH,
    ("real-c-multi-stage", "classic"): _SCRATCH,
    ("real-go-like", "classic"): _SCRATCH,
}
"""(case, builder) to paths, or fields of the configuration, that differ, and why."""

CONFIGURATION = (
    "Cmd",
    "Entrypoint",
    "Env",
    "ExposedPorts",
    "Healthcheck",
    "Labels",
    "OnBuild",
    "Shell",
    "StopSignal",
    "User",
    "Volumes",
    "WorkingDir",
)

Listing = dict[str, tuple[Any, ...]]


class Docker:
    """A dockerd in a network namespace of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.version: tuple[int, ...] = ()
        self.environment = {
            **os.environ,
            "DOCKER_HOST": f"unix://{home}/docker.sock",
            "DOCKER_CONFIG": str(home / "config"),
            "LC_ALL": "C",
        }

    def run(self, *words: str, stdin: bytes | None = None) -> bytes:
        done = subprocess.run(
            ["docker", *words],
            env={**self.environment, "DOCKER_BUILDKIT": "0"},
            input=stdin,
            capture_output=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"{words}: {done.stderr.decode()[-2000:]}"
        return done.stdout

    def buildkit(self, case: Case, context: Path) -> None:
        """By the API, with the context in the request: the command has no BuildKit without a
        plugin. No ``.dockerignore`` counts for such a context, so what it names is not sent."""
        ignored = read_patterns((context / ".dockerignore").read_bytes())
        tar = gzip.compress(b"".join(folder_tar(str(context), ignored)), 1)
        query = {
            "version": "2",
            "t": "it",
            "networkmode": "host",
            "buildargs": json.dumps(case.args),
            "target": case.target,
        }
        done = subprocess.run(
            [
                *("curl", "-s", "--unix-socket", str(self.home / "docker.sock")),
                *("-X", "POST", "-H", "Content-Type: application/x-tar", "--data-binary", "@-"),
                f"http://docker/v1.41/build?{urllib.parse.urlencode(query)}",
            ],
            input=tar,
            capture_output=True,
            check=True,
            timeout=120,
        )
        for line in done.stdout.splitlines():
            message = json.loads(line)
            assert "error" not in message and "message" not in message, message

    def build(self, case: Case, context: Path, builder: str) -> tuple[dict[str, Any], Listing]:
        if builder == "buildkit":
            self.buildkit(case, context)
        else:
            words = ["build", "--network=host", "-t", "it"]
            for name, value in case.args.items():
                words += ["--build-arg", f"{name}={value}"]
            if case.target:
                words += ["--target", case.target]
            self.run(*words, str(context))
        config = json.loads(self.run("inspect", "it"))[0]["Config"]
        container = self.run("create", "it", "nothing").decode().strip()
        try:
            return config, listing(self.run("export", container))
        finally:
            self.run("rm", "-v", container)


def listing(archive: bytes) -> Listing:
    """Path to type, mode, owner, content or target, for each file of an exported tree."""
    found: Listing = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for entry in tar:
            name = entry.name.strip("./") if entry.name in (".", "./") else entry.name.rstrip("/")
            if not name or name.split("/")[0] in CONTAINERS_OWN or name in CONTAINERS_FILES:
                continue
            content: Any = entry.linkname if entry.issym() else ""
            kind = entry.type
            if entry.isreg() or entry.islnk():
                file = tar.extractfile(entry)
                assert file is not None
                content = hashlib.sha256(file.read()).hexdigest()
                kind = tarfile.REGTYPE
            elif entry.ischr() or entry.isblk():
                content = (entry.devmajor, entry.devminor)
            mode = 0o777 if entry.issym() else entry.mode & 0o7777
            found[name] = (kind, oct(mode), entry.uid, entry.gid, content)
    if not any(name.startswith("etc/") for name in found):
        found.pop("etc", None)  # made for the container's own files
    return found


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    for program in ("dockerd", "docker", "unshare", "busybox"):
        if shutil.which(program) is None:
            assert os.environ.get("CI") != "true", f"{program} is not installed"
            pytest.skip(f"{program} is not installed")
    # A short path: the address of a unix socket has at most 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="tb-", dir="/tmp"))
    (home / "config").mkdir()
    command = [
        *("unshare", "-n", "dockerd", "--data-root", str(home / "data")),
        *("--exec-root", str(home / "exec"), "--pidfile", str(home / "pid")),
        *("-H", f"unix://{home}/docker.sock", "--bridge=none", "--iptables=false"),
    ]
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    peer = Docker(home)
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(
            ["docker", "version"], env=peer.environment, capture_output=True, check=False
        ).returncode:
            assert process.poll() is None, (home / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, "dockerd does not answer"
            time.sleep(0.1)
        shown = peer.run("version", "--format", "{{.Server.Version}}").decode()
        peer.version = tuple(int(part) for part in re.findall(r"\d+", shown)[:2])
        peer.run("import", "-c", 'CMD ["sh"]', "-", "busybox", stdin=busybox_tar())
        yield peer
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    root = tmp_path_factory.mktemp("peer") / "root"
    try:
        with Engine(root) as engine:
            engine.images.import_(io.BytesIO(busybox_tar()), "busybox", changes=['CMD ["sh"]'])
            yield engine
            engine.shutdown_keeper()
    finally:
        kill_keeper(root)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The context, without a Dockerfile."""
    folder = tmp_path_factory.mktemp("context")
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif content.startswith("->"):
            path.symlink_to(content[2:])
        else:
            path.write_text(content)
            path.chmod(0o755 if content.startswith("#!") else 0o644)
    for flag, name in (("", "archive.tar"), ("z", "archive.tar.gz")):
        subprocess.run(
            ["tar", f"-c{flag}f", folder / name, "--owner=7", "--group=8", "dir", "link.txt"],
            cwd=folder,
            check=True,
        )
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
        os.utime(path, (MOMENT, MOMENT), follow_symlinks=False)
    return folder


def build(engine: Engine, case: Case, context: Path) -> tuple[dict[str, Any], Listing]:
    options = BuildOptions(build_args=case.args, target=case.target, network_mode="host")
    image = engine.builds.build(options, context)
    output = io.BytesIO()
    engine.builds.rootfs(image, output)
    return engine.images.inspect(image)["Config"], listing(output.getvalue())


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs; an empty list, mapping or text is the same as nothing."""
    return {
        name: (ours.get(name), theirs.get(name))
        for name in sorted(ours.keys() | theirs.keys())
        if (ours.get(name) or None) != (theirs.get(name) or None)
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_image(docker: Docker, kitchen: Engine, files: Path, case: Case) -> None:
    if docker.version < case.since:
        pytest.skip(f"dockerd {docker.version} does not know it: {case.since}")
    (files / "Dockerfile").write_bytes(case.text.encode())
    os.utime(files / "Dockerfile", (MOMENT, MOMENT))
    config, tree = build(kitchen, case, files)
    for builder in case.builders:
        their_config, their_tree = docker.build(case, files, builder)
        found = differing(
            {name: config.get(name) for name in CONFIGURATION},
            {name: their_config.get(name) for name in CONFIGURATION},
        )
        found.update(differing(tree, their_tree))
        expected = DIFFERENCES.get((case.name, builder), {})
        assert {name: found[name] for name in found if name not in expected} == {}, builder
        assert set(expected) <= set(found), "a difference that is listed is gone"
