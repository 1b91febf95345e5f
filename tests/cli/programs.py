"""Command lines to call, and a scripted daemon to call them against."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2] / "src"


@dataclass
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    """This process's environment with the tree under test, and nothing that chooses a daemon."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIFFIN_")}
    kept.pop("DOCKER_HOST", None)
    return {**kept, "PYTHONPATH": str(SOURCE), "TZ": "UTC", **more}


def command_line(*words: str) -> list[str]:
    return [sys.executable, "-m", "tiffin", *words]


@dataclass
class Tiffin:
    """The command line, tied to one daemon."""

    host: str = ""
    cwd: Path | None = None
    env: dict[str, str] = field(default_factory=dict)

    def __call__(self, *words: str, stdin: bytes = b"", timeout: float = 60) -> Outcome:
        more = {"TIFFIN_HOST": self.host} if self.host else {}
        done = subprocess.run(
            command_line(*words),
            input=stdin,
            capture_output=True,
            env=environment(**more, **self.env),
            cwd=self.cwd,
            timeout=timeout,
        )
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


@dataclass
class Docker:
    """docker's own command line, tied to one daemon."""

    host: str
    cwd: Path | None = None

    def __call__(self, *words: str, stdin: bytes = b"", timeout: float = 60) -> Outcome:
        done = subprocess.run(
            ["docker", *words],
            input=stdin,
            capture_output=True,
            env=environment(DOCKER_HOST=self.host, DOCKER_BUILDKIT="0", DOCKER_CLI_HINTS="false"),
            cwd=self.cwd,
            timeout=timeout,
        )
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


@dataclass
class Call:
    """One request that the scripted daemon got."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Answer = tuple[int, dict[str, str], bytes]


class ScriptedDaemon:
    """A daemon that keeps what it is asked and answers what it was told to."""

    def __init__(self, path: Path) -> None:
        self.host = f"unix://{path}"
        self.calls: list[Call] = []
        self.answers: dict[str, Callable[[Call], Answer]] = {}
        self.server = "Docker/99"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        self._socket.listen()
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def answer(self, start: str, body: Any, status: int = 200) -> None:
        """What requests are answered whose "METHOD /path" starts so."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers[start] = lambda _: (status, {"Content-Type": "application/json"}, data)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while line := stream.readline():
                method, path, _ = line.decode().split()
                headers = {}
                while (header := stream.readline().strip().decode()) != "":
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                body = stream.read(int(headers.get("content-length", "0")))
                if headers.get("transfer-encoding") == "chunked":
                    body = b""
                    while size := int(stream.readline(), 16):
                        body += stream.read(size)
                        stream.readline()
                    stream.readline()
                call = Call(method, path, headers, body)
                if path.endswith("/_ping"):
                    status, more, data = 200, {}, b"OK"
                else:
                    self.calls.append(call)
                    status, more, data = self._find(call)(call)
                lines = [f"HTTP/1.1 {status} X", f"Server: {self.server}", "Api-Version: 1.50"]
                lines += ["Ostype: linux", f"Content-Length: {len(data)}"]
                lines += [f"{name}: {value}" for name, value in more.items()]
                reply = "\r\n".join(lines).encode() + b"\r\n\r\n"
                try:
                    connection.sendall(reply + (b"" if method == "HEAD" else data))
                except OSError:
                    return

    def _find(self, call: Call) -> Callable[[Call], Answer]:
        path = call.path
        if path.startswith("/v1."):
            path = path[path.index("/", 1) :]
        asked = f"{call.method} {path}"
        starts = [start for start in self.answers if asked.startswith(start)]
        if not starts:
            return lambda _: (404, {}, b'{"message": "page not found"}')
        return self.answers[max(starts, key=len)]


@dataclass
class Pair:
    """The two command lines against the same dockerd."""

    docker: Docker
    tiffin: Tiffin

    def same(self, *words: str, stdin: bytes = b"") -> Outcome:
        """Both get the same words; outputs (but for the program's name) and codes must agree."""
        theirs, ours = self.docker(*words, stdin=stdin), self.tiffin(*words, stdin=stdin)
        assert ours.out == theirs.out
        assert ours.err == renamed(theirs.err)
        assert ours.code == theirs.code
        return ours


def renamed(text: str) -> str:
    """docker's message as tiffin's: its own name, and where help is found."""
    lines = []
    for line in text.splitlines(keepends=True):
        if not line.startswith("Error response"):
            line = line.replace("docker:", "tiffin:").replace("docker ", "tiffin ")
            line = line.replace("See 'tiffin", "Run 'tiffin")
        lines.append(line)
    return "".join(lines)
