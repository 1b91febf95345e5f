"""Contexts that are somewhere else: a git repository, an archive or a Dockerfile behind a URL.

A repository is checked out into the work folder, one commit deep, and read there as any folder:
``ADDRESS#ref:folder``. What a URL gives is an archive if it looks like one, else a Dockerfile.

Source: Docker's "Build context" page.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO, cast

from tiffin.build.context import BuildContext, from_folder, from_stream
from tiffin.build.digests import DigestCache
from tiffin.build.downloads import Download
from tiffin.build.remote import Repository, is_git, is_url
from tiffin.errors import BuildFailure

_SHORT = "github.com/"


def is_remote(text: str) -> bool:
    """Whether a context is not on this machine."""
    return text.startswith(_SHORT) or is_git(text) or is_url(text)


def opened(
    where: str,
    work: Path,
    *,
    dockerfile: str | None = None,
    content: bytes | None = None,
    agent: str = "",
) -> BuildContext:
    """The context behind a URL. ``dockerfile`` is a path in it, ``content`` the Dockerfile itself.

    ``agent`` is the socket of an SSH agent. Raises BuildFailure, NotFound.
    """
    address = f"https://{where}" if where.startswith(_SHORT) else where
    try:
        if where.startswith(_SHORT) or is_git(address):
            return _repository(address, work, dockerfile, content, agent)
        return _archive(address, work, dockerfile, content)
    except BuildFailure as error:
        text = error.message.removeprefix("ADD failed: ")
        raise BuildFailure(f"unable to prepare context: {text}") from error


def _repository(
    address: str, work: Path, dockerfile: str | None, content: bytes | None, agent: str
) -> BuildContext:
    repository = Repository.parse(address, agent)
    folder = _Folder(Path(tempfile.mkdtemp(prefix="git", dir=work)))
    try:
        inside = repository.checkout(repository.commit(), folder.path, keep_git_dir=False)
        context = from_folder(inside, DigestCache(), dockerfile=dockerfile, content=content)
    except BaseException:
        folder.close()
        raise
    context.owned.insert(0, folder)
    return context


def _archive(url: str, work: Path, dockerfile: str | None, content: bytes | None) -> BuildContext:
    download = Download(url, "", work)
    try:
        entry = download.fetched()
        with download.opened(entry) as fd, open(cast(int, fd), "rb", closefd=False) as file:
            return from_stream(
                cast(BinaryIO, file), work, dockerfile=dockerfile or "Dockerfile", content=content
            )
    finally:
        download.close()


class _Folder:
    """A folder that goes with its context."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def close(self) -> None:
        shutil.rmtree(self.path)
