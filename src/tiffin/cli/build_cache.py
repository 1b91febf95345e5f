"""``builder``: the cache of builds: why something was not in it, and what of it goes."""

from __future__ import annotations

import sys

from tiffin.cli import values
from tiffin.cli.command import Command, CommandError, Invocation
from tiffin.cli.flags import BOOL, STRING, Flag
from tiffin.units import human_size, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def why(call: Invocation) -> int:
    """Prints why steps of an image did not come from the cache when they were made."""
    step = call.arguments[1] if len(call.arguments) > 1 else ""
    rows = call.client.call(
        "GET", "/build/why", {"image": call.arguments[0], "step": step or None}
    ).json()
    unknown = "not known: it is not in the cache (the base image's own step, or removed since)"
    nothing = "nothing like it was cached"
    for row in rows:
        text = " ".join(row["Text"].split()) or "(no text)"
        reason = row["Why"]
        reason = unknown if reason is None else reason or nothing
        print(f"{row['Step']:>3}  {text}\n     {reason}")
    return 0


def prune(call: Invocation) -> int:
    """Removes the cache of builds."""
    from tiffin.cli.pruning import prune_one

    options = call.options
    everything = "all build cache" if options["all"] else "all dangling build cache"
    query: dict[str, Any] = {"all": options["all"]}
    for flag in ("keep-storage", "reserved-space", "max-used-space", "min-free-space"):
        if options[flag]:
            query[flag] = _size(flag, options[flag])
    if options["dry-run"]:
        from json import dumps

        _needs_tiffin(call, "--dry-run")
        given = values.filters(options["filter"])
        filters = dumps(given) if given else None
        answer = call.client.post("/build/prune", filters=filters, **query, **{"dry-run": "1"})
        return _show(answer, dry=True)
    return prune_one(
        call,
        "build",
        f"WARNING! This will remove {everything}.",
        "Deleted build cache objects:",
        None,
        **query,
    )


def collect(call: Invocation) -> int:
    """Brings the cache of builds down to its limit, by the rules that apply after each build."""
    _needs_tiffin(call, "builder gc")
    dry = call.options["dry-run"]
    answer = call.client.post("/build/prune", gc="1", **({"dry-run": "1"} if dry else {}))
    limit, total = answer["Limit"], answer["Total"]
    print(f"The build cache takes {human_size(total)}; its limit is {human_size(limit)}.")
    if not answer["Removals"] and not answer["Note"]:
        print("Nothing has to go.")
        return 0
    return _show(answer, dry=dry)


def _needs_tiffin(call: Invocation, what: str) -> None:
    if not call.client.is_tiffin():
        raise CommandError(f"{what} needs a daemon of tiffin's")


def _size(flag: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise CommandError(f'invalid argument "{text}" for "--{flag}" flag: {error}') from None


def _show(answer: dict[str, Any], *, dry: bool) -> int:
    """A table of what goes: a record a line, with the reason."""
    from tiffin.cli.moments import ago_text
    from tiffin.cli.tables import columns

    rows = [["CACHE ID", "TYPE", "SIZE", "FREES", "LAST USED", "DESCRIPTION", "REASON"]]
    for item in answer["Removals"]:
        text = " ".join(item["Description"].split())
        rows.append(
            [
                item["ID"][:12],
                item["Type"],
                human_size(item["Size"], 3),
                human_size(item["Frees"], 3),
                ago_text(item["LastUsedAt"]),
                text if len(text) <= 40 else f"{text[:39]}…",
                item["Reason"],
            ]
        )
    if len(rows) > 1:
        sys.stdout.write(columns(rows))
    if answer.get("Note"):
        print(answer["Note"])
    space = human_size(answer["SpaceReclaimed"])
    print(f"Would be reclaimed: {space}" if dry else f"Total reclaimed space: {space}")
    return 0


WHY = Command(
    why,
    "Say why steps of an image were not taken from the cache",
    "IMAGE [STEP]",
    (),
    minimum=1,
    maximum=2,
)
PRUNE = Command(
    prune,
    "Remove the build cache",
    "[OPTIONS]",
    (
        Flag("all", BOOL, "Remove all of it, not just what nothing rests on", short="a"),
        Flag("dry-run", BOOL, "Say what would be removed, and why, and remove nothing"),
        Flag("filter", values.FILTERS, "Remove only what fits (until=…, type=…, description=…)"),
        Flag("force", BOOL, "Do not ask", short="f"),
        Flag("keep-storage", STRING, "How much of it to keep (512m)"),
        Flag("max-used-space", STRING, "Remove until it takes no more than this"),
        Flag("min-free-space", STRING, "Remove until so much of the disk is free"),
        Flag("reserved-space", STRING, "How much of it stays in any case (512m)"),
    ),
    maximum=0,
)
COLLECT = Command(
    collect,
    "Bring the build cache down to its limit, as happens after each build",
    "[OPTIONS]",
    (Flag("dry-run", BOOL, "Say what would be removed, and why, and remove nothing"),),
    maximum=0,
)
