"""Sources of ADD that are somewhere else: which they are, and git repositories.

A git repository is fetched with the host's git, one commit deep, and what identifies it is the
commit: where a step with that commit is cached, nothing is fetched. ``URL#ref:folder`` names a
branch, tag or commit, and a folder.

Source: the Dockerfile reference ("ADD"), Docker's "Build context" page ("URL fragments").
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from tiffin.errors import BuildFailure, InvalidParameter

_SCP = re.compile(r"[\w.-]+@[\w.-]+:[^:]+")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


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
        # A host that is not known yet is taken at its word, one that has changed is not.
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new",
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
