"""Networks: create, list, connect, disconnect, remove."""

from __future__ import annotations

import sys

from tiffin.cli import values
from tiffin.cli.command import Command, CommandError, Invocation
from tiffin.cli.container_body import endpoint_fields
from tiffin.cli.container_list import labels_text
from tiffin.cli.flags import BOOL, INT, LIST, STRING, Flag
from tiffin.cli.listing import FORMAT, Listing
from tiffin.client.connection import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ID_WIDTH = 12


def _truth(item: dict[str, Any], field: str) -> str:
    return "true" if item.get(field) else "false"


def _listing(whole: bool) -> Listing:
    return Listing(
        "*formatter.networkContext",
        {
            "ID": ("NETWORK ID", lambda item: item["Id"] if whole else item["Id"][:_ID_WIDTH]),
            "Name": ("NAME", lambda item: item["Name"]),
            "Driver": ("DRIVER", lambda item: item["Driver"]),
            "Scope": ("SCOPE", lambda item: item["Scope"]),
            "IPv4": ("IPV4", lambda item: _truth(item, "EnableIPv4")),
            "IPv6": ("IPV6", lambda item: _truth(item, "EnableIPv6")),
            "Internal": ("INTERNAL", lambda item: _truth(item, "Internal")),
            "Labels": ("LABELS", lambda item: labels_text(item.get("Labels"))),
            "CreatedAt": ("CREATED AT", lambda item: item["Created"]),
        },
        {"Label": lambda item, name: (item.get("Labels") or {}).get(name, "")},
    )


def _ipam(options: Any) -> list[dict[str, Any]]:
    """The API's IPAM configurations: each range, gateway and address goes to its subnet."""
    from ipaddress import ip_address, ip_network

    def network(text: str) -> Any:
        try:
            return ip_network(text, strict=False)
        except ValueError:
            raise CommandError(f"invalid CIDR block notation: {text}") from None

    configs = [{"Subnet": text} for text in options["subnet"]]
    found: list[dict[str, Any]] = list(configs)

    def place(field: str, text: str, address: str) -> dict[str, Any]:
        try:
            wanted = ip_address(address.partition("/")[0])
        except ValueError:
            raise CommandError(f"invalid IP address: {address}") from None
        for config in found:
            subnet = network(str(config["Subnet"]))
            if wanted.version == subnet.version and wanted in subnet:
                if field in config and field != "AuxiliaryAddresses":
                    raise CommandError(
                        f"multiple {text} options for one subnet are not possible: {address}"
                    )
                return config
        raise CommandError(f"no matching subnet for {text} {address}")

    for text in options["ip-range"]:
        place("IPRange", "range", text)["IPRange"] = text
    for text in options["gateway"]:
        place("Gateway", "gateway", text)["Gateway"] = text
    for text in options["aux-address"]:
        name, equals, address = text.partition("=")
        if not equals:
            raise CommandError(f"invalid aux-address {text}: name=address")
        config = place("AuxiliaryAddresses", "aux-address", address)
        config.setdefault("AuxiliaryAddresses", {})[name] = address
    return found


def create(call: Invocation) -> int:
    """Creates a network and prints its ID."""
    options = call.options
    body: dict[str, Any] = {
        "Name": call.arguments[0],
        "Driver": options["driver"],
        "Options": values.pairs(options["opt"]),
        "IPAM": {
            "Driver": options["ipam-driver"],
            "Options": values.pairs(options["ipam-opt"]),
            "Config": _ipam(options),
        },
        "Internal": options["internal"],
        "Attachable": options["attachable"],
        "Labels": values.pairs(options["label"]),
    }
    for flag, field in (("ipv4", "EnableIPv4"), ("ipv6", "EnableIPv6")):
        if flag in options.given:
            body[field] = options[flag]
    answer = call.client.post("/networks/create", body)
    if answer.get("Warning"):
        sys.stderr.write(f"WARNING: {answer['Warning']}\n")
    print(answer["Id"])
    return 0


def ls(call: Invocation) -> int:
    """Lists networks."""
    from json import dumps

    options = call.options
    given = values.filters(options["filter"])
    items = call.client.get("/networks", filters=dumps(given) if given else None)
    items = sorted(items, key=lambda item: item["Name"])
    whole = bool(options["no-trunc"])
    if options["quiet"] and options["format"] in ("", "table"):
        width = None if whole else _ID_WIDTH
        sys.stdout.writelines(item["Id"][:width] + "\n" for item in items)
        return 0
    _listing(whole).show(items, options["format"], ("ID", "Name", "Driver", "Scope"))
    return 0


def remove(call: Invocation) -> int:
    """Removes networks."""
    from tiffin.client.connection import DaemonError

    def action(name: str) -> None:
        try:
            call.client.delete(f"/networks/{escape(name)}")
        except DaemonError as error:
            if not (call.options["force"] and error.http_status == 404):
                raise
            return
        print(name, flush=True)

    return call.each(action)


def connect(call: Invocation) -> int:
    """Puts a container into a network."""
    network, container = call.arguments
    body = {"Container": container, "EndpointConfig": endpoint_fields(call.options)}
    call.client.post(f"/networks/{escape(network)}/connect", body)
    return 0


def disconnect(call: Invocation) -> int:
    """Takes a container out of a network."""
    network, container = call.arguments
    body = {"Container": container, "Force": call.options["force"]}
    call.client.post(f"/networks/{escape(network)}/disconnect", body)
    return 0


def prune(call: Invocation) -> int:
    """Removes the networks that no container is in."""
    from tiffin.cli.pruning import confirmed, removed

    warning = "WARNING! This will remove all custom networks not used by at least one container."
    if not call.options["force"] and not confirmed(warning):
        return 0
    from json import dumps

    given = values.filters(call.options["filter"])
    answer = call.client.post("/networks/prune", filters=dumps(given) if given else None)
    removed(answer, "Deleted Networks:")
    return 0


CREATE = Command(
    create,
    "Create a network",
    "[OPTIONS] NETWORK",
    (
        Flag("attachable", BOOL, "Allow containers to join by hand"),
        Flag("aux-address", LIST, "Address that something else has (name=address)"),
        Flag("driver", STRING, "Kind of network (bridge, macvlan, …)", short="d", default="bridge"),
        Flag("gateway", LIST, "Address of the gateway in its subnet"),
        Flag("internal", BOOL, "Let nothing in or out"),
        Flag("ip-range", LIST, "Give addresses out of this part of the subnet only"),
        Flag("ipam-driver", STRING, "Who gives out addresses", default="default"),
        Flag("ipam-opt", LIST, "Option for who gives out addresses (name=value)"),
        Flag("ipv4", BOOL, "Give IPv4 addresses", default=True),
        Flag("ipv6", BOOL, "Give IPv6 addresses"),
        Flag("label", values.LABELS, "Attach a label (name=value)"),
        Flag("opt", LIST, "Option of the network (name=value)", short="o"),
        Flag("subnet", LIST, "Subnet (address/length)"),
    ),
    minimum=1,
    maximum=1,
)
LS = Command(
    ls,
    "List networks",
    "[OPTIONS]",
    (
        Flag("filter", values.FILTERS, "Show only what fits (name=value)", short="f"),
        FORMAT,
        Flag("no-trunc", BOOL, "Show whole IDs"),
        Flag("quiet", BOOL, "Show IDs only", short="q"),
    ),
    maximum=0,
)
RM = Command(
    remove,
    "Remove networks",
    "NETWORK [NETWORK...]",
    (Flag("force", BOOL, "Ignore networks that don't exist", short="f"),),
    minimum=1,
)
CONNECT = Command(
    connect,
    "Put a container into a network",
    "[OPTIONS] NETWORK CONTAINER",
    (
        Flag("alias", LIST, "One more name of the container in the network"),
        Flag("driver-opt", LIST, "Option for the endpoint (name=value)"),
        Flag("gw-priority", INT, "The highest becomes the way out", default=0),
        Flag("ip", STRING, "IPv4 address"),
        Flag("ip6", STRING, "IPv6 address"),
        Flag("link", LIST, "Another container, and what it is to be called (name:alias)"),
        Flag("link-local-ip", LIST, "Link-local address"),
    ),
    minimum=2,
    maximum=2,
)
DISCONNECT = Command(
    disconnect,
    "Take a container out of a network",
    "[OPTIONS] NETWORK CONTAINER",
    (Flag("force", BOOL, "Also where the container is in trouble", short="f"),),
    minimum=2,
    maximum=2,
)
PRUNE = Command(
    prune,
    "Remove networks that no container is in",
    "[OPTIONS]",
    (
        Flag("filter", values.FILTERS, "Remove only what fits (until=…, label=…)"),
        Flag("force", BOOL, "Do not ask", short="f"),
    ),
    maximum=0,
)
