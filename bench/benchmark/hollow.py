"""A hollow engine: it answers what ``docker exec`` asks at once, and does nothing.

What a command takes with it is the command's own; no engine can be faster.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UPGRADED = (
    b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
    b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
)
_CONTAINER = b'{"Id":"0123","Config":{"Tty":false},"State":{"Running":true},"HostConfig":{}}'
_MADE = b'{"Id":"0123456789"}'
_ENDED = b'{"ID":"0123456789","Running":false,"ExitCode":0}'


@contextmanager
def hollow_engine(folder: Path) -> Iterator[str]:
    """Its address, as DOCKER_HOST; it is there inside the block."""
    path = folder / "hollow.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        directory = os.open(folder, os.O_PATH)
        try:
            listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        listener.listen(16)
        thread = threading.Thread(target=_listen, args=(listener,), daemon=True)
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            path.unlink()


def _listen(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            # It was shut down.
            return
        threading.Thread(target=_converse, args=(connection,), daemon=True).start()


def _converse(connection: socket.socket) -> None:
    with connection:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                part = connection.recv(65536)
                if not part:
                    return
                data += part
            head, _, data = data.partition(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            while len(data) < length:
                data += connection.recv(65536)
            data = data[length:]
            first = head.partition(b"\r\n")[0]
            if b"/start" in first:
                connection.sendall(_UPGRADED)
                return
            connection.sendall(_answer(first))


def _answer(first: bytes) -> bytes:
    if b"_ping" in first:
        body = b"" if first.startswith(b"HEAD") else b"OK"
    elif first.startswith(b"POST"):
        body = _MADE
    else:
        body = _ENDED if b"/exec/" in first else _CONTAINER
    head = b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
