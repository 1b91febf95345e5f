"""docker compose, unmodified: what it does with dockerd, it does with tiffin.

Compose v2 is a package of Debian only from trixie on; ``DOCKER_COMPOSE`` may name its program.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.peer, pytest.mark.root]

PROJECT = """
services:
  db:
    image: busybox
    network_mode: none
    command: sh -c "touch /ok; echo db up; sleep 100"
    healthcheck: {test: ["CMD", "test", "-e", "/ok"], interval: 1s, retries: 20}
    volumes: ["data:/d"]
    environment: {A: "1"}
  web:
    build: .
    network_mode: none
    command: sh -c "cat /run/secrets/s /c /b; echo web up; sleep 100"
    depends_on: {db: {condition: service_healthy}}
    secrets: [s]
    configs: [{source: c, target: /c}]
  site:
    image: busybox
    command: sh -c "echo served > /index.html; httpd -f -p 80 -h /"
    networks: {back: {aliases: [the-site]}}
    labels: {a: b}
  asker:
    image: busybox
    command: sleep 100
    networks: [back, default]
    depends_on: [site]
  extra:
    image: busybox
    network_mode: none
    profiles: [more]
    command: sleep 100
networks: {back: {internal: true, labels: {c: d}}}
volumes: {data: {}}
secrets: {s: {file: ./s}}
configs: {c: {file: ./cfg}}
"""
COMMANDS = (
    "build -q > /dev/null",
    "up -d",
    "ps -a --format '{{.Service}} {{.State}} {{.Health}}'",
    "logs --no-log-prefix --no-color web",
    "exec -T db sh -c 'echo $A; exit 3'",
    "exec -T db sh -c 'echo kept > /d/f'",
    "run --rm -T db cat /d/f",
    "exec -T asker sh -c 'until wget -q -O - http://the-site 2>/dev/null; do sleep 0.1; done'",
    "exec -T asker sh -c 'until wget -q -O - http://site 2>/dev/null; do sleep 0.1; done'",
    "--profile more up -d",
    "ps --services",
    "up -d --scale db=2",
    "ps -a --format '{{.Name}} {{.State}}'",
    'images --format json | grep -o \'"Repository":"[a-z-]*"\' | sort',
    "pause db",
    "unpause db",
    "stop -t 0",
    "ps --format '{{.Name}}'",
    "restart -t 0 db",
    "ps --format '{{.Name}} {{.State}}'",
    "kill db",
    "--profile more down -t 0 -v",
    "ps -a -q",
)


@pytest.fixture(scope="session")
def compose() -> list[str]:
    """The words that compose begins with."""
    named = os.environ.get("DOCKER_COMPOSE")
    if named:
        return [named]
    words = ["docker", "compose"]
    if (
        shutil.which("docker") is None
        or subprocess.run([*words, "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("docker compose v2 is not installed, and no DOCKER_COMPOSE names it")
    return words


def run(compose: list[str], peer: Any, folder: Path) -> list[str]:
    (folder / "compose.yaml").write_text(PROJECT)
    (folder / "s").write_text("secret\n")
    (folder / "cfg").write_text("config\n")
    (folder / "Dockerfile").write_text("FROM busybox\nRUN echo built > /b\n")
    found = []
    try:
        for command in COMMANDS:
            done = subprocess.run(
                f"{' '.join(compose)} -p project {command}",
                shell=True,
                cwd=folder,
                env=peer.environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            # Progress goes to stderr, in the order of the moment.
            output = re.sub(r"\b(sha256:)?[0-9a-f]{64}\b", "ID", done.stdout)
            found.append(f"$ {command}\n{output}=> {done.returncode}")
            assert done.returncode in (0, 3), (peer.name, command, done.stderr)
    finally:
        peer.reset()
    return found


def test_a_project_lives_its_life(
    compose: list[str], dockerd: Any, tiffin: Any, tmp_path: Path
) -> None:
    outcomes = []
    for peer in (dockerd, tiffin):
        folder = tmp_path / peer.name
        folder.mkdir()
        outcomes.append("\n".join(run(compose, peer, folder)))
    assert outcomes[1] == outcomes[0]
