"""Builds that use registries: caches, pushed results, base images behind credentials."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from command.conftest import Command
from conftest import busybox_tar, kill_keeper
from registry.conftest import Start
from registry.test_client import htpasswd
from registry.test_peers import debian, need  # noqa: F401
from tiffin.registry.access import Passwords
from tiffin.registry.credentials import Credentials, CredentialsFile, config_header
from tiffin.registry.protocol import Policy

pytestmark = pytest.mark.root

DOCKERFILE = (
    "FROM shell AS one\nRUN echo one > /one\nFROM shell\nENV A=1\nCOPY in.txt /\n"
    "RUN cat /in.txt > /out.txt\nCOPY --from=one /one /\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "in.txt").write_text("hello\n")
    (folder / "Dockerfile").write_text(DOCKERFILE)
    return folder


@pytest.fixture
def engines(tmp_path: Path, busybox: Path) -> Iterator[list[Command]]:
    """Two engine roots with the same base image."""
    roots = [tmp_path / "here", tmp_path / "there"]
    archive = tmp_path / "shell.tar"
    archive.write_bytes(busybox_tar())
    commands = [Command(root) for root in roots]
    try:
        for command in commands:
            command.environment["DOCKER_CONFIG"] = str(tmp_path / "docker")
            command.environment["SOURCE_DATE_EPOCH"] = "1700000000"
        commands[0]("import", str(archive), "shell")
        commands[0]("save", "-o", str(tmp_path / "image.tar"), "shell")
        commands[1]("load", "-qi", str(tmp_path / "image.tar"))
        yield commands
    finally:
        for command in commands:
            command.result("system", "shutdown", "--force")
            kill_keeper(command.root)


@pytest.fixture(params=["tiffin", pytest.param("debian", marks=pytest.mark.peer)])
def address(request: pytest.FixtureRequest, start_registry: Start) -> str:
    """A registry: the project's own, and Debian's."""
    if request.param == "tiffin":
        return start_registry().address
    return str(request.getfixturevalue("debian"))


def cached(output: str) -> int:
    return output.count(" ---> Using cache\n")


@pytest.mark.parametrize(
    "damage", [b"damaged", zstandard.compress(bytes(10240))], ids=["no tar", "another tar"]
)
def test_a_cache_in_a_folder_makes_another_engine_hit(
    engines: list[Command], folder: Path, tmp_path: Path, damage: bytes
) -> None:
    here, there = engines
    place = tmp_path / "cache"
    image = here("build", "-q", "--cache-to", f"type=local,dest={place}", str(folder))
    output = there("build", "--cache-from", f"type=local,src={place}", str(folder))
    assert cached(output) == 5
    assert there("build", "-q", str(folder)) == image
    # What is not needed any more goes, what is damaged is told.
    blobs = len(list((place / "blobs" / "sha256").iterdir()))
    (folder / "in.txt").write_text("other\n")
    here("build", "-q", "--cache-to", f"type=local,dest={place}", str(folder))
    assert len(list((place / "blobs" / "sha256").iterdir())) == blobs
    for blob in (place / "blobs" / "sha256").iterdir():
        if blob.read_bytes().startswith(b"\x28\xb5\x2f\xfd"):
            blob.write_bytes(damage)
    there("builder", "prune", "-af")
    there("image", "prune", "-af")
    there("load", "-qi", str(tmp_path / "image.tar"))
    output = there("build", "--cache-from", f"type=local,src={place}", str(folder))
    assert "[Warning] cache " in output and "can't be used" in output
    # What needs no damaged layer is taken all the same: ENV has none, and that of the last COPY is
    # the very one that the other stage has just made anew.
    assert cached(output) == 2


def test_only_the_image_s_own_steps(engines: list[Command], folder: Path, tmp_path: Path) -> None:
    here, there = engines
    place = tmp_path / "cache"
    here("build", "-q", "--cache-to", f"type=local,dest={place},mode=min", str(folder))
    output = there("build", "--cache-from", f"type=local,src={place}", str(folder))
    assert cached(output) == 4, "the other stage runs, and what is copied from it is the same"


def test_a_cache_in_a_registry_makes_another_engine_hit(
    engines: list[Command], folder: Path, address: str
) -> None:
    here, there = engines
    cache = f"type=registry,ref={address}/app:cache"
    image = here("build", "-q", "--cache-to", cache, "--cache-from", cache, str(folder))
    output = there("build", "--cache-from", cache, str(folder))
    assert "Warning" not in output and cached(output) == 5
    assert there("build", "-q", str(folder)) == image
    again = here("build", "--cache-to", cache, str(folder))
    assert f"Exporting the cache to {address}/app:cache\n" in again


def test_a_cache_inside_the_image(engines: list[Command], folder: Path, address: str) -> None:
    here, there = engines
    (folder / "Dockerfile").write_text("FROM shell\nENV A=1\nCOPY in.txt /\nRUN echo x > /x\n")
    name = f"{address}/app:1"
    here("build", "-q", "--cache-to", "type=inline", "-t", name, "--push", str(folder))
    missing = there("build", "--cache-from", f"{address}/app:none", "--no-cache", str(folder))
    assert f"[Warning] no cache from {address}/app:none: " in missing
    there("builder", "prune", "-af")
    output = there("build", "-t", "x", "--cache-from", name, str(folder))
    assert cached(output) == 3
    there("builder", "prune", "-af")
    there("rmi", "-f", "x")
    there("pull", "-q", name)
    assert cached(there("build", "--cache-from", name, str(folder))) == 3
    assert "x" in there("run", "--rm", name, "cat", "/x")


def test_a_result_is_pushed(
    engines: list[Command], folder: Path, address: str, tmp_path: Path
) -> None:
    here, there = engines
    metadata = tmp_path / "metadata"
    here(
        "build", "-o", f"type=image,name={address}/app:1,push=true,compression=zstd",
        "--annotation", "org.example=yes", "--metadata-file", str(metadata), str(folder),
    )  # fmt: skip
    digest = json.loads(metadata.read_text())["containerimage.digest"]
    manifest = json.loads(here("manifest", "inspect", f"{address}/app:1"))
    assert digest != here.inspect(f"{address}/app:1")["Id"]
    there("pull", "-q", f"{address}/app@{digest}")
    assert manifest["annotations"] == {"org.example": "yes"}
    assert all(layer["mediaType"].endswith("+zstd") for layer in manifest["layers"])


def test_base_images_behind_credentials(
    engines: list[Command], folder: Path, start_registry: Start, tmp_path: Path
) -> None:
    here, there = engines
    server = start_registry(policy=Policy(Passwords(htpasswd(tmp_path))))
    name = f"{server.address}/base:1"
    CredentialsFile(f"{tmp_path}/docker/config.json").store(
        server.address, Credentials("user", "secret")
    )
    here("tag", "shell", name)
    here("push", "-q", name)
    (folder / "Dockerfile").write_text(f"FROM {name}\nRUN true\n")
    there("build", "--pull", "-q", str(folder))
    cache = f"type=registry,ref={server.address}/cache"
    there("build", "--cache-to", cache, "--cache-from", cache, "-q", str(folder))
    there("rmi", "-f", name)
    there.environment["DOCKER_CONFIG"] = str(tmp_path / "none")
    error = there.result("build", "--pull", str(folder)).stderr.decode()
    assert "pull access denied" in error


@pytest.mark.peer
def test_docker_s_own_client_gives_its_credentials(
    engines: list[Command], folder: Path, start_registry: Start, tmp_path: Path
) -> None:
    need("docker")
    here, there = engines
    server = start_registry(policy=Policy(Passwords(htpasswd(tmp_path))))
    name = f"{server.address}/base:1"
    CredentialsFile(f"{tmp_path}/docker/config.json").store(
        server.address, Credentials("user", "secret")
    )
    here("tag", "shell", name)
    here("push", "-q", name)
    (folder / "Dockerfile").write_text(f"FROM {name}\nRUN echo built\n")
    there("images")
    environment = {
        **os.environ,
        "DOCKER_HOST": f"unix://{there.root}/tiffin.sock",
        "DOCKER_CONFIG": str(tmp_path / "docker"),
        "DOCKER_BUILDKIT": "0",
    }
    done = subprocess.run(
        ["docker", "build", str(folder)], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0 and b"built\n" in done.stdout, done.stderr.decode()


def test_the_header_with_all_credentials() -> None:
    from tiffin.registry.credentials import parse_config_header

    given = {
        "docker.io": Credentials("a", "b"),
        "host:5000": Credentials("", "", "token"),
    }
    found = parse_config_header(config_header(given))
    assert set(found) == set(given)
    assert (found["docker.io"].username, found["docker.io"].password) == ("a", "b")
    assert found["host:5000"].identity_token == "token"
