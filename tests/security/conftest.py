"""Containers that try to get out: Debian's own Python, mounted read-only, runs the attempts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tiffin.engine import Engine

PYTHON = "/usr/bin/python3"
PREFACE = """
import ctypes, errno, json, os, stat, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(*arguments):
    ctypes.set_errno(0)
    made = [a.encode() if isinstance(a, str) else ctypes.c_long(a) if isinstance(a, int) else a
            for a in arguments]
    result = libc.syscall(*made)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else int(result)
def attempt(function, *arguments, **more):
    try:
        return function(*arguments, **more)
    except OSError as error:
        return errno.errorcode[error.errno]
def say(value):
    print(json.dumps(value), flush=True)
"""


class Prison:
    """Runs attempts in containers of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def create(self, *command: str, host: dict[str, Any] | None = None, **config: Any) -> str:
        host = dict(host or {})
        binds = [f"{path}:{path}:ro" for path in ("/usr", "/lib", "/lib64") if os.path.isdir(path)]
        host["Binds"] = [*binds, *host.get("Binds", [])]
        body = {"Image": "busybox", "Cmd": list(command), "HostConfig": host, **config}
        return str(self.engine.containers.create(body)["Id"])

    def background(self, host: dict[str, Any] | None = None, **config: Any) -> str:
        """A container that runs until it is removed."""
        container = self.create("sleep", "1000", host=host, **config)
        self.engine.containers.start(container)
        return container

    def attempt(self, script: str, host: dict[str, Any] | None = None, **config: Any) -> Any:
        """What the script says, run as a container's first process."""
        script = self.script(script)
        container = self.create(PYTHON, "-I", "-S", "-c", script, host=host, **config)
        return self.output(container)

    @staticmethod
    def script(script: str) -> str:
        return PREFACE + script

    def output(self, container: str) -> Any:
        """What a container says, as JSON; it is started and removed."""
        waiter = self.engine.containers.wait_later(container, "next-exit")
        self.engine.containers.start(container)
        waiter.result(60)
        _, lines = self.engine.containers.logs(container)
        output = b"".join(data for _, data in lines)
        self.engine.containers.remove(container, force=True)
        try:
            return json.loads(output)
        except ValueError:
            raise AssertionError(output.decode(errors="replace")) from None

    def run(self, container: str, *command: str, **body: Any) -> tuple[int | None, bytes, bytes]:
        """Run a command in a container."""
        streams = {"AttachStdout": True, "AttachStderr": True}
        made = self.engine.containers.exec_create(
            container, {"Cmd": list(command), **streams, **body}
        )
        return self.engine.containers.exec_output(made["Id"])

    def attempt_in(self, container: str, script: str, **body: Any) -> Any:
        """What the script says, run as an exec."""
        _, out, err = self.run(container, PYTHON, "-I", "-S", "-c", PREFACE + script, **body)
        try:
            return json.loads(out)
        except ValueError:
            raise AssertionError((out + err).decode(errors="replace")) from None

    def pid(self, container: str) -> int:
        return int(self.engine.containers.inspect(container)["State"]["Pid"])


@pytest.fixture
def prison(engine: Engine) -> Iterator[Prison]:
    if not os.path.exists(PYTHON):
        pytest.skip(f"needs {PYTHON}")
    yield Prison(engine)


@pytest.fixture
def keeper_pid(engine: Engine, root: Path) -> Callable[[], int]:
    """The process that keeps the engine's containers."""

    def find() -> int:
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except (NotADirectoryError, FileNotFoundError, ProcessLookupError):
                continue
            if words[0] == os.fsencode(sys.executable) and os.fsencode(root) in words:
                return int(entry.name)
        raise AssertionError("no keeper runs")

    return find
