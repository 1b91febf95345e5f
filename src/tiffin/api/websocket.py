"""The server's side of a WebSocket, as much of it as ``GET /containers/{id}/attach/ws`` needs.

Messages of the client, text or binary, are a container's input; its output goes out in binary
messages (text ones for clients older than API 1.28). Fragments are passed on as they come: a
container's input is a stream, and has no messages.

Source: RFC 6455.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import select
import socket
import struct
from collections.abc import Callable, Mapping

from tiffin.api.bodies import Disconnected, receive, send
from tiffin.errors import InvalidParameter

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_NORMAL, _GOING_AWAY, _PROTOCOL_ERROR, _TOO_BIG = 1000, 1001, 1002, 1009
_PATIENCE = 2.0
_READ_SIZE = 32 * 1024
_HELD = 256 * 1024
"""With so much input for a container under way, no more is taken from the client."""
MAX_FRAME = 1024 * 1024
"""The longest frame that is taken; a terminal's input is a few bytes a frame."""


def accept_key(headers: Mapping[str, str]) -> str:
    """The answer to a client's key. Raises InvalidParameter where the request is no handshake."""
    if headers.get("upgrade", "").lower() != "websocket":
        raise InvalidParameter("attaching by WebSocket needs the header Upgrade: websocket")
    if headers.get("sec-websocket-version", "").strip() != "13":
        raise InvalidParameter("unsupported WebSocket version: 13 is spoken here")
    key = headers.get("sec-websocket-key", "").strip()
    try:
        valid = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        valid = False
    if not valid:
        raise InvalidParameter("malformed Sec-WebSocket-Key header")
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()


class Broken(Exception):
    """The client does not keep to the protocol; ``code`` is what the closing frame says."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def frame(opcode: int, payload: bytes) -> bytes:
    """A whole message in one frame, unmasked, as servers send them."""
    size = len(payload)
    if size < 126:
        return struct.pack(">BB", 0x80 | opcode, size) + payload
    if size < 65536:
        return struct.pack(">BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack(">BBQ", 0x80 | opcode, 127, size) + payload


class Frames:
    """Takes a client's frames out of a stream of bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._inside = False
        """Whether a fragmented message is under way."""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The frames (opcode, content) that are whole by now. Raises Broken."""
        self._buffer += data
        found = []
        while (one := self._next()) is not None:
            found.append(one)
        return found

    def _next(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        final, opcode, size = buffer[0] & 0x80, buffer[0] & 0x0F, buffer[1] & 0x7F
        self._check(buffer[0], buffer[1])
        start = 2
        if size >= 126:
            width = 2 if size == 126 else 8
            if len(buffer) < start + width:
                return None
            size = int.from_bytes(buffer[start : start + width], "big")
            start += width
            if size > MAX_FRAME:
                raise Broken(_TOO_BIG, f"a frame of {size} bytes is too long")
        end = start + 4 + size
        if len(buffer) < end:
            return None
        mask = bytes(buffer[start : start + 4])
        content = _masked(bytes(buffer[start + 4 : end]), mask)
        del buffer[:end]
        if opcode < _CLOSE:
            if (opcode == _CONTINUATION) != self._inside:
                raise Broken(_PROTOCOL_ERROR, "a fragment out of order")
            self._inside = not final
        return opcode, content

    @staticmethod
    def _check(first: int, second: int) -> None:
        opcode = first & 0x0F
        if first & 0x70:
            raise Broken(_PROTOCOL_ERROR, "reserved bits are set")
        if not second & 0x80:
            raise Broken(_PROTOCOL_ERROR, "a client's frame is not masked")
        if opcode not in (_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG):
            raise Broken(_PROTOCOL_ERROR, f"unknown opcode {opcode}")
        if opcode >= _CLOSE and (not first & 0x80 or second & 0x7F > 125):
            raise Broken(_PROTOCOL_ERROR, "a control frame is fragmented or too long")


def _masked(data: bytes, mask: bytes) -> bytes:
    size = len(data)
    whole = (mask * (size // 4 + 1))[:size]
    number = int.from_bytes(data, "little") ^ int.from_bytes(whole, "little")
    return number.to_bytes(size, "little")


def carry(
    client: socket.socket,
    initial: bytes,
    container: socket.socket,
    *,
    text: bool,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Carry a container's raw stream over a client's WebSocket, until either of them ends.

    ``initial`` are bytes that came with the handshake. Neither socket is closed here. ``stopping``
    is asked now and then.
    """
    try:
        _Carriage(client, container, text=text).run(initial, stopping)
    except Broken as error:
        send(client, [frame(_CLOSE, struct.pack(">H", error.code) + str(error).encode())])
    except Disconnected:
        # A client that vanishes has nothing to be told.
        return


class _Carriage:
    """Waits for the container's reading and for its output at once: a program that answers while
    it is written to must not wait for a client that waits for it."""

    def __init__(self, client: socket.socket, container: socket.socket, *, text: bool) -> None:
        self._client = client
        self._container = container
        self._text = text
        self._frames = Frames()
        self._input = bytearray()
        """What the container has not taken yet."""
        self._leaving = False
        """Whether the client says no more; what it said before still goes to the container."""

    def run(self, initial: bytes, stopping: Callable[[], bool]) -> None:
        self._take(initial)
        while not self._leaving or self._input:
            ready = self._wait()
            if not ready and self._leaving:
                return
            if not ready and stopping():
                send(self._client, [frame(_CLOSE, struct.pack(">H", _GOING_AWAY))])
                return
            if self._input:
                self._write()
            if ready.get(self._container.fileno(), 0) & ~select.POLLOUT and not self._read():
                return
            if self._client.fileno() in ready:
                data = receive(self._client, _READ_SIZE) if self._is_listening else b""
                if data:
                    self._take(data)
                else:
                    self._leaving = True

    @property
    def _is_listening(self) -> bool:
        return not self._leaving and len(self._input) < _HELD

    def _wait(self) -> dict[int, int]:
        poll = select.poll()
        poll.register(self._container, select.POLLIN | (select.POLLOUT if self._input else 0))
        if not self._leaving:
            # Without asked-for events, poll reports that the client is gone.
            poll.register(self._client, select.POLLIN if self._is_listening else 0)
        return dict(poll.poll(_PATIENCE * 1000))

    def _read(self) -> bool:
        """Pass the container's output on; False at its end."""
        output = _output(self._container)
        if not output:
            if not self._leaving:
                send(self._client, [frame(_CLOSE, struct.pack(">H", _NORMAL))])
            return False
        if not self._leaving:
            if self._text:
                output = output.decode("utf-8", "replace").encode()
            send(self._client, [frame(_TEXT if self._text else _BINARY, output)])
        return True

    def _write(self) -> None:
        try:
            del self._input[: self._container.send(self._input, socket.MSG_DONTWAIT)]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            # The container reads no more; what it still writes is on the way.
            self._input.clear()

    def _take(self, data: bytes) -> None:
        """Do what the client's frames say."""
        for opcode, content in self._frames.feed(data):
            if opcode == _CLOSE:
                send(self._client, [frame(_CLOSE, content[:2])])
                self._leaving = True
                return
            if opcode == _PING:
                send(self._client, [frame(_PONG, content)])
            elif opcode != _PONG:
                self._input += content


def _output(container: socket.socket) -> bytes:
    try:
        return receive(container, _READ_SIZE)
    except Disconnected:
        return b""
