"""Containers: attach, wait, logs and stats, whose answers last as long as something runs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tiffin.api import documents, query, websocket
from tiffin.api.bodies import BodyWriter
from tiffin.api.exchange import Request, Response, media_type
from tiffin.api.routing import Router
from tiffin.engine.streams import NUMBERS, header
from tiffin.engine.timestamps import ZERO
from tiffin.errors import Conflict, InvalidParameter, NotFound, TiffinError

if TYPE_CHECKING:
    from tiffin.engine import Engine

POLL_SECONDS = 2.0
"""How often a wait looks whether its client is still there."""
_STATS_SECONDS = 1.0
_FLUSH_SECONDS = 0.005
"""Lines of a followed log that come closer together than this may be sent together."""


class StreamRoutes:
    """The lasting part of ``/containers``."""

    def __init__(self, engine: Engine, attaching: Crossing) -> None:
        self._engine = engine
        self._attaching = attaching

    def register(self, router: Router) -> None:
        """Add the routes."""
        router.add("POST", "/containers/{name:.*}/attach", self.attach)
        router.add("GET", "/containers/{name:.*}/attach/ws", self.attach_websocket)
        router.add("POST", "/containers/{name:.*}/wait", self.wait)
        router.add("GET", "/containers/{name:.*}/logs", self.logs)
        router.add("GET", "/containers/{name:.*}/stats", self.stats)

    def attach(self, request: Request, response: Response) -> None:
        engine = self._engine.containers
        container = engine.inspect(request.names["name"])
        if container["State"]["Paused"]:
            raise Conflict(
                f"Container {container['Id']} is paused, unpause the container before attach"
            )
        tty = bool(container["Config"]["Tty"])
        with self._attaching.inside():
            connection, initial = response.hijack(media_type(request, multiplexed=not tty))
            try:
                engine.attach(
                    container["Id"],
                    connection,
                    stream=query.boolean(request, "stream"),
                    logs=query.boolean(request, "logs"),
                    stdin=query.boolean(request, "stdin"),
                    stdout=query.boolean(request, "stdout"),
                    stderr=query.boolean(request, "stderr"),
                    detach_keys=query.text(request, "detachKeys") or None,
                    multiplexed=not tty,
                    initial=initial,
                )
            except TiffinError as error:
                # The head is out: Docker too says it in the stream.
                text = f"Error attaching: {error.message}\r\n".encode()
                response.last_words(text if tty else frame("stderr", text))

    def attach_websocket(self, request: Request, response: Response) -> None:
        key = websocket.accept_key(request.headers)
        engine = self._engine.containers
        container = engine.inspect(request.names["name"])
        if container["State"]["Paused"]:
            raise Conflict(
                f"Container {container['Id']} is paused, unpause the container before attach"
            )
        ours, theirs = socket.socketpair()
        with ours:
            with theirs, self._attaching.inside():
                connection, initial = response.switch("websocket", ("Sec-WebSocket-Accept", key))
                # Before 1.42 these were described, and not looked at.
                every = request.version < (1, 42)
                engine.attach(
                    container["Id"],
                    theirs,
                    stream=query.boolean(request, "stream", True),
                    logs=query.boolean(request, "logs"),
                    stdin=every or query.boolean(request, "stdin"),
                    stdout=every or query.boolean(request, "stdout"),
                    stderr=every or query.boolean(request, "stderr"),
                    detach_keys=query.text(request, "detachKeys") or None,
                    multiplexed=False,
                )
            websocket.carry(
                connection,
                initial,
                ours,
                text=request.version < (1, 28),
                stopping=request.cancelled,
            )

    def wait(self, request: Request, response: Response) -> None:
        condition = query.text(request, "condition") if request.version >= (1, 30) else ""
        waiter = self._engine.containers.wait_later(request.names["name"], condition)
        # Clients start the container only once they have seen the head of this answer, so that
        # the end can't come before the waiting.
        writer = response.stream("application/json")
        writer.flush()
        while (answer := waiter.result(POLL_SECONDS)) is None:
            if request.cancelled():
                response.abandon()
                return
        if answer.get("Error") is None:
            answer = {key: value for key, value in answer.items() if key != "Error"}
        writer.write(documents.encode(answer) + b"\n")

    def logs(self, request: Request, response: Response) -> None:
        stdout, stderr = query.boolean(request, "stdout"), query.boolean(request, "stderr")
        if not (stdout or stderr):
            raise InvalidParameter("Bad parameters: you must choose at least one stream")
        follow = query.boolean(request, "follow")
        output = _LogOutput(request, follow)
        tty, blocks = self._engine.containers.output(
            request.names["name"],
            stdout=stdout,
            stderr=stderr,
            since=query.text(request, "since") or None,
            until=query.text(request, "until") or None,
            tail=query.text(request, "tail") or None,
            timestamps=query.boolean(request, "timestamps"),
            details=query.boolean(request, "details"),
            follow=follow,
            cancelled=output.cancelled,
        )
        output.send(blocks, response.stream(media_type(request, multiplexed=not tty)))

    def stats(self, request: Request, response: Response) -> None:
        containers, name = self._engine.containers, request.names["name"]
        lasting = query.boolean(request, "stream", True)
        one_shot = request.version >= (1, 41) and query.boolean(request, "one-shot")
        if lasting and one_shot:
            raise InvalidParameter("cannot have stream=true and one-shot=true")
        earlier = None
        reading = containers.stats(name)
        if not lasting and not one_shot and reading["read"] != ZERO:
            # Clients compute percentages from two readings.
            time.sleep(_STATS_SECONDS)
            earlier = reading
            reading = containers.stats(name, earlier)
        writer = response.stream("application/json")
        writer.write(documents.encode(reading) + b"\n")
        writer.flush()
        while lasting:
            time.sleep(_STATS_SECONDS)
            if request.cancelled():
                return
            try:
                reading = containers.stats(reading["id"], reading)
            except NotFound:
                # It was removed; what was said stands.
                return
            writer.write(documents.encode(reading) + b"\n")
            writer.flush()


class _LogOutput:
    """Sends a log: at once while it comes slowly, many lines at a time while it comes fast."""

    def __init__(self, request: Request, follow: bool) -> None:
        self._request = request
        self._follow = follow
        self._held = False
        self._flushed = 0.0
        self._writer: BodyWriter | None = None

    def send(self, blocks: Iterable[bytes], writer: BodyWriter) -> None:
        """Send all."""
        self._writer = writer
        if self._follow:
            writer.flush()
        for block in blocks:
            writer.write(block)
            self._held = True
            if self._follow and time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._flush()

    def _flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()
            self._held = False
            self._flushed = time.monotonic()

    def cancelled(self) -> bool:
        """Whether to stop following; asked whenever there is nothing more to read, so that what
        is still held back goes out."""
        if self._held:
            self._flush()
        return self._request.cancelled()


def frame(stream: str, data: bytes) -> bytes:
    """A piece of output as a frame of the multiplexed stream."""
    return header(NUMBERS[stream], len(data)) + data


class Crossing:
    """Lets a start wait for the attachments under way.

    A client attaches, sees the answer's head, and starts the container on another connection. The
    head is out before the keeper knows of the attachment; so a start first waits until those that
    came before it are done, and a container's first output is never lost.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: set[object] = set()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be inside for the length of the block."""
        me = object()
        with self._changed:
            self._inside.add(me)
        try:
            yield
        finally:
            with self._changed:
                self._inside.remove(me)
                self._changed.notify_all()

    def wait(self) -> None:
        """Return once everyone has left who is inside now."""
        with self._changed:
            before = set(self._inside)
            self._changed.wait_for(lambda: not before & self._inside)
