"""``ps``: the list of containers."""

from __future__ import annotations

import sys

from tiffin.cli.command import Command, Invocation
from tiffin.cli.flags import BOOL, INT, Flag, quote
from tiffin.cli.listing import FORMAT, Listing
from tiffin.cli.moments import ago, local
from tiffin.cli.tables import ellipsis, short_id
from tiffin.cli.values import FILTERS, filters
from tiffin.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

COLUMNS = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")
_COMMAND_WIDTH = 20
_MOUNT_WIDTH = 15


def container_listing(truncate: bool) -> Listing:
    """The fields of a container in lists."""

    def names(item: dict[str, Any]) -> str:
        found = [name.removeprefix("/") for name in item["Names"] or ()]
        if truncate:
            found = [name for name in found if "/" not in name] or found
        return ",".join(found)

    def image(item: dict[str, Any]) -> str:
        name: str = item["Image"] or "<no image>"
        return short_id(name) if truncate and name == item.get("ImageID") else name

    def command(item: dict[str, Any]) -> str:
        text = item["Command"]
        return quote(ellipsis(text, _COMMAND_WIDTH) if truncate else text)

    def mounts(item: dict[str, Any]) -> str:
        found = [mount.get("Name") or mount["Source"] for mount in item.get("Mounts") or ()]
        return ",".join(ellipsis(name, _MOUNT_WIDTH) if truncate else name for name in found)

    return Listing(
        "*formatter.ContainerContext",
        {
            "ID": ("CONTAINER ID", lambda item: short_id(item["Id"]) if truncate else item["Id"]),
            "Names": ("NAMES", names),
            "Image": ("IMAGE", image),
            "Command": ("COMMAND", command),
            "CreatedAt": ("CREATED AT", lambda item: local(item["Created"])),
            "RunningFor": ("CREATED", lambda item: ago(item["Created"])),
            "Ports": ("PORTS", lambda item: ports_text(item.get("Ports") or [])),
            "State": ("STATE", lambda item: item["State"]),
            "Status": ("STATUS", lambda item: item["Status"]),
            "Size": ("SIZE", container_size),
            "Labels": ("LABELS", lambda item: labels_text(item.get("Labels"))),
            "Mounts": ("MOUNTS", mounts),
            "LocalVolumes": ("LOCAL VOLUMES", local_volumes),
            "Networks": ("NETWORKS", networks),
        },
        {"Label": lambda item, name: (item.get("Labels") or {}).get(name, "")},
    )


def container_size(item: dict[str, Any]) -> str:
    """The container layer's size, and with the image's when the daemon gave it."""
    own = human_size(item.get("SizeRw") or 0, 3)
    whole = item.get("SizeRootFs")
    return f"{own} (virtual {human_size(whole, 3)})" if whole else own


def labels_text(labels: dict[str, str] | None) -> str:
    """``a=b,c=d``."""
    return ",".join(f"{name}={value}" for name, value in sorted((labels or {}).items()))


def local_volumes(item: dict[str, Any]) -> str:
    """How many volumes of the local driver are mounted."""
    return str(sum(mount.get("Driver") == "local" for mount in item.get("Mounts") or ()))


def networks(item: dict[str, Any]) -> str:
    """The names of the networks, with commas."""
    return ",".join(sorted((item.get("NetworkSettings") or {}).get("Networks") or {}))


def ports_text(ports: list[dict[str, Any]]) -> str:
    """``0.0.0.0:80->8080/tcp, 9000-9001/tcp``: ports in a row are drawn together."""
    shown: list[str] = []
    published = sorted(
        (
            (port["Type"], port.get("IP") or "", port["PrivatePort"], port.get("PublicPort") or 0)
            for port in ports
        ),
        key=lambda port: (port[2], port[1], port[3], port[0]),
    )
    groups: list[list[tuple[str, str, int, int]]] = []
    for port in published:
        for group in groups:
            protocol, address, private, public = group[-1]
            follows = port[2] == private + 1 and port[3] == (public and public + 1)
            if port[:2] == (protocol, address) and follows:
                group.append(port)
                break
        else:
            groups.append([port])
    for group in groups:
        protocol, address, low, public_low = group[0]
        _, _, high, public_high = group[-1]
        inside = str(low) if low == high else f"{low}-{high}"
        if public_low:
            outside = (
                str(public_low) if public_low == public_high else f"{public_low}-{public_high}"
            )
            host = f"[{address}]" if ":" in address else address
            inside = f"{host}:{outside}->{inside}"
        shown.append(f"{inside}/{protocol}")
    return ", ".join(shown)


def ps(call: Invocation) -> int:
    """Lists containers."""
    options = call.options
    form = options["format"]
    limit = 1 if options["latest"] else max(options["last"], 0)
    given = filters(options["filter"])
    from json import dumps

    items = call.client.get(
        "/containers/json",
        all=options["all"] or options["latest"] or options["last"] > 0,
        limit=limit or None,
        size=options["size"] or (".Size" in form and not options["quiet"]),
        filters=dumps(given) if given else None,
    )
    truncate = not options["no-trunc"]
    if options["quiet"] and form in ("", "table"):
        sys.stdout.writelines(
            (short_id(item["Id"]) if truncate else item["Id"]) + "\n" for item in items
        )
        return 0
    names = (*COLUMNS, "Size") if options["size"] else COLUMNS
    container_listing(truncate).show(items, form, names)
    return 0


PS = Command(
    ps,
    "List containers",
    "[OPTIONS]",
    (
        Flag("all", BOOL, "Show all containers, not just those that run", short="a"),
        Flag("filter", FILTERS, "Show only what fits (name=value)", short="f"),
        FORMAT,
        Flag("last", INT, "Show the N containers created last", short="n", default=-1),
        Flag("latest", BOOL, "Show the container created last", short="l"),
        Flag("no-trunc", BOOL, "Cut nothing short"),
        Flag("quiet", BOOL, "Show IDs only", short="q"),
        Flag("size", BOOL, "Show how large each container's layer is", short="s"),
    ),
    maximum=0,
)
