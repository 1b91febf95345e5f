"""An agent's socket lent to a container: a socket of its own, forwarded to the host's.

The container's socket belongs to whom the build says; what connects to it is forwarded, byte by
byte, to the agent of the user who builds. It ends with the block that made it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiffin.linux.sockets import bind_unix

_BLOCK = 1 << 16


@contextmanager
def forwarded(agent: str, place: Path, *, mode: int, uid: int, gid: int) -> Iterator[None]:
    """Listen at ``place`` inside the block."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        bind_unix(listener, str(place))
        os.chown(place, uid, gid)
        os.chmod(place, mode)
        listener.listen(16)
        thread = threading.Thread(target=_serve, args=(listener, agent), daemon=True)
        thread.start()
        try:
            yield
        finally:
            # Wakes the thread that waits for the next connection.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            place.unlink(missing_ok=True)


def _serve(listener: socket.socket, agent: str) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # it was shut down
        threading.Thread(target=_forward, args=(connection, agent), daemon=True).start()


def _forward(connection: socket.socket, agent: str) -> None:
    # An agent that is gone ends the container's connection, which says it all.
    with (
        connection,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other,
        contextlib.suppress(OSError),
    ):
        other.connect(agent)
        _both_ways(connection, other)


def _both_ways(one: socket.socket, other: socket.socket) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ, other)
        selector.register(other, selectors.EVENT_READ, one)
        while True:
            for key, _ in selector.select():
                data = key.fileobj.recv(_BLOCK)  # type: ignore[union-attr]
                if not data:
                    return
                key.data.sendall(data)
