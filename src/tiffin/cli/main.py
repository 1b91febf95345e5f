"""The entry of the command line: global options, then the command, then errors to exit codes.

Everything that a command does not need is imported when it is needed: this is the start path of
each ``tiffin run``.
"""

from __future__ import annotations

import os
import sys

from tiffin.cli.flags import BOOL, STRING, Flag, FlagError, FlagSet, HelpWanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

GLOBAL_FLAGS = (
    Flag("host", STRING, "Daemon socket to talk to", short="H"),
    Flag("root", STRING, "Engine root"),
    Flag("version", BOOL, "Print the version and quit", short="v"),
)


def entry() -> None:
    """The console script ``tiffin``."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _open_missing()
    sys.exit(run(sys.argv[1:]))


def _open_missing() -> None:
    """Streams that the caller has closed lead nowhere; else the next socket would be one of them,
    and get what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            found = os.open(os.devnull, os.O_RDWR)
            if found != number:
                os.dup2(found, number)
                os.close(found)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def run(words: Sequence[str]) -> int:
    """Runs one command line; returns its exit code and lets no error out."""
    from tiffin.errors import TiffinError

    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except TiffinError as error:
        sys.stderr.write(error.message + "\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`): say nothing, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"tiffin: {name}{(error.strerror or str(error)).lower()}\n")
        return 1


def _dispatch(words: Sequence[str]) -> int:
    from tiffin.cli import commands

    try:
        options, arguments = FlagSet(GLOBAL_FLAGS, interspersed=False).parse(words)
    except HelpWanted:
        sys.stdout.write(commands.overview())
        return 0
    except FlagError as error:
        sys.stderr.write(
            f"{error}\n\nUsage:  tiffin [OPTIONS] COMMAND [ARG...]\n\n"
            "Run 'tiffin --help' for more information\n"
        )
        return 125
    if options["version"]:
        from tiffin.version import __version__

        sys.stdout.write(f"tiffin version {__version__}\n")
        return 0
    help_wanted = bool(arguments) and arguments[0] == "help"
    if help_wanted:
        arguments = arguments[1:]
    if not arguments:
        sys.stdout.write(commands.overview())
        return 0

    name, rest = arguments[0], arguments[1:]
    found = commands.TOP.get(name)
    if found is None and name in commands.GROUPS:
        if not rest or rest[0] in ("--help", "-h"):
            sys.stdout.write(commands.group_help(name))
            return 0
        group, name, rest = name, rest[0], rest[1:]
        name = commands.ALIASES.get(group, {}).get(name, name)
        found = commands.GROUPS[group][1].get(name)
        name = f"{group} {name}"
    if found is None:
        usage = f"Usage:  tiffin {name.split()[0]} COMMAND\n\n" if " " in name else ""
        where = f"tiffin {name.split()[0]}" if " " in name else "tiffin"
        sys.stderr.write(
            f"tiffin: unknown command: tiffin {name}\n\n{usage}"
            f"Run '{where} --help' for more information\n"
        )
        return 1

    from tiffin.client.endpoint import Endpoint

    endpoint = Endpoint.choose(options["host"], options["root"])
    if help_wanted:
        rest = ["--help"]
    return commands.load(found).invoke(f"tiffin {name}", rest, endpoint)
