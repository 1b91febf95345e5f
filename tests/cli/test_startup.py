"""The start of the command line stays light, and its help says what there is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cli.programs import Tiffin, environment
from tiffin.cli import commands

HEAVY = {
    *("argparse", "asyncio", "calendar", "csv", "dataclasses", "datetime", "email", "fractions"),
    *("getpass", "gettext", "http", "inspect", "locale", "logging", "pathlib", "random"),
    *("shutil", "ssl", "subprocess", "tarfile", "tempfile", "textwrap", "threading"),
    *("typing", "urllib", "zlib"),
}


def loaded(*words: str) -> set[str]:
    """What running a command line brings into a fresh interpreter, a failing daemon included."""
    source = environment()["PYTHONPATH"]
    program = (
        "import sys; before = set(sys.modules)\n"
        f"sys.path.insert(0, {source!r})\n"
        "from tiffin.cli.main import run\n"
        "run(sys.argv[1:])\n"
        "print('\\n', *(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--rm", "busybox"),
        ("exec", "x", "ls"),
        ("ps",),
        ("build", "/"),
        ("images",),
        ("inspect", "x"),
    ],
)
def test_a_command_loads_little(words: tuple[str, ...]) -> None:
    modules = loaded("-H", "unix:///nosuch", *words)
    assert not {name.partition(".")[0] for name in modules} & HEAVY


def test_only_the_command_that_runs_is_loaded() -> None:
    modules = {name for name in loaded("-H", "unix:///nosuch", "ps") if name.startswith("tiffin.")}
    assert "tiffin.cli.container_list" in modules
    assert not modules & {"tiffin.cli.run", "tiffin.cli.build", "tiffin.cli.gotemplate"}


def every_command() -> list[tuple[str, ...]]:
    names: list[tuple[str, ...]] = [(name,) for name in commands.TOP]
    names += [(group, name) for group, (_, table) in commands.GROUPS.items() for name in table]
    return names


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_has_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    from tiffin.cli.main import run

    assert run([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage:  tiffin {' '.join(words)}")
    assert len(text.splitlines()) > 2


def test_the_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    from tiffin.cli.main import run

    assert run([]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in (*commands.TOP, *commands.GROUPS))
    assert run(["help", "image"]) == 0
    assert capsys.readouterr().out.startswith("Usage:  tiffin image COMMAND")
    assert run(["help", "run"]) == 0
    assert capsys.readouterr().out.startswith("Usage:  tiffin run [OPTIONS] IMAGE")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from tiffin.cli.main import run
    from tiffin.version import __version__

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"tiffin version {__version__}\n"


def test_a_reader_that_goes_away_is_no_error(tiffin: Tiffin) -> None:
    done = subprocess.run(
        f"{sys.executable} -m tiffin run --help | head -n 1",
        shell=True,
        capture_output=True,
        env=environment(),
    )
    assert done.stdout.startswith(b"Usage:")
    assert done.stderr == b""
