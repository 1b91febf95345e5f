"""`tiffin build --ssh` with OpenSSH's own agent, client and server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from command.conftest import eventually
from conftest import processes

if TYPE_CHECKING:
    from command.conftest import Command

pytestmark = [pytest.mark.root, pytest.mark.peer]

SSHD = "/usr/sbin/sshd"


def run(*words: str | Path, **options: Any) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with two keys, ``one`` and ``two``."""
    for program in ("ssh", "ssh-agent", "ssh-keygen"):
        if shutil.which(program) is None or not os.path.exists(SSHD):
            assert os.environ.get("CI") != "true", f"{program} or {SSHD} is missing"
            pytest.skip(f"{program} or {SSHD} is missing")
    folder = tmp_path / "keys"
    folder.mkdir()
    for name in ("one", "two", "host"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name)
    return folder


@pytest.fixture
def server(keys: Path) -> Iterator[int]:
    """The port of a server that lets in who has the key ``one``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    made = not os.path.exists("/run/sshd")
    os.makedirs("/run/sshd", exist_ok=True)
    (keys / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {keys}/host\nPidFile none\n"
        f"AuthorizedKeysFile {keys}/one.pub\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
    )
    with open(keys / "log", "wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", keys / "config"], stderr=log)
    try:

        def answers() -> bool:
            assert process.poll() is None, (keys / "log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        eventually(answers, 60)
        yield port
    finally:
        process.terminate()
        process.wait(30)
        if made:
            os.rmdir("/run/sshd")


@pytest.fixture
def agent(keys: Path) -> Iterator[str]:
    """The socket of an agent that has the key ``one``."""
    path = str(keys / "agent")
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: os.path.exists(path), 60)
        run("ssh-add", "-q", keys / "one", env={**os.environ, "SSH_AUTH_SOCK": path})
        yield path
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def folder(tiffin: Command, tmp_path: Path) -> Path:
    """A context, and an image ``ssh`` with the programs."""
    tiffin("image", "pack", "ssh", "ssh", "ssh-add", "sh", "cat")
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


def agents() -> list[int]:
    """The agents of key files that run."""
    return processes(b"tiffin-ssh-")


def test_keys_and_agents(
    tiffin: Command, folder: Path, keys: Path, agent: str, server: int
) -> None:
    (folder / "Dockerfile").write_text(
        "FROM ssh\nRUN --mount=type=ssh,required ssh-add -L && ssh -p "
        f"{server} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null "
        "root@127.0.0.1 echo I am in\n"
    )
    build = ("build", "--network", "host", "--no-cache")
    for given in (f"default={agent}", f"default={keys}/one", f"default={keys}/two,{keys}/one"):
        output = tiffin(*build, "--ssh", given, str(folder))
        assert "I am in\n" in output and (keys / "one.pub").read_text() in output
        assert (" two\n" in output) == ("two" in given)
    tiffin.environment["SSH_AUTH_SOCK"] = agent
    assert "I am in\n" in tiffin(*build, "--ssh", "default", str(folder))
    assert agents() == []
    refused = tiffin.result(*build, "--ssh", f"default={keys}/two", str(folder))
    assert refused.returncode != 0 and b"Permission denied" in refused.stdout
    refused = tiffin.result(*build, str(folder))
    assert b"ssh agent default: not found" in refused.stderr
    (keys / "no").write_text("no key\n")
    refused = tiffin.result(*build, "--ssh", f"default={keys}/no", str(folder))
    assert b"failed to parse" in refused.stderr
    for secret in ("one", "two"):
        text = (keys / secret).read_bytes().split(b"\n")[1]
        for path in tiffin.root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert text not in path.read_bytes(), path


def test_a_repository_behind_ssh(
    tiffin: Command, folder: Path, keys: Path, server: int, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "Dockerfile").write_text("FROM busybox\nRUN echo from there\n")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "1")):
        run("git", "-C", repository, *words)
    known = (keys / "host.pub").read_text().split()[:2]
    address = f"ssh://root@127.0.0.1:{server}{repository}"
    text = f"FROM busybox\nADD {address} /it\nRUN cat /it/Dockerfile\n".encode()
    with remembered(f"[127.0.0.1]:{server} {' '.join(known)}\n"):
        output = tiffin("build", "--ssh", f"default={keys}/one", "-", stdin=text)
        assert "RUN echo from there\n" in output
        assert "from there\n" in tiffin("build", "--ssh", f"default={keys}/one", address)
        assert b"Permission denied" in tiffin.result("build", address).stderr


class remembered:
    """A line in the known hosts of the user whom the daemon is, for the time of the block."""

    def __init__(self, line: str) -> None:
        self._line = line
        self._path = Path(os.path.expanduser("~/.ssh/known_hosts"))

    def __enter__(self) -> None:
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        with open(self._path, "a") as file:
            file.write(self._line)

    def __exit__(self, *exception: object) -> None:
        text = self._path.read_text().replace(self._line, "")
        if text:
            self._path.write_text(text)
        else:
            self._path.unlink()
