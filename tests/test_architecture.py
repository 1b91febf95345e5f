"""The rules of ``docs/architecture.md``: who may import whom, and what a start may load."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tiffin"

# A room, and the rooms that it may import, itself aside.
ROOMS = {
    "store": {"errors"},
    "linux": {"errors"},
    "storage": {"linux", "errors"},
    "layer": {"storage", "linux", "store", "errors"},
    "image": {"layer", "errors"},
    "runtime": {"storage", "linux", "errors", "version"},
    "keeper": {"runtime", "linux", "errors"},
    "network": {"linux", "store", "errors"},
    "registry": {"image", "layer", "errors", "units"},
    "build": {"image", "layer", "storage", "store", "runtime", "linux", "errors", "units"},
    "engine": {
        "build", "registry", "network", "runtime", "keeper", "layer", "image", "storage", "linux",
        "store", "errors", "units", "version",
    },
    "api": {"engine", "linux", "errors", "version"},
    "client": {"errors", "version"},
    "sdk": {"client", "errors", "units", "version"},
    "cli": {"client", "errors", "units", "version"},
}  # fmt: skip

# Exceptions, each with its reason; a module that is not named here has none.
ALLOWED = {
    ("cli", "api.daemon"): "`tiffin serve` is the daemon",
    ("cli", "image.reference"): "names are parsed the same way on both sides",
    ("cli", "image.pack"): "`image pack` reads the host's files, which the client does itself",
    ("client", "build.dockerignore"): "a context for another engine leaves out what is ignored",
    ("cli", "registry"): "credentials, copies between registries and a registry of one's own are"
    " the client's: no daemon is needed for them",
    ("cli", "image.platforms"): "platforms of what is copied",
    ("client", "linux.sockets"): "long paths of unix sockets",
    ("sdk", "api"): "Engine serves the API to itself, in its own process",
    ("sdk", "engine"): "the engine in process",
    ("sdk", "image.reference"): "names are parsed the same way on both sides",
    ("sdk", "registry.credentials"): "credentials are the client's",
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """The modules of tiffin that a file imports, without the leading ``tiffin.``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path} imports by relative names, which this can't read")
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    # The package's own name for it loads the engine.
    found = {"tiffin.sdk" if name == "tiffin.Engine" else name for name in found}
    return {name.removeprefix("tiffin.") for name in found if name.startswith("tiffin.")}


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_what_lies_below_it(room: str) -> None:
    wrong = []
    for path in sorted((SOURCE / room).rglob("*.py")):
        for module in imports(path):
            other = module.partition(".")[0]
            if other in ROOMS or other in ("errors", "units", "version"):
                fine = other == room or other in ROOMS[room]
                excused = any(
                    module == allowed or module.startswith(f"{allowed}.")
                    for owner, allowed in ALLOWED
                    if owner == room
                )
                if not fine and not excused:
                    wrong.append(f"{path.relative_to(SOURCE)} imports tiffin.{module}")
    assert not wrong


def test_every_room_is_in_the_table() -> None:
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(ROOMS)


def loaded(code: str, *flags: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after running ``code``."""
    program = f"import sys; before = set(sys.modules); {code}; print(*(set(sys.modules) - before))"
    output = subprocess.run(
        [sys.executable, *flags, "-c", program],
        env={**os.environ, "PYTHONPATH": str(SOURCE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(output.stdout.split())


HEAVY = {
    "asyncio", "argparse", "msgspec", "h11", "sqlite3", "http.client", "email", "tarfile",
    "subprocess", "tempfile", "shutil", "zstandard", "isal", "inspect", "logging", "dataclasses",
    "concurrent.futures", "ssl", "urllib.request", "multiprocessing",
}  # fmt: skip


def test_the_command_line_starts_light() -> None:
    assert not loaded("import tiffin.cli.main") & HEAVY


def test_the_keeper_starts_light() -> None:
    assert not loaded("import tiffin.keeper.server") & (HEAVY | {"pathlib", "typing"})


def test_importing_the_package_loads_nothing_of_it() -> None:
    assert {name for name in loaded("import tiffin") if name.startswith("tiffin")} == {
        "tiffin",
        "tiffin.version",
    }


def test_modules_have_names_of_the_domain() -> None:
    banned = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for path in SOURCE.rglob("*.py") if path.stem in banned]


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent
