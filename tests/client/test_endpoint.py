"""A daemon that starts when it is needed, and what is said when it can't."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.programs import Tiffin, command_line, environment
from conftest import busybox_tar

pytestmark = pytest.mark.root


@pytest.fixture
def tiffin(root: Path) -> Iterator[Tiffin]:
    """The command line in an engine root of its own."""
    program = Tiffin(cwd=root.parent, env={"TIFFIN_ROOT": str(root)})
    yield program
    program("system", "shutdown", "-f", "-t", "0")


def daemons(root: Path) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"serve" in words and os.fsencode(root) in words:
                found.append(int(entry.name))
    return found


def test_the_first_command_starts_a_daemon_and_shutdown_ends_it(tiffin: Tiffin, root: Path) -> None:
    assert tiffin("ps").out.startswith("CONTAINER ID")
    assert len(daemons(root)) == 1
    assert tiffin("images").code == 0
    assert len(daemons(root)) == 1
    assert tiffin("system", "shutdown").code == 0
    assert daemons(root) == []
    assert "nothing to stop" in tiffin("system", "shutdown").out


def test_many_first_commands_at_once_share_one_daemon(tiffin: Tiffin, root: Path) -> None:
    commands = [
        subprocess.Popen(
            command_line("ps", "-q"),
            env=environment(TIFFIN_ROOT=str(root)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(6)
    ]
    for command in commands:
        out, err = command.communicate(timeout=60)
        assert (out, err, command.returncode) == (b"", b"", 0)
    assert len(daemons(root)) == 1


def test_the_reason_of_a_daemon_that_cannot_start_is_shown(tmp_path: Path) -> None:
    (tmp_path / "tiffin.db").write_text("this is no database, whatever it is called")
    outcome = Tiffin(env={"TIFFIN_ROOT": str(tmp_path)})("ps")
    assert outcome.code == 1
    assert outcome.err.startswith("Cannot start the tiffin daemon: ")
    assert f"{tmp_path}/tiffin.db" in outcome.err


def test_a_named_socket_is_never_started(tmp_path: Path) -> None:
    outcome = Tiffin(f"unix://{tmp_path}/nosuch")("ps")
    assert outcome.code == 1
    assert outcome.err == (
        f"Cannot connect to the tiffin daemon at unix://{tmp_path}/nosuch. "
        "Is the tiffin daemon running?\n"
    )


def test_a_root_with_a_long_path_works(tmp_path: Path) -> None:
    root = tmp_path / ("long" * 40)
    program = Tiffin(env={"TIFFIN_ROOT": str(root)})
    assert program("ps", "-q").code == 0
    assert program("system", "shutdown").code == 0


@pytest.fixture
def busy(tiffin: Tiffin, busybox: Path) -> Tiffin:
    """The command line, with an image ``busybox``."""
    done = tiffin("import", "-c", 'CMD ["sh"]', "-", "busybox", stdin=busybox_tar())
    assert done.code == 0, done.err
    return tiffin


def test_a_container_runs_from_start_to_end(busy: Tiffin) -> None:
    run = ("run", "--rm", "--network", "none")
    outcome = busy(*run, "-i", "busybox", "sh", "-c", "cat; echo err >&2; exit 3", stdin=b"in\n")
    assert (outcome.out, outcome.err, outcome.code) == ("in\n", "err\n", 3)
    assert busy(*run, "busybox", "nosuch").code == 127
    assert busy(*run, "busybox", "/etc").code == 126
    assert busy(*run, "nosuch").code == 125
    assert busy("ps", "-aq").out == ""


def test_a_build_and_an_archive_are_read_in_place(busy: Tiffin, root: Path) -> None:
    context = root.parent / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM busybox\nCOPY . /app\nCMD cat /app/file\n")
    (context / "file").write_text("content\n")
    built = busy("build", "-t", "made", "context")
    assert built.code == 0, built.err
    assert "Successfully tagged made:latest" in built.out
    assert busy("run", "--rm", "--network", "none", "made").out == "content\n"
    tree = busy("images", "--tree").out
    assert tree.splitlines()[1].startswith("busybox:latest ")
    assert tree.splitlines()[2].startswith("└─ made:latest ")
    assert busy("save", "-o", "made.tar", "made").code == 0
    busy("rmi", "made")
    assert busy("load", "-i", "made.tar").out == "Loaded image: made:latest\n"


def test_shutdown_is_refused_while_something_runs_unless_forced(busy: Tiffin, root: Path) -> None:
    busy("run", "-d", "--name", "runs", "--network", "none", "busybox", "sleep", "1000")
    assert busy("system", "shutdown").code == 1
    assert busy("system", "shutdown", "--daemon-only").code == 0
    assert daemons(root) == []
    assert busy("ps", "--format", "{{.Names}} {{.State}}").out == "runs running\n"
    assert busy("system", "shutdown", "-f", "-t", "0").code == 0
    assert busy("ps", "-a", "--format", "{{.Names}} {{.State}}").out == "runs exited\n"
