"""What ``tiffin-runtime`` keeps of a container: ``ROOT/ID/state.json`` and its configuration.

Whether a container lives is asked of the kernel, by its first process's pid and start time.
"""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tiffin.errors import NotFound
from tiffin.linux.cgroups import Hierarchy

JSON = dict[str, Any]
SPECIFICATION = "1.2.0"


class Record:
    """What is kept of a container."""

    def __init__(self, root: str, name: str) -> None:
        self.folder = f"{root}/{name}"
        self.path = f"{self.folder}/state.json"
        self.content: JSON = {}

    @classmethod
    def load(cls, root: str, name: str) -> Record:
        """Raises NotFound."""
        record = cls(root, name)
        try:
            with open(record.path) as file:
                record.content = json.load(file)
        except FileNotFoundError:
            raise NotFound("container does not exist") from None
        return record

    def save(self) -> None:
        """Write it down, whole or not at all."""
        temporary = f"{self.path}.new"
        with open(temporary, "w") as file:
            json.dump(self.content, file)
        os.rename(temporary, self.path)

    def remove(self) -> None:
        """Forget the container; also one of which a killed command has left a part."""
        # First what makes it one, so that a removal that is killed can be done once more.
        for name in sorted(os.listdir(self.folder), key=lambda name: name != "state.json"):
            os.unlink(f"{self.folder}/{name}")
        os.rmdir(self.folder)

    @contextmanager
    def process(self) -> Iterator[int]:
        """A pidfd of its first process, and of no later one of the same number. Raises
        ProcessLookupError if it has ended."""
        pidfd = os.pidfd_open(self.content["pid"])
        try:
            if not self.alive:
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            yield pidfd
        finally:
            os.close(pidfd)

    def signal(self, number: int) -> None:
        """Send a signal to its first process; none if it has ended."""
        try:
            with self.process() as pidfd:
                signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            # It has ended in between.
            pass

    @property
    def alive(self) -> bool:
        """Whether its first process is there."""
        pid = self.content.get("pid", 0)
        return bool(pid) and started(pid) == self.content["started"]

    def status(self, hierarchy: Hierarchy) -> str:
        """creating, created, running, paused, stopped."""
        if not self.content.get("pid"):
            return "creating"
        if not self.alive:
            return "stopped"
        if self.content["status"] == "running" and hierarchy.frozen(self.content["cgroup"]):
            return "paused"
        return str(self.content["status"])

    def state(self, status: str, pid: int | None = None) -> JSON:
        """The specification's state."""
        state: JSON = {
            "ociVersion": SPECIFICATION,
            "id": self.content["id"],
            "status": status,
            "bundle": self.content["bundle"],
            "annotations": self.content["annotations"],
        }
        number = self.content.get("pid", 0) if pid is None else pid
        if status != "stopped" and number:
            state["pid"] = number
        return state

    @property
    def config(self) -> JSON:
        """The configuration that it was made of."""
        with open(f"{self.folder}/config.json") as file:
            config: JSON = json.load(file)
        return config


def started(pid: int) -> int:
    """When a process started (clock ticks since boot); 0 if there is none, or a dead one."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
