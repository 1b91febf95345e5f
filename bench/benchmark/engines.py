"""The engines under measurement: each one started by us, with a root of its own, and ended by us.

An *engine* is a daemon (or, for Podman, none) with all that it keeps. A *client* is a program that
people use it with: ``tiffin``, or ``docker``, which can speak to both. What is measured is always a
client, or the API beneath it.
"""

from __future__ import annotations

import compileall
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import tiffin

_PATIENCE = 30.0


class EngineFailure(Exception):
    """An engine, or a command of one, did not do what it was told."""


class Client:
    """A command line program bound to one engine."""

    def __init__(
        self, label: str, words: Sequence[str], engine: Engine, environment: dict[str, str]
    ) -> None:
        self.label = label
        self.engine = engine
        self._words = list(words)
        self._environment = {**os.environ, **environment}
        self.version = ""

    def __call__(self, *words: str, check: bool = True, stdin: bytes | None = None) -> str:
        """Run one command to its end; what it printed. Raises EngineFailure."""
        done = subprocess.run(
            [*self._words, *words],
            env=self._environment,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            check=False,
        )
        if check and done.returncode:
            raise EngineFailure(
                f"{self.label}: {' '.join(words)[:200]}: exit code {done.returncode}: "
                + (done.stderr or done.stdout).decode(errors="replace").strip()[-500:]
            )
        return done.stdout.decode(errors="replace")

    def at(self, host: str) -> Client:
        """The same program with another engine, at this address."""
        words = [host if word.startswith("unix://") else word for word in self._words]
        return Client(self.label, words, self.engine, self._environment)

    def count(self, *words: str) -> int:
        """Run one command to its end; how many bytes it printed on stdout."""
        words = (*self._words, *words)
        with subprocess.Popen(words, env=self._environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            size = 0
            while part := process.stdout.read(1 << 20):
                size += len(part)
        return size

    def discard(self, *words: str) -> None:
        """Run one command to its end; what it prints goes nowhere. Raises EngineFailure."""
        done = subprocess.run(
            [*self._words, *words],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            raise EngineFailure(f"{self.label}: {words}: exit code {done.returncode}")


class Engine:
    """One engine. A context manager: leaving it ends it and removes its root."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.version = ""
        self.clients: list[Client] = []
        self.buildkit: Client | None = None
        """What builds with BuildKit, where the engine has it."""

    def __enter__(self) -> Engine:
        self.folder.mkdir(parents=True)
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        _remove_tree(self.folder)

    def start(self) -> None:
        """Start it, and wait until it answers."""

    def stop(self) -> None:
        """End its containers and its processes."""

    def processes(self) -> list[int]:
        """The processes that it consists of, containers' own not among them."""
        return []

    @property
    def tiffin(self) -> bool:
        """Whether it is the one that is measured, and not a peer."""
        return False

    def cpu_seconds(self) -> float:
        """What its processes have taken so far, but for containers and their keepers."""
        return 0.0

    def request(self, method: str, path: str, body: bytes | None = None, kind: str = "") -> bytes:
        """One call of the API. Raises EngineFailure for an answer of 400 and above."""
        raise EngineFailure(f"{self.name} has no API here")


_OWN_NETWORK = ("unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "-")
"""What begins a command that is to be on a machine of its own, as far as networks go."""


class SocketEngine(Engine):
    """An engine with a daemon of ours that answers the Docker Engine API at a unix socket."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, folder)
        self.socket = folder / "socket"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The daemon's process, which is in the engine's own network namespace."""
        assert self._process is not None
        return self._process.pid

    def _start(self, words: Sequence[str], environment: dict[str, str]) -> None:
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                words,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is ours to handle: the daemon is told to stop when its turn comes.
                start_new_session=True,
            )
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self.request("GET", "/_ping")
                return
            except (OSError, http.client.HTTPException):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    text = (self.folder / "log").read_text(errors="replace")[-1000:]
                    raise EngineFailure(f"{self.name} did not start: {text}") from None
                time.sleep(0.05)

    def request(self, method: str, path: str, body: bytes | None = None, kind: str = "") -> bytes:
        connection = UnixConnection(self.socket)
        try:
            connection.request(method, path, body, {"Content-Type": kind} if kind else {})
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise EngineFailure(f"{self.name}: {method} {path}: {data[:300]!r}")
        return data

    def cpu_seconds(self) -> float:
        return 0.0 if self._process is None else _cpu_seconds(self._process.pid)

    def _remove_containers(self) -> None:
        if not self.clients or not self.socket.exists():
            return
        client = self.clients[-1]
        ids = client("ps", "-aq", check=False).split()
        if ids:
            client("rm", "-f", *ids, check=False)

    def processes(self) -> list[int]:
        """The daemon's process, and those that it began."""
        parents = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                text = Path(f"/proc/{name}/stat").read_text()
            except OSError:
                continue  # it ended while we looked
            parents[int(name)] = int(text.rpartition(")")[2].split()[1])
        found = [self._process.pid] if self._process is not None else []
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def _end(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._process = None


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=600)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(600)
        self.sock.connect(str(self._path))


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process, of those that it has waited for, and of its living descendants."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = [
            int(child)
            for task in os.listdir(f"/proc/{pid}/task")
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        ]
    except OSError:
        return 0.0  # it has ended meanwhile
    own = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return own + sum(map(_cpu_seconds, children))


class Tiffin(SocketEngine):
    """tiffin, as in this repository."""

    def __init__(self, folder: Path, launcher: Path, docker: str | None) -> None:
        super().__init__("tiffin", folder)
        self.root = folder / "root"
        self.socket = self.root / "tiffin.sock"
        self._launcher = launcher
        self._docker = docker

    @property
    def tiffin(self) -> bool:
        return True

    def start(self) -> None:
        environment = {"TIFFIN_ROOT": str(self.root)}
        self._start([*_OWN_NETWORK, str(self._launcher), "serve"], environment)
        self.clients = [Client("tiffin", [str(self._launcher)], self, environment)]
        if self._docker is not None:
            words = [self._docker, "-H", f"unix://{self.socket}"]
            self.clients.append(Client("docker CLI → tiffin", words, self, _LEGACY))
        self.version = self.clients[0]("version", "--format", "{{.Server.Version}}").strip()

    def processes(self) -> list[int]:
        """The daemon, and the processes of its root that outlive it."""
        return sorted({*super().processes(), *processes_that_name(self.root)})

    def stop(self) -> None:
        self._remove_containers()
        if self.clients:
            self.clients[0]("system", "shutdown", "--force", check=False)
        self._end()
        # A keeper whose daemon could not be asked any more.
        for pid in processes_that_name(self.root):
            os.kill(pid, signal.SIGKILL)


def processes_that_name(root: Path) -> list[int]:
    """The tiffin processes of the engine root ``root``, which only we know."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended while we looked
        if os.fsencode(root) in words and any(b"tiffin" in word for word in words[:4]):
            found.append(int(entry.name))
    return found


_LEGACY = {"DOCKER_BUILDKIT": "0", "DOCKER_CLI_HINTS": "false", "DOCKER_CONFIG": "/nonexistent"}
"""The builder of the Engine API on both engines; and no configuration of the one who measures."""
_BUILDKIT = {**_LEGACY, "DOCKER_BUILDKIT": "1"}


class Docker(SocketEngine):
    """A dockerd, with network and mount namespaces of its own, and a bridge in the former.

    Its BuildKit is reached by the first of ``builders`` (docker commands) that can: some have it
    only with a plugin.
    """

    def __init__(self, folder: Path, dockerd: str, docker: str, builders: Sequence[str]) -> None:
        super().__init__("docker", folder)
        self._dockerd = dockerd
        self._docker = docker
        self._builders = builders

    def start(self) -> None:
        program = Path(self._dockerd)
        # containerd and runc are those that came with it.
        beside = [str(program.parent), str(program.parent.parent / "bin")]
        path = os.pathsep.join([*beside, os.environ.get("PATH", os.defpath)])
        words = [
            *(*_OWN_NETWORK, "unshare", "-m", self._dockerd),
            *("--data-root", str(self.folder / "data"), "--exec-root", str(self.folder / "exec")),
            *("--pidfile", str(self.folder / "pid"), "-H", f"unix://{self.socket}"),
            *("--storage-driver", "overlay2"),
        ]
        self._start(words, {"PATH": path})
        client = Client("docker", [self._docker, "-H", f"unix://{self.socket}"], self, _LEGACY)
        self.version = client("version", "--format", "{{.Server.Version}}").strip().split("+")[0]
        self.name = client.label = f"docker {self.version.rpartition('.')[0]}"
        self.clients = [client]
        self.buildkit = self._find_buildkit()

    def _find_buildkit(self) -> Client | None:
        trial = self.folder / "trial"
        trial.mkdir()
        (trial / "Dockerfile").write_text("FROM scratch\nENV a=b\n")
        for docker in self._builders:
            words = [docker, "-H", f"unix://{self.socket}"]
            client = Client(f"{self.name} BuildKit", words, self, _BUILDKIT)
            try:
                client("build", "-t", "trial", str(trial))
            except EngineFailure:
                continue
            client("rmi", "trial")
            client.version = client("version", "--format", "{{.Client.Version}}").strip()
            return client
        return None

    def stop(self) -> None:
        self._remove_containers()
        self._end()

    def processes(self) -> list[int]:
        # The daemon is started by unshare, which becomes it; containerd is its child.
        daemon = [] if self._process is None else [self._process.pid]
        return [*daemon, *(child for pid in daemon for child in _children(pid))]


def _children(pid: int) -> list[int]:
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (thread / "children").read_text().split()]
    return found


class Podman(Engine):
    """Podman, which has no daemon; containers by runc, as Docker's."""

    def __init__(self, folder: Path, podman: str) -> None:
        super().__init__("podman", folder)
        self._podman = podman
        self._run: Path | None = None

    def start(self) -> None:
        # It takes no longer path than 50 characters for this one.
        self._run = Path(tempfile.mkdtemp(prefix="bench-", dir="/run"))
        words = [
            self._podman,
            *("--root", str(self.folder / "root"), "--runroot", str(self._run)),
            *("--storage-driver", "overlay", "--cgroup-manager", "cgroupfs"),
            *("--events-backend", "file"),
        ]
        if shutil.which("runc"):
            words += ["--runtime", "runc"]
        client = Client("podman", words, self, {})
        self.version = client("version", "--format", "{{.Client.Version}}").strip()
        self.name = client.label = f"podman {self.version.rpartition('.')[0]}"
        self.clients = [client]

    def stop(self) -> None:
        for client in self.clients:
            client("rm", "-af", "-t", "0", check=False)
        for mount in _mounts_below(self.folder):
            subprocess.run(["umount", "-l", mount], check=False)
        if self._run is not None:
            for mount in _mounts_below(self._run):
                subprocess.run(["umount", "-l", mount], check=False)
            _remove_tree(self._run)


def _mounts_below(folder: Path) -> list[str]:
    """Mount points below ``folder``, the innermost first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split()[4]
        if target.startswith(f"{folder}/"):
            found.append(target)
    return found[::-1]


def _remove_tree(folder: Path) -> None:
    """Remove an engine's folder. Its mounts went with its namespace, or just before."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            shutil.rmtree(folder)
            return
        except FileNotFoundError:
            if not folder.exists():
                return
        except OSError:
            # The last process of a container may still be ending.
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def launcher(folder: Path) -> Path:
    """A ``tiffin`` command as pip would install it: a copy of the package, compiled, in ``folder``.

    Not from the working tree, where nothing may be compiled (PYTHONDONTWRITEBYTECODE).
    """
    source = Path(tiffin.__file__).parent
    site, programs = folder / "site", folder / "bin"
    shutil.copytree(source, site / "tiffin", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(site, quiet=1)
    programs.mkdir()
    path = programs / "tiffin"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(site)!r})\n"
        "from tiffin.cli.main import entry\nsys.exit(entry())\n"
    )
    path.chmod(0o755)
    return path
