"""Calls of the Engine API, by any thread, over connections that somebody else opens.

What it needs of the other side is one function, ``connect() -> socket``: the narrow protocol that a
daemon's socket and an engine in process both satisfy. Connections that answered in full are kept
for the next call; one that streams belongs to its reader, who closes it.

Answers of 400 and above become errors of :mod:`tiffin.errors`, by their status.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from json import loads
from typing import Any, BinaryIO

from tiffin import errors
from tiffin.client.connection import (
    UPGRADE,
    Response,
    Stream,
    escape,
    request,
    request_head,
    target,
)
from tiffin.version import __version__

__all__ = ["Hijacked", "Source", "Transport", "escape"]

Source = bytes | BinaryIO | Iterator[bytes]
"""What can be sent as a body: bytes, a file that is open, or pieces."""

_AGENT = f"tiffin-sdk/{__version__}"
_BLOCK = 1 << 20
_KEPT = 16


class Hijacked:
    """A connection that stopped being HTTP: a container's streams, both ways."""

    def __init__(self, stream: Stream) -> None:
        self.socket = stream.socket
        self._initial = stream.rest()

    def parts(self) -> Iterator[memoryview]:
        """What comes, until the other side ends it; each part is valid until the next one."""
        if self._initial:
            initial, self._initial = self._initial, b""
            yield memoryview(initial)
        buffer = bytearray(1 << 16)
        view = memoryview(buffer)
        while size := self.socket.recv_into(buffer):
            yield view[:size]

    def close(self) -> None:
        """Lets the container go."""
        self.socket.close()


class Transport:
    """One side's connections. ``timeout`` bounds the wait for each answer, in seconds; streams
    may take as long as they do. ``local``: the other side sees this machine's files."""

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        *,
        local: bool = False,
        timeout: float | None = None,
    ) -> None:
        self._connect = connect
        self._timeout = timeout
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._idle: list[Stream] = []
        self._process = os.getpid()
        self._closed = False
        self._local = local
        self._is_tiffin: bool | None = None

    def _take(self) -> Stream:
        with self._lock:
            if self._closed:
                raise errors.Unreachable("The client is closed: make another one")
            if self._process != os.getpid():
                # After a fork the kept connections are the parent's.
                self._idle.clear()
                self._process = os.getpid()
            while self._idle:
                stream = self._idle.pop()
                if not _readable(stream.socket):
                    return stream
                # Nothing is due on it: the other side has closed it.
                stream.close()
        stream = Stream(self._connect())
        stream.socket.settimeout(self._timeout)
        return stream

    def _give(self, stream: Stream) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < _KEPT:
                self._idle.append(stream)
                return
        stream.close()

    def close(self) -> None:
        """Closes the kept connections; streams that are being read stay their readers'."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for stream in idle:
            stream.close()

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: Any,
        headers: Mapping[str, str] | None,
    ) -> tuple[Stream, Response]:
        message = request(_AGENT, method, path, query, body, headers)
        stream = self._take()
        try:
            response = stream.ask(message, bodiless=method == "HEAD")
        except TimeoutError as error:
            raise _late(method, path) from error
        self._checked(stream, response)
        return stream, response

    def _checked(self, stream: Stream, response: Response) -> None:
        if response.status < 400:
            return
        try:
            message = response.complaint()
        finally:
            self._finish(stream, response)
        raise errors.of_status(response.status, message)

    def _finish(self, stream: Stream, response: Response) -> None:
        if response.reusable:
            self._give(stream)
        else:
            stream.close()

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """One call with a JSON answer, or None where there is none."""
        return self.whole(method, path, query, body, headers)[1]

    def whole(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float | None = None,
    ) -> tuple[dict[str, str], Any]:
        """Like :meth:`call`; the answer's headers too. ``timeout`` is for this call alone."""
        if timeout is not None:
            return self._bounded(timeout).whole(method, path, query, body, headers)
        stream, response = self._ask(method, path, query, body, headers)
        try:
            data = response.read()
        except TimeoutError as error:
            stream.close()
            raise _late(method, path) from error
        except BaseException:
            stream.close()
            raise
        self._finish(stream, response)
        if not data.strip():
            return response.headers, None
        if not response.headers.get("content-type", "").startswith("application/json"):
            return response.headers, data.decode(errors="replace")
        return response.headers, loads(data)

    def _bounded(self, timeout: float) -> _Once:
        return _Once(self._connect, timeout=timeout)

    def stream(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """A call whose answer is read bit by bit; its connection is the caller's, who closes it."""
        stream, response = self._ask(method, path, query, body, headers)
        stream.socket.settimeout(None)
        return response

    def upload(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        source: Source,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Sends a body of any length; the answer is read as that of :meth:`stream`."""
        from tiffin.client.upload import send_body

        head = request_head(_AGENT, method, target(path, query), headers)
        head += "Content-Type: application/x-tar\r\n"
        stream = self._take()
        stream.socket.settimeout(None)
        try:
            send_body(stream, head, _sendable(source))
            response = stream.answer()
        except BaseException:
            stream.close()
            raise
        self._checked(stream, response)
        return response

    def hijack(
        self, path: str, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> Hijacked:
        """A POST that takes its connection over."""
        stream, _ = self._ask("POST", path, query, {} if body is None else body, UPGRADE)
        stream.socket.settimeout(None)
        return Hijacked(stream)

    @property
    def reads_in_place(self) -> bool:
        """Whether the other side can be told where a file lies instead of getting its bytes."""
        if self._local and self._is_tiffin is None:
            headers, _ = self.whole("GET", "/_ping")
            self._is_tiffin = headers.get("server", "").lower().startswith("tiffin")
        return self._local and bool(self._is_tiffin)


class _Once(Transport):
    """For one call with a time limit of its own: its connection is not kept."""

    def _give(self, stream: Stream) -> None:
        stream.close()


def _late(method: str, path: str) -> errors.TimedOut:
    return errors.TimedOut(f"No answer to {method} {path} within the time given")


def _readable(connection: socket.socket) -> bool:
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    return bool(poller.poll(0))


def _sendable(source: Source) -> int | Iterator[bytes]:
    """A descriptor where there is one at its very position, else pieces."""
    if isinstance(source, bytes | bytearray | memoryview):
        return iter((bytes(source),))
    if not hasattr(source, "read"):
        return iter(source)
    return iter(lambda: source.read(_BLOCK), b"")
