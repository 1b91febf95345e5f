"""Docker's multiplexed stream, read: stdout and stderr of a container on one connection.

Each frame is eight bytes (stream, three zeros, length in big-endian) and the payload.
Source: Docker Engine API v1.50, ``ContainerAttach``, "Stream format".
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator

from tiffin.errors import Unreachable

STDOUT, STDERR = 1, 2
NAMES = {STDOUT: "stdout", STDERR: "stderr"}
NUMBERS = {"stdin": 0, "stdout": STDOUT, "stderr": STDERR}
header = struct.Struct(">BxxxI").pack
"""Of a stream's number and a length: what a frame begins with."""


def frames(
    connection: socket.socket, cancelled: Callable[[], bool] | None = None
) -> Iterator[tuple[int, bytes]]:
    """The frames of a connection until its end, as (stream, payload).

    ``cancelled`` is asked now and then; the frames end where it says so. Raises Unreachable where
    the connection ends inside a frame.
    """
    buffer = b""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    asked = time.monotonic()
    while True:
        while len(buffer) >= 8:
            stream, length = struct.unpack_from(">BxxxI", buffer)
            if len(buffer) < 8 + length:
                break
            yield stream, buffer[8 : 8 + length]
            buffer = buffer[8 + length :]
        while cancelled is not None:
            ready = poll.poll(200)
            # Not at each piece of what comes fast, but then too.
            if not ready or time.monotonic() >= asked + 0.2:
                if cancelled():
                    return
                asked = time.monotonic()
            if ready:
                break
        received = connection.recv(1 << 18)
        if not received:
            break
        buffer += received
    if buffer:
        raise Unreachable("the stream of the container ended in the middle of a frame")


def demultiplex(connection: socket.socket) -> tuple[bytes, bytes]:
    """Everything until the end: (stdout, stderr)."""
    collected: dict[int, list[bytes]] = {STDOUT: [], STDERR: []}
    for stream, payload in frames(connection):
        collected.setdefault(stream, []).append(payload)
    return b"".join(collected[STDOUT]), b"".join(collected[STDERR])
