"""``image pack``: an image made of programs of this machine, with all that they need."""

from __future__ import annotations

import os
import sys

from tiffin.cli.command import Command, Invocation, report
from tiffin.cli.containers import split_name
from tiffin.cli.flags import BOOL, LIST, STRING, Flag
from tiffin.cli.progress import show_messages
from tiffin.client.sources import piped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def pack(call: Invocation) -> int:
    """Packs programs, imports them as an image and prints its ID."""
    from tiffin.image.pack import pack as pack_programs
    from tiffin.image.pack import write_tar

    options = call.options
    name, programs = call.arguments[0], call.arguments[1:]
    packed = pack_programs(
        programs,
        with_files=options["with"],
        timezones=not options["no-timezones"],
        certificates=not options["no-certificates"],
    )
    for warning in packed.warnings:
        report(f"WARNING: {warning}")
    if options["output"]:
        with open(options["output"], "wb") as file:
            write_tar(packed, file)
        return 0
    repository, tag = split_name(name)
    query: dict[str, Any] = {
        "fromSrc": "-",
        "repo": repository,
        "tag": tag or None,
        "message": f"packed: {' '.join(programs)}",
        "changes": [*packed.changes, *options["change"]],
        # Not Docker's: the image gets this time, so that the same programs give the same image.
        "created": os.environ.get("SOURCE_DATE_EPOCH") or "0",
    }
    response = call.client.upload(
        "POST", "/images/create", query, piped(lambda sink: write_tar(packed, sink))
    )
    show_messages(response, sys.stdout)
    return 0


PACK = Command(
    pack,
    "Make an image out of programs of this machine",
    "[OPTIONS] NAME[:TAG] PROGRAM [PROGRAM...]",
    (
        Flag("change", LIST, "Apply an instruction of Dockerfiles to the image", short="c"),
        Flag("no-certificates", BOOL, "Leave the certificates of authorities out"),
        Flag("no-timezones", BOOL, "Leave the time zones out"),
        Flag("output", STRING, "Write the tar to this file instead of making an image", short="o"),
        Flag("with", LIST, "Add this file or folder too"),
    ),
    minimum=2,
    notes=(
        "Takes along what the programs need: shared libraries and their loader, Python's and\n"
        "Perl's standard libraries, a shell, accounts, certificates and time zones. All belongs\n"
        "to root and has one fixed time, so packing the same programs twice gives the same image."
    ),
)
