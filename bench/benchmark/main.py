"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmark import machine, report
from benchmark.cases import CASES
from benchmark.engines import Docker, Engine, EngineFailure, Podman, Tiffin, launcher
from benchmark.materials import BUSYBOX, Materials
from benchmark.measurement import Outcome, alternate
from benchmark.stage import Stage

_DOCKERD = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/run",
        description="Measure tiffin beside whatever of Docker and Podman is installed.",
    )
    parser.add_argument("--list", action="store_true", help="say what can be measured")
    parser.add_argument("--only", action="append", metavar="NAME", help="this case; repeatable")
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="rounds (10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="keep images and archives there, so that the next time is quick; engine roots are "
        "made there, and removed (a temporary folder in /var/tmp)",
    )
    parser.add_argument(
        "--dockerd",
        action="append",
        metavar="PATH",
        help="a dockerd to compare with, repeatable (the installed one); containerd and runc are "
        "taken from beside it",
    )
    parser.add_argument("--docker", metavar="PATH", help="the docker command (the installed one)")
    parser.add_argument(
        "--builder",
        action="append",
        metavar="PATH",
        help="a docker command to try for builds with BuildKit, repeatable (every installed one)",
    )
    parser.add_argument(
        "--file-system",
        choices=("ext4", "xfs", "btrfs", "none"),
        default="ext4",
        help="make the engine roots on a new file system of this kind, in a sparse file (ext4); "
        "none: in the folder itself",
    )
    parser.add_argument("--no-docker", action="store_true", help="leave Docker out")
    parser.add_argument("--no-podman", action="store_true", help="leave Podman out")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code: 1 where something failed, not where tiffin is slow."""
    options = _arguments(words)
    if options.list:
        for name, entry in CASES.items():
            print(f"{name:14} {entry.text}")
        return 0
    names = options.only or list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        return _fail(f"no case is named {unknown[0]}: see --list")
    if os.geteuid() != 0:
        return _fail("containers are made: run this as root")
    if not BUSYBOX.exists():
        return _fail(f"{BUSYBOX} is missing: install busybox-static")
    # The end of everything goes through the stack's, also after `kill`, and in the background.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        return _measure(options, names)
    except EngineFailure as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("stopped")


def _fail(message: str) -> int:
    sys.stderr.write(f"bench/run: {message}\n")
    return 1


def _progress(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def _measure(options: argparse.Namespace, names: Sequence[str]) -> int:
    outcomes: list[Outcome] = []
    failed = False
    with ExitStack() as stack:
        if options.work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        else:
            work = options.work.absolute()
            work.mkdir(parents=True, exist_ok=True)
        roots = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=work, prefix="roots-")))
        if options.file_system != "none":
            roots = stack.enter_context(machine.file_system(roots, options.file_system))
        facts = machine.facts(roots)
        engines = _engines(stack, options, roots)
        docker = options.docker or shutil.which("docker")
        versions = {engine.name: engine.version for engine in engines}
        versions["Python"] = platform.python_version()
        if docker is not None and not options.no_docker:
            client = engines[0].clients[-1]
            versions["docker CLI"] = client("version", "--format", "{{.Client.Version}}").strip()
        for engine in engines:
            if engine.buildkit is not None:
                versions[f"docker CLI of {engine.buildkit.label}"] = engine.buildkit.version
        stage = Stage(roots, Materials(work), engines)
        for name in names:
            entry = CASES[name]
            runs = max(1, round(options.runs * entry.share))
            try:
                with entry.case(stage) as comparisons:
                    for comparison in comparisons:
                        outcomes += alternate(name, comparison, runs, _progress)
            except EngineFailure as error:
                _progress(f"{name} failed: {error}")
                failed = True
        facts["load"] += " … " + " ".join(f"{load:.1f}" for load in os.getloadavg())
    print(report.markdown(facts, versions, outcomes), end="")
    if options.json is not None:
        options.json.write_text(report.as_json(facts, versions, outcomes), encoding="utf-8")
    return 1 if failed else 0


def _everywhere(program: str) -> list[str]:
    """Every command of that name, as the shell would look for it."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return [path for folder in folders if (path := shutil.which(program, path=folder)) is not None]


def _engines(stack: ExitStack, options: argparse.Namespace, roots: Path) -> list[Engine]:
    """tiffin and the peers, started."""
    docker = None if options.no_docker else options.docker or shutil.which("docker")
    wanted: list[Engine] = [Tiffin(roots / "tiffin", launcher(roots), docker)]
    if docker is not None:
        builders = options.builder or [docker, *_everywhere("docker")]
        found = options.dockerd or [
            shutil.which("dockerd") or shutil.which("dockerd", path=_DOCKERD)
        ]
        for number, program in enumerate(found):
            if program is not None:
                wanted.append(Docker(roots / f"docker{number}", program, docker, builders))
    podman = None if options.no_podman else shutil.which("podman")
    if podman is not None:
        wanted.append(Podman(roots / "podman", podman))
    started: list[Engine] = []
    for engine in wanted:
        _progress(f"starting {engine.name}")
        try:
            started.append(stack.enter_context(engine))
        except EngineFailure as error:
            if engine.tiffin:
                raise
            _progress(f"{engine.name} is left out: {error}")
    return started
