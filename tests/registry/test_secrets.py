"""Credentials: where they are kept, by which helper, and that nothing says them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from command.conftest import Command, eventually
from conftest import kill_keeper
from registry.conftest import Connect, MadeImage, layer_tar
from registry.issuer import PASSWORD, REFRESH, USER, Guarded, Issuer
from tiffin.errors import InvalidParameter, NotFound, TiffinError, Unauthorized
from tiffin.registry.client import Registry
from tiffin.registry.credentials import Credentials, CredentialsFile, parse_header

IMAGE = MadeImage([layer_tar({"etc/a": b"a" * 50_000})])

HELPER = """\
#!/usr/bin/env python3
import json, pathlib, sys
store = pathlib.Path({store!r})
kept = json.loads(store.read_text()) if store.exists() else {{}}
given = sys.stdin.read()
with open(str(store) + ".calls", "a") as calls:
    print(sys.argv[1:], file=calls)
if sys.argv[1] == "store":
    entry = json.loads(given)
    kept[entry["ServerURL"]] = entry
elif sys.argv[1] == "get":
    if given not in kept:
        print("credentials not found in native keychain")
        sys.exit(1)
    print(json.dumps(kept[given]))
elif sys.argv[1] == "erase":
    kept.pop(given, None)
elif sys.argv[1] == "list":
    print(json.dumps({{key: entry["Username"] for key, entry in kept.items()}}))
store.write_text(json.dumps(kept))
"""


class Helpers:
    """Programs ``docker-credential-NAME`` on the PATH, each with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def add(self, name: str, text: str = HELPER) -> None:
        path = self.folder / f"docker-credential-{name}"
        path.write_text(text.format(store=str(self.folder / name)))
        path.chmod(0o755)

    def kept(self, name: str) -> dict[str, dict[str, str]]:
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else {}

    def calls(self, name: str) -> str:
        path = self.folder / f"{name}.calls"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Helpers:
    made = Helpers(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.folder}:{os.environ['PATH']}")
    return made


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "docker" / "config.json"
    path.parent.mkdir()
    return path


def test_a_helper_for_one_registry_goes_before_the_one_for_all(
    helpers: Helpers, config: Path
) -> None:
    helpers.add("all")
    helpers.add("one")
    config.write_text(json.dumps({"credsStore": "all", "credHelpers": {"one.test": "one"}}))
    file = CredentialsFile(str(config))
    assert file.store("one.test", Credentials("first", "word-1")) == "one"
    assert file.store("other.test:5000", Credentials("second", "word-2")) == "all"
    assert file.store("docker.io", Credentials("third", "word-3")) == "all"
    assert set(helpers.kept("one")) == {"one.test"}
    # Docker Hub has the name that Docker gives it.
    assert set(helpers.kept("all")) == {"other.test:5000", "https://index.docker.io/v1/"}
    for host, password in (("one.test", "word-1"), ("docker.io", "word-3")):
        found = file.get(host)
        assert found is not None
        assert found.password == password
    assert set(file.all()) == {"one.test", "other.test:5000", "docker.io"}
    assert "word" not in config.read_text()
    # Secrets go through pipes, not through arguments that everybody may read.
    assert "word" not in helpers.calls("one") + helpers.calls("all")
    assert file.erase("one.test")
    assert helpers.kept("one") == {}
    assert file.get("one.test") is None


def test_a_helper_that_keeps_an_identity_token(helpers: Helpers, config: Path) -> None:
    helpers.add("all")
    config.write_text('{"credsStore": "all"}')
    file = CredentialsFile(str(config))
    file.store("one.test", Credentials("user", identity_token=REFRESH))
    assert helpers.kept("all")["one.test"]["Username"] == "<token>"
    found = file.get("one.test")
    assert found is not None
    assert (found.identity_token, found.password) == (REFRESH, "")


def test_helpers_that_fail_are_named_and_not_quoted(helpers: Helpers, config: Path) -> None:
    helpers.add("chatty", '#!/bin/sh\ncat >/dev/null; echo "secret-word"; exit 3\n')
    helpers.add("silly", '#!/bin/sh\ncat >/dev/null; echo "secret-word is no JSON"\n')
    for name, match in (
        ("chatty", "docker-credential-chatty get: exit code 3"),
        ("silly", "docker-credential-silly gave no credentials"),
        ("missing", "docker-credential-missing is not installed"),
    ):
        config.write_text(json.dumps({"credHelpers": {"one.test": name}}))
        with pytest.raises(TiffinError, match=match) as caught:
            CredentialsFile(str(config)).get("one.test")
        assert "secret-word" not in str(caught.value)
    config.write_text(json.dumps({"credsStore": "../../bin/sh"}))
    with pytest.raises(InvalidParameter, match="malformed name"):
        CredentialsFile(str(config)).get("one.test")


def test_the_file_is_for_its_owner_alone(config: Path) -> None:
    config.write_text('{"kept": {"as": "it is"}}')
    config.chmod(0o644)
    file = CredentialsFile(str(config))
    file.store("one.test", Credentials("user", "secret-word"))
    assert config.stat().st_mode & 0o777 == 0o600
    assert json.loads(config.read_text())["kept"] == {"as": "it is"}
    assert [path.name for path in config.parent.iterdir()] == ["config.json"]
    config.write_text("{ no JSON secret-word")
    with pytest.raises(InvalidParameter) as caught:
        file.get("one.test")
    assert "secret-word" not in str(caught.value)


def test_nothing_in_this_process_says_a_secret(
    registry: Registry, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    IMAGE.push(registry, "app", "v1")
    credentials = Credentials(USER, PASSWORD)
    with Issuer() as issuer, Guarded(registry.host, issuer) as guarded:
        client = connect(guarded.address, credentials)
        client.manifest("app", "v1")
        errors: list[TiffinError] = []
        with pytest.raises(NotFound) as missing:
            client.manifest("app", "v2")
        errors.append(missing.value)
        for wrong in (Credentials(USER, f"{PASSWORD}x"), Credentials(identity_token=REFRESH + "x")):
            with pytest.raises(Unauthorized) as refused:
                connect(guarded.address, wrong).manifest("app", "v1")
            errors.append(refused.value)
        token = next(iter(issuer.tokens))
        told = [caplog.text, repr(credentials), str(credentials), repr(client.transport)]
        told += [f"{error} {error!r} {error.__cause__!r}" for error in errors]
        with pytest.raises(InvalidParameter) as malformed:
            parse_header(f"{PASSWORD}!!")
        told.append(f"{malformed.value} {malformed.value!r}")
        for text in told:
            for secret in (PASSWORD, REFRESH, token):
                assert secret not in text


@pytest.fixture
def tiffin(root: Path, busybox: Path, config: Path) -> Iterator[Command]:
    """The command with a user of its own."""
    command = Command(root)
    command.environment["DOCKER_CONFIG"] = str(config.parent)
    yield command
    command.result("system", "shutdown", "--force")
    kill_keeper(root)


@pytest.mark.root
def test_the_daemon_keeps_and_says_nothing(
    tiffin: Command, registry: Registry, tmp_path: Path, config: Path
) -> None:
    IMAGE.push(registry, "app", "v1")
    log = tmp_path / "log"
    with log.open("wb") as output:
        daemon = tiffin.start("serve", stdout=output, stderr=subprocess.STDOUT)
    said = []
    try:
        eventually(lambda: tiffin.result("version").returncode == 0)
        with Issuer() as issuer, Guarded(registry.host, issuer) as guarded:
            name = f"{guarded.address}/app"
            login = ("login", "-u", USER, "--password-stdin", guarded.address)
            wrong = tiffin.result(*login, stdin=f"{PASSWORD}x".encode())
            assert wrong.returncode == 1
            right = tiffin.result(*login, stdin=PASSWORD.encode())
            assert right.returncode == 0, right.stderr
            done = [wrong, right]
            done.append(tiffin.result("pull", f"{name}:v1"))
            assert done[-1].returncode == 0, done[-1].stderr
            done.append(tiffin.result("tag", f"{name}:v1", f"{name}:v2"))
            done.append(tiffin.result("push", f"{name}:v2"))
            assert done[-1].returncode == 0, done[-1].stderr
            done.append(tiffin.result("pull", f"{name}:none"))
            assert done[-1].returncode == 1
            done.append(tiffin.result("info"))
            done.append(tiffin.result("inspect", f"{name}:v1"))
            said = [one.stdout + one.stderr for one in done]
            secrets = [PASSWORD, REFRESH, *issuer.tokens]
        assert REFRESH in config.read_text()
        words = Path(f"/proc/{daemon.pid}/cmdline").read_bytes()
    finally:
        daemon.terminate()
        daemon.wait(60)
    said += [log.read_bytes(), words]
    said += [path.read_bytes() for path in tiffin.root.rglob("*") if path.is_file()]
    for secret in secrets:
        for text in said:
            assert secret.encode() not in text
