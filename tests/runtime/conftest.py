"""Containers made of Debian's static busybox, started by the test process itself."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tiffin.linux.cgroups import Hierarchy
from tiffin.runtime.launch import enter, launch
from tiffin.runtime.launching import Launched, Stdio
from tiffin.runtime.native import plan, process_plan
from tiffin.runtime.settings import ContainerSettings, ProcessSettings
from tiffin.storage.driver import Mount

BUSYBOX = Path("/bin/busybox")
APPLETS = """
    cat chmod chown echo env false grep hostname id ip kill ls mkdir mknod mount nc ping printf ps
    pwd readlink rm sh sleep stat stty sync touch true tty umask wc
"""


@dataclass
class Result:
    """How a container ended, and what it said (both streams)."""

    status: int
    output: str
    warnings: list[str]


def busybox_root(root: Path) -> Path:
    """A root file system of busybox and its applets, with a few accounts."""
    (root / "bin").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "tmp").mkdir(mode=0o1777)
    (root / "tmp").chmod(0o1777)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for applet in APPLETS.split():
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\ncook:x:1000:100:cook:/home/cook:/bin/sh\n"
    )
    (root / "etc/group").write_text("root:x:0:\nusers:x:100:\nkitchen:x:50:cook\nwaiters:x:60:\n")
    return root


class Kitchen:
    """Starts containers, and makes sure that nothing of them stays."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = busybox_root(directory / "lower")
        self.upper = directory / "upper"
        for name in ("upper", "work", "mountpoint"):
            (directory / name).mkdir()
        self.hierarchy = Hierarchy.detect()
        self.running: list[tuple[Launched, str]] = []

    def settings(self, *args: str, **changes: Any) -> ContainerSettings:
        """Settings of a container of an overlay; keywords go to where they belong."""
        fields = ProcessSettings.__dataclass_fields__
        process = {key: changes.pop(key) for key in list(changes) if key in fields}
        process.setdefault("env", ["PATH=/bin"])
        options = ("lowerdir=lower", "upperdir=upper", "workdir=work")
        overlay = Mount("overlay", "overlay", options, str(self.directory))
        changes.setdefault("rootfs", [overlay])
        identity = uuid.uuid4().hex
        changes.setdefault("cgroup", f"tiffin-test/{identity}")
        return ContainerSettings(identity, ProcessSettings(list(args), **process), **changes)

    def plan(self, settings: ContainerSettings) -> dict[str, Any]:
        mountpoint = str(self.directory / "mountpoint")
        dumped = plan(settings, mountpoint, self.hierarchy).dump()
        result: dict[str, Any] = json.loads(json.dumps(dumped))
        return result

    def start(self, settings: ContainerSettings, stdio: Stdio) -> Launched:
        launched = launch(self.plan(settings), stdio)
        self.running.append((launched, settings.cgroup_name))
        return launched

    def run(self, *args: str, input: bytes = b"", **changes: Any) -> Result:
        """Run a container to its end."""
        settings = self.settings(*args, **changes)
        with Streams(input) as streams:
            launched = self.start(settings, streams.stdio)
            output = streams.read()
        return Result(self.finish(launched), output, launched.warnings)

    def background(self, *args: str, **changes: Any) -> tuple[Launched, ContainerSettings]:
        """Start a container that prints ``ready`` and goes on."""
        settings = self.settings(*args, **changes)
        with Streams(b"") as streams:
            launched = self.start(settings, streams.stdio)
            streams.close_writers()
            assert b"ready" in os.read(streams.reader, 100)
        return launched, settings

    def enter(
        self, launched: Launched, settings: ContainerSettings, *args: str, **changes: Any
    ) -> Result:
        """Run a process in a running container to its end."""
        changes.setdefault("env", ["PATH=/bin"])
        process = process_plan(ProcessSettings(list(args), **changes))
        entrances = self.hierarchy.entrances(settings.cgroup_name)
        with Streams(b"") as streams:
            entered = enter(launched.pidfd, process, streams.stdio, entrances)
            output = streams.read()
        status = os.waitstatus_to_exitcode(os.waitpid(entered.pid, 0)[1])
        os.close(entered.pidfd)
        return Result(status, output, entered.warnings)

    def finish(self, launched: Launched) -> int:
        """Wait for a container's end; its exit code, or minus the signal."""
        status = os.waitstatus_to_exitcode(os.waitpid(launched.pid, 0)[1])
        self._forget(launched)
        return status

    def _forget(self, launched: Launched) -> None:
        for item in list(self.running):
            if item[0] is launched:
                self.running.remove(item)
                os.close(launched.pidfd)
                if launched.terminal_fd is not None:
                    os.close(launched.terminal_fd)
                self.hierarchy.kill(item[1])
                assert self.hierarchy.delete(item[1])

    def close(self) -> None:
        for launched, _ in list(self.running):
            signal.pidfd_send_signal(launched.pidfd, signal.SIGKILL)
            os.waitpid(launched.pid, 0)
            self._forget(launched)
        self.hierarchy.delete("tiffin-test")


class Streams:
    """Pipes for a container's three streams; both outputs come back mixed."""

    def __init__(self, input: bytes) -> None:
        self.stdin, writer = os.pipe()
        os.write(writer, input)
        os.close(writer)
        self.reader, self.writer = os.pipe()
        self.stdio = Stdio((self.stdin, self.writer, self.writer))

    def close_writers(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            os.close(self.stdin)
            self.writer = -1

    def read(self) -> str:
        self.close_writers()
        chunks = []
        while chunk := os.read(self.reader, 65536):
            chunks.append(chunk)
        return b"".join(chunks).decode()

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_writers()
        os.close(self.reader)


def read_until(fd: int, wanted: bytes) -> bytes:
    """Read a terminal's master until some bytes have been seen, or its end."""
    seen = b""
    while wanted not in seen:
        assert select.select([fd], [], [], 20)[0], f"waited for {wanted!r}, saw {seen!r}"
        try:
            chunk = os.read(fd, 4096)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
    return seen


@pytest.fixture
def kitchen(tmp_path: Path) -> Iterator[Kitchen]:
    if not BUSYBOX.exists():
        pytest.skip("needs busybox-static")
    kitchen = Kitchen(tmp_path)
    try:
        yield kitchen
    finally:
        kitchen.close()


@pytest.fixture
def terminal_reader() -> Callable[[int, bytes], bytes]:
    return read_until
