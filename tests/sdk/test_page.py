"""Every block of ``docs/sdk.md``, run as it stands, over a daemon and in process."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

import tiffin

pytestmark = pytest.mark.root

PAGE = (Path(__file__).parents[2] / "docs" / "sdk.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
OPENINGS, TASKS = BLOCKS[:2], BLOCKS[2:]


def outcome(code: str, names: dict[str, Any]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/sdk.md", "exec"), names)
    return printed.getvalue()


def test_the_page_has_what_it_promises() -> None:
    assert PAGE.count("```python") == len(BLOCKS) == 12
    assert len(re.findall(r"^## \d+\. ", PAGE, re.MULTILINE)) == len(TASKS)


def test_ten_things(client: tiffin.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"client": client}
    for code, expected in TASKS:
        assert outcome(code, names) == expected, code


def test_the_ways_in(
    client: tiffin.Client, sdk_roots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(client, tiffin.Engine):
        monkeypatch.setenv("TIFFIN_ROOT", str(tmp_path / "another"))
    else:
        monkeypatch.setenv("TIFFIN_ROOT", str(sdk_roots / "daemon"))
    code, expected = OPENINGS[isinstance(client, tiffin.Engine)]
    assert outcome(code, {}) == expected
