"""Containers with a terminal."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
from collections.abc import Callable

import pytest

from runtime.conftest import Kitchen
from tiffin.errors import StartFailure
from tiffin.runtime.launch import enter
from tiffin.runtime.launching import Stdio
from tiffin.runtime.native import process_plan
from tiffin.runtime.settings import (
    ProcessSettings,
)

pytestmark = pytest.mark.root

Reader = Callable[[int, bytes], bytes]


def test_a_terminal(kitchen: Kitchen, terminal_reader: Reader) -> None:
    script = "tty; stty size; test -t 0 && ls -l /dev/console; read line; echo got-$line"
    settings = kitchen.settings("sh", "-c", script, terminal=True, user="cook")
    launched = kitchen.start(settings, Stdio(None, (33, 99)))
    master = launched.terminal_fd
    assert master is not None
    seen = terminal_reader(master, b"/dev/console")
    assert b"/dev/pts/0\r\n33 99\r\n" in seen
    os.write(master, b"soup\n")
    assert b"got-soup" in terminal_reader(master, b"got-soup")
    assert kitchen.finish(launched) == 0


def test_the_terminal_is_the_controlling_one(kitchen: Kitchen, terminal_reader: Reader) -> None:
    settings = kitchen.settings(
        "sh",
        "-c",
        "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 1; done",
        terminal=True,
    )
    launched = kitchen.start(settings, Stdio(None))
    master = launched.terminal_fd
    terminal_reader(master, b"ready")
    os.write(master, b"\x03")
    assert b"caught" in terminal_reader(master, b"caught")
    assert kitchen.finish(launched) == 3


def test_resizing_reaches_the_program(kitchen: Kitchen, terminal_reader: Reader) -> None:
    script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.1; done"
    settings = kitchen.settings("sh", "-c", script, terminal=True)
    launched = kitchen.start(settings, Stdio(None, (10, 20)))
    master = launched.terminal_fd
    terminal_reader(master, b"ready")
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    assert b"40 100" in terminal_reader(master, b"40 100")
    assert kitchen.finish(launched) == 0


def test_a_failed_start_with_a_terminal_leaves_no_descriptor(kitchen: Kitchen) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StartFailure):
        kitchen.start(kitchen.settings("nope", terminal=True), Stdio(None))
    assert len(os.listdir("/proc/self/fd")) == before


def test_init_with_a_terminal(kitchen: Kitchen, terminal_reader: Reader) -> None:
    settings = kitchen.settings("sh", "-c", "tty; cat", terminal=True, init=True)
    launched = kitchen.start(settings, Stdio(None))
    terminal_reader(launched.terminal_fd, b"/dev/pts/0")
    os.write(launched.terminal_fd, b"\x03")
    assert kitchen.finish(launched) == 128 + signal.SIGINT


def test_entering_with_a_terminal(kitchen: Kitchen, terminal_reader: Reader) -> None:
    launched, settings = kitchen.background("sh", "-c", "echo ready; sleep 60")
    process = process_plan(
        ProcessSettings(["sh", "-c", "tty; stty size"], env=["PATH=/bin"], terminal=True)
    )
    entrances = kitchen.hierarchy.entrances(settings.cgroup_name)
    entered = enter(launched.pidfd, process, Stdio(None, (7, 70)), entrances)
    assert entered.terminal_fd is not None
    assert b"/dev/pts/0\r\n7 70" in terminal_reader(entered.terminal_fd, b"7 70")
    assert os.waitpid(entered.pid, 0)[1] == 0
    os.close(entered.terminal_fd)
    os.close(entered.pidfd)
