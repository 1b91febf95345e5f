"""ADD of URLs and git repositories, from servers of the tests' own."""

from __future__ import annotations

import functools
import hashlib
import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tiffin.build import remote
from tiffin.build.cache import BuildCache
from tiffin.errors import BuildFailure, InvalidParameter

if TYPE_CHECKING:
    from build.conftest import Kitchen

pytestmark = pytest.mark.root

MOMENT = 1_500_000_000


class Handler(http.server.SimpleHTTPRequestHandler):
    asked: list[str]

    def log_message(self, format: str, *arguments: Any) -> None:
        self.asked.append(self.path)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """A folder, the URL that it is served at, and what was asked of it."""
    folder = tmp_path / "site"
    folder.mkdir()
    asked: list[str] = []
    kind = type("OwnHandler", (Handler,), {"asked": asked})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(kind, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield folder, f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("source", "is_git", "is_url"),
    [
        ("https://x/y.git", True, False),
        ("https://x/y.git#main:sub", True, False),
        ("http://x/y", False, True),
        ("https://x/y.git.tar", False, True),
        ("git://x/y", True, False),
        ("git@github.com:a/b.git", True, False),
        ("ssh://git@x/y", True, False),
        ("a/b.git", False, False),
        ("./http://x", False, False),
    ],
)
def test_which_sources_are_remote(source: str, is_git: bool, is_url: bool) -> None:
    assert (remote.is_git(source), remote.is_url(source)) == (is_git, is_url)


def test_a_url(kitchen: Kitchen, context: Path, site: tuple[Path, str, list[str]]) -> None:
    folder, url, _ = site
    kitchen.base()
    (folder / "file.tar").write_bytes(b"content")
    import os

    os.utime(folder / "file.tar", (MOMENT, MOMENT))
    image = kitchen.build(
        context,
        f"FROM base\nADD {url}/file.tar?x=1 /x/\nADD --chmod=755 --chown=1:2 {url}/file.tar /y\n",
    )
    assert kitchen.listing(image)["x/file.tar"] == "content"
    entry = kitchen.entry(image, "x/file.tar")
    assert (entry.mode, entry.uid, entry.mtime_ns) == (0o600, 0, MOMENT * 10**9)
    entry = kitchen.entry(image, "y")
    assert (entry.mode, entry.uid, entry.gid) == (0o755, 1, 2)
    kitchen.build(context)
    assert kitchen.cached() == 2
    (folder / "file.tar").write_bytes(b"changed")
    assert kitchen.listing(kitchen.build(context))["y"] == "changed"
    assert "Not cached: ADD" in kitchen.text() and "changed (content)" in kitchen.text()


class Validating(http.server.BaseHTTPRequestHandler):
    """One file, with an entity tag."""

    content = b"one"
    answers: list[int]

    def do_GET(self) -> None:
        tag = f'"{hashlib.sha256(self.content).hexdigest()}"'
        same = self.headers.get("If-None-Match") == tag
        self.answers.append(304 if same else 200)
        self.send_response(self.answers[-1])
        self.send_header("ETag", tag)
        self.send_header("Content-Length", "0" if same else str(len(self.content)))
        self.end_headers()
        if not same:
            self.wfile.write(self.content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


def test_a_file_is_fetched_again_only_if_it_changed(kitchen: Kitchen, context: Path) -> None:
    kitchen.base()
    handler = type("OwnHandler", (Validating,), {"answers": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/f?token=hidden"
        try:
            kitchen.build(context, f"FROM base\nADD {url} /f\n")
            kitchen.build(context, f"FROM base\nADD {url} /f\n")
            assert kitchen.cached() == 1
            image = kitchen.build(context, f"FROM base\nENV A=1\nADD {url} /f\n")
            assert kitchen.listing(image)["f"] == "one", "kept, and put somewhere else"
            handler.content = b"two"
            image = kitchen.build(context, f"FROM base\nADD {url} /f\n")
            assert kitchen.listing(image)["f"] == "two"
            digest = hashlib.sha256(b"two").hexdigest()
            kitchen.build(context, f"FROM base\nADD --checksum=sha256:{digest} {url} /g\n")
        finally:
            server.shutdown()
            thread.join()
    assert handler.answers == [200, 304, 304, 200]
    (record,) = [
        each for each in BuildCache(kitchen.database).records() if each.key.startswith("http:")
    ]
    assert record.step == f"http url http://127.0.0.1:{server.server_port}/f"
    assert record.size == 3 and record.top is not None


def test_a_checksum(kitchen: Kitchen, context: Path, site: tuple[Path, str, list[str]]) -> None:
    folder, url, asked = site
    kitchen.base()
    (folder / "f").write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    dockerfile = "FROM base\nADD --checksum=sha256:{} {}/f /f\n"
    kitchen.build(context, dockerfile.format(digest, url))
    before = len(asked)
    kitchen.build(context)
    assert kitchen.cached() == 1 and len(asked) == before, "nothing is fetched for a known content"
    with pytest.raises(BuildFailure, match=f"digest mismatch sha256:{digest}: sha256:0000"):
        kitchen.build(context, dockerfile.format("0" * 64, url))
    with pytest.raises(InvalidParameter, match="invalid checksum"):
        kitchen.build(context, dockerfile.format("0", url))


def test_what_is_not_there(
    kitchen: Kitchen, context: Path, site: tuple[Path, str, list[str]]
) -> None:
    kitchen.base()
    with pytest.raises(BuildFailure, match="can't fetch http"):
        kitchen.build(context, f"FROM base\nADD {site[1]}/nope /\n")


def test_unpacking_is_asked_for(
    kitchen: Kitchen, context: Path, site: tuple[Path, str, list[str]]
) -> None:
    folder, url, _ = site
    kitchen.base()
    (context / "in").write_text("inside")
    subprocess.run(["tar", "-C", context, "-czf", folder / "a.tgz", "in"], check=True)
    subprocess.run(["cp", folder / "a.tgz", context / "b.tgz"], check=True)
    image = kitchen.build(
        context,
        f"FROM base\nADD --unpack=true {url}/a.tgz /u/\nADD {url}/a.tgz /p/\n"
        "ADD --unpack=false b.tgz /q/\nADD b.tgz /r/\n",
    )
    listing = kitchen.listing(image)
    assert listing["u/in"] == listing["r/in"] == "inside"
    assert "p/a.tgz" in listing and "q/b.tgz" in listing


@pytest.fixture
def repository(site: tuple[Path, str, list[str]]) -> tuple[str, str]:
    """A git repository with two commits, and the first one's name."""
    folder = site[0] / "repo.git"

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    folder.mkdir()
    git("init", "-q", "-b", "main")
    (folder / "run.sh").write_text("one")
    (folder / "run.sh").chmod(0o755)
    (folder / "docs").mkdir()
    (folder / "docs" / "a").write_text("doc")
    git("add", ".")
    git("commit", "-q", "-m", "1")
    git("tag", "v1")
    first = git("rev-parse", "HEAD")
    (folder / "run.sh").write_text("two")
    git("commit", "-q", "-a", "-m", "2")
    git("update-server-info")
    # Over plain HTTP the repository's own files are what is served.
    for each in (folder / ".git").iterdir():
        each.rename(folder / each.name)
    return f"{site[1]}/repo.git", first


def test_a_repository(kitchen: Kitchen, context: Path, repository: tuple[str, str]) -> None:
    url, first = repository
    kitchen.base()
    image = kitchen.build(
        context,
        f"FROM base\nADD {url} /head\nADD {url}#v1 /tag\nADD {url}#{first}:docs /docs\n"
        f"ADD --keep-git-dir --checksum={first} {url}#v1 /whole\n",
    )
    listing = kitchen.listing(image)
    assert listing["head/run.sh"] == "two" and listing["tag/run.sh"] == "one"
    assert listing["docs/a"] == "doc" and "docs/run.sh" not in listing
    assert "whole/.git/HEAD" in listing and "head/.git" not in listing
    assert kitchen.entry(image, "head/run.sh").mode == 0o755
    assert kitchen.entry(image, "head/docs/a").mode == 0o644
    kitchen.build(context)
    assert kitchen.cached() == 4
    with pytest.raises(BuildFailure, match="expected 0000"):
        kitchen.build(context, f"FROM base\nADD --checksum={'0' * 40} {url}#v1 /x\n")
    with pytest.raises(BuildFailure, match="has no branch, tag or commit nope"):
        kitchen.build(context, f"FROM base\nADD {url}#nope /x\n")
    with pytest.raises(BuildFailure, match="has no folder nope"):
        kitchen.build(context, f"FROM base\nADD {url}#main:nope /x\n")
