"""docker compose, unmodified: what it does with dockerd, it does with tiffin.

Compose v2 is a package of Debian only from trixie on; ``DOCKER_COMPOSE`` may name its program.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from clients import peers

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


NETWORKED = """
services:
  db:
    image: busybox
    command: sh -c "echo kept > /d/index.html; exec httpd -f -h /d"
    healthcheck:
      {test: ["CMD", "wget", "-q", "-O", "-", "http://localhost/"], interval: 1s, retries: 30}
    volumes: ["data:/d"]
    networks: {back: {aliases: [database]}}
  web:
    image: busybox
    command: >-
      sh -c "mkdir /w; wget -q -O /w/index.html http://database/; exec httpd -f -h /w"
    depends_on: {db: {condition: service_healthy}}
    ports: ["127.0.0.1:18093:80"]
    healthcheck:
      {test: ["CMD", "wget", "-q", "-O", "-", "http://localhost/"], interval: 1s, retries: 30}
    networks: [front, back]
  alone:
    image: busybox
    command: sleep 1000
    networks: [front]
volumes: {data: {}}
networks:
  front: {driver: bridge, ipam: {config: [{subnet: 10.231.7.0/24}]}}
  back: {internal: true}
"""
NETWORK_COMMANDS = (
    "up -d --wait",
    "ps -a --format '{{.Service}} {{.State}} {{.Health}}' | sort",
    "port web 80",
    "exec -T web wget -q -O - http://db/",
    "exec -T web wget -q -O - http://database/",
    "exec -T web sh -c 'nslookup -type=a db | grep -c Name'",
    "exec -T alone wget -q -O - http://web/",
    "exec -T alone sh -c 'nslookup -type=a db > /dev/null || exit 3'",
    "exec -T alone sh -c 'ip -o -4 addr show eth0 | grep -c 10.231.7.'",
    "stop -t 0 db",
    "up -d --wait",
    "exec -T web wget -q -O - http://database/",
    "up -d --wait --scale alone=3",
    "exec -T web sh -c 'nslookup -type=a alone | grep -c 10.231.7.'",
    "down -t 0",
    "up -d --wait db",
    "down -t 0 -v",
    "ps -a -q",
)


CLASSIC = """
version: "2.4"
services:
  db:
    image: busybox
    stop_grace_period: 0s
    command: sh -c "echo kept > /d/index.html; echo db up; exec httpd -f -h /d"
    healthcheck:
      {test: ["CMD", "wget", "-q", "-O", "-", "http://localhost/"], interval: 1s, retries: 30}
    volumes: ["data:/d"]
    environment: {A: "1"}
    mem_limit: 64m
    cap_drop: [NET_RAW]
    tmpfs: [/t]
    networks: {back: {aliases: [database], ipv4_address: 10.231.8.9}}
  web:
    stop_grace_period: 0s
    build: {context: ., args: [WORD=said]}
    depends_on: {db: {condition: service_healthy}}
    command: httpd -f -h /w
    ports: ["127.0.0.1:18094:80"]
    extra_hosts: ["elsewhere:192.0.2.1"]
    networks: [front, back]
    links: ["db:linked"]
  alone:
    image: busybox
    stop_grace_period: 0s
    command: sleep 1000
    networks: [front]
volumes: {data: {labels: {e: f}}}
networks:
  front: {driver: bridge}
  back: {ipam: {config: [{subnet: 10.231.8.0/24}]}}
"""
CLASSIC_COMMANDS = (
    "config --services",
    "build > /dev/null",
    "up -d",
    "ps -q | wc -l",
    "ps --services --filter status=running | sort",
    "port web 80",
    "exec -T db sh -c 'echo $A; exit 3'",
    "exec -T web sh -c 'cat /built; wget -q -O - http://database/; wget -q -O - http://linked/'",
    "exec -T web grep elsewhere /etc/hosts",
    "exec -T alone sh -c 'nslookup -type=a db > /dev/null || exit 3'",
    "logs --no-color db",
    "run --rm -T alone sh -c 'ip -o -4 addr show eth0 | wc -l; exit 3'",
    "up -d --scale alone=3",
    "exec -T --index=3 alone hostname | wc -l",
    "pause db",
    "unpause db",
    "top alone | grep -c 'sleep 1000'",
    "restart -t 0 alone",
    "kill alone",
    "rm -f alone",
    "stop -t 0",
    "start",
    "up -d --force-recreate -t 0",
    "exec -T web wget -q -O - http://db/",
    "down -t 0",
    "run --rm -T db cat /d/index.html",
    "down -t 0 -v --rmi local",
    "ps -q",
)


@pytest.fixture(scope="session")
def classic_compose() -> list[str]:
    """The words that compose 1, the one in Python, begins with."""
    named = os.environ.get("DOCKER_COMPOSE_1") or shutil.which("docker-compose")
    if named is not None:
        done = subprocess.run([named, "version", "--short"], capture_output=True, check=False)
        if done.stdout.startswith(b"1."):
            return [named]
    pytest.skip("docker-compose 1 is not installed, and no DOCKER_COMPOSE_1 names it")


def run(
    compose: list[str],
    peer: Any,
    folder: Path,
    project: str = PROJECT,
    commands: Sequence[str] = COMMANDS,
) -> list[str]:
    (folder / "compose.yaml").write_text(project)
    (folder / "s").write_text("secret\n")
    (folder / "cfg").write_text("config\n")
    (folder / "Dockerfile").write_text(
        "FROM busybox\nARG WORD=x\n"
        "RUN echo built > /b; echo $WORD > /built; mkdir /w; echo page > /w/index.html\n"
    )
    found = []
    try:
        for command in commands:
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


def test_services_find_each_other(compose: list[str], tmp_path: Path, busybox: Path) -> None:
    """Networks, aliases, published ports, volumes and an order by health."""
    outcomes = []
    for start in (peers.dockerd, peers.tiffin):
        with start(own_network=True) as peer:
            folder = tmp_path / peer.name
            folder.mkdir()
            outcomes.append("\n".join(run(compose, peer, folder, NETWORKED, NETWORK_COMMANDS)))
            assert {row["Name"] for row in peer.request("GET", "/networks")} == {
                "bridge",
                "host",
                "none",
            }
    assert outcomes[1] == outcomes[0]


def test_classic_compose(
    classic_compose: list[str], tmp_path: Path, busybox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It needs members of images that are gone from 1.45 on, of dockerd's answers too.
    monkeypatch.setenv("COMPOSE_API_VERSION", "1.41")
    outcomes = []
    for start in (peers.dockerd, peers.tiffin):
        with start(own_network=True) as peer:
            folder = tmp_path / peer.name
            folder.mkdir()
            outcomes.append(
                "\n".join(run(classic_compose, peer, folder, CLASSIC, CLASSIC_COMMANDS))
            )
            assert len(peer.request("GET", "/networks")) == 3
    assert outcomes[1] == outcomes[0]
