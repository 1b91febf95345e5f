"""What the keeper loads: every module costs each start and each fork."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
HEAVY = {
    "asyncio",
    "dataclasses",
    "email",
    "http",
    "inspect",
    "logging",
    "msgspec",
    "pathlib",
    "platform",
    "subprocess",
    "threading",
    "typing",
    "urllib",
}


def test_launching_loads_next_to_nothing() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r}); import tiffin.runtime.launch; "
        "print(*sys.modules)"
    )
    command = [sys.executable, "-I", "-S", "-c", script]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert not HEAVY & set(output.split())
