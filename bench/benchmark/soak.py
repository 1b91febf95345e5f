"""The load test: a crowd of containers, and a daemon and a keeper that are killed meanwhile.

Containers count lines into their logs, fork, write files, run out of memory and come back by their
restart policies, and check their health, while they are paused, limited, exec'd into and restarted.
The daemon is killed (SIGKILL) every so often, the keeper once. At the end everything is removed and
then looked for: a log with a gap, a state that is wrong, a process, mount, cgroup, network
namespace, descriptor, row or folder that is left.

Counting containers write blocks of lines, each with a head, ``@ RUN BLOCK``; RUN is the number of
the run, which they keep in a file, and the lines of a block are numbered. So each kept log must be
without a gap, and a run that ended by itself be whole. Together they write so many megabytes a
second (``--rate``), as far as the machine lets them.

It has a network namespace of its own; some of the containers are on the bridge, where nftables is
there.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tiffin.linux import syscalls
from tiffin.network import rtnetlink

JSON = dict[str, Any]
BLOCK = 2000
"""Lines that a counting container writes at once, and then rests a moment."""
PADDING = "x" * 90
LINES = "".join(f"{number} {PADDING}\n" for number in range(BLOCK)).encode()
LEAST_PAUSE = 0.05
MEMORY_SECONDS = 1
"""How long a container that runs out of memory waits before."""
APPLETS = "sh sleep cat echo seq sed dd rm mkdir true kill head yes".split()
KINDS = ("count", "count", "count", "fork", "write", "memory", "health", "remove")

_COUNT = """
run=$(cat /run 2>/dev/null || echo 0); run=$((run+1)); echo $run > /run
i=0
while [ $i -lt $BLOCKS ]; do
  echo "@ $run $i"
  cat /lines
  echo "errors of run $run block $i" >&2
  i=$((i+1)); sleep $REST
done
"""
SCRIPTS = {
    "count": _COUNT,
    "fork": "while :; do for i in 1 2 3 4 5 6 7 8 9; do sleep 0.2 & done; wait; done 2>/dev/null",
    "write": "i=0; while :; do dd if=/dev/zero of=/data$((i%8)) bs=64k count=16 2>/dev/null; "
    "i=$((i+1)); sleep 0.2; done",
    "memory": f"sleep {MEMORY_SECONDS}; dd if=/dev/zero of=/dev/null bs=200M; echo out of it",
    "health": "while :; do sleep 1; done",
    "remove": "sleep 3; exit 3",
}


class Away(Exception):
    """The daemon did not answer: it was killed, or is just coming."""


class Daemon:
    """A daemon of one engine root that can be killed and started again, and its API."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = str(root / "tiffin.sock")
        self.process: subprocess.Popen[bytes] | None = None
        self.kills = 0

    def start(self) -> None:
        reader, writer = os.pipe()
        with open(self.root.parent / "daemon.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tiffin", "serve", "--ready-fd", str(writer)],
                env={**os.environ, "TIFFIN_ROOT": str(self.root)},
                pass_fds=(writer,),
                stderr=log,
            )
        os.close(writer)
        with open(reader, "rb") as said:
            line = said.readline()
        if line.strip() != b"ready":
            raise RuntimeError(f"the daemon does not start: {line.decode()}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.kills += 1

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(60)

    def ask(self, method: str, path: str, body: object = None, data: bytes | None = None) -> Any:
        """The answer's JSON; None for an error of the API, Away if nobody answers."""
        connection = http.client.HTTPConnection("tiffin", timeout=120)
        try:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(120)
            connection.sock = sock
            sock.connect(self.socket)
            payload = data if data is not None else json.dumps(body).encode() if body else None
            kind = "application/x-tar" if data is not None else "application/json"
            connection.request(method, path, payload, {"Content-Type": kind})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Away from error
        finally:
            connection.close()
        if answer.status >= 400:
            return None
        try:
            return json.loads(text) if text else {}
        except ValueError:
            return text

    def insist(self, method: str, path: str, body: object = None, data: bytes | None = None) -> Any:
        """Ask until somebody answers."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(Away):
                return self.ask(method, path, body, data)
            time.sleep(0.05)
        raise RuntimeError(f"nobody answers {method} {path}")


def image_tar() -> bytes:
    """A root file system of one static busybox."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("bin", "tmp", "etc"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        content = Path("/bin/busybox").read_bytes()
        info = tarfile.TarInfo("bin/busybox")
        info.size, info.mode = len(content), 0o755
        tar.addfile(info, io.BytesIO(content))
        for applet in APPLETS:
            info = tarfile.TarInfo(f"bin/{applet}")
            info.type, info.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(info)
        info = tarfile.TarInfo("lines")
        info.size = len(LINES)
        tar.addfile(info, io.BytesIO(LINES))
    return buffer.getvalue()


class Soak:
    """One run of the test; ``problems`` is what was found wrong."""

    def __init__(
        self, root: Path, containers: int, seconds: float, pause: float, rate: float
    ) -> None:
        self.daemon = Daemon(root)
        self.count = containers
        self.seconds = seconds
        self.pause = pause
        self.names: dict[str, str] = {}
        self.problems: list[str] = []
        self.done: Counter[str] = Counter()
        self.lines = 0
        self.bytes = 0
        self.keeper_memory = 0
        counting = sum(KINDS[number % len(KINDS)] == "count" for number in range(containers))
        self._rest = max(LEAST_PAUSE, len(LINES) * counting / (rate * 1e6))
        # A run is a good one, which is restarted at once, after ten seconds.
        self._blocks = round((15 if seconds > 60 else 3) / self._rest) + 1
        self._over = threading.Event()

    def run(self) -> None:
        """Everything, in order."""
        before = leftovers(self.daemon.root)
        self.daemon.start()
        try:
            self.daemon.insist("POST", "/images/create?fromSrc=-&repo=soak", data=image_tar())
            self._create()
            self._disturb()
            self._settle()
            self._check_states()
            self._check_logs()
            self._remove()
        finally:
            self._over.set()
            self.daemon.stop()
        self._check_rest(before)

    def _create(self) -> None:
        for number in range(self.count):
            kind = KINDS[number % len(KINDS)]
            name = f"{kind}{number}"
            if self.daemon.insist("POST", f"/containers/create?name={name}", self._body(kind)):
                self.names[name] = kind
                self.daemon.insist("POST", f"/containers/{name}/start")
            else:
                self.problems.append(f"{name} could not be made")

    def _body(self, kind: str) -> JSON:
        host: JSON = {
            "NetworkMode": "bridge" if kind == "health" and shutil.which("nft") else "none",
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "20m", "max-file": "3"}},
            "Memory": 24 << 20 if kind == "memory" else 128 << 20,
            "PidsLimit": 30,
        }
        body: JSON = {"Image": "soak", "Cmd": ["sh", "-c", SCRIPTS[kind]], "HostConfig": host}
        body["Env"] = [f"REST={self._rest:.3f}", f"BLOCKS={self._blocks}", "PATH=/bin"]
        if kind in ("count", "memory"):
            host["RestartPolicy"] = {"Name": "always" if kind == "count" else "on-failure"}
        if kind == "remove":
            host["AutoRemove"] = True
        if kind == "health":
            body["Healthcheck"] = {"Test": ["CMD", "true"], "Interval": 500_000_000, "Retries": 1}
        return body

    # What happens to them.

    def _disturb(self) -> None:
        threads = [threading.Thread(target=self._act, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + self.seconds
        keeper_at = time.monotonic() + self.seconds / 2
        killed = False
        while time.monotonic() < end:
            self._over.wait(min(self.pause, max(0.0, end - time.monotonic())))
            if not killed and time.monotonic() > keeper_at:
                killed = True
                for pid in keepers(self.daemon.root):
                    os.kill(pid, signal.SIGKILL)
                continue
            self.daemon.kill()
            self.daemon.start()
            for pid in keepers(self.daemon.root):
                self.keeper_memory = max(self.keeper_memory, resident(pid))
        self._over.set()
        for thread in threads:
            thread.join()

    def _act(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._over.is_set():
            name, kind = chance.choice(list(self.names.items()))
            action = chance.choice(("pause", "update", "exec", "restart", "stats", "again"))
            try:
                self._do(action, name, kind, chance)
                self.done[action] += 1
            except Away:
                self.done["unanswered"] += 1
            self._over.wait(0.05)

    def _do(self, action: str, name: str, kind: str, chance: random.Random) -> None:
        ask, path = self.daemon.ask, f"/containers/{name}"
        if action == "pause":
            ask("POST", f"{path}/pause")
            self._over.wait(0.1)
            self.daemon.insist("POST", f"{path}/unpause")
        elif action == "update":
            ask("POST", f"{path}/update", {"CpuShares": chance.randrange(100, 2000)})
        elif action == "exec":
            made = ask("POST", f"{path}/exec", {"Cmd": ["true"]})
            if made:
                ask("POST", f"/exec/{made['Id']}/start", {"Detach": True})
        elif action == "restart" and kind not in ("count", "remove"):
            ask("POST", f"{path}/restart?t=0")
        elif action == "stats":
            ask("GET", f"{path}/stats?stream=0&one-shot=1")
        elif (
            action == "again"
            and kind == "remove"
            and ask("POST", f"/containers/create?name={name}", self._body(kind))
        ):
            ask("POST", f"{path}/start")

    # What must be so.

    def _settle(self) -> None:
        for name, kind in self.names.items():
            self.daemon.insist("POST", f"/containers/{name}/unpause")
            if kind != "remove":
                self.daemon.insist("POST", f"/containers/{name}/stop?t=0")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            rows = self.daemon.insist("GET", "/containers/json")
            if not rows:
                return
            time.sleep(0.2)
        self.problems += [f"{row['Names'][0]} does not end: {row['Status']}" for row in rows]

    def _check_states(self) -> None:
        seen = set()
        for row in self.daemon.insist("GET", "/containers/json?all=1"):
            found = self.daemon.insist("GET", f"/containers/{row['Id']}/json")
            if found is None:
                continue
            name = found["Name"].lstrip("/")
            kind, state = self.names.get(name, "?"), found["State"]
            seen.add(name)
            if kind == "remove" and state["Status"] == "created":
                # A daemon died between its making and its start.
                continue
            if state["Status"] != "exited" or state["Pid"]:
                self.problems.append(f"{name} is {state['Status']} with process {state['Pid']}")
            if "unknown" in state["Error"]:
                self.problems.append(f"{name}: {state['Error']}")
            if kind == "memory" and not found["RestartCount"] and not state["OOMKilled"]:
                started, ended = map(
                    datetime.fromisoformat, (state["StartedAt"], state["FinishedAt"])
                )
                if (ended - started).total_seconds() < MEMORY_SECONDS:
                    # It was started anew just before all were ended.
                    continue
                self.problems.append(f"{name} never ran out of memory: {state}")
            if kind == "health" and state["Health"]["Log"]:
                codes = {entry["ExitCode"] for entry in state["Health"]["Log"]}
                if not codes <= {0, -1}:
                    self.problems.append(f"{name} has checks that ended with {codes}")
        lost = {name for name, kind in self.names.items() if kind != "remove"} - seen
        self.problems += [f"{name} is gone" for name in lost]

    def _check_logs(self) -> None:
        for name, kind in self.names.items():
            if kind == "count":
                self._check_log(name)

    def _check_log(self, name: str) -> None:
        found = self.daemon.insist("GET", f"/containers/{name}/json")
        path = Path(found["LogPath"])
        files = [path.with_name(f"{path.name}.{number}") for number in (2, 1)] + [path]
        # The place of the last line: run and block, as far as a head has told, and number.
        head: tuple[int, int] | None = None
        last = -1
        cut = ""
        for file in files:
            if not file.exists():
                continue
            for line in file.read_bytes().splitlines():
                record = json.loads(line)
                if record["stream"] != "stdout":
                    continue
                text = record["log"]
                if cut:
                    self.problems.append(f"{name}: {text!r} comes after {cut!r}")
                cut = "" if text.endswith("\n") else text
                if cut:
                    # It was stopped while it wrote; nothing may follow.
                    continue
                self.lines += 1
                if text.startswith("@"):
                    _, run, block = text.split()
                    now = (int(run), int(block))
                    over = head is not None and head[1] == self._blocks - 1
                    if last != BLOCK - 1 and not (head is None and last == -1):
                        self.problems.append(f"{name}: {now} comes after {head} {last}")
                    elif head is not None and now != (
                        (head[0] + 1, 0) if over else (head[0], head[1] + 1)
                    ):
                        self.problems.append(f"{name}: {now} comes after {head}")
                    head, last = now, -1
                    continue
                number = int(text.partition(" ")[0])
                first = head is None and last == -1
                if text != f"{number} {PADDING}\n" or not (first or number == last + 1):
                    self.problems.append(f"{name}: {text!r} comes after {head} {last}")
                last = number
        if head is not None:
            blocks = (head[0] - 1) * self._blocks + head[1]
            self.bytes += blocks * len(LINES) + sum(map(len, LINES.splitlines(True)[: last + 1]))

    def _remove(self) -> None:
        for row in self.daemon.insist("GET", "/containers/json?all=1"):
            self.daemon.insist("DELETE", f"/containers/{row['Id']}?force=1&v=1")
        self.daemon.insist("DELETE", f"/images/{quote('soak')}?force=1")
        # What ends has a moment to be gone; descriptors of connections too.
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._descriptors() != []:
            time.sleep(0.2)
        self.problems += self._descriptors()

    def _descriptors(self) -> list[str]:
        """The descriptors of daemon and keeper that belong to containers."""
        assert self.daemon.process is not None
        found = []
        for what, pid in [
            ("daemon", self.daemon.process.pid),
            *(("keeper", pid) for pid in keepers(self.daemon.root)),
        ]:
            for entry in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    target = os.readlink(f"/proc/{pid}/fd/{entry}")
                    if "/keeper/" in target and not target.endswith(("lock", "log", "sock")):
                        found.append(f"the {what} has {target} open")
                    elif target == "anon_inode:[pidfd]" or (
                        what == "keeper" and target == "anon_inode:[eventfd]"
                    ):
                        found.append(f"the {what} has a {target} open")
        return found

    def _check_rest(self, before: Counter[str]) -> None:
        root = self.daemon.root
        for pid in keepers(root):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and (leftovers(root) - before or keepers(root)):
            time.sleep(0.2)
        self.problems += [f"left over: {what}" for what in leftovers(root) - before]
        for folder in ("containers", "work"):
            self.problems += [f"left over: {path}" for path in (root / folder).iterdir()]
        names = {path.name for path in (root / "keeper").iterdir()}
        self.problems += [f"left over: keeper/{name}" for name in names if len(name) == 64]
        database = sqlite3.connect(f"file:{root}/tiffin.db?mode=ro", uri=True)
        with contextlib.closing(database):
            for table in ("containers", "images", "layers", "snapshots"):
                with contextlib.suppress(sqlite3.OperationalError):
                    (rows,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
                    if rows:
                        self.problems.append(f"left over: {rows} rows of {table}")


def resident(pid: int) -> int:
    """Bytes of memory that a process has taken for itself."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    return 0


def processes() -> Iterator[tuple[int, list[bytes]]]:
    """Every process with its command line."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            yield int(name), Path("/proc", name, "cmdline").read_bytes().split(b"\0")


def keepers(root: Path) -> list[int]:
    """The keeper's processes."""
    mark = os.fsencode(root)
    return [
        pid
        for pid, words in processes()
        if mark in words and any(b"keeper/__main__" in word for word in words)
    ]


def leftovers(root: Path) -> Counter[str]:
    """Processes, mounts, cgroups and namespaces that may belong to the root's containers."""
    import hashlib

    found: Counter[str] = Counter()
    mark = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
    for pid, words in processes():
        with contextlib.suppress(OSError):
            if f"/tiffin/{mark}/" in Path(f"/proc/{pid}/cgroup").read_text():
                found[f"process {words}"] += 1
    with rtnetlink.Socket() as kernel:
        for link in kernel.links():
            if link.kind == "veth":
                found[f"interface {link.name}"] += 1
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if str(root) in line:
                found[f"mount {line.split()[4]}"] += 1
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        for base in (hierarchy, hierarchy.parent):
            group = base / "tiffin" / mark
            if group.is_dir():
                for path in group.iterdir():
                    if path.is_dir():
                        found[f"cgroup {path}"] = 1
    return found


def main() -> int:
    """Run the test as asked on the command line; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="bench/soak", description=__doc__.split("\n\n")[0])
    parser.add_argument("--containers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--kill-every", type=float, default=20, help="seconds between kills")
    parser.add_argument("--rate", type=float, default=50, help="megabytes to log in a second")
    options = parser.parse_args()
    # Networks of its own: neither the machine's are touched, nor those of another run.
    syscalls.unshare(syscalls.CLONE_NEWNET)
    with rtnetlink.Socket() as kernel:
        kernel.run(rtnetlink.set_up(1))
    with tempfile.TemporaryDirectory(prefix="tiffin-soak-") as folder:
        root = Path(folder, "root")
        root.mkdir()
        soak = Soak(root, options.containers, options.seconds, options.kill_every, options.rate)
        try:
            soak.run()
        finally:
            for pid in keepers(root):
                os.kill(pid, signal.SIGKILL)
        if soak.problems:
            sys.stdout.write(Path(folder, "daemon.log").read_text()[-4000:])
        for problem in soak.problems[:50]:
            print(problem)
    print(
        f"{len(soak.names)} containers, {soak.daemon.kills} daemons and 1 keeper killed, "
        f"{soak.bytes / options.seconds / 1e6:.1f} MB/s logged, {soak.lines} lines checked, "
        f"{sum(soak.done.values())} requests, keeper up to {soak.keeper_memory / 1e6:.0f} MB: "
        f"{len(soak.problems)} problems"
    )
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main())
