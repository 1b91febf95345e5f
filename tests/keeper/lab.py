"""A real keeper with real containers, to experiment on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiffin.keeper.client import KeeperClient
from tiffin.linux.cgroups import Hierarchy
from tiffin.runtime.native import plan, process_plan
from tiffin.runtime.settings import ContainerSettings, ProcessSettings
from tiffin.storage.driver import Mount

PATIENCE = 30.0


class Lab:
    """An engine root, a client of its keeper, and the events that came."""

    def __init__(self, root: Path, idle: float = 0.2) -> None:
        self.root = root
        self.idle = idle
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self.client = self.connect()
        self._names: list[str] = []
        self._clients: list[socket.socket] = []

    def connect(self) -> KeeperClient:
        return KeeperClient(self.root, self._heard, idle=self.idle)

    def _heard(self, event: dict[str, Any]) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def plan(self, name: str, *args: str, terminal: bool = False, **more: Any) -> dict[str, Any]:
        settings = ContainerSettings(
            id=name,
            process=process(*args, terminal=terminal, **more),
            rootfs=[Mount("bind", str(self.root / "fs"), ("rbind",))],
            cgroup=f"tiffin-test-{os.getpid()}/{name}",
        )
        mountpoint = str(self.root / "keeper/rootfs")
        return plan(settings, mountpoint, Hierarchy.detect()).dump()

    def start(self, name: str, *args: str, terminal: bool = False, **options: Any) -> int:
        options.setdefault("log", {"path": str(self.log(name))})
        made = self.plan(name, *args, terminal=terminal)
        self._names.append(name)
        return int(self.client.start(name, made, terminal=terminal, **options)["pid"])

    def sh(self, name: str, script: str, **options: Any) -> int:
        return self.start(name, "sh", "-c", script, **options)

    def attach(self, name: str, **options: Any) -> socket.socket:
        ours, theirs = self._sockets()
        with theirs:
            self.client.attach(name, theirs, **options)
        return ours

    def _sockets(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE)
        self._clients.append(ours)
        return ours, theirs

    def exec(self, name: str, container: str, *args: str, **options: Any) -> socket.socket:
        attachment = {"stdin": True, "multiplexed": False, **options.pop("attachment", {})}
        ours, theirs = self._sockets()
        terminal = options.get("terminal", False)
        with theirs:
            self.client.exec(
                name,
                container,
                process_plan(process(*args, terminal=terminal)),
                stdin=True,
                attachment=(theirs, attachment),
                **options,
            )
        return ours

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def event(self, kind: str, id: str | None = None) -> dict[str, Any]:
        """Wait for an event; the first of that kind."""
        found: list[dict[str, Any]] = []

        def here() -> bool:
            found[:] = [
                event
                for event in self.events
                if event["event"] == kind and (id is None or event["id"] == id)
            ]
            return bool(found)

        with self._changed:
            assert self._changed.wait_for(here, PATIENCE), f"no {kind} of {id}: {self.events}"
        return found[0]

    def exit(self, name: str) -> int | None:
        code: int | None = self.event("exited", name)["code"]
        return code

    def keeper_pids(self) -> list[int]:
        """The processes that hold the keeper's lock."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().split(b"\0")
                if str(self.root).encode() in line and entry.name.isdigit():
                    found.append(int(entry.name))
        return found

    def kill_keeper(self) -> None:
        (pid,) = self.keeper_pids()
        os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        for sock in self._clients:
            sock.close()
        with contextlib.suppress(Exception):
            for row in self.client.list():
                with contextlib.suppress(Exception):
                    self.client.signal(row["id"], signal.SIGKILL)
        eventually(lambda: all(row["status"] == "exited" for row in self.client.list()))
        self.client.shutdown(force=True)
        self.client.close()
        eventually(lambda: not self.keeper_pids())
        hierarchy = Hierarchy.detect()
        for name in self._names:
            assert not hierarchy.exists(f"tiffin-test-{os.getpid()}/{name}"), name
        hierarchy.delete(f"tiffin-test-{os.getpid()}")


def process(*args: str, terminal: bool = False, **more: Any) -> ProcessSettings:
    return ProcessSettings(args=list(args), env=["PATH=/bin"], terminal=terminal, **more)


def eventually(true: Callable[[], object], what: str = "") -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, what or "it did not become true"
        time.sleep(0.005)


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    parts = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    sock.close()
    return b"".join(parts)


def read_until(sock: socket.socket, wanted: bytes) -> bytes:
    """Everything up to and with ``wanted``, and what came along."""
    data = b""
    while wanted not in data:
        part = sock.recv(1 << 16)
        assert part, data
        data += part
    return data
