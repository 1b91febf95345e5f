"""Netlink: messages to the kernel and its answers, whatever they are about.

A *request* is one message that the kernel answers with success or an errno; :meth:`Socket.run`
sends any number of them in one system call and reads the answers. A socket belongs to the network
namespace in which it was made, whoever uses it. A message's body is a structure of its own and
*attributes*: length, kind, value.

Small on purpose: a start of a container sends two batches through it, and the large libraries
take longer to import than that start takes as a whole.

Source: netlink(7); ``include/uapi/linux/netlink.h``.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLMSG_ERROR = 2
NLMSG_DONE = 3

HEADER = struct.Struct("=IHHII")
"""Length, kind, flags, sequence, port: what each message begins with."""
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_KIND_MASK = 0x3FFF
_LARGEST = 1 << 18


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded."""
    length = 4 + len(data)
    return _ATTRIBUTE.pack(length, kind) + data + b"\0" * (-length % 4)


def nest(kind: int, *parts: bytes) -> bytes:
    """An attribute of attributes."""
    return attribute(kind | _NESTED, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    """An attribute that is a text."""
    return attribute(kind, value.encode() + b"\0")


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A whole message."""
    return HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind, sequence and body of each message of an answer."""
    offset = 0
    while offset < len(data):
        length, kind, _, sequence, _ = HEADER.unpack_from(data, offset)
        yield kind, sequence, data[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3


def code(body: bytes) -> int:
    """The errno in the body of a message of the kind NLMSG_ERROR; 0: it was done."""
    return -int(struct.unpack_from("=i", body)[0])


def attributes(body: bytes, offset: int) -> dict[int, bytes]:
    """What the attributes behind ``offset`` say, by kind."""
    found = {}
    while offset + 4 <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < 4:
            break
        found[kind & _KIND_MASK] = body[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


@dataclass(frozen=True, slots=True)
class Request:
    """One message to the kernel; ``what`` says in an error what could not be done."""

    kind: int
    flags: int
    body: bytes
    what: str
    tolerated: tuple[int, ...] = ()
    """Errnos that mean that all is well already."""


class Socket:
    """A connection to one of the kernel's families in the namespace of the calling thread."""

    def __init__(self, family: int) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family
        )
        self._sequence = 0

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, *requests: Request) -> None:
        """Carry requests out in order.

        Raises OSError of the first that failed, named; those after it were tried all the same.
        """
        first = self._sequence + 1
        parts = []
        for request in requests:
            self._sequence += 1
            flags = NLM_F_REQUEST | NLM_F_ACK | request.flags
            parts.append(message(request.kind, flags, self._sequence, request.body))
        self._socket.send(b"".join(parts))
        pending = len(requests)
        failure: OSError | None = None
        while pending:
            for kind, sequence, body in messages(self._socket.recv(_LARGEST)):
                if kind != NLMSG_ERROR or sequence < first:
                    continue
                pending -= 1
                request = requests[sequence - first]
                number = code(body)
                if number and number not in request.tolerated and failure is None:
                    failure = OSError(number, f"{request.what}: {os.strerror(number)}")
        if failure is not None:
            raise failure

    def ask(self, kind: int, body: bytes, what: str) -> bytes:
        """The one answer to a question; raises OSError, named by ``what``."""
        return next(self._answers(kind, 0, body, what))

    def dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        """All that there is of a kind. Raises OSError."""
        return self._answers(kind, NLM_F_DUMP, body, "list")

    def _answers(self, kind: int, flags: int, body: bytes, what: str) -> Iterator[bytes]:
        self._sequence += 1
        self._socket.send(message(kind, NLM_F_REQUEST | flags, self._sequence, body))
        while True:
            for answer, sequence, content in messages(self._socket.recv(_LARGEST)):
                if sequence != self._sequence:
                    continue
                if answer == NLMSG_DONE:
                    return
                if answer == NLMSG_ERROR:
                    number = code(content)
                    raise OSError(number, f"{what}: {os.strerror(number)}")
                yield content
