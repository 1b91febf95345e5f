"""Commands on images that exist: tag, rmi, history, prune."""

from __future__ import annotations

from tiffin.cli.command import Command, Invocation, report
from tiffin.cli.containers import split_name
from tiffin.cli.flags import BOOL, STRING, Flag
from tiffin.cli.listing import FORMAT, Listing
from tiffin.cli.moments import ago, rfc3339
from tiffin.cli.tables import ellipsis, short_id
from tiffin.cli.values import FILTERS, platform_object
from tiffin.client.connection import DaemonError, escape
from tiffin.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CREATED_BY_WIDTH = 45


def tag(call: Invocation) -> int:
    """Gives an image another name."""
    source, name = call.arguments
    repository, label = split_name(name)
    call.client.post(f"/images/{escape(source)}/tag", repo=repository, tag=label or None)
    return 0


def remove(call: Invocation) -> int:
    """Removes images, or names of images."""
    options = call.options
    failures: list[tuple[str, bool]] = []
    for name in call.arguments:
        try:
            answer = call.client.delete(
                f"/images/{escape(name)}",
                force=options["force"],
                noprune=options["no-prune"],
                platforms=platform_object(options["platform"]),
            )
        except DaemonError as error:
            failures.append((error.message, error.http_status == 404))
            continue
        for item in answer:
            if item.get("Deleted"):
                print(f"Deleted: {item['Deleted']}", flush=True)
            else:
                print(f"Untagged: {item['Untagged']}", flush=True)
    for message, _ in failures:
        report(message)
    # With --force, an image that does not exist is as gone as was wanted.
    return 1 if any(not (options["force"] and missing) for _, missing in failures) else 0


def _listing(truncate: bool, human: bool) -> Listing:
    def created_by(item: dict[str, Any]) -> str:
        text = item["CreatedBy"].replace("\t", " ")
        return ellipsis(text, _CREATED_BY_WIDTH) if truncate else text

    def created_since(item: dict[str, Any]) -> str:
        if not human:
            return rfc3339(item["Created"])
        return ago(item["Created"]) if item["Created"] > 0 else "N/A"

    def identifier(item: dict[str, Any]) -> str:
        return short_id(item["Id"]) if truncate else item["Id"]

    return Listing(
        "*formatter.historyContext",
        {
            "ID": ("IMAGE", identifier),
            "CreatedAt": ("CREATED AT", lambda item: rfc3339(item["Created"])),
            "CreatedSince": (
                "CREATED" if human else "CREATED AT",
                created_since,
            ),
            "CreatedBy": ("CREATED BY", created_by),
            "Size": (
                "SIZE",
                lambda item: human_size(item["Size"], 3) if human else str(item["Size"]),
            ),
            "Comment": ("COMMENT", lambda item: item["Comment"]),
        },
    )


def history(call: Invocation) -> int:
    """Shows the steps that an image was made in, the last one first."""
    options = call.options
    items = call.client.get(f"/images/{escape(call.arguments[0])}/history")
    form = options["format"]
    if options["quiet"] and form in ("", "table"):
        form = "{{.ID}}"
    _listing(not options["no-trunc"], options["human"]).show(
        items, form, ("ID", "CreatedSince", "CreatedBy", "Size", "Comment")
    )
    return 0


def prune(call: Invocation) -> int:
    """Removes images that nothing uses: those without a name, with ``-a`` all."""
    from tiffin.cli.pruning import prune_one

    everything = call.options["all"]
    which = (
        "all images without at least one container associated to them."
        if everything
        else "all dangling images."
    )
    return prune_one(
        call,
        "images",
        f"WARNING! This will remove {which}",
        "Deleted Images:",
        {"dangling": ["false" if everything else "true"]},
    )


TAG = Command(
    tag,
    "Give an image another name",
    "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
    minimum=2,
    maximum=2,
)
RMI = Command(
    remove,
    "Remove images",
    "[OPTIONS] IMAGE [IMAGE...]",
    (
        Flag("force", BOOL, "Remove even what containers use", short="f"),
        Flag("no-prune", BOOL, "Keep parents that have no name"),
        Flag("platform", STRING, "Only if the image is for this platform (os/architecture)"),
    ),
    minimum=1,
)
HISTORY = Command(
    history,
    "Show how an image came to be",
    "[OPTIONS] IMAGE",
    (
        FORMAT,
        Flag("human", BOOL, "Show sizes and dates as people read them", short="H", default=True),
        Flag("no-trunc", BOOL, "Cut nothing short"),
        Flag("quiet", BOOL, "Show IDs only", short="q"),
    ),
    minimum=1,
    maximum=1,
)
PRUNE = Command(
    prune,
    "Remove unused images",
    "[OPTIONS]",
    (
        Flag("all", BOOL, "Remove all that no container uses", short="a"),
        Flag("filter", FILTERS, "Remove only what fits (until=…, label=…)"),
        Flag("force", BOOL, "Do not ask", short="f"),
    ),
    maximum=0,
)
