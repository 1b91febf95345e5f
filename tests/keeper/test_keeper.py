"""The keeper as a process: alone, patient with broken peers, frugal, and gone when it may."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiffin.keeper
from keeper.lab import Lab, eventually, read_all
from tiffin.errors import Unreachable
from tiffin.keeper.client import KeeperClient
from tiffin.linux import syscalls

pytestmark = pytest.mark.root
MAIN = str(Path(tiffin.keeper.__file__).with_name("__main__.py"))


def descriptors(pid: int | str) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_two_hundred_containers_at_once(lab: Lab) -> None:
    names = [f"c{number}" for number in range(200)]
    clients = [lab.attach(name, multiplexed=False) for name in names]
    for number, name in enumerate(names):
        lab.sh(name, f"read a; echo {name} $a; exit {number % 100}", open_stdin=True)
    assert len(lab.client.list()) == 200
    for name in names:
        client = lab.attach(name, stdin=True)
        client.sendall(b"go\n")
        client.close()
    assert [read_all(client).decode() for client in clients] == [f"{name} go\n" for name in names]
    assert [lab.exit(name) for name in names] == [number % 100 for number in range(200)]


def test_nothing_leaks(lab: Lab) -> None:
    lab.start("other", "sleep", "1000")

    def life(name: str) -> None:
        client = lab.attach(name, stdin=True, multiplexed=False)
        never = lab.attach(f"{name}-never")
        never.close()
        lab.client.forget(f"{name}-never")
        lab.sh(name, "cat", open_stdin=True, stdin_once=True)
        ran = lab.exec(f"{name}-run", name, "true")
        read_all(ran)
        client.sendall(b"x")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"x"
        lab.exit(name)
        lab.exit(f"{name}-run")
        lab.client.forget(name)

    (pid,) = lab.keeper_pids()
    for number in range(3):
        life(f"warm{number}")
    before = descriptors(pid), descriptors("self"), memory(pid)
    for number in range(30):
        life(f"c{number}")
    # A connection whose client has gone may linger for a moment.
    eventually(lambda: descriptors(pid) <= before[0])
    assert descriptors("self") <= before[1]
    assert memory(pid) - before[2] < 1024
    assert sorted(os.listdir(lab.root / "keeper")) == [
        "keeper.log",
        "keeper.sock",
        "lock",
        "other",
        "rootfs",
    ]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 1
    assert (lab.root / "keeper/keeper.log").read_text() == ""


def memory(pid: int) -> int:
    """KiB of its own."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_D"))


def test_a_broken_client_disturbs_nobody(lab: Lab) -> None:
    lab.sh("one", "read a; echo got $a", open_stdin=True)
    for rubbish in (
        b"\xff\xff\xff\xff",
        b"\0\0\0\2[]",
        b"\0\0\0\5nope!",
        b'\0\0\0\x0e{"fds":5,"a":1}',
        b"\0\0\1\0half",
        b'\0\0\0\x24{"id":1,"do":"start","container":"x"}'[:40],
    ):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(lab.root / "keeper/keeper.sock"))
            sock.sendall(rubbish)
    client = lab.attach("one", stdin=True, multiplexed=False)
    client.sendall(b"word\n")
    assert read_all(client) == b"got word\n"
    assert len(lab.keeper_pids()) == 1


def test_there_is_one_keeper_for_a_root(lab: Lab) -> None:
    clients = [KeeperClient(lab.root, lambda _: None) for _ in range(8)]
    threads = [threading.Thread(target=client.ensure) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lab.keeper_pids()) == 1
    for client in clients:
        client.close()


def test_a_root_with_a_long_path(tmp_path: Path) -> None:
    root = tmp_path / ("long-" * 30) / "root"
    with KeeperClient(root, lambda _: None) as client:
        assert client.list() == []
        client.shutdown()


def test_a_keeper_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "keeper").mkdir()
    (tmp_path / "keeper/lock").mkdir()
    with (
        KeeperClient(tmp_path, lambda _: None) as client,
        pytest.raises(Unreachable, match="Is a directory"),
    ):
        client.ensure()


def test_requests_from_many_threads(lab: Lab) -> None:
    lab.start("one", "sleep", "1000")
    answers: list[list[str]] = []

    def ask() -> None:
        answers.extend([row["id"] for row in lab.client.list()] for _ in range(50))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [["one"]] * 400
    lab.client.signal("one", signal.SIGKILL)


def test_what_the_keeper_imports() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(MAIN).parents[2])!r})\n"
        "before = set(sys.modules)\n"
        "import tiffin.keeper.process, tiffin.runtime.launch\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {
        "asyncio",
        "contextlib",
        "dataclasses",
        "inspect",
        "logging",
        "pathlib",
        "subprocess",
        "threading",
        "typing",
    }
    assert heavy & set(run.stdout.split()) == set()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The keeper's folder, on a disk of its own."""
    place = tmp_path / "keeper"
    place.mkdir()
    syscalls.mount("tmpfs", str(place), "tmpfs", 0, "size=64k")
    yield place
    syscalls.umount(str(place), syscalls.MNT_DETACH)


def test_a_full_disk_ends_neither_the_keeper_nor_what_it_tells(small_disk: Path, lab: Lab) -> None:
    lab.sh("c", "read line; echo $line; exit 3", open_stdin=True)
    (keeper,) = lab.keeper_pids()
    with (
        (small_disk / "fill").open("wb", buffering=0) as fill,
        pytest.raises(OSError, match="No sp"),
    ):
        while True:
            fill.write(bytes(4096))
    client = lab.attach("c", stdin=True, stdout=True, multiplexed=False)
    client.sendall(b"heard\n")
    assert read_all(client) == b"heard\n"
    assert lab.exit("c") == 3
    assert lab.keeper_pids() == [keeper]
    state = json.loads((small_disk / "c/state.json").read_text())
    assert state["status"] in ("running", "exited")
