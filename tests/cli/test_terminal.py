"""A person at a terminal: keys, size, detaching, signals, and a terminal that is left as it was."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.programs import Docker, Tiffin, command_line, environment
from conftest import busybox_tar

pytestmark = [pytest.mark.peer, pytest.mark.root]
PATIENCE = 30.0


@dataclass
class Person:
    """Somebody who types at a terminal, and reads what comes."""

    master: int
    slave: int
    process: subprocess.Popen[bytes]
    seen: bytes = b""

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def read_until(self, wanted: bytes) -> bytes:
        """All that came up to and with ``wanted``, which has to come."""
        deadline = time.monotonic() + PATIENCE
        while wanted not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"no {wanted!r} in {self.seen!r}"
            if select.select([self.master], [], [], left)[0]:
                self.seen += os.read(self.master, 65536)
        end = self.seen.index(wanted) + len(wanted)
        result, self.seen = self.seen[:end], self.seen[end:]
        return result

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def mode(self) -> list[object]:
        return list(termios.tcgetattr(self.slave))

    def exit_code(self) -> int:
        return self.process.wait(PATIENCE)


@contextmanager
def person(host: str, *words: str) -> Iterator[Person]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 31, 101, 0, 0))
    process = subprocess.Popen(
        command_line(*words),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment(TIFFIN_HOST=host),
        start_new_session=True,
    )
    try:
        yield Person(master, slave, process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


@pytest.fixture(params=["dockerd", "own"])
def docker(request: pytest.FixtureRequest) -> Iterator[Docker]:
    """docker's command line for a look from outside, on dockerd and on tiffin's own daemon."""
    client = Docker(request.getfixturevalue(f"{request.param}_host"))
    yield client
    names = client("ps", "-aq", "-f", "name=person").out.split()
    if names:
        client("rm", "-f", *names)


@pytest.fixture
def dockerd_host(dockerd: str) -> str:
    return dockerd


@pytest.fixture
def own_host(root: Path, busybox: Path, docker_cli: None) -> Iterator[str]:
    program = Tiffin(env={"TIFFIN_ROOT": str(root)})
    done = program("import", "-c", 'CMD ["sh"]', "-", "busybox", stdin=busybox_tar())
    assert done.code == 0, done.err
    yield f"unix://{root}/tiffin.sock"
    program("system", "shutdown", "-f", "-t", "0")


RUN = ("run", "--name", "person", "--network", "none")


def test_keys_reach_a_shell_and_its_size_is_the_terminal_s(docker: Docker) -> None:
    with person(docker.host, *RUN, "--rm", "-it", "busybox", "sh") as someone:
        before = someone.mode()
        someone.read_until(b"# ")
        assert someone.mode() != before
        someone.type(b"stty size\n")
        someone.read_until(b"31 101")
        someone.resize(40, 90)
        someone.type(b"while [ \"$(stty size)\" != '40 90' ]; do :; done; echo res''ized\n")
        someone.read_until(b"resized")
        someone.type(b"echo st''arted; sleep 1000\n")
        someone.read_until(b"started")
        someone.type(b"\x03")
        someone.read_until(b"# ")
        someone.type(b"exit 6\n")
        assert someone.exit_code() == 6
        assert someone.mode() == before


def test_detach_keys_leave_the_container_running(docker: Docker) -> None:
    with person(docker.host, *RUN, "-it", "busybox", "sh") as someone:
        before = someone.mode()
        someone.read_until(b"# ")
        someone.type(b"\x10\x11")
        assert someone.exit_code() == 0
        someone.read_until(b"read escape sequence")
        assert someone.mode() == before
    assert docker("inspect", "-f", "{{.State.Running}}", "person").out == "true\n"

    with person(docker.host, "attach", "--detach-keys", "x", "person") as someone:
        someone.type(b"echo a''b\n")
        someone.read_until(b"ab")
        someone.type(b"x")
        assert someone.exit_code() == 0

    with person(docker.host, "exec", "-it", "person", "sh") as someone:
        someone.read_until(b"# ")
        someone.type(b"stty size\n")
        someone.read_until(b"31 101")
        someone.type(b"exit 9\n")
        assert someone.exit_code() == 9

    with person(docker.host, "attach", "person") as someone:
        someone.type(b"exit 5\n")
        assert someone.exit_code() == 5


def test_a_signal_that_ends_the_client_leaves_the_terminal_as_it_was(docker: Docker) -> None:
    with person(docker.host, *RUN, "-it", "busybox", "sh") as someone:
        before = someone.mode()
        someone.read_until(b"# ")
        someone.process.send_signal(signal.SIGTERM)
        assert someone.exit_code() == -signal.SIGTERM
        assert someone.mode() == before


def test_signals_are_passed_on_without_a_terminal(docker: Docker) -> None:
    script = "trap 'echo got term; exit 44' TERM; echo ready; while :; do sleep 0.01; done"
    process = subprocess.Popen(
        command_line(*RUN, "--rm", "busybox", "sh", "-c", script),
        stdout=subprocess.PIPE,
        env=environment(TIFFIN_HOST=docker.host),
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"got term\n"
        assert process.wait(PATIENCE) == 44


def test_signals_stay_here_when_they_are_not_to_be_passed_on(docker: Docker) -> None:
    process = subprocess.Popen(
        command_line(*RUN, "--sig-proxy=false", "busybox", "sh", "-c", "echo ready; sleep 1000"),
        stdout=subprocess.PIPE,
        env=environment(TIFFIN_HOST=docker.host),
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == -signal.SIGTERM
    assert docker("inspect", "-f", "{{.State.Running}}", "person").out == "true\n"


def test_logs_can_be_followed_to_the_end(docker: Docker) -> None:
    docker(*RUN, "-d", "busybox", "sh", "-c", "echo one; while [ ! -e /go ]; do :; done; echo two")
    process = subprocess.Popen(
        command_line("logs", "-f", "person"),
        stdout=subprocess.PIPE,
        env=environment(TIFFIN_HOST=docker.host),
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        docker("exec", "person", "touch", "/go")
        assert process.stdout.read() == b"two\n"
        assert process.wait(PATIENCE) == 0
