"""The `tiffin` command as a user has it: processes, sockets, terminals; nothing is faked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import busybox_tar, kill_keeper


class Command:
    """Runs `tiffin` against one engine root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.words = [sys.executable, "-m", "tiffin"]
        source = str(Path(__file__).parents[2] / "src")
        self.environment = {**os.environ, "TIFFIN_ROOT": str(root), "PYTHONPATH": source}
        self.environment.pop("TIFFIN_HOST", None)

    def __call__(self, *words: str, stdin: bytes = b"", code: int | None = 0) -> str:
        """Run a command to its end and give its stdout; ``code`` is what it must exit with."""
        done = self.result(*words, stdin=stdin)
        if code is not None:
            assert done.returncode == code, f"{words}: {done.returncode} {done.stderr.decode()}"
        return done.stdout.decode()

    def result(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*self.words, *words],
            env=self.environment,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=120,
        )

    def start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self.words, *words], env=self.environment, **options)

    def inspect(self, name: str) -> Any:
        return json.loads(self("inspect", name))[0]

    def daemon(self) -> int:
        """The process that owns the root now."""
        return int(json.loads((self.root / "lock").read_text())["pid"])

    def keeper(self) -> int:
        """The keeper's process."""
        marker = str(self.root).encode()
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                command = Path("/proc", name, "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if b"keeper/__main__.py" in command and marker in command:
                return int(name)
        raise AssertionError("there is no keeper")


def eventually(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait until something holds, and give what it gave."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return result


@pytest.fixture
def tiffin(root: Path, busybox: Path, tmp_path: Path) -> Iterator[Command]:
    """The command with the image ``busybox`` in its store."""
    command = Command(root)
    archive = tmp_path / "busybox.tar"
    archive.write_bytes(busybox_tar())
    command("import", str(archive), "busybox")
    yield command
    kill_keeper(root)
