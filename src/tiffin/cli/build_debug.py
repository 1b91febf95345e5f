"""``build --debug``: a shell in the container of the step that failed."""

from __future__ import annotations

import sys

from tiffin.cli.command import CommandError, Invocation


def look_inside(call: Invocation, container: str, failure: CommandError) -> int:
    """Opens the shell, removes the container when it ends, and gives the build's exit code."""
    from tiffin.cli.run import START

    sys.stdout.flush()
    sys.stderr.write(f"{failure.message}\n\nA shell in the failed step; it goes when you exit.\n")
    sys.stderr.flush()
    try:
        START.invoke("tiffin start", ["--attach", "--interactive", container], call.endpoint)
    finally:
        call.client.call("DELETE", f"/containers/{container}", {"force": "1", "v": "1"}).read()
    return failure.exit_code
