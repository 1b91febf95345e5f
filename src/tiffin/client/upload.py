"""Sending a large body: a regular file goes by sendfile, anything else in chunks.

The daemon may answer before all is sent: with progress (an image being loaded), which is kept for
later, or with a refusal, which ends the sending.
"""

from __future__ import annotations

import os
import select
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from tiffin.client.connection import Stream

_BLOCK = 1 << 20


class _Refused(Exception):
    """The daemon has answered with an error, or closed the connection."""


def send_body(stream: Stream, head: str, source: int | Iterator[bytes]) -> None:
    """Sends the head of a request and its body; returns early when the daemon refuses.

    The head lacks the length, which depends on the source.
    """
    connection = stream.socket
    try:
        if isinstance(source, int):
            status = os.fstat(source)
            offset = os.lseek(source, 0, os.SEEK_CUR) if stat.S_ISREG(status.st_mode) else 0
            if stat.S_ISREG(status.st_mode):
                size = status.st_size - offset
                connection.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode("latin-1"))
                _send_file(stream, source, offset, size)
                return
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode("latin-1"))
        for part in _blocks(source) if isinstance(source, int) else source:
            if part:
                _send(stream, b"%x\r\n" % len(part), part, b"\r\n")
        _send(stream, b"0\r\n\r\n")
    except (_Refused, BrokenPipeError, ConnectionResetError):
        return
    finally:
        connection.setblocking(True)


def _blocks(fd: int) -> Iterator[bytes]:
    while block := os.read(fd, _BLOCK):
        yield block


def _wait(stream: Stream, poller: select.poll) -> None:
    """Waits until the connection takes more; reads what the daemon says meanwhile."""
    while True:
        events = poller.poll()[0][1]
        if events & ~select.POLLOUT and stream.has_refusal():
            raise _Refused
        if events & select.POLLOUT:
            return


def _send(stream: Stream, *parts: bytes) -> None:
    connection = stream.socket
    connection.setblocking(False)
    poller = select.poll()
    poller.register(connection, select.POLLOUT | select.POLLIN)
    views = [memoryview(part) for part in parts]
    while views:
        _wait(stream, poller)
        try:
            sent = connection.sendmsg(views)
        except BlockingIOError:
            continue
        while views and sent >= len(views[0]):
            sent -= len(views.pop(0))
        if views:
            views[0] = views[0][sent:]


def _send_file(stream: Stream, fd: int, offset: int, size: int) -> None:
    connection = stream.socket
    connection.setblocking(False)
    poller = select.poll()
    poller.register(connection, select.POLLOUT | select.POLLIN)
    end = offset + size
    while offset < end:
        _wait(stream, poller)
        try:
            sent = os.sendfile(connection.fileno(), fd, offset, min(end - offset, 1 << 24))
        except BlockingIOError:
            continue
        if sent == 0:
            # The file was cut short under us: only closing tells the daemon so.
            connection.close()
            raise OSError(f"the file shrank while it was sent ({end - offset} bytes are missing)")
        offset += sent
