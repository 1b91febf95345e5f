"""``system df``: what takes room on the disk, and how much of it could be free."""

from __future__ import annotations

import sys

from tiffin.cli.command import Command, CommandError, Invocation
from tiffin.cli.container_list import container_listing
from tiffin.cli.flags import BOOL, Flag
from tiffin.cli.image_list import image_listing, image_rows
from tiffin.cli.listing import FORMAT, Listing
from tiffin.cli.moments import ago_text
from tiffin.cli.tables import columns, short_id
from tiffin.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_IMAGES = ("Repository", "Tag", "ID", "CreatedSince", "Size")
_IMAGES_MORE = (*_IMAGES, "SharedSize", "UniqueSize", "Containers")
_CONTAINERS = ("ID", "Image", "Command", "LocalVolumes", "Size", "RunningFor", "Status", "Names")

_CACHE_COLUMNS = (
    "ID",
    "CacheType",
    "Size",
    "CreatedSince",
    "LastUsedSince",
    "UsageCount",
    "Shared",
)


def _images(answer: dict[str, Any]) -> dict[str, Any]:
    images = answer.get("Images") or []
    size = answer.get("LayersSize") or 0
    active = [image for image in images if (image.get("Containers") or 0) > 0]
    used = 0
    for image in active:
        if image["Size"] == -1 or image.get("SharedSize", -1) == -1:
            continue
        used += image["Size"] - image["SharedSize"]
    # What the images in use share stays as long as one of them does; the API does not say which
    # parts they share, so this is the least that stays.
    used += max((image.get("SharedSize", 0) for image in active), default=0)
    used = max(used, max((image["Size"] for image in active), default=0))
    return _row("Images", len(images), len(active), size, max(size - used, 0), percent=True)


def _containers(answer: dict[str, Any]) -> dict[str, Any]:
    containers = answer.get("Containers") or []
    active = [item for item in containers if _is_active(item)]
    size = sum(item.get("SizeRw") or 0 for item in containers)
    used = sum(item.get("SizeRw") or 0 for item in active)
    return _row("Containers", len(containers), len(active), size, size - used, percent=bool(size))


def _is_active(item: dict[str, Any]) -> bool:
    return item["State"] in ("running", "paused", "restarting")


def _volumes(answer: dict[str, Any]) -> dict[str, Any]:
    volumes = answer.get("Volumes") or []
    usage = [item.get("UsageData") or {} for item in volumes]
    sizes = [(max(item.get("Size", 0), 0), item.get("RefCount", 0) > 0) for item in usage]
    size = sum(each for each, _ in sizes)
    free = sum(each for each, used in sizes if not used)
    active = sum(used for _, used in sizes)
    return _row("Local Volumes", len(volumes), active, size, free, percent=bool(size))


def _cache(answer: dict[str, Any]) -> dict[str, Any]:
    entries = answer.get("BuildCache") or []
    size = sum(entry["Size"] for entry in entries if not entry.get("Shared"))
    used = sum(entry["Size"] for entry in entries if entry.get("InUse") and not entry.get("Shared"))
    active = sum(bool(entry.get("InUse")) for entry in entries)
    return _row("Build Cache", len(entries), active, size, size - used)


def _row(
    kind: str, total: int, active: int, size: int, reclaimable: int, *, percent: bool = False
) -> dict[str, Any]:
    free = human_size(reclaimable)
    if percent:
        free += f" ({reclaimable * 100 // size if size else 0}%)"
    return {
        "Type": kind,
        "TotalCount": str(total),
        "Active": str(active),
        "Size": human_size(size),
        "Reclaimable": free,
    }


_SUMMARY = Listing(
    "*formatter.diskUsageContext",
    {
        "Type": ("TYPE", lambda row: row["Type"]),
        "TotalCount": ("TOTAL", lambda row: row["TotalCount"]),
        "Active": ("ACTIVE", lambda row: row["Active"]),
        "Size": ("SIZE", lambda row: row["Size"]),
        "Reclaimable": ("RECLAIMABLE", lambda row: row["Reclaimable"]),
    },
)

_CACHE = Listing(
    "*formatter.buildCacheContext",
    {
        "ID": ("CACHE ID", lambda item: short_id(item["ID"])),
        "CacheType": ("CACHE TYPE", lambda item: item.get("Type", "")),
        "Size": ("SIZE", lambda item: human_size(item["Size"], 3)),
        "CreatedSince": ("CREATED", lambda item: ago_text(item.get("CreatedAt", ""))),
        "LastUsedSince": ("LAST USED", lambda item: ago_text(item.get("LastUsedAt") or "")),
        "UsageCount": ("USAGE", lambda item: str(item.get("UsageCount", 0))),
        "Shared": ("SHARED", lambda item: "true" if item.get("Shared") else "false"),
        "InUse": ("IN USE", lambda item: "true" if item.get("InUse") else "false"),
        "Description": ("DESCRIPTION", lambda item: item.get("Description", "")),
    },
)


def _verbose(answer: dict[str, Any]) -> str:
    images = image_listing(True)
    images.fields = {**images.fields, "Size": ("SIZE", lambda row: human_size(row["Size"], 3))}
    volumes = [["VOLUME NAME", "LINKS", "SIZE"]]
    for item in answer.get("Volumes") or ():
        usage = item.get("UsageData") or {}
        size = usage.get("Size", -1)
        volumes.append(
            [
                item["Name"],
                str(usage.get("RefCount", 0)),
                "N/A" if size < 0 else human_size(size),
            ]
        )
    containers = container_listing(True)
    containers.fields = {
        **containers.fields,
        "Size": ("SIZE", lambda item: human_size(item.get("SizeRw") or 0, 3)),
    }
    rows = _first_names(answer.get("Images") or [])
    cache = answer.get("BuildCache") or []
    return "\n".join(
        (
            "Images space usage:\n",
            images.table(rows, _IMAGES_MORE),
            "Containers space usage:\n",
            containers.table(answer.get("Containers") or [], _CONTAINERS),
            "Local Volumes space usage:\n",
            columns(volumes),
            f"Build cache usage: {_cache(answer)['Size']}\n",
            _CACHE.table(cache, _CACHE_COLUMNS),
        )
    )


def _first_names(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each image, under its first name: sizes would count twice otherwise."""
    return [next(image_rows([image], digests=False)) for image in images]


def df(call: Invocation) -> int:
    """Shows disk usage."""
    options = call.options
    answer = call.client.get("/system/df")
    if options["verbose"]:
        if options["format"] not in ("", "table"):
            if options["format"] not in ("json", "{{json .}}"):
                raise CommandError("with -v, --format takes only json")
            from tiffin.cli.gotemplate import json_of

            sys.stdout.write(json_of(answer) + "\n")
            return 0
        sys.stdout.write(_verbose(answer))
        return 0
    rows = [_images(answer), _containers(answer), _volumes(answer), _cache(answer)]
    _SUMMARY.show(rows, options["format"], ("Type", "TotalCount", "Active", "Size", "Reclaimable"))
    return 0


DF = Command(
    df,
    "Show what takes room on the disk",
    "[OPTIONS]",
    (Flag("verbose", BOOL, "Show each thing by itself", short="v"), FORMAT),
    maximum=0,
)
