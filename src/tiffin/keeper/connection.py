"""One connection of a daemon to its keeper: requests from any thread, one thread that reads."""

from __future__ import annotations

import contextlib
import itertools
import queue
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tiffin import errors
from tiffin.keeper import protocol

START_SECONDS = 20.0
"""How long a keeper may take to be there and to answer its first message."""
_ERRORS = {
    kind.__name__: kind
    for kind in (errors.NotFound, errors.Conflict, errors.InvalidParameter, errors.TiffinError)
}


class NotSent(errors.Unreachable):
    """The request did not reach the keeper."""


class NotAnswered(errors.Unreachable):
    """The keeper died with the request."""


class Connection:
    """A connected socket. ``on_message`` hears what is no mere answer, ``on_end`` the end."""

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[dict[str, Any], list[int]], None],
        on_end: Callable[[Connection], None],
    ) -> None:
        self._sock = sock
        self._on_message = on_message
        self._on_end = on_end
        self._inbox = protocol.Inbox()
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._waiting: dict[int, queue.SimpleQueue[dict[str, Any] | None]] = {}
        self._reader: threading.Thread | None = None
        self.alive = True
        self.expected_end = False

    def post(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        """Send what has no answer."""
        protocol.send_all(self._sock, message, list(fds))

    def hello(self) -> None:
        """Say hello, take what the keeper has to say, then leave the reading to a thread."""
        self._sock.settimeout(START_SECONDS)
        self.post({"do": "hello", "id": 0}, [])
        done = False
        while not done:
            messages = self._inbox.receive(self._sock)
            if messages is None:
                raise ConnectionResetError("it ended the connection")
            for message, fds in messages:
                done = done or message.get("id") == 0
                self._on_message(message, fds)
        self._sock.settimeout(None)
        self._reader = threading.Thread(target=self._read, name="keeper-reader", daemon=True)
        self._reader.start()

    def ask(self, message: dict[str, Any], fds: Iterable[int]) -> Any:
        """Send a request and wait for its answer. Raises what the keeper answered."""
        answer: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        with self._lock:
            if not self.alive:
                raise NotSent("the keeper is gone")
            number = next(self._ids)
            self._waiting[number] = answer
            try:
                protocol.send_all(self._sock, {**message, "id": number}, list(fds))
            except OSError as error:
                del self._waiting[number]
                self.alive = False
                raise NotSent(f"the keeper is gone: {error}") from error
            except protocol.ProtocolError as error:
                del self._waiting[number]
                raise errors.InvalidParameter(str(error)) from error
        reply = answer.get()
        if reply is None:
            raise NotAnswered(f"the keeper died while it was asked to {message['do']}")
        problem = reply.get("error")
        if problem is None:
            return reply.get("result")
        if problem["kind"] == "StartFailure":
            raise errors.StartFailure(problem["message"], problem["exit_code"])
        raise _ERRORS.get(problem["kind"], errors.TiffinError)(problem["message"])

    def close(self) -> None:
        """End the connection; the reading thread has ended when this returns."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if self._reader is None:
            self._end()
        elif self._reader is not threading.current_thread():
            self._reader.join()

    def _read(self) -> None:
        try:
            while (messages := self._inbox.receive(self._sock)) is not None:
                for message, fds in messages:
                    self._on_message(message, fds)
                    waiting = self._waiting.pop(message.get("id", 0), None)
                    if waiting is not None:
                        waiting.put(message)
        except (OSError, protocol.ProtocolError):
            # The end of the connection, whichever way it came.
            pass
        finally:
            self._end()
        self._on_end(self)

    def _end(self) -> None:
        with self._lock:
            self.alive = False
            self._inbox.close()
            self._sock.close()
            waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer.put(None)
