"""The messages that log drivers send: syslog, the journal's native protocol, fluentd's forward.

Each format makes one message of one record: a line without its newline, or a part of a long line.

Sources: RFC 3164, RFC 5424; https://systemd.io/JOURNAL_NATIVE_PROTOCOL/;
https://github.com/fluent/fluentd/wiki/Forward-Protocol-Specification-v1 (the Message mode); RFC
5425 (the length before a message, where TLS carries RFC 5424);
https://github.com/msgpack/msgpack/blob/master/spec.md; the names of fields are those of Docker's
drivers.
"""

from __future__ import annotations

import binascii
import os
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Format = Callable[[str, bytes, bool, int], bytes]
    """(stream, text, partial, nanoseconds since the epoch) → message."""

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_INFO, _ERROR = 6, 3
"""The severities of stdout and stderr."""


def message_format(options: dict[str, Any]) -> Format:
    """The format of a driver's options; raises KeyError for a driver that is none."""
    return {"syslog": _syslog, "journald": _journal, "fluentd": _fluentd}[options["driver"]](
        options
    )


def _severity(stream: str) -> int:
    return _ERROR if stream == "stderr" else _INFO


def _syslog(options: dict[str, Any]) -> Format:
    facility = int(options["facility"]) << 3
    tag, host, form = options["tag"], options["hostname"], options["format"]
    counted = bool(options.get("tls")) and form.startswith("rfc5424")
    pid = os.getpid()

    def stamp(at: int) -> str:
        moment = time.localtime(at // 1_000_000_000)
        clock = f"{moment.tm_hour:02}:{moment.tm_min:02}:{moment.tm_sec:02}"
        return f"{_MONTHS[moment.tm_mon - 1]} {moment.tm_mday:2} {clock}"

    def rfc3339(at: int) -> str:
        seconds, rest = divmod(at, 1_000_000_000)
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return f"{text}.{rest // 1000:06}Z" if form == "rfc5424micro" else f"{text}Z"

    def make(stream: str, text: bytes, partial: bool, at: int) -> bytes:
        del partial
        first = f"<{facility | _severity(stream)}>"
        if form in ("rfc5424", "rfc5424micro"):
            head = f"{first}1 {rfc3339(at)} {host} {tag} {pid} {tag} - "
        elif form == "rfc3164":
            head = f"{first}{stamp(at)} {host} {tag}[{pid}]: "
        else:
            head = f"{first}{stamp(at)} {tag}[{pid}]: "
        message = head.encode() + text + b"\n"
        return b"%d %b" % (len(message), message) if counted else message

    return make


def _journal(options: dict[str, Any]) -> Format:
    fixed = b"".join(
        _journal_field(name, value.encode()) for name, value in options["fields"].items()
    )

    def make(stream: str, text: bytes, partial: bool, at: int) -> bytes:
        parts = [
            _journal_field("MESSAGE", text),
            _journal_field("PRIORITY", b"%d" % _severity(stream)),
            _journal_field("SYSLOG_TIMESTAMP", _nanoseconds(at)),
            fixed,
        ]
        if partial:
            parts.append(_journal_field("CONTAINER_PARTIAL_MESSAGE", b"true"))
        return b"".join(parts)

    return make


def _nanoseconds(at: int) -> bytes:
    seconds, rest = divmod(at, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{rest:09}Z".encode()


def _journal_field(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return b"%b\n%b%b\n" % (name.encode(), struct.pack("<Q", len(value)), value)
    return b"%b=%b\n" % (name.encode(), value)


def _fluentd(options: dict[str, Any]) -> Format:
    tag, fixed, precise = options["tag"], options["fields"], bool(options["precise"])

    def make(stream: str, text: bytes, partial: bool, at: int) -> bytes:
        record = {**fixed, "source": stream, "log": text.decode("utf-8", "replace")}
        if partial:
            record["partial_message"] = "true"
        seconds, rest = divmod(at, 1_000_000_000)
        if precise:
            # The extension type 0, EventTime: both as 32 bits.
            moment = b"\xd7\x00" + struct.pack(">II", seconds & 0xFFFFFFFF, rest)
        else:
            moment = pack(seconds)
        return b"\x93" + pack(tag) + moment + pack(record)

    return make


def chunk_name(number: int) -> str:
    """The name of a message that is to be acknowledged."""
    return binascii.b2a_base64(number.to_bytes(16, "big"), newline=False).decode()


def with_chunk(message: bytes, name: str) -> bytes:
    """One of fluentd's messages, to be acknowledged by this name."""
    return b"\x94" + message[1:] + pack({"chunk": name})


def acknowledged(data: bytes) -> tuple[list[str], bytes]:
    """The names in what fluentd answers (``{"ack": NAME}`` again and again), and the rest, which
    is not whole yet. Raises ValueError for anything else."""
    names = []
    while data:
        head, rest = data[:5], data[5:]
        if head != b"\x81\xa3ack"[: len(head)]:
            raise ValueError(f"this acknowledges nothing: {data[:40]!r}")
        if not rest:
            break
        if rest[0] & 0xE0 == 0xA0:
            start, length = 1, rest[0] & 0x1F
        elif rest[0] in (0xD9, 0xC4) and len(rest) > 1:
            start, length = 2, rest[1]
        elif rest[0] in (0xD9, 0xC4):
            break
        else:
            raise ValueError(f"this acknowledges nothing: {data[:40]!r}")
        if len(rest) < start + length:
            break
        names.append(rest[start : start + length].decode("utf-8", "replace"))
        data = rest[start + length :]
    return names, data


def pack(value: str | int | dict[str, str]) -> bytes:
    """A text, a number that is not negative, or a map of texts, as msgpack."""
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogateescape")
        length = len(data)
        if length < 32:
            return bytes((0xA0 | length,)) + data
        if length < 1 << 8:
            return struct.pack(">BB", 0xD9, length) + data
        if length < 1 << 16:
            return struct.pack(">BH", 0xDA, length) + data
        return struct.pack(">BI", 0xDB, length) + data
    if isinstance(value, int):
        if value < 128:
            return bytes((value,))
        return (
            struct.pack(">BI", 0xCE, value) if value < 1 << 32 else struct.pack(">BQ", 0xCF, value)
        )
    count = len(value)
    head = bytes((0x80 | count,)) if count < 16 else struct.pack(">BH", 0xDE, count)
    return head + b"".join(pack(key) + pack(item) for key, item in value.items())
