"""`tiffin build` on a terminal: what is on the screen, and what Ctrl-C leaves (nothing)."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import signal
import sqlite3
import termios
from pathlib import Path

import pyte
import pytest

from command.conftest import Command, eventually
from command.test_terminal import Terminal
from tiffin.cli import build_display
from tiffin.linux.cgroups import Hierarchy

pytestmark = pytest.mark.root

DOCKERFILE = """\
FROM busybox AS one
RUN echo of the first; until [ -e /c/go ]; do sleep 0.1; done
FROM busybox
RUN printf 'half\\rwhole\\n\\033[31mred\\033[0m\\tx\\n'; until [ -e /c/go ]; do sleep 0.1; done
COPY --from=one /etc/passwd /p
"""


def screen(columns: int = 80, rows: int = 24) -> tuple[pyte.Screen, pyte.ByteStream]:
    made = pyte.Screen(columns, rows)
    return made, pyte.ByteStream(made)


def lines(shown: pyte.Screen) -> list[str]:
    return [line.rstrip() for line in shown.display if line.strip()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "Dockerfile").write_text(
        DOCKERFILE.replace("RUN", "RUN --mount=type=cache,target=/c")
    )
    return folder


def read(terminal: Terminal, stream: pyte.ByteStream) -> bool:
    """Feed what has come; False at the end."""
    try:
        data = os.read(terminal.master, 65536)
    except OSError:
        data = b""
    stream.feed(data.replace(b"\n", b"\r\n") if b"\r\n" not in data else data)
    return bool(data)


def test_the_screen_while_it_runs_and_at_the_end(tiffin: Command, folder: Path) -> None:
    tiffin.environment["TERM"] = "xterm"
    terminal = Terminal(tiffin, "build", "-t", "x", str(folder), size=(24, 60))
    shown, stream = screen(60)
    both = ("    of the first", "    red     x")
    while not all(line in lines(shown) for line in both):
        assert read(terminal, stream), lines(shown)
    running = [line for line in lines(shown) if "RUN --mount" in line]
    assert sorted(line[:5] for line in running) == ["[2/5]", "[4/5]"]
    assert all(line.endswith("s") and "… " in line and len(line) <= 60 for line in running)
    assert "    whole" in lines(shown) and "    half" not in lines(shown)
    for cache in (tiffin.root / "build-cache").iterdir():
        (cache / "go").touch()
    while read(terminal, stream):
        pass
    assert terminal.process.wait(60) == 0
    os.close(terminal.master)
    final = lines(shown)
    assert sorted(line[:5] for line in final[:5]) == ["[1/5]", "[2/5]", "[3/5]", "[4/5]", "[5/5]"]
    assert final[5].startswith("Successfully built ")
    assert final[6:] == ["Successfully tagged x:latest"]
    (folder / "Dockerfile").write_text(DOCKERFILE.split("\n")[0] + "\nRUN echo why; exit 7\n")
    terminal = Terminal(tiffin, "build", str(folder), size=(24, 60))
    shown, stream = screen(60)
    while read(terminal, stream):
        pass
    assert terminal.process.wait(60) == 7
    os.close(terminal.master)
    assert "    why" in lines(shown)
    assert "returned a non-zero code: 7" in " ".join("".join(shown.display).split())


def test_other_ways_to_show_it(tiffin: Command, folder: Path) -> None:
    (folder / "Dockerfile").write_text("FROM busybox\nRUN echo shown\n")
    tiffin.environment["TERM"] = "xterm"
    for words, expected in (
        (("--progress", "plain"), "Step 2/2 : RUN echo shown"),
        (("--progress", "rawjson"), '"build":'),
        (("-q",), "sha256:"),
        (("--progress", "quiet"), "sha256:"),
    ):
        terminal = Terminal(tiffin, "build", *words, str(folder), size=(40, 200))
        shown, stream = screen(200, 40)
        while read(terminal, stream):
            pass
        assert terminal.process.wait(60) == 0
        os.close(terminal.master)
        text = "\n".join(lines(shown))
        assert expected in text
        if words[-1] in ("-q", "quiet"):
            assert len(lines(shown)) == 1


def take_terminal() -> None:
    """In the child: have the terminal as its own, so that Ctrl-C is a signal to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def left(tiffin: Command, caches: int) -> list[str]:
    """What a build has left behind."""
    found = [str(path) for path in (tiffin.root / "work").iterdir()]
    found += [str(path) for path in (tiffin.root / "containers").iterdir()]
    found += [str(path) for path in Path("/dev/shm").glob("tiffin-build-*")]
    if len(list((tiffin.root / "build-cache").glob("*"))) != caches:
        found.append("another cache folder")
    mark = hashlib.sha256(os.fsencode(tiffin.root)).hexdigest()[:8]
    for directory in Hierarchy.detect().directories(f"tiffin/{mark}"):
        found += [str(each) for each in Path(directory).glob("*") if each.is_dir()]
    with sqlite3.connect(f"file:{tiffin.root}/tiffin.db?mode=ro", uri=True) as database:
        for table, where in (("snapshots", "purpose IN ('work', 'container')"), ("endpoints", "1")):
            found += [str(row) for row in database.execute(f"SELECT * FROM {table} WHERE {where}")]
    database.close()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if b"tiffin-leftover" in Path("/proc", name, "cmdline").read_bytes():
                found.append(f"process {name}")
        except (FileNotFoundError, ProcessLookupError):
            continue
    mounts = Path("/proc/self/mounts").read_text()
    found += [line for line in mounts.splitlines() if str(tiffin.root) in line]
    return found


@pytest.mark.parametrize("progress", ["tty", "plain"])
def test_ctrl_c_leaves_nothing(tiffin: Command, folder: Path, progress: str) -> None:
    tiffin.environment["TERM"] = "xterm"
    (folder / "f").write_text("x")
    (folder / "Dockerfile").write_text(
        "FROM busybox AS one\nRUN echo sleeping one; sleep 3000 & sh -c 'sleep 3000; true' "
        "tiffin-leftover\nFROM busybox\n"
        "RUN --mount=type=cache,target=/c --mount=target=/x,rw --mount=type=tmpfs,target=/t "
        "--mount=from=busybox,target=/b,rw echo y > /b/y; echo sleeping two; "
        "sh -c 'sleep 3000; true' tiffin-leftover\nCOPY --from=one /etc/passwd /p\n"
    )
    images = tiffin("images", "-aq")
    words = ("build", "--progress", progress, str(folder))
    terminal = Terminal(tiffin, *words, size=(24, 78), preexec_fn=take_terminal)
    try:
        # One of the two may have to wait for its turn to be shown.
        terminal.until(b"sleeping", 60)
        eventually(lambda: sum("process" in each for each in left(tiffin, 1)) >= 2, 60)
        terminal.type(b"\x03")
        assert terminal.end() == 130
    finally:
        terminal.process.kill()
    eventually(lambda: not left(tiffin, 1), 60)
    assert tiffin("images", "-aq") == images and tiffin("ps", "-aq") == ""


def test_what_a_line_of_output_is_on_a_screen() -> None:
    assert build_display.plain("a\rb\r") == "b"
    assert build_display.plain("\x1b[1;31mred\x1b[0m \x1b]0;title\x07x\ty\x00") == "red x   y"
    assert build_display.cut("abcdef", 4) == "abc…"
    assert build_display.width("日本e\u0301") == 5
    assert build_display.cut("日本語", 5) == "日本…"


def test_more_runs_than_the_screen_holds() -> None:
    out = io.StringIO()
    shown, stream = screen(40, 6)
    terminal = build_display.Terminal(out, lambda: (40, 6))
    for stage in range(8):
        terminal.event({"stage": stage, "state": "started", "step": stage, "total": 9, "text": "x"})
    terminal.draw()
    for stage in range(8):
        terminal.event({"stage": stage, "state": "done", "step": stage, "total": 9})
    terminal.end()
    stream.feed(out.getvalue().replace("\n", "\r\n").encode())
    assert [line[:6] for line in lines(shown)] == ["[3/9] ", "[4/9] ", "[5/9] ", "[6/9] ", "[7/9] "]
