"""Unix sockets at paths of any length.

A socket address holds 108 bytes. A longer path is reached through its directory's descriptor:
``/proc/self/fd/<fd>/<name>``, where only the name counts.

Source: unix(7).
"""

from __future__ import annotations

import os
import socket

_LONGEST = 107


def bind_unix(sock: socket.socket, path: str | os.PathLike[str]) -> None:
    """Bind ``sock`` to ``path``. Raises OSError: EADDRINUSE if the file exists already."""
    _through_directory(sock.bind, os.fspath(path))


def connect_unix(sock: socket.socket, path: str | os.PathLike[str]) -> None:
    """Connect ``sock`` to the socket at ``path``. Raises OSError: nothing listens there."""
    _through_directory(sock.connect, os.fspath(path))


def _through_directory(call, path: str) -> None:  # type: ignore[no-untyped-def]
    # The annotation of ``call`` would need an import that the keeper does not otherwise pay for.
    if len(os.fsencode(path)) <= _LONGEST:
        call(path)
        return
    directory, name = os.path.split(path)
    fd = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        call(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)
