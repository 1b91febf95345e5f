"""Files and folders that a command hands to the daemon.

A tiffin daemon on this machine gets a *source*: the path, with device and inode to tell that it
sees the same thing, and reads it in place. This is the one thing that goes beyond Docker's API
(header ``X-Tiffin-Source``); any other daemon gets the bytes.
"""

from __future__ import annotations

import os
import stat

from tiffin.cli.command import CommandError
from tiffin.client.connection import DaemonError
from tiffin.client.sources import source_header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from tiffin.client.connection import Client, Response
    from tiffin.client.endpoint import Endpoint


def post_source(
    client: Client,
    endpoint: Endpoint,
    path: str,
    where: str,
    query: Mapping[str, Any],
    headers: Mapping[str, str] = {},
) -> Response | None:
    """POSTs a source; None where the daemon has to get the bytes after all.

    That is so with any other daemon, over a network, and when the daemon finds something else at
    the path (another mount namespace), which it answers with 409. Raises as Client.call does.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        # JSON has no way to say it.
        return None
    if isinstance(endpoint.address, tuple) or not client.is_tiffin():
        return None
    try:
        return client.call("POST", where, query, headers={**source_header(path), **headers})
    except DaemonError as error:
        if error.http_status != 409:
            raise
        return None


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
        if stat.S_ISREG(os.fstat(fd).st_mode):
            response = post_source(client, endpoint, path, where, query)
            if response is not None:
                return response
        return client.upload("POST", where, query, fd)
    finally:
        os.close(fd)
