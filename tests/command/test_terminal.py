"""`tiffin run -it` on a real terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
from typing import Any

from command.conftest import Command, eventually


class Terminal:
    """A command on a pseudoterminal."""

    def __init__(
        self, tiffin: Command, *words: str, size: tuple[int, int] = (24, 80), **options: Any
    ) -> None:
        self.master, slave = pty.openpty()
        self.resize(*size)
        self.process = tiffin.start(
            *words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, **options
        )
        os.close(slave)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def until(self, wanted: bytes, seconds: float = 20) -> bytes:
        """Read until something shows, and give everything since the last call."""
        while wanted not in self.seen:
            ready, _, _ = select.select([self.master], [], [], seconds)
            assert ready, f"{wanted!r} did not show: {self.seen!r}"
            try:
                data = os.read(self.master, 65536)
            except OSError:
                data = b""
            assert data, f"{wanted!r} did not show before the end: {self.seen!r}"
            self.seen += data
        shown, _, self.seen = self.seen.partition(wanted)
        return shown

    def end(self) -> int:
        """Wait for the command's end."""
        try:
            while os.read(self.master, 65536):
                pass
        except OSError:
            # EIO: nobody has the other end open any more.
            pass
        code = self.process.wait(30)
        os.close(self.master)
        return code


def test_a_shell_with_its_size_and_exit_code(tiffin: Command) -> None:
    terminal = Terminal(tiffin, "run", "-it", "--rm", "busybox", "sh", size=(33, 101))
    terminal.until(b"# ")
    terminal.type(b"stty size; tty\r")
    terminal.until(b"33 101\r\n/dev/pts/0")
    terminal.resize(40, 120)
    os.kill(terminal.process.pid, signal.SIGWINCH)

    def resized() -> Any:
        terminal.type(b"echo size: $(stty size)\r")
        terminal.until(b"size: $")
        return b"40 120" in terminal.until(b"# ")

    eventually(resized)
    terminal.type(b"exit 5\r")
    assert terminal.end() == 5


def test_detaching_leaves_the_container_running_and_attaching_comes_back(tiffin: Command) -> None:
    terminal = Terminal(tiffin, "run", "-it", "--name", "shell", "busybox", "sh")
    terminal.until(b"# ")
    terminal.type(b"echo be$((40+2))fore\r")
    terminal.until(b"be42fore")
    terminal.type(b"\x10\x11")
    assert terminal.end() == 0
    assert tiffin.inspect("shell")["State"]["Running"]
    again = Terminal(tiffin, "attach", "shell")
    again.type(b"echo af$((40+2))ter\r")
    again.until(b"af42ter")
    again.type(b"exit 3\r")
    assert again.end() == 3


def test_control_c_reaches_the_process_in_the_container(tiffin: Command) -> None:
    terminal = Terminal(tiffin, "run", "-it", "--rm", "busybox", "sh")
    terminal.until(b"# ")
    terminal.type(b"sleep 600\r")
    eventually(lambda: b"sleep" in tiffin_top(tiffin))
    terminal.type(b"\x03")
    terminal.type(b"exit 4\r")
    assert terminal.end() == 4


def tiffin_top(tiffin: Command) -> bytes:
    names = tiffin("ps", "-q").split()
    return tiffin("top", names[0]).encode() if names else b""


def test_signals_are_passed_on(tiffin: Command) -> None:
    script = "trap 'echo got it; exit 6' TERM; echo ready; while :; do sleep 0.05; done"
    run = tiffin.start("run", "--rm", "busybox", "sh", "-c", script, stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n"
    run.send_signal(signal.SIGTERM)
    assert run.stdout.readline() == b"got it\n"
    assert run.wait(30) == 6
    run.stdout.close()


def test_exec_with_a_terminal(tiffin: Command) -> None:
    tiffin("run", "-d", "--name", "busy", "busybox", "sleep", "600")
    terminal = Terminal(tiffin, "exec", "-it", "busy", "sh", size=(20, 70))
    terminal.until(b"# ")
    terminal.type(b"stty size; exit 8\r")
    terminal.until(b"20 70")
    assert terminal.end() == 8
    tiffin("rm", "-f", "busy")
