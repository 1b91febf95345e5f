"""Attaching by WebSocket, spoken to byte by byte."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiffin.api.websocket import Broken, Frames, accept_key, carry, frame
from tiffin.engine import Engine
from tiffin.errors import InvalidParameter

HANDSHAKE = {
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def masked(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A client's frame."""
    mask = os.urandom(4)
    size = len(payload)
    head = bytes([(0x80 if final else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += bytes([0x80 | 126]) + struct.pack(">H", size)
    else:
        head += bytes([0x80 | 127]) + struct.pack(">Q", size)
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def test_the_handshake_is_the_one_of_the_rfc() -> None:
    assert accept_key(HANDSHAKE) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    "wrong",
    [{"upgrade": "tcp"}, {"sec-websocket-version": "8"}, {"sec-websocket-key": "short"}],
)
def test_what_is_no_handshake_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidParameter):
        accept_key({**HANDSHAKE, **wrong})


@given(st.lists(st.binary(max_size=70_000), max_size=4), st.integers(1, 9999))
def test_frames_come_out_whole_however_they_arrive(payloads: list[bytes], step: int) -> None:
    data = b"".join(masked(2, payload) for payload in payloads)
    frames = Frames()
    found = [
        one
        for start in range(0, len(data), step)
        for one in frames.feed(data[start : start + step])
    ]
    assert found == [(2, payload) for payload in payloads]


@given(st.binary(max_size=300))
def test_any_bytes_are_frames_or_refused(data: bytes) -> None:
    try:
        Frames().feed(data)
    except Broken as error:
        assert error.code in (1002, 1009)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(2, b"unmasked"), 1002),
        (masked(3, b"unknown"), 1002),
        (masked(0, b"a fragment of nothing"), 1002),
        (masked(9, b"", final=False), 1002),
        (b"\xf2\x80", 1002),
        (b"\x82\xff" + struct.pack(">Q", 1 << 40), 1009),
    ],
)
def test_a_client_that_breaks_the_rules_is_told_and_left(data: bytes, code: int) -> None:
    client, ours = socket.socketpair()
    container, other = socket.socketpair()
    with client, ours, container, other:
        carry(ours, data, other, text=False)
        answer = client.recv(1000)
        assert answer[0] == 0x88
        assert struct.unpack(">H", answer[2:4]) == (code,)


@pytest.mark.root
def test_a_container_is_attached_to(engine: Engine, api: Callable[[Any], Any]) -> None:
    docker = api(engine)
    made = engine.containers.create(
        {
            "Image": "busybox",
            "Cmd": ["sh", "-c", "read line; echo got $line; exit 3"],
            "OpenStdin": True,
            "HostConfig": {"NetworkMode": "none"},
        }
    )["Id"]
    client = docker.client()
    lines = [f"{name}: {value}" for name, value in HANDSHAKE.items()]
    target = f"/v1.50/containers/{made}/attach/ws?stream=1&stdin=1&stdout=1&stderr=1"
    request = [f"GET {target} HTTP/1.1", "Host: d", "Connection: Upgrade", *lines, "", ""]
    # The first frame comes together with the handshake.
    client.send("\r\n".join(request).encode() + masked(9, b"ping") + masked(1, b"he"))
    answer = client.head()
    assert answer.status == 101
    assert answer.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert client.take(6) == frame(10, b"ping")
    engine.containers.start(made)
    client.send(masked(2, b"llo\n"))
    assert client.take(12) == frame(2, b"got hello\n")
    assert client.take(4) == frame(8, struct.pack(">H", 1000))
    assert client.to_end() == b""
    waiter = engine.containers.wait_later(made)
    answer = waiter.result(20)
    assert answer is not None and answer["StatusCode"] == 3
