"""Where the command's output goes: nowhere, or to a reader that has had enough."""

from __future__ import annotations

import os
import subprocess

import pytest

from command.conftest import Command


@pytest.mark.parametrize("words", [("images",), ("run", "--rm", "busybox", "echo", "hi")])
def test_a_closed_stdout_is_no_error(tiffin: Command, words: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" >&- <&-', "sh", *tiffin.words, *words],
        env=tiffin.environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_has_had_enough_is_no_news(tiffin: Command) -> None:
    with tiffin.start(
        *("run", "--rm", "busybox", "seq", "300000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert os.read(process.stdout.fileno(), 2) == b"1\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
