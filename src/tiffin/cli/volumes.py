"""Volumes: create, list, remove."""

from __future__ import annotations

import sys

from tiffin.cli import values
from tiffin.cli.command import Command, Invocation
from tiffin.cli.container_list import labels_text
from tiffin.cli.flags import BOOL, LIST, STRING, Flag
from tiffin.cli.listing import FORMAT, Listing
from tiffin.client.connection import escape
from tiffin.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _usage(item: dict[str, Any], field: str) -> int:
    return int((item.get("UsageData") or {}).get(field, -1))


def _size(item: dict[str, Any]) -> str:
    size = _usage(item, "Size")
    return "N/A" if size < 0 else human_size(size)


def _links(item: dict[str, Any]) -> str:
    count = _usage(item, "RefCount")
    return "N/A" if count < 0 else str(count)


LISTING = Listing(
    "*formatter.volumeContext",
    {
        "Name": ("VOLUME NAME", lambda item: item["Name"]),
        "Driver": ("DRIVER", lambda item: item["Driver"]),
        "Scope": ("SCOPE", lambda item: item.get("Scope", "")),
        "Mountpoint": ("MOUNTPOINT", lambda item: item.get("Mountpoint", "")),
        "Labels": ("LABELS", lambda item: labels_text(item.get("Labels"))),
        "Links": ("LINKS", _links),
        "Size": ("SIZE", _size),
        "Availability": ("AVAILABILITY", lambda _: "N/A"),
        "Group": ("GROUP", lambda _: "N/A"),
        "Status": ("STATUS", lambda _: "N/A"),
    },
    {"Label": lambda item, name: (item.get("Labels") or {}).get(name, "")},
)


def create(call: Invocation) -> int:
    """Creates a volume and prints its name."""
    options = call.options
    body = {
        "Name": call.arguments[0] if call.arguments else "",
        "Driver": options["driver"],
        "DriverOpts": values.pairs(options["opt"]),
        "Labels": values.pairs(options["label"]),
    }
    print(call.client.post("/volumes/create", body)["Name"])
    return 0


def ls(call: Invocation) -> int:
    """Lists volumes."""
    from json import dumps

    options = call.options
    given = values.filters(options["filter"])
    answer = call.client.get("/volumes", filters=dumps(given) if given else None)
    items = sorted(answer.get("Volumes") or (), key=lambda item: item["Name"])
    form = options["format"]
    if options["quiet"] and form in ("", "table"):
        sys.stdout.writelines(item["Name"] + "\n" for item in items)
        return 0
    LISTING.show(items, form, ("Driver", "Name"))
    return 0


def remove(call: Invocation) -> int:
    """Removes volumes."""

    def action(name: str) -> None:
        call.client.delete(f"/volumes/{escape(name)}", force=call.options["force"])
        print(name, flush=True)

    return call.each(action)


def prune(call: Invocation) -> int:
    """Removes volumes that no container uses: anonymous ones, with ``-a`` all."""
    from tiffin.cli.pruning import prune_one

    everything = call.options["all"]
    which = "all" if everything else "anonymous"
    return prune_one(
        call,
        "volumes",
        f"WARNING! This will remove {which} local volumes not used by at least one container.",
        "Deleted Volumes:",
        {"all": ["true"]} if everything else None,
    )


def update(call: Invocation) -> int:
    """Changes a volume of a cluster; there is none here, as the daemon says."""
    body = {"Spec": {"Availability": call.options["availability"]}}
    call.client.call("PUT", f"/volumes/{escape(call.arguments[0])}", {}, body)
    return 0


CREATE = Command(
    create,
    "Create a volume",
    "[OPTIONS] [VOLUME]",
    (
        Flag("driver", STRING, "Driver that makes the volume", short="d", default="local"),
        Flag("label", values.LABELS, "Attach a label (name=value)"),
        Flag("opt", LIST, "Option for the driver (name=value)", short="o"),
    ),
    maximum=1,
)
LS = Command(
    ls,
    "List volumes",
    "[OPTIONS]",
    (
        Flag("filter", values.FILTERS, "Show only what fits (name=value)", short="f"),
        FORMAT,
        Flag("quiet", BOOL, "Show names only", short="q"),
    ),
    maximum=0,
)
RM = Command(
    remove,
    "Remove volumes",
    "[OPTIONS] VOLUME [VOLUME...]",
    (Flag("force", BOOL, "Ignore volumes that don't exist", short="f"),),
    minimum=1,
)
PRUNE = Command(
    prune,
    "Remove unused volumes",
    "[OPTIONS]",
    (
        Flag("all", BOOL, "Remove volumes with a name too", short="a"),
        Flag("filter", values.FILTERS, "Remove only what fits (label=…)"),
        Flag("force", BOOL, "Do not ask", short="f"),
    ),
    maximum=0,
)
UPDATE = Command(
    update,
    "Change a volume of a cluster",
    "[OPTIONS] VOLUME",
    (Flag("availability", STRING, "active, pause or drain", default="active"),),
    minimum=1,
    maximum=1,
)
