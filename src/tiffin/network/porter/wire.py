"""DNS messages: reading a question, writing an answer.

Only what the embedded server needs: one question a message, answers of types A, AAAA and PTR,
and the size that EDNS allows. Whatever else comes is passed on to another server as it is.

Source: RFC 1035, RFC 3596 (AAAA), RFC 6891 (EDNS).
"""

from __future__ import annotations

import struct

A = 1
PTR = 12
AAAA = 28
OPT = 41
ANY = 255
IN = 1

NOERROR = 0
SERVFAIL = 2
NXDOMAIN = 3
REFUSED = 5

_HEADER = struct.Struct("!HHHHHH")
_RESPONSE = 0x8000
_TRUNCATED = 0x0200
_AUTHORITATIVE = 0x0400
_RECURSION_DESIRED = 0x0100
_RECURSION_AVAILABLE = 0x0080
_OPCODE = 0x7800
_PLAIN_SIZE = 512
_OWN_SIZE = 4096
TTL = 600


class Question:
    """What a message asks: ``name`` in lower case without the last dot, ``kind`` (A…)."""

    __slots__ = ("edns", "end", "kind", "name", "size")

    def __init__(self, name: str, kind: int, end: int, size: int, edns: bool) -> None:
        self.name = name
        self.kind = kind
        self.end = end
        self.size = size
        self.edns = edns


def parse(message: bytes) -> Question | None:
    """The question of a query; None for what is no query of one question of class IN."""
    if len(message) < 17:
        return None
    _, flags, questions, _, _, additional = _HEADER.unpack_from(message)
    if flags & (_RESPONSE | _OPCODE) or questions != 1:
        return None
    labels = []
    offset = 12
    while True:
        if offset >= len(message):
            return None
        length = message[offset]
        offset += 1
        if length == 0:
            break
        if length > 63 or offset + length > len(message):
            return None
        labels.append(message[offset : offset + length])
        offset += length
    if offset + 4 > len(message):
        return None
    kind, family = struct.unpack_from("!HH", message, offset)
    if family != IN:
        return None
    end = offset + 4
    size, edns = _PLAIN_SIZE, False
    # The OPT record of a query follows the question at once, in practice and in our answers.
    if additional and len(message) >= end + 11 and message[end] == 0:
        option, allowed = struct.unpack_from("!HH", message, end + 1)
        if option == OPT:
            size, edns = max(_PLAIN_SIZE, allowed), True
    try:
        name = b".".join(labels).decode("ascii").lower()
    except UnicodeDecodeError:
        return None
    return Question(name, kind, end, size, edns)


def answer(
    message: bytes,
    question: Question,
    records: list[tuple[int, bytes]],
    *,
    code: int = NOERROR,
    limit: int | None = None,
) -> bytes:
    """The answer to ``message`` with (type, data) records; cut, and marked so, above ``limit``."""
    identity, flags = struct.unpack_from("!HH", message)
    flags = _RESPONSE | _RECURSION_AVAILABLE | (flags & _RECURSION_DESIRED) | code
    if code == NOERROR:
        flags |= _AUTHORITATIVE
    option = b""
    if question.edns:
        option = b"\0" + struct.pack("!HHIH", OPT, _OWN_SIZE, 0, 0)
    room = (limit or 0xFFFF) - question.end - len(option)
    parts: list[bytes] = []
    for kind, data in records:
        # The name of each record points to that of the question.
        record = b"\xc0\x0c" + struct.pack("!HHIH", kind, IN, TTL, len(data)) + data
        if len(record) > room:
            flags |= _TRUNCATED
            break
        room -= len(record)
        parts.append(record)
    header = _HEADER.pack(identity, flags, 1, len(parts), 0, 1 if option else 0)
    return header + message[12 : question.end] + b"".join(parts) + option


def encode_name(name: str) -> bytes:
    """A name in the form of the wire."""
    return (
        b"".join(
            bytes([len(label)]) + label
            for label in (part.encode() for part in name.split("."))
            if label
        )
        + b"\0"
    )


def code_of(message: bytes) -> int:
    """The response code of an answer."""
    return message[3] & 0x0F if len(message) >= 4 else SERVFAIL


def reversed_address(name: str) -> str | None:
    """The address that a name under in-addr.arpa or ip6.arpa asks for, as text."""
    if name.endswith(".in-addr.arpa"):
        parts = name.removesuffix(".in-addr.arpa").split(".")
        return ".".join(reversed(parts)) if len(parts) == 4 else None
    if name.endswith(".ip6.arpa"):
        nibbles = name.removesuffix(".ip6.arpa").split(".")
        if len(nibbles) != 32 or any(len(nibble) != 1 for nibble in nibbles):
            return None
        digits = "".join(reversed(nibbles))
        return ":".join(digits[start : start + 4] for start in range(0, 32, 4))
    return None
