"""What the daemon and the keeper say to each other, and how it is framed.

A message is a JSON object behind its length (4 bytes, big-endian), on a unix stream socket. A
message that hands over file descriptors says how many (``"fds"``); they travel by SCM_RIGHTS with
its first byte, so they are there when its last byte is.

A *request* has an ``"id"`` and a ``"do"``; its *answer* has the same ``"id"`` and either
``"result"`` or ``"error"`` (``{"kind", "message", "exit_code"}``). An *event* has an ``"event"``
and no id. Bytes inside JSON are written as Latin-1 text.

Source: unix(7), cmsg(3).
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct

# Not from typing, which the keeper does not import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_MESSAGE = 16 << 20
"""A longer message is a broken peer."""
MAX_FDS = 16
"""More descriptors than a message ever carries."""

_LENGTH = struct.Struct(">I")
_READ = 1 << 16
_FDS_SPACE = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


class ProtocolError(Exception):
    """The peer sent what is no message; the connection is of no more use."""


def encode(message: dict[str, Any]) -> bytes:
    """The message as it goes over the wire."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_MESSAGE:
        raise ProtocolError(f"a message of {len(body)} bytes is too long")
    return _LENGTH.pack(len(body)) + body


def send(sock: socket.socket, data: bytes | memoryview, fds: list[int], flags: int = 0) -> int:
    """Send some of ``data``, and with its first byte all of ``fds``; how many bytes went."""
    if not fds:
        return sock.send(data, flags | socket.MSG_NOSIGNAL)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    return sock.sendmsg([data], rights, flags | socket.MSG_NOSIGNAL)


def send_all(sock: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
    """Send a whole message on a blocking socket."""
    if fds:
        message = {**message, "fds": len(fds)}
    data = memoryview(encode(message))
    sent = send(sock, data, fds)
    while sent < len(data):
        sent += send(sock, data[sent:], [])


class Inbox:
    """The receiving half of a connection: bytes and descriptors in, whole messages out.

    It owns the descriptors that no message has claimed yet; :meth:`close` ends them.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._fds: list[int] = []

    def receive(
        self, sock: socket.socket, flags: int = 0
    ) -> list[tuple[dict[str, Any], list[int]]] | None:
        """Read once; the messages that are whole now, each with its descriptors. None at the end.

        Raises ProtocolError, and BlockingIOError where there is nothing to read.
        """
        data, rights, _, _ = sock.recvmsg(_READ, _FDS_SPACE, flags | socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in rights:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._fds.extend(fds)
        if not data:
            return None
        self._data += data
        messages = []
        while len(self._data) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data)
            if length > MAX_MESSAGE:
                raise ProtocolError(f"a message of {length} bytes is too long")
            end = _LENGTH.size + length
            if len(self._data) < end:
                break
            messages.append(self._take(bytes(self._data[_LENGTH.size : end])))
            del self._data[:end]
        if len(self._fds) > 16 * MAX_FDS:
            raise ProtocolError("descriptors that belong to no message")
        return messages

    def _take(self, body: bytes) -> tuple[dict[str, Any], list[int]]:
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"not JSON: {error}") from None
        if not isinstance(message, dict):
            raise ProtocolError("a message is a JSON object")
        count = message.get("fds", 0)
        if not isinstance(count, int) or not 0 <= count <= len(self._fds):
            raise ProtocolError("descriptors are missing")
        fds, self._fds = self._fds[:count], self._fds[count:]
        return message, fds

    def close(self) -> None:
        """Close the descriptors that no message claimed."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []
