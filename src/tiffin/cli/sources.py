"""Files and folders that a command hands to the daemon.

A tiffin daemon on this machine gets a *source*: the path, with device and inode to tell that it
sees the same thing, and reads it in place. This is the one thing that goes beyond Docker's API
(header ``X-Tiffin-Source``); any other daemon gets the bytes.
"""

from __future__ import annotations

import os
import stat

from tiffin.cli.command import CommandError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from tiffin.cli.connection import Client, Response
    from tiffin.cli.endpoint import Endpoint

HEADER = "X-Tiffin-Source"


def reads_in_place(client: Client, endpoint: Endpoint) -> bool:
    """Whether the daemon can read files of this machine by their path."""
    return not isinstance(endpoint.address, tuple) and client.is_tiffin()


def source_header(path: str) -> dict[str, str]:
    """The header for a file or folder; raises OSError."""
    from json import dumps

    real = os.path.realpath(path)
    status = os.stat(real)
    return {HEADER: dumps({"path": real, "dev": status.st_dev, "ino": status.st_ino})}


def open_file(path: str) -> int:
    """A descriptor of a file to send; raises CommandError with docker's wording."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CommandError(f"open {path}: {(error.strerror or str(error)).lower()}") from None
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise CommandError(f"read {path}: is a directory")
    return fd


def send_file(
    client: Client,
    endpoint: Endpoint,
    path: str,
    where: str,
    query: Mapping[str, Any],
) -> Response:
    """POSTs a file: in place where the daemon can, else its bytes. Raises as Client.call does."""
    fd = open_file(path)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode) and reads_in_place(client, endpoint):
            return client.call("POST", where, query, headers=source_header(path))
        return client.upload("POST", where, query, fd)
    finally:
        os.close(fd)


def folder_tar(folder: str, ignored: list[str]) -> Iterator[bytes]:
    """A folder as a tar, part by part, owners as root; ``ignored`` are .dockerignore patterns."""
    import tarfile
    from threading import Thread

    reader, writer = os.pipe()
    failure: list[BaseException] = []

    def work() -> None:
        try:
            with (
                os.fdopen(writer, "wb", 1 << 20) as sink,
                tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar,
            ):
                for name in walk(folder, ignored):
                    tar.add(os.path.join(folder, name), name, recursive=False, filter=_root)
        except BrokenPipeError:
            # The other side has seen enough.
            return
        except BaseException as error:
            failure.append(error)

    thread = Thread(target=work)
    thread.start()
    try:
        while part := os.read(reader, 1 << 20):
            yield part
    finally:
        os.close(reader)
        thread.join()
    if failure:
        raise failure[0]


def _root(entry: Any) -> Any:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def walk(folder: str, ignored: list[str]) -> Iterator[str]:
    """The names below a folder, parents first, in order, without what is ignored."""
    excluded = _matcher(ignored)
    pending = [""]
    while pending:
        inside = pending.pop()
        names = sorted(os.listdir(os.path.join(folder, inside)))
        folders = []
        for name in names:
            path = f"{inside}/{name}" if inside else name
            real = os.path.join(folder, path)
            if not os.path.islink(real) and os.path.isdir(real):
                folders.append(path)
            if not excluded(path):
                yield path
        pending.extend(reversed(folders))


def _matcher(ignored: list[str]) -> Any:
    if not ignored:
        return lambda _path: False
    from tiffin.build.dockerignore import PatternMatcher

    return PatternMatcher(ignored).matches
