"""``exec``: one more program in a running container."""

from __future__ import annotations

from tiffin.cli.command import Command, CommandError, Invocation, report
from tiffin.cli.flags import BOOL, LIST, STRING, Flag
from tiffin.cli.values import ENVIRONMENT, read_lines, resolve_environment
from tiffin.client.connection import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def execute(call: Invocation) -> int:
    """Runs a command in a container; returns the command's exit code."""
    from tiffin.cli.terminal import check_terminal, size

    options, client = call.options, call.client
    container, command = call.arguments[0], call.arguments[1:]
    detach, terminal = options["detach"], options["tty"]
    stdin = options["interactive"] and not detach
    wrong = check_terminal(stdin, terminal)
    if wrong:
        raise CommandError(wrong)
    env = [line for path in options["env-file"] for line in read_lines(path)]
    body: dict[str, Any] = {
        "AttachStdin": stdin,
        "AttachStdout": not detach,
        "AttachStderr": not detach,
        "Tty": terminal,
        "Cmd": command,
        "Privileged": options["privileged"],
        "User": options["user"],
        "WorkingDir": options["workdir"],
        "DetachKeys": options["detach-keys"],
        "Env": resolve_environment(env + options["env"]),
    }
    start: dict[str, Any] = {"Detach": detach, "Tty": terminal}
    if terminal:
        body["ConsoleSize"] = start["ConsoleSize"] = list(size())
    identifier = client.post(f"/containers/{escape(container)}/exec", body)["Id"]
    if detach:
        client.post(f"/exec/{identifier}/start", start)
        return 0
    return _attached(call, identifier, start, stdin=stdin, terminal=terminal)


def _attached(
    call: Invocation, identifier: str, start: dict[str, Any], *, stdin: bool, terminal: bool
) -> int:
    from tiffin.cli.run import DETACHED, resize
    from tiffin.cli.session import Session
    from tiffin.cli.terminal import DEFAULT_DETACH_KEYS, parse_keys

    client = call.client
    given = call.options["detach-keys"]
    try:
        keys = parse_keys(given or DEFAULT_DETACH_KEYS)
    except ValueError as error:
        raise CommandError(f"invalid detach keys ({given}): {error}") from None
    connection, initial, _ = client.hijack(f"/exec/{identifier}/start", None, start)
    session = Session(
        connection,
        initial,
        multiplexed=not terminal,
        terminal=terminal,
        stdin=stdin,
        detach_keys=keys,
        resize=(lambda: resize(client, f"/exec/{identifier}/resize")) if terminal else None,
    )
    session.run()
    if session.detached:
        report(DETACHED)
        return 0
    return int(client.get(f"/exec/{identifier}/json").get("ExitCode") or 0)


EXEC = Command(
    execute,
    "Run a command in a running container",
    "[OPTIONS] CONTAINER COMMAND [ARG...]",
    (
        Flag("detach", BOOL, "Leave it running in the background", short="d"),
        Flag("detach-keys", STRING, "Keys that detach (ctrl-p,ctrl-q)"),
        Flag("env", ENVIRONMENT, "Set a variable (NAME=value, or NAME from here)", short="e"),
        Flag("env-file", LIST, "Read variables from a file, one a line"),
        Flag("interactive", BOOL, "Keep stdin open", short="i"),
        Flag("privileged", BOOL, "Give the command all capabilities"),
        Flag("tty", BOOL, "Give the command a terminal", short="t"),
        Flag("user", STRING, "User to run as, by name or number (user[:group])", short="u"),
        Flag("workdir", STRING, "Directory to start in", short="w"),
    ),
    minimum=2,
    interspersed=False,
)
