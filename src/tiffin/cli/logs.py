"""``logs``: what a container has written so far, and writes on."""

from __future__ import annotations

from tiffin.cli.command import Command, Invocation
from tiffin.cli.flags import BOOL, STRING, Flag
from tiffin.cli.moments import timestamp
from tiffin.client.connection import escape, write_all


def logs(call: Invocation) -> int:
    """Copies a container's log to stdout and stderr."""
    from tiffin.cli.streams import Demultiplexer

    options, client = call.options, call.client
    name = escape(call.arguments[0])
    terminal = client.get(f"/containers/{name}/json")["Config"]["Tty"]
    response = client.call(
        "GET",
        f"/containers/{name}/logs",
        {
            "stdout": True,
            "stderr": True,
            "follow": options["follow"],
            "timestamps": options["timestamps"],
            "details": options["details"],
            "tail": options["tail"],
            "since": timestamp(options["since"]) or None,
            "until": timestamp(options["until"]) or None,
        },
    )
    try:
        if terminal:
            for part in response.parts():
                write_all(1, part)
        else:
            demultiplexer = Demultiplexer()
            for part in response.parts():
                demultiplexer.feed(part)
    except KeyboardInterrupt:
        return 130
    finally:
        response.close()
    return 0


LOGS = Command(
    logs,
    "Show the output of a container",
    "[OPTIONS] CONTAINER",
    (
        Flag("details", BOOL, "Show what the log's options added to each line"),
        Flag("follow", BOOL, "Go on with what is written from now on", short="f"),
        Flag("since", STRING, "Show only what came after (a date, or 42m for the last 42 minutes)"),
        Flag("tail", STRING, "Number of lines to show from the end", short="n", default="all"),
        Flag("timestamps", BOOL, "Show when each line was written", short="t"),
        Flag("until", STRING, "Show only what came before (a date, or 42m)"),
    ),
    minimum=1,
    maximum=1,
)
