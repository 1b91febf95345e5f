"""``stats``: what containers use of the machine, once or again and again."""

from __future__ import annotations

import sys
import time

from tiffin.cli.command import Command, Invocation
from tiffin.cli.flags import BOOL, Flag
from tiffin.cli.listing import FORMAT, Listing
from tiffin.cli.tables import short_id
from tiffin.client.connection import DaemonError, escape
from tiffin.units import binary_size, human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_COLUMNS = ("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs")
_INTERVAL = 1.0


def _cpu(item: dict[str, Any]) -> float:
    now, before = item.get("cpu_stats") or {}, item.get("precpu_stats") or {}
    used = now["cpu_usage"]["total_usage"] - before["cpu_usage"]["total_usage"]
    passed = now.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    cpus = now.get("online_cpus") or len(now["cpu_usage"].get("percpu_usage") or ()) or 1
    return used / passed * cpus * 100 if used > 0 and passed > 0 else 0.0


def _memory(item: dict[str, Any]) -> int:
    memory = item.get("memory_stats") or {}
    details = memory.get("stats") or {}
    cache = details.get("total_inactive_file", details.get("inactive_file", 0))
    usage: int = memory.get("usage", 0)
    return usage - cache if cache < usage else usage


def _memory_share(item: dict[str, Any]) -> float:
    limit = (item.get("memory_stats") or {}).get("limit") or 0
    return _memory(item) / limit * 100 if limit else 0.0


def _network(item: dict[str, Any]) -> str:
    networks = (item.get("networks") or {}).values()
    received = sum(each["rx_bytes"] for each in networks)
    sent = sum(each["tx_bytes"] for each in networks)
    return f"{human_size(received, 3)} / {human_size(sent, 3)}"


def _blocks(item: dict[str, Any]) -> str:
    read = written = 0
    entries = (item.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ()
    for entry in entries:
        if entry["op"].lower() == "read":
            read += entry["value"]
        elif entry["op"].lower() == "write":
            written += entry["value"]
    return f"{human_size(read, 3)} / {human_size(written, 3)}"


def _listing(truncate: bool) -> Listing:
    def usage(item: dict[str, Any]) -> str:
        limit = (item.get("memory_stats") or {}).get("limit") or 0
        return f"{binary_size(_memory(item))} / {binary_size(limit)}"

    return Listing(
        "*container.statsContext",
        {
            "ID": ("CONTAINER ID", lambda i: short_id(i["id"]) if truncate else i["id"]),
            "Container": ("CONTAINER", lambda i: short_id(i["id"]) if truncate else i["id"]),
            "Name": ("NAME", lambda item: item["name"].removeprefix("/")),
            "CPUPerc": ("CPU %", lambda item: f"{_cpu(item):.2f}%"),
            "MemUsage": ("MEM USAGE / LIMIT", usage),
            "MemPerc": ("MEM %", lambda item: f"{_memory_share(item):.2f}%"),
            "NetIO": ("NET I/O", _network),
            "BlockIO": ("BLOCK I/O", _blocks),
            "PIDs": ("PIDS", lambda i: str((i.get("pids_stats") or {}).get("current", 0))),
        },
    )


def _take(call: Invocation, before: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One measure of each container; the CPU's use is counted from the one before."""
    client = call.client
    names = call.arguments
    if not names:
        items = client.get("/containers/json", all=call.options["all"])
        names = [item["Id"] for item in items]
    taken = []
    for name in names:
        try:
            item = client.call(
                "GET", f"/containers/{escape(name)}/stats", {"stream": "0", "one-shot": "1"}
            ).json()
        except DaemonError as error:
            if call.arguments or error.http_status != 404:
                raise
            # It went away since the list was made.
            continue
        earlier = before.get(item["id"])
        before[item["id"]] = item
        taken.append({**item, "precpu_stats": earlier["cpu_stats"]} if earlier else item)
    return taken


def stats(call: Invocation) -> int:
    """Shows what containers use, again each second unless ``--no-stream``."""
    options = call.options
    listing = _listing(not options["no-trunc"])
    before: dict[str, dict[str, Any]] = {}
    _take(call, before)
    try:
        while True:
            time.sleep(_INTERVAL)
            text = listing.text(_take(call, before), options["format"], _COLUMNS)
            if options["no-stream"]:
                sys.stdout.write(text)
                return 0
            if sys.stdout.isatty():
                text = "\x1b[H\x1b[J" + text
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 0


STATS = Command(
    stats,
    "Show what containers use of the machine",
    "[OPTIONS] [CONTAINER...]",
    (
        Flag("all", BOOL, "Show all containers, not just those that run", short="a"),
        FORMAT,
        Flag("no-stream", BOOL, "Show it once"),
        Flag("no-trunc", BOOL, "Cut nothing short"),
    ),
)
