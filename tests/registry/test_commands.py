"""Registries from the command line, with a daemon that it starts itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from command.conftest import Command
from conftest import busybox_tar, kill_keeper
from registry.conftest import Connect, MadeImage, Start, digest_of, layer_tar
from registry.faulty import FaultyProxy
from registry.test_client import htpasswd
from tiffin.image.manifest import Index
from tiffin.registry.access import Passwords, Tokens
from tiffin.registry.client import Registry
from tiffin.registry.credentials import Credentials
from tiffin.registry.protocol import Policy
from tiffin.registry.server import RegistryServer

pytestmark = pytest.mark.root


@pytest.fixture
def tiffin(root: Path, busybox: Path, tmp_path: Path) -> Iterator[Command]:
    """The command against a root without images, and a user without credentials."""
    command = Command(root)
    command.environment["DOCKER_CONFIG"] = str(tmp_path / "docker")
    yield command
    command.result("system", "shutdown", "--force")
    kill_keeper(root)


@pytest.fixture
def shell(registry: Registry) -> MadeImage:
    """An image that can be run, as ``busybox:latest`` of the registry."""
    image = MadeImage([busybox_tar(), layer_tar({"etc/made": b"yes\n"})])
    image.push(registry, "busybox", "latest")
    return image


def test_run_pulls_what_is_missing(tiffin: Command, registry: Registry, shell: MadeImage) -> None:
    name = f"{registry.host}/busybox"
    done = tiffin.result("run", "--rm", "--network", "none", name, "cat", "/etc/made")
    assert done.stdout == b"yes\n", done.stderr
    assert done.stderr.startswith(f"Unable to find image '{name}:latest' locally\n".encode())
    assert b"Pull complete" in done.stderr
    assert b"Status: Downloaded newer image" in done.stderr
    never = tiffin.result("run", "--pull", "never", f"{registry.host}/other")
    assert (never.returncode, b"No such image" in never.stderr) == (125, True)
    missing = tiffin.result("run", f"{registry.host}/other")
    assert missing.returncode == 125
    assert b"not found" in missing.stderr
    again = tiffin("create", "--pull", "always", "--network", "none", name)
    assert len(again.strip()) == 64


def test_pull_and_push(tiffin: Command, registry: Registry, shell: MadeImage) -> None:
    name = f"{registry.host}/busybox"
    lines = tiffin("pull", name).splitlines()
    assert lines[:2] == ["Using default tag: latest", "latest: Pulling from busybox"]
    assert lines[-3:] == [
        f"Digest: {shell.digest}",
        f"Status: Downloaded newer image for {name}:latest",
        f"{name}:latest",
    ]
    assert tiffin("pull", "-q", name) == f"{name}:latest\n"
    why = tiffin("pull", "--why", name)
    assert "here already" in why
    assert "0B of" in why
    assert shell.digest in tiffin("images", "--digests")
    tiffin("tag", name, f"{registry.host}/copy:1")
    pushed = tiffin("push", f"{registry.host}/copy:1").splitlines()
    assert pushed[0] == f"The push refers to repository [{registry.host}/copy]"
    assert pushed[-1] == f"1: digest: {shell.digest} size: {len(shell.manifest)}"
    tiffin("tag", name, f"{registry.host}/copy:2")
    tiffin("push", "-q", "-a", "--compression", "zstd", f"{registry.host}/copy")
    assert list(registry.tags("copy")) == ["1", "2"]
    assert (
        "unknown compression"
        in tiffin.result("push", "--compression", "xz", f"{registry.host}/copy:1").stderr.decode()
    )
    assert tiffin("pull", "-a", f"{registry.host}/copy").count("Status: ") == 2
    found = tiffin("search", f"{registry.host}/cop")
    assert "copy" in found


def test_build_pulls_its_base(
    tiffin: Command, registry: Registry, shell: MadeImage, tmp_path: Path
) -> None:
    (tmp_path / "context").mkdir()
    dockerfile = tmp_path / "context" / "Dockerfile"
    dockerfile.write_text(f"FROM {registry.host}/busybox\nRUN echo built > /built\n")
    tiffin("build", "-t", "built", str(tmp_path / "context"))
    assert tiffin("run", "--rm", "--network", "none", "built", "cat", "/built") == "built\n"


def test_login_and_logout(
    tiffin: Command, start_registry: Start, tmp_path: Path, connect: Connect
) -> None:
    passwords = Passwords(htpasswd(tmp_path))
    server = start_registry(policy=Policy(passwords, Tokens(tmp_path, passwords, "tests")))
    tiffin("import", "-", "app", stdin=layer_tar({"a": b"a"}))
    tiffin("tag", "app", f"{server.address}/app")
    refused = tiffin.result("push", f"{server.address}/app")
    assert refused.returncode == 1
    assert b"denied" in refused.stderr
    login = ("login", "-u", "user", "--password-stdin", server.address)
    assert b"unauthorized" in tiffin.result(*login, stdin=b"wrong").stderr
    done = tiffin.result(*login, stdin=b"secret\n")
    assert done.stdout == b"Login Succeeded\n", done.stderr
    config = Path(tiffin.environment["DOCKER_CONFIG"]) / "config.json"
    assert config.stat().st_mode & 0o777 == 0o600
    entry = json.loads(config.read_text())["auths"][server.address]
    # What is kept is the token that the registry gave, not the password.
    assert set(entry) == {"auth", "identitytoken"}
    assert b"secret" not in config.read_bytes()
    tiffin("push", f"{server.address}/app")
    tiffin("rmi", f"{server.address}/app")
    tiffin("pull", f"{server.address}/app")
    assert tiffin("logout", server.address).startswith("Removing login credentials for")
    assert json.loads(config.read_text())["auths"] == {}
    assert b"denied" in tiffin.result("pull", f"{server.address}/app").stderr


def test_a_damaged_layer_comes_again_from_behind_credentials(
    tiffin: Command, root: Path, start_registry: Start, tmp_path: Path, connect: Connect
) -> None:
    passwords = Passwords(htpasswd(tmp_path))
    server = start_registry(policy=Policy(passwords, Tokens(tmp_path, passwords, "tests")))
    image = MadeImage([layer_tar({"a": b"first", "b": b"kept"})])
    image.push(connect(server, Credentials("user", "secret")), "app", "1")
    tiffin("login", "-u", "user", "--password-stdin", server.address, stdin=b"secret\n")
    tiffin("pull", f"{server.address}/app:1")
    (damaged,) = (root / "storage").glob("*/d/*/fs/a")
    damaged.write_text("other")
    assert b"/a (overlay2): content" in tiffin.result("storage", "check").stdout
    tiffin("logout", server.address)
    refused = tiffin.result("storage", "check", "--repair")
    assert refused.returncode == 1
    assert b"repaired from" not in refused.stdout
    tiffin("login", "-u", "user", "--password-stdin", server.address, stdin=b"secret\n")
    assert "/a (overlay2): content: repaired from a registry" in tiffin(
        "storage", "check", "--repair"
    )
    assert damaged.read_text() == "first"
    assert "0 problems" in tiffin("storage", "check")


def test_credential_helpers(tiffin: Command, start_registry: Start, tmp_path: Path) -> None:
    server = start_registry(policy=Policy(Passwords(htpasswd(tmp_path))))
    helper = tmp_path / "bin" / "docker-credential-tests"
    helper.parent.mkdir()
    store = tmp_path / "kept"
    helper.write_text(
        "#!/bin/sh\ncase $1 in\n"
        f"store) cat > {store};;\n"
        f"get) cat > /dev/null; [ -e {store} ] || {{ echo credentials not found in native keychain;"
        f" exit 1; }}; cat {store};;\n"
        f"erase) rm -f {store};;\nesac\n"
    )
    helper.chmod(0o755)
    tiffin.environment["PATH"] = f"{helper.parent}:{os.environ['PATH']}"
    config = Path(tiffin.environment["DOCKER_CONFIG"]) / "config.json"
    config.parent.mkdir()
    config.write_text('{"credsStore": "tests", "unknown": [1]}')
    tiffin("login", "-u", "user", "--password-stdin", server.address, stdin=b"secret")
    assert "secret" in store.read_text()
    kept = json.loads(config.read_text())
    assert kept["unknown"] == [1]
    assert kept["auths"] == {server.address: {}}
    tiffin("import", "-", f"{server.address}/app", stdin=layer_tar({"a": b"a"}))
    tiffin("push", f"{server.address}/app")
    tiffin("logout", server.address)
    assert not store.exists()
    assert b"denied" in tiffin.result("push", f"{server.address}/app").stderr


def test_copies(
    tiffin: Command, registry: Registry, shell: MadeImage, start_registry: Start, connect: Connect,
    tmp_path: Path,
) -> None:  # fmt: skip
    name = f"{registry.host}/busybox:latest"
    other = start_registry()
    # To another registry, a layout, an archive, and back: the digest stays.
    assert tiffin("image", "copy", "-q", name, f"{other.address}/a/b:1").strip() == shell.digest
    assert connect(other).manifest("a/b", "1").raw == shell.manifest
    layout, archive = tmp_path / "layout", tmp_path / "archive.tar"
    tiffin("image", "copy", name, f"oci:{layout}:one")
    again = tiffin("image", "copy", name, f"oci:{layout}:two").splitlines()
    assert again[-1] == shell.digest
    assert again[-2].startswith("0B copied")
    tiffin("image", "copy", f"oci:{layout}:two", f"oci-archive:{archive}")
    tiffin("image", "copy", f"oci-archive:{archive}", f"{other.address}/back")
    assert connect(other).manifest("back", "latest").digest == shell.digest
    assert sorted(path.name for path in tmp_path.glob(".copy*")) == []
    assert "Loaded" in tiffin("load", "-i", str(archive))
    wrong = tiffin.result("image", "copy", f"oci:{layout}", f"{other.address}/x")
    assert b"name one of one, two" in wrong.stderr
    named = tiffin.result("image", "copy", "docker-archive:x.tar", f"{other.address}/x")
    assert b"not supported" in named.stderr
    blob = layout / "blobs" / "sha256" / shell.layers[1].digest.partition(":")[2]
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    broken = tiffin.result("image", "copy", f"oci:{layout}:one", f"{other.address}/x")
    assert broken.returncode == 1
    assert shell.layers[1].digest.encode() in broken.stderr


def test_a_copy_within_a_registry_sends_nothing(
    tiffin: Command, registry: Registry, shell: MadeImage
) -> None:
    with FaultyProxy(registry.host) as proxy:
        tiffin("image", "copy", f"{proxy.address}/busybox", f"{proxy.address}/elsewhere")
        assert not [line for line in proxy.requests if line.startswith("PATCH")]
        assert not [line for line in proxy.requests if line.startswith("GET") and "/blobs/" in line]


def test_lists_of_manifests(tiffin: Command, registry: Registry) -> None:
    images = {
        name: MadeImage([layer_tar({"arch": name.encode()})], architecture=name)
        for name in ("amd64", "sparc64")
    }
    host = registry.host
    for name, image in images.items():
        image.push(registry, f"by/{name}", "1")
    tiffin("manifest", "create", f"{host}/all:1", f"{host}/by/amd64:1", f"{host}/by/sparc64:1")
    assert (
        "no --amend"
        in tiffin.result(
            "manifest", "create", f"{host}/all:1", f"{host}/by/amd64:1"
        ).stderr.decode()
    )
    tiffin("manifest", "annotate", "--variant", "v8", f"{host}/all:1", f"{host}/by/sparc64:1")
    shown = json.loads(tiffin("manifest", "inspect", f"{host}/all:1"))
    assert [each["platform"]["architecture"] for each in shown["manifests"]] == ["amd64", "sparc64"]
    digest = tiffin("manifest", "push", "--purge", f"{host}/all:1").splitlines()[-1]
    assert digest_of(registry.raw_manifest("all", "1")[0]) == digest
    pushed = json.loads(tiffin("manifest", "inspect", f"{host}/all:1"))
    assert pushed["manifests"][1]["platform"]["variant"] == "v8"
    tiffin("pull", "--platform", "linux/sparc64", f"{host}/all:1")
    refused = tiffin.result("run", "--network", "none", f"{host}/all:1", "true")
    assert b"linux/sparc64" in refused.stderr
    verbose = json.loads(tiffin("manifest", "inspect", "-v", f"{host}/all:1"))
    assert [entry["Descriptor"]["digest"] for entry in verbose] == [
        images["amd64"].digest,
        images["sparc64"].digest,
    ]


def test_a_registry_is_served(tiffin: Command, tmp_path: Path) -> None:
    users = htpasswd(tmp_path)
    process = tiffin.start(
        *("registry", "serve", "--listen", "127.0.0.1:0", "--htpasswd", str(users)),
        *("--token-auth", "--anonymous-pull", str(tmp_path / "data")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        address = line.rpartition("http://")[2].strip()
        tiffin("login", "-u", "user", "--password-stdin", address, stdin=b"secret")
        for name, content in (("one", b"1"), ("two", b"2")):
            tiffin("import", "-", "base", stdin=layer_tar({"base": bytes(100_000)}))
            (tmp_path / name).write_bytes(content)
            (tmp_path / "Dockerfile").write_text(f"FROM base\nCOPY {name} /\n")
            tiffin("build", "-t", f"{address}/{name}", str(tmp_path))
            tiffin("push", f"{address}/{name}")
        stats = json.loads(tiffin("registry", "stats", "--json", str(tmp_path / "data")))
        assert stats["images"] == 2
        assert stats["bytesSaved"] > 0
        assert "sharing layers saves" in tiffin("registry", "stats", str(tmp_path / "data"))
        assert "Removed 0 blobs" in tiffin("registry", "gc", str(tmp_path / "data"))
        tiffin("logout", address)
        tiffin("pull", f"{address}/one")
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert tiffin.result("registry", "serve", "s3://bucket").returncode == 1


def test_what_is_younger_than_the_grace_period_stays(
    tiffin: Command, registry: Registry, server: RegistryServer
) -> None:
    registry.put_blob("app", b"about to be named")
    folder = str(server.storage.root)
    assert "Removed 0 blobs" in tiffin("registry", "gc", "--grace", "1h", folder)
    assert "Removed 1 blobs" in tiffin("registry", "gc", "--grace", "0s", folder)
    refused = tiffin.result("registry", "gc", "--grace", "soon", folder)
    assert refused.returncode == 125
    assert b"invalid duration" in refused.stderr


def test_info_says_what_is_configured(tiffin: Command) -> None:
    assert "Registry Mirrors" not in tiffin("info")
    (tiffin.root / "registries.toml").write_text(
        '[registry."docker.io"]\nmirrors = ["https://mirror.test"]\n'
        '[registry."registry.test:5000"]\ninsecure = true\n'
    )
    said = tiffin("info")
    assert " Registry Mirrors:\n  https://mirror.test\n" in said
    assert " Insecure Registries:\n  registry.test:5000\n  127.0.0.0/8\n" in said
    found = json.loads(tiffin("info", "--format", "{{json .RegistryConfig}}"))
    assert found["Mirrors"] == found["IndexConfigs"]["docker.io"]["Mirrors"]
    assert found["Mirrors"] == ["https://mirror.test"]
    assert found["IndexConfigs"]["registry.test:5000"]["Secure"] is False
    (tiffin.root / "registries.toml").write_text("[registry")
    broken = tiffin.result("info")
    assert broken.returncode == 0
    assert b"WARNING: " in broken.stderr
    assert b"registries.toml can't be read" in broken.stderr


def test_what_the_schema_is_older_than(
    tiffin: Command, registry: Registry, server: RegistryServer
) -> None:
    raw = json.dumps({"schemaVersion": 1, "name": "old", "tag": "x"}).encode()
    kind = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    server.storage.put_manifest("old", digest_of(raw), raw, kind, ["x"], {})
    for words in (
        ("pull", f"{registry.host}/old:x"),
        ("image", "copy", f"{registry.host}/old:x", f"{registry.host}/new:x"),
    ):
        refused = tiffin.result(*words)
        assert refused.returncode == 1, words
        assert b"schema 1" in refused.stderr, (words, refused.stderr)


def test_all_tags_come_and_go(tiffin: Command, registry: Registry, shell: MadeImage) -> None:
    name = f"{registry.host}/busybox"
    shell.push(registry, "busybox", "other")
    said = tiffin("pull", "--all-tags", name)
    assert "Downloaded newer image" in said
    assert set(tiffin("images", "--format", "{{.Tag}}", name).split()) == {"latest", "other"}
    for tag in ("latest", "other"):
        tiffin("tag", f"{name}:{tag}", f"{registry.host}/all:{tag}")
    tiffin("push", "--all-tags", f"{registry.host}/all")
    assert list(registry.tags("all")) == ["latest", "other"]
    assert registry.manifest("all", "other").digest == shell.digest
    wrong = tiffin.result("pull", "--all-tags", f"{name}:other")
    assert wrong.returncode == 1
    assert b"tag can't be used with --all-tags" in wrong.stderr


def test_an_index_goes_everywhere_with_all_platforms(
    tiffin: Command, registry: Registry, start_registry: Start, connect: Connect, tmp_path: Path
) -> None:
    images = {
        one: MadeImage([layer_tar({"for": one.encode()})], architecture=one)
        for one in ("amd64", "arm64")
    }
    for architecture, image in images.items():
        image.push(registry, "app", architecture)
    names = [f"{registry.host}/app:{architecture}" for architecture in images]
    index = f"{registry.host}/app:all"
    tiffin("manifest", "create", index, *names)
    tiffin("manifest", "annotate", index, names[1], "--variant", "v8")
    digest = tiffin("manifest", "push", index).strip()
    other = start_registry()
    places = [
        index,
        f"{other.address}/one:x",
        f"oci:{tmp_path}/one:x",
        f"oci-archive:{tmp_path}/one.tar:x",
        f"oci-archive:{tmp_path}/two.tar:x",
        f"oci:{tmp_path}/two:x",
        f"oci:{tmp_path}/three:x",
        f"oci-archive:{tmp_path}/three.tar:x",
        f"{other.address}/two:x",
        f"oci-archive:{tmp_path}/four.tar:x",
        f"{other.address}/three:x",
        f"{registry.host}/four:x",
    ]
    # From a registry, a layout and an archive to each of the three.
    for source, target in pairwise(places):
        assert tiffin("image", "copy", "-q", source, target).strip() == digest, target
    client = connect(other)
    for name in ("one", "two", "three"):
        found = client.manifest(name, "x")
        assert isinstance(found, Index)
        assert found.digest == digest
        assert {entry.digest for entry in found.manifests} == {
            each.digest for each in images.values()
        }
        for image in images.values():
            for layer in image.layers:
                with client.blob(name, layer) as stream:
                    stream.drain()
    only = f"{other.address}/only:x"
    source = f"oci-archive:{tmp_path}/two.tar:x"
    tiffin("image", "copy", "--platform", "linux/arm64/v8", source, only)
    assert client.manifest("only", "x").digest == images["arm64"].digest
