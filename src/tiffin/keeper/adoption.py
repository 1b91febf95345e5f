"""What a keeper finds of an earlier one: the folders of containers, and in them ``state.json``.

A container that runs is known again by its process ID, that process's start time, and the boot it
belongs to; or by a pidfd that a daemon kept, which is always right and also tells the exit status
of a process that is gone. A container that was being started when the keeper was killed is ended:
nobody was told that it runs.
"""

from __future__ import annotations

import json
import os
import select

from tiffin.keeper.loop import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def boot_id() -> str:
    """What differs from boot to boot."""
    return _read("/proc/sys/kernel/random/boot_id").strip()


def process_start(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is no such process."""
    try:
        stat = _read(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[19])


def find_states(root: str) -> list[tuple[str, dict[str, Any]]]:
    """The containers' folders and states. A folder without one is removed: it was just made."""
    found = []
    with os.scandir(root) as entries:
        directories = [entry.path for entry in entries if entry.is_dir() and entry.name != "rootfs"]
    for directory in directories:
        try:
            state = json.loads(_read(f"{directory}/state.json"))
        except FileNotFoundError:
            remove_folder(directory)
            continue
        except ValueError as error:
            say(f"{directory}/state.json cannot be read: {error}")
            continue
        found.append((directory, state))
    return found


def open_living(state: dict[str, Any], boot: str) -> int | None:
    """A pidfd of the process of ``state``; None if it is gone."""
    if state["boot"] != boot:
        return None
    try:
        pidfd = os.pidfd_open(state["pid"])
    except ProcessLookupError:
        return None
    if process_start(state["pid"]) != state["process_start"] or has_ended(pidfd):
        os.close(pidfd)
        return None
    return pidfd


def has_ended(pidfd: int) -> bool:
    """Whether the process of a pidfd has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def remove_folder(directory: str) -> None:
    """Remove a container's folder, whatever files are in it; no error if it is gone."""
    try:
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)
    except FileNotFoundError:
        pass


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while part := os.read(fd, 65536):
            data += part
    finally:
        os.close(fd)
    return data.decode()
