"""Sources of ADD that are somewhere else: URLs and git repositories.

A URL's file is fetched into the build's work folder; it gets mode 0600 and the time that the server
says (``Last-Modified``). A git repository is fetched with the host's git, one commit deep, and
what identifies it is the commit: where a step with that commit is cached, nothing is fetched.
``URL#ref:folder`` names a branch, tag or commit, and a folder.

Source: the Dockerfile reference ("ADD"), Docker's "Build context" page ("URL fragments").
"""

from __future__ import annotations

import email.utils
import hashlib
import os
import posixpath
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tiffin.build.tree import EmptyTree
from tiffin.errors import BuildFailure, InvalidParameter
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.writer import Content

_BLOCK = 1 << 20
_PATIENCE = 60
_SCP = re.compile(r"[\w.-]+@[\w.-]+:[^:]+")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_ALGORITHMS = ("sha256", "sha384", "sha512")


def is_url(source: str) -> bool:
    """Whether a source of ADD is fetched by HTTP."""
    return source.startswith(("http://", "https://")) and not is_git(source)


def is_git(source: str) -> bool:
    """Whether a source of ADD is a git repository."""
    address = source.partition("#")[0]
    if address.startswith(("git://", "ssh://")):
        return True
    if address.startswith(("http://", "https://")):
        return urllib.parse.urlsplit(address).path.endswith(".git")
    return _SCP.fullmatch(address) is not None


class Download(EmptyTree):
    """One file from a URL, as a source. Closing it removes what was fetched."""

    def __init__(self, url: str, checksum: str, work: Path | None) -> None:
        """Fetches nothing yet. Raises InvalidParameter for a malformed ``checksum``."""
        self._url = url
        self._work = work
        self._checksum = _checked_sum(checksum)
        self._file: IO[bytes] | None = None
        self._entry: Entry | None = None
        self.name = posixpath.basename(urllib.parse.urlsplit(url).path) or "__unnamed__"

    @property
    def identity(self) -> str:
        """What is known of the content without fetching it: its checksum, or nothing."""
        return f"{self._checksum[0]}:{self._checksum[1]}" if self._checksum else ""

    def close(self) -> None:
        """Remove what was fetched."""
        if self._file is not None:
            self._file.close()

    def fetched(self) -> Entry:
        """The file, fetched by the first call. Raises BuildFailure."""
        if self._entry is None:
            self._entry = self._fetch()
        return self._entry

    def _fetch(self) -> Entry:
        request = urllib.request.Request(self._url, headers={"User-Agent": "tiffin"})
        running = hashlib.sha256()
        wanted = hashlib.new(self._checksum[0]) if self._checksum else None
        # Closed by close(); it has no name.
        self._file = tempfile.TemporaryFile(dir=self._work)  # noqa: SIM115
        size = 0
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
                modified = answer.headers.get("Last-Modified", "")
                while block := answer.read(_BLOCK):
                    self._file.write(block)
                    running.update(block)
                    if wanted is not None:
                        wanted.update(block)
                    size += len(block)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise BuildFailure(f"ADD failed: can't fetch {self._url}: {reason}") from error
        self._file.flush()
        if wanted is not None and f"{wanted.name}:{wanted.hexdigest()}" != self.identity:
            raise BuildFailure(
                f"ADD failed: digest mismatch {wanted.name}:{wanted.hexdigest()}: {self.identity} "
                f"(of {self._url})"
            )
        moment = email.utils.parsedate_to_datetime(modified) if modified else None
        seconds = int(moment.timestamp()) if moment is not None else 0
        return Entry(
            os.fsencode(self.name),
            Kind.FILE,
            0o600,
            0,
            0,
            seconds * 1_000_000_000,
            size,
            digest=running.digest(),
        )

    def entry(self, path: bytes) -> Entry | None:
        if path == os.fsencode(self.name):
            return self.fetched()
        return super().entry(path)

    @contextmanager
    def opened(self, entry: Entry) -> Iterator[Content]:
        self.fetched()
        assert self._file is not None
        fd = os.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def _checked_sum(text: str) -> tuple[str, str] | None:
    if not text:
        return None
    algorithm, _, digits = text.partition(":")
    if algorithm not in _ALGORITHMS:
        raise InvalidParameter(
            f"invalid checksum {text!r}: write it as sha256:…, one of {', '.join(_ALGORITHMS)}"
        )
    if (
        not re.fullmatch(r"[0-9a-f]+", digits)
        or len(digits) != hashlib.new(algorithm).digest_size * 2
    ):
        raise InvalidParameter(f"invalid checksum {text!r}: it has not the length of {algorithm}")
    return algorithm, digits


@dataclass(frozen=True, slots=True)
class Repository:
    """A git repository as a source names it."""

    address: str
    ref: str
    folder: str
    agent: str = ""
    """The socket of the SSH agent that opens it; the engine's own without one."""

    @classmethod
    def parse(cls, source: str, agent: str = "") -> Repository:
        """Take ``address#ref:folder`` apart; raises InvalidParameter."""
        address, _, fragment = source.partition("#")
        ref, _, folder = fragment.partition(":")
        if ref.startswith("-") or address.startswith("-"):
            raise InvalidParameter(f"invalid git reference in {source!r}")
        parts = [part for part in folder.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise InvalidParameter(f"invalid folder in {source!r}: it leads out of the repository")
        return cls(address, ref, "/".join(parts), agent)

    def commit(self) -> str:
        """The commit that the ref names now, asked of the server. Raises BuildFailure."""
        if _COMMIT.fullmatch(self.ref):
            return self.ref
        ref = self.ref or "HEAD"
        listed = self._git("ls-remote", "--", self.address)
        found: dict[str, str] = {}
        for line in listed.splitlines():
            commit, _, name = line.partition("\t")
            found[name] = commit
        for name in (
            f"refs/tags/{ref}^{{}}",
            ref,
            f"refs/heads/{ref}",
            f"refs/tags/{ref}",
        ):
            if name in found:
                return found[name]
        raise BuildFailure(f"ADD failed: {self.address} has no branch, tag or commit {ref}")

    def checkout(self, commit: str, folder: Path, *, keep_git_dir: bool) -> Path:
        """Put a commit's files into an empty folder; where the files are. Raises BuildFailure."""
        self._git("init", "--quiet", str(folder))
        inside = ("-C", str(folder))
        try:
            self._git(*inside, "fetch", "--quiet", "--depth=1", "--", self.address, commit)
        except BuildFailure:
            # A server that gives out no single commits, or one over plain HTTP.
            self._git(
                *inside,
                "fetch",
                "--quiet",
                "--tags",
                "--",
                self.address,
                "+refs/heads/*:refs/remotes/origin/*",
            )
        self._git(*inside, "-c", "advice.detachedHead=false", "checkout", "--quiet", commit)
        if (folder / ".gitmodules").exists():
            self._git(
                *inside, "submodule", "update", "--quiet", "--init", "--recursive", "--depth=1"
            )
        if keep_git_dir:
            self._git(*inside, "remote", "add", "origin", self.address)
        else:
            for each in [folder / ".git", *folder.rglob(".git")]:
                if each.is_dir() and not each.is_symlink():
                    shutil.rmtree(each)
                elif each.exists():
                    each.unlink()
        inner = folder / self.folder
        real = Path(os.path.realpath(inner))
        if not real.is_dir() or not real.is_relative_to(os.path.realpath(folder)):
            raise BuildFailure(f"ADD failed: {self.address} has no folder {self.folder}")
        return real

    def _git(self, *arguments: str) -> str:
        return _git(*arguments, agent=self.agent)


def _git(*arguments: str, agent: str = "") -> str:
    environment = {
        **os.environ,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
    }
    if agent:
        environment["SSH_AUTH_SOCK"] = agent
    try:
        done = subprocess.run(
            ["git", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            umask=0o022,
            check=False,
        )
    except FileNotFoundError as error:
        raise BuildFailure("ADD of a git repository needs git on this host: install it") from error
    if done.returncode:
        raise BuildFailure(f"ADD failed: git {arguments[-1]}: {done.stderr.strip()}")
    return done.stdout
