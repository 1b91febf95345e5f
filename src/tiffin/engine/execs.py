"""Execs: further processes in a running container.

An exec lives in memory only: it belongs to a connection or to a container's run, and Docker too
forgets it some time after its end, or when its container is gone.
"""

from __future__ import annotations

import collections
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tiffin.engine import isolation
from tiffin.engine.container import Container
from tiffin.engine.events import Events
from tiffin.engine.lifecycle import Lifecycle
from tiffin.engine.roster import Roster
from tiffin.errors import Conflict, InvalidParameter, NotFound, StartFailure
from tiffin.runtime import native

JSON = dict[str, Any]

_EVENT_SECONDS = 5.0
"""How long to wait for the keeper's word of an exec whose process is gone."""
_KEPT_SECONDS = 300.0
"""How long an exec that has ended can still be asked for."""


@dataclass(slots=True)
class Exec:
    """One exec: what was asked, and what became of it."""

    id: str
    container: Container
    body: JSON
    running: bool = False
    started: bool = False
    exit_code: int | None = None
    pid: int = 0
    output: str = ""
    """What it wrote, if that was to be captured."""
    on_end: Callable[[Exec], None] | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    starting: threading.Lock = field(default_factory=threading.Lock)
    """Held until the keeper has said what became of the start."""


class Execs:
    """The execs of a root's containers."""

    def __init__(self, roster: Roster, lifecycle: Lifecycle, events: Events) -> None:
        self._roster = roster
        self._lifecycle = lifecycle
        self._events = events
        self._execs: dict[str, Exec] = {}
        self._over: collections.deque[tuple[float, str]] = collections.deque()
        lifecycle.exec_ended = self._ended

    def create(self, reference: str, body: JSON) -> JSON:
        """Prepare an exec; raises NotFound, Conflict where the container does not run."""
        container = self._roster.get(reference)
        if isinstance(body.get("Cmd"), str):
            body = {**body, "Cmd": [body["Cmd"]]}
        if not body.get("Cmd"):
            raise InvalidParameter("No exec command specified")
        _check(container, reference)
        self._sweep()
        exec_id = secrets.token_hex(32)
        self._execs[exec_id] = Exec(exec_id, container, body)
        container.execs.add(exec_id)
        self._events.publish(
            "container",
            f"exec_create: {_told(body)}",
            container.id,
            execID=exec_id,
            **container.attributes(),
        )
        return {"Id": exec_id}

    def _sweep(self) -> None:
        """Forget those that ended long ago."""
        while self._over and self._over[0][0] < time.monotonic() - _KEPT_SECONDS:
            self._execs.pop(self._over.popleft()[1], None)

    def get(self, exec_id: str) -> Exec:
        """The exec of an ID; raises NotFound."""
        found = self._execs.get(exec_id)
        if found is None:
            raise NotFound(f"No such exec instance: {exec_id}")
        return found

    def start(
        self,
        exec_id: str,
        connection: socket.socket | None = None,
        *,
        detach: bool = False,
        tty: bool | None = None,
        initial: bytes = b"",
        size: tuple[int, int] | None = None,
        capture: int = 0,
    ) -> None:
        """Start an exec; with ``connection`` the keeper speaks on a duplicate of it from here on.

        With ``capture``, so many bytes of its output are kept for its end.

        Raises StartFailure where the program can't be run, Conflict where it was started before.
        """
        one = self.get(exec_id)
        container, body = one.container, one.body
        with container.lock:
            if one.started:
                raise Conflict(f"Error: Exec command {exec_id} has already run")
            _check(container, container.id)
            one.started = True
        # The exec has a terminal if it was made with one. What is said at its start is how its
        # output comes: framed, unless it says that there is a terminal.
        terminal = bool(body.get("Tty"))
        framed = not (terminal if tty is None else tty)
        config = container.spec.config
        env = [
            *self._lifecycle.sandboxes.links.environment(container),
            *isolation.environment(container),
        ]
        named = {variable.partition("=")[0] for variable in body.get("Env") or []}
        env = [variable for variable in env if variable.partition("=")[0] not in named]
        env += body.get("Env") or []
        if terminal and not any(variable.startswith("TERM=") for variable in env):
            env.append("TERM=xterm")
        settings = isolation.process_settings(
            container,
            args=list(body["Cmd"]),
            env=env,
            user=body.get("User") or config.get("User") or "",
            cwd=body.get("WorkingDir") or config.get("WorkingDir") or "/",
            terminal=terminal,
            filters=self._lifecycle.launches.filters,
            privileged=bool(body.get("Privileged")),
        )
        attachment = None
        if connection is not None and not detach:
            attachment = (
                connection.fileno(),
                {
                    "stdin": bool(body.get("AttachStdin")),
                    "stdout": bool(body.get("AttachStdout")),
                    "stderr": bool(body.get("AttachStderr")),
                    "multiplexed": framed,
                    "detach_keys": body.get("DetachKeys") or None,
                    "initial": initial,
                },
            )
        try:
            with one.starting:
                with container.lock:
                    _check(container, container.id)
                    one.running = True
                answer = self._lifecycle.keeper.exec(
                    exec_id,
                    container.id,
                    native.process_plan(settings, bool(body.get("Privileged"))),
                    terminal=terminal,
                    stdin=bool(body.get("AttachStdin")) and attachment is not None,
                    attachment=attachment,
                    size=size or body.get("ConsoleSize") or None,
                    capture=capture,
                )
                one.pid = answer["pid"]
                self._events.publish(
                    "container",
                    f"exec_start: {_told(body)}",
                    container.id,
                    execID=exec_id,
                    **container.attributes(),
                )
        except NotFound as error:
            self._failed(one, error)
            raise Conflict(f"container {container.id} is not running") from error
        except BaseException as error:
            self._failed(one, error)
            raise

    def _failed(self, one: Exec, error: BaseException) -> None:
        """It could not be started."""
        one.running = False
        one.exit_code = error.exit_code if isinstance(error, StartFailure) else 126
        if one.exit_code == 125:
            one.exit_code = 126
        one.ended.set()
        one.container.execs.discard(one.id)
        self._over.append((time.monotonic(), one.id))

    def capture(self, exec_id: str, limit: int, on_end: Callable[[Exec], None]) -> None:
        """Start a prepared exec without a client; ``on_end`` gets it once it has ended.

        Up to ``limit`` bytes of its output are in its ``output`` then, and it is forgotten.
        Raises as :meth:`start`.
        """
        self.get(exec_id).on_end = on_end
        try:
            self.start(exec_id, detach=True, tty=False, capture=limit)
        except BaseException:
            # If a dying keeper's exec has been told of as ended already, that was its end.
            if self._execs.pop(exec_id, None) is not None:
                raise

    def _ended(self, event: JSON) -> None:
        one = self._execs.get(event["id"])
        if one is None:
            return
        with one.starting:
            # Its start is told first.
            pass
        one.exit_code, one.running = event["code"], False
        one.output = event.get("output", "")
        one.container.execs.discard(one.id)
        one.ended.set()
        self._events.publish(
            "container",
            "exec_die",
            one.container.id,
            execID=one.id,
            exitCode=str(one.exit_code),
            **one.container.attributes(),
        )
        if one.on_end is not None:
            if self._execs.pop(one.id, None) is not None:
                one.on_end(one)
        else:
            self._over.append((time.monotonic(), one.id))

    def inspect(self, exec_id: str) -> JSON:
        """Docker's view of an exec."""
        one = self.get(exec_id)
        with one.starting:
            pass
        if one.running and _is_over(one.pid):
            # A client asks for the exit code as soon as its stream ends; the keeper's word of it
            # may still be on the way.
            one.ended.wait(_EVENT_SECONDS)
        body = one.body
        return {
            "CanRemove": not one.running,
            "ContainerID": one.container.id,
            "DetachKeys": body.get("DetachKeys") or "",
            "ExitCode": one.exit_code,
            "ID": one.id,
            "OpenStderr": bool(body.get("AttachStderr")),
            "OpenStdin": bool(body.get("AttachStdin")),
            "OpenStdout": bool(body.get("AttachStdout")),
            "ProcessConfig": {
                "arguments": list(body["Cmd"][1:]),
                "entrypoint": body["Cmd"][0],
                "privileged": bool(body.get("Privileged")),
                "tty": bool(body.get("Tty")),
                **({"user": body["User"]} if body.get("User") else {}),
            },
            "Running": one.running,
            "Pid": one.pid,
        }

    def resize(self, exec_id: str, height: int, width: int) -> None:
        """Tell an exec's terminal its size in rows and columns."""
        one = self.get(exec_id)
        if not one.running:
            raise Conflict(f"exec {exec_id} is not running")
        self._lifecycle.keeper.resize(exec_id, height, width)

    def forget(self, container: Container) -> None:
        """Forget the execs of a container that is gone."""
        for exec_id in [key for key, one in self._execs.items() if one.container is container]:
            del self._execs[exec_id]

    def output(self, exec_id: str) -> tuple[int | None, bytes, bytes]:
        """Run a prepared exec to its end: (exit code, stdout, stderr). For library use."""
        from tiffin.engine.streams import demultiplex

        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self.start(exec_id, theirs)
            ours.shutdown(socket.SHUT_WR)
            stdout, stderr = demultiplex(ours)
        one = self.get(exec_id)
        one.ended.wait()
        return one.exit_code, stdout, stderr


def _check(container: Container, reference: str) -> None:
    """Raises Conflict unless something can be run in the container now."""
    if container.state.status == "paused":
        raise Conflict(f"Container {reference} is paused, unpause the container before exec")
    if container.state.status == "restarting":
        raise Conflict(
            f"Container {container.id} is restarting, wait until the container is running"
        )
    if not container.running:
        raise Conflict(f"container {container.id} is not running")


def _told(body: JSON) -> str:
    """What events say of an exec: Docker puts a space between the program and its arguments even
    where there are none, and clients cut the text at it."""
    return f"{body['Cmd'][0]} {' '.join(body['Cmd'][1:])}"


def _is_over(pid: int) -> bool:
    """Whether a process has ended, collected by its parent or not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return True
