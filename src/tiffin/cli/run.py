"""``run``, ``create``, ``start`` and ``attach``: containers that this terminal may be tied to.

The order of calls is docker's: create, attach, wait, start. Attach and wait come before start so
that not a byte of output and no exit status is missed, however short the container's life.
"""

from __future__ import annotations

import os
import signal
import sys

from tiffin.cli.command import Command, CommandError, Invocation, report
from tiffin.cli.container_flags import CREATE_FLAGS, RUN_FLAGS
from tiffin.cli.flags import BOOL, STRING, Flag
from tiffin.client.connection import DaemonError, escape
from tiffin.errors import StartFailure, TiffinError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tiffin.cli.session import Session
    from tiffin.client.connection import Client, Response

DETACHED = "read escape sequence"


def _create(call: Invocation) -> dict[str, Any]:
    """Creates the container that the flags describe; returns the daemon's answer."""
    from tiffin.cli.container_body import create_body
    from tiffin.cli.terminal import size

    options = call.options
    if options["pull"] not in ("always", "missing", "never", ""):
        raise CommandError(
            f"invalid pull option: '{options['pull']}': "
            'must be one of "always", "missing" or "never"'
        )
    cidfile = options["cidfile"]
    if cidfile and os.path.exists(cidfile):
        raise CommandError(
            "container ID file found, make sure the other container isn't running "
            f"or delete {cidfile}"
        )
    image, command = call.arguments[0], call.arguments[1:]
    body = create_body(options, image, command, size() if options["tty"] else (0, 0))
    query = {"name": options["name"] or None, "platform": options["platform"] or None}
    client = call.client
    if options["pull"] == "always":
        _pull(client, image, options["platform"])
    try:
        created: dict[str, Any] = client.post("/containers/create", body, **query)
    except DaemonError as error:
        if error.http_status != 404 or options["pull"] == "never":
            raise
        # One for another platform is here, or none at all.
        name = image
        if "no such image" in error.reason.lower():
            name = error.reason.rpartition("o such image: ")[2]
        elif "does not match the specified platform" not in error.reason:
            raise
        report(f"Unable to find image '{name}' locally")
        _pull(client, image, options["platform"])
        created = client.post("/containers/create", body, **query)
    for warning in created.get("Warnings") or ():
        report(f"WARNING: {warning}")
    if cidfile:
        with open(cidfile, "x", encoding="ascii") as file:
            file.write(created["Id"])
    return created


def _pull(client: Client, image: str, platform: str) -> None:
    from tiffin.cli.registries import pull_image

    try:
        pull_image(client, image, platform, sys.stderr)
    except TiffinError as error:
        raise CommandError(
            f"{error.message}\n"
            "Without a registry an image can come from an archive ('tiffin load -i FILE'), a file\n"
            f"system ('tiffin import FILE {image}') or programs of this machine\n"
            f"('tiffin image pack {image} PROGRAM...')."
        ) from None


def create(call: Invocation) -> int:
    """Creates a container and prints its ID."""
    print(_create(call)["Id"])
    return 0


def run(call: Invocation) -> int:
    """Creates and starts a container, tied to this terminal unless ``-d`` is given."""
    try:
        return _run(call)
    except BrokenPipeError:
        # The reader of the output is gone: nobody is to be told.
        raise
    except OSError as error:
        message = f"open {error.filename}: {error.strerror or error}" if error.filename else error
        failure, code = str(message).lower(), 125
    except TiffinError as error:
        failure = error.message
        code = StartFailure.told(failure).exit_code if isinstance(error, StartRefused) else 125
        if isinstance(error, Misused):
            report(failure)
            return 1
    report(f"tiffin: {failure}\n\nRun '{call.name} --help' for more information")
    return code


class StartRefused(TiffinError):
    """The daemon could not start the container's program."""


class Misused(TiffinError):
    """What was asked for can't be tied to this terminal; ends with 1 and no more words."""


def _run(call: Invocation) -> int:
    options = call.options
    if options["detach"]:
        if options["attach"]:
            raise Misused("conflicting options: cannot specify both --attach and --detach")
        created = _create(call)
        _start(call.client, created["Id"], {})
        print(created["Id"])
        return 0
    from tiffin.cli.container_body import streams
    from tiffin.cli.terminal import check_terminal

    attached = streams(options)
    wrong = check_terminal(attached["AttachStdin"], options["tty"])
    if wrong:
        raise Misused(wrong)
    container = _create(call)["Id"]
    attachment = Attachment(
        call.client,
        container,
        terminal=options["tty"],
        stdin=attached["AttachStdin"],
        stdout=attached["AttachStdout"],
        stderr=attached["AttachStderr"],
        detach_keys=options["detach-keys"],
        sig_proxy=options["sig-proxy"],
    )
    if not attachment.wanted:
        # Only the exit status would be left to wait for: docker waits for nothing then.
        _start(call.client, container, {})
        print(container)
        return 0
    return attachment.run(
        "removed" if options["rm"] else "next-exit",
        lambda: _start(call.client, container, {"detachKeys": options["detach-keys"] or None}),
    )


def _start(client: Client, container: str, query: dict[str, Any]) -> None:
    try:
        client.post(f"/containers/{container}/start", **query)
    except DaemonError as error:
        raise StartRefused(error.message) from None


class Attachment:
    """This terminal's tie to one container: its streams, its exit status, signals to it."""

    def __init__(
        self,
        client: Client,
        container: str,
        *,
        terminal: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        detach_keys: str,
        sig_proxy: bool,
    ) -> None:
        self._client = client
        self._container = container
        self._terminal = terminal
        self._stdin = stdin
        self._stdout = stdout
        self._stderr = stderr
        self._keys = detach_keys
        self._proxied = sig_proxy and not terminal

    @property
    def wanted(self) -> bool:
        """Whether any stream is attached at all."""
        return self._stdin or self._stdout or self._stderr

    def run(self, condition: str, start: Callable[[], None] | None) -> int:
        """Attaches, starts, copies until the end; returns the container's exit code."""
        session = self._session()
        waiting = self._client.start(
            "POST", f"/containers/{self._container}/wait", {"condition": condition or None}
        )
        session.run(start)
        if session.detached:
            waiting.close()
            report(DETACHED)
            return 0
        return exit_code(waiting)

    def _session(self) -> Session:
        from tiffin.cli.session import Session
        from tiffin.cli.terminal import DEFAULT_DETACH_KEYS, parse_keys

        try:
            keys = parse_keys(self._keys or DEFAULT_DETACH_KEYS)
        except ValueError as error:
            raise CommandError(f"invalid detach keys ({self._keys}): {error}") from None
        connection, initial, _ = self._client.hijack(
            f"/containers/{self._container}/attach",
            {
                "stream": True,
                "stdin": self._stdin,
                "stdout": self._stdout,
                "stderr": self._stderr,
                "detachKeys": self._keys or None,
            },
        )
        return Session(
            connection,
            initial,
            multiplexed=not self._terminal,
            terminal=self._terminal,
            stdin=self._stdin,
            stdout=self._stdout,
            stderr=self._stderr,
            detach_keys=keys,
            resize=self._resize if self._terminal else None,
            proxy=self._proxy if self._proxied else None,
        )

    def _resize(self) -> None:
        resize(self._client, f"/containers/{self._container}/resize")

    def _proxy(self, number: int) -> None:
        try:
            self._client.post(
                f"/containers/{self._container}/kill", signal=signal.Signals(number).name
            )
        except DaemonError as error:
            # It ended in the meantime: the stream's end tells that next.
            if error.http_status not in (404, 409, 500):
                raise


def resize(client: Client, path: str) -> None:
    """Tells a container's or exec's terminal how large this one is."""
    from tiffin.cli.terminal import size

    rows, columns = size()
    if not rows or not columns:
        return
    try:
        client.post(path, h=rows, w=columns)
    except DaemonError:
        # Too early or too late (not started, or gone already): the size is no matter then.
        return


def exit_code(waiting: Response) -> int:
    """The exit code from the answer of a wait; an error of the wait itself is reported."""
    answer = waiting.json() or {}
    waiting.close()
    error = (answer.get("Error") or {}).get("Message")
    if error:
        report(f"tiffin: Error waiting for container: {error}")
        return 125
    return int(answer.get("StatusCode", 0))


def start(call: Invocation) -> int:
    """Starts containers that exist; with ``-a`` or ``-i`` one of them, tied to this terminal."""
    options = call.options
    if options["attach"] or options["interactive"]:
        if len(call.arguments) > 1:
            raise CommandError("you cannot start and attach multiple containers at once")
        return _start_attached(call, call.arguments[0])
    failed = []
    query = {"detachKeys": options["detach-keys"] or None}
    for name in call.arguments:
        try:
            call.client.post(f"/containers/{escape(name)}/start", **query)
        except DaemonError as error:
            report(error.message)
            failed.append(name)
        else:
            print(name, flush=True)
    if failed:
        raise CommandError(f"Error: failed to start containers: {', '.join(failed)}")
    return 0


def _start_attached(call: Invocation, name: str) -> int:
    options, client = call.options, call.client
    found = client.get(f"/containers/{escape(name)}/json")
    config = found["Config"]
    attachment = Attachment(
        client,
        found["Id"],
        terminal=config["Tty"],
        stdin=options["interactive"] and config["OpenStdin"],
        stdout=True,
        stderr=True,
        detach_keys=options["detach-keys"],
        sig_proxy=options["sig-proxy"],
    )
    if found["State"]["Running"]:
        return attachment.run("", None)
    removed = found["HostConfig"].get("AutoRemove")
    return attachment.run(
        "removed" if removed else "next-exit", lambda: _start(client, found["Id"], {})
    )


def attach(call: Invocation) -> int:
    """Ties this terminal to a container that runs."""
    options, client = call.options, call.client
    found = client.get(f"/containers/{escape(call.arguments[0])}/json")
    state, config = found["State"], found["Config"]
    if not state["Running"]:
        raise CommandError("You cannot attach to a stopped container, start it first")
    if state["Paused"]:
        raise CommandError("You cannot attach to a paused container, unpause it first")
    if state["Restarting"]:
        raise CommandError("You cannot attach to a restarting container, wait until it is running")
    from tiffin.cli.terminal import check_terminal

    stdin = config["OpenStdin"] and not options["no-stdin"]
    wrong = check_terminal(stdin, config["Tty"])
    if wrong:
        raise CommandError(wrong)
    attachment = Attachment(
        client,
        found["Id"],
        terminal=config["Tty"],
        stdin=stdin,
        stdout=True,
        stderr=True,
        detach_keys=options["detach-keys"],
        sig_proxy=options["sig-proxy"],
    )
    return attachment.run("", None)


_KEYS = Flag("detach-keys", STRING, "Keys that detach (ctrl-p,ctrl-q)")
_PROXY = Flag("sig-proxy", BOOL, "Pass signals on to the container", default=True)

RUN = Command(
    run,
    "Create a container from an image and start it",
    "[OPTIONS] IMAGE [COMMAND] [ARG...]",
    RUN_FLAGS,
    minimum=1,
    interspersed=False,
)
CREATE = Command(
    create,
    "Create a container without starting it",
    "[OPTIONS] IMAGE [COMMAND] [ARG...]",
    CREATE_FLAGS,
    minimum=1,
    interspersed=False,
)
START = Command(
    start,
    "Start stopped containers",
    "[OPTIONS] CONTAINER [CONTAINER...]",
    (
        Flag("attach", BOOL, "Show the output and pass signals on", short="a"),
        Flag("interactive", BOOL, "Connect stdin too", short="i"),
        _KEYS,
        _PROXY,
    ),
    minimum=1,
)
ATTACH = Command(
    attach,
    "Connect this terminal to a running container",
    "[OPTIONS] CONTAINER",
    (_KEYS, _PROXY, Flag("no-stdin", BOOL, "Leave stdin alone")),
    minimum=1,
    maximum=1,
)
