"""``images``: the list of images, and the tree of which rests on which."""

from __future__ import annotations

import sys

from tiffin.cli.command import Command, Invocation
from tiffin.cli.flags import BOOL, Flag
from tiffin.cli.listing import FORMAT, Listing
from tiffin.cli.moments import ago, local
from tiffin.cli.tables import short_id
from tiffin.cli.values import FILTERS, filters
from tiffin.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

NONE = "<none>"


def image_rows(images: list[dict[str, Any]], *, digests: bool) -> Iterator[dict[str, Any]]:
    """One row for each name of each image: the image with its repository, tag and digest."""
    for image in images:
        tags = [tag for tag in image.get("RepoTags") or () if tag != "<none>:<none>"]
        by_repository: dict[str, list[str]] = {}
        for text in image.get("RepoDigests") or ():
            repository, _, digest = text.partition("@")
            if repository != NONE:
                by_repository.setdefault(repository, []).append(digest)
        for text in tags:
            repository, _, tag = text.rpartition(":")
            found = by_repository.get(repository, []) if digests else []
            for digest in found or [NONE]:
                yield {**image, "Repository": repository, "Tag": tag, "Digest": digest}
        named = {text.rpartition(":")[0] for text in tags}
        for repository, found in by_repository.items():
            if repository not in named:
                for digest in found if digests else found[:1]:
                    yield {**image, "Repository": repository, "Tag": NONE, "Digest": digest}
        if not tags and not by_repository:
            yield {**image, "Repository": NONE, "Tag": NONE, "Digest": NONE}


def _or_not_known(value: int | None) -> str:
    return "N/A" if value is None or value < 0 else human_size(value)


def image_listing(truncate: bool) -> Listing:
    """The fields of an image in lists."""

    def containers(row: dict[str, Any]) -> str:
        count = row.get("Containers", -1)
        return "N/A" if count is None or count < 0 else str(count)

    def unique(row: dict[str, Any]) -> str:
        shared = row.get("SharedSize", -1)
        return "N/A" if shared is None or shared < 0 else human_size(row["Size"] - shared)

    return Listing(
        "*formatter.imageContext",
        {
            "ID": ("IMAGE ID", lambda row: short_id(row["Id"]) if truncate else row["Id"]),
            "Repository": ("REPOSITORY", lambda row: row["Repository"]),
            "Tag": ("TAG", lambda row: row["Tag"]),
            "Digest": ("DIGEST", lambda row: row["Digest"]),
            "CreatedSince": ("CREATED", lambda row: ago(row["Created"])),
            "CreatedAt": ("CREATED AT", lambda row: local(row["Created"])),
            "Size": ("SIZE", lambda row: human_size(row["Size"], 3)),
            "VirtualSize": ("SIZE", lambda row: human_size(row["Size"])),
            "SharedSize": ("SHARED SIZE", lambda row: _or_not_known(row.get("SharedSize"))),
            "UniqueSize": ("UNIQUE SIZE", unique),
            "Containers": ("CONTAINERS", containers),
        },
    )


def images(call: Invocation) -> int:
    """Lists images."""
    from json import dumps

    options = call.options
    given = filters(options["filter"])
    if call.arguments:
        given.setdefault("reference", []).append(call.arguments[0])
    found = call.client.get(
        "/images/json",
        all=options["all"],
        filters=dumps(given) if given else None,
        digests=options["digests"],
    )
    truncate = not options["no-trunc"]
    if options["tree"]:
        from tiffin.cli.image_tree import draw

        sys.stdout.write(draw(call.client, found, truncate=truncate))
        return 0
    form = options["format"]
    digests = options["digests"] or ".Digest" in form or form == "json"
    rows = list(image_rows(found, digests=digests))
    listing = image_listing(truncate)
    if options["quiet"] and form in ("", "table"):
        form = "{{.ID}}"
    names: tuple[str, ...] = ("Repository", "Tag", "ID", "CreatedSince", "Size")
    if options["digests"]:
        names = ("Repository", "Tag", "Digest", "ID", "CreatedSince", "Size")
    listing.show(rows, form, names)
    return 0


IMAGES = Command(
    images,
    "List images",
    "[OPTIONS] [REPOSITORY[:TAG]]",
    (
        Flag("all", BOOL, "Show images too that only serve others", short="a"),
        Flag("digests", BOOL, "Show digests"),
        Flag("filter", FILTERS, "Show only what fits (name=value)", short="f"),
        FORMAT,
        Flag("no-trunc", BOOL, "Cut nothing short"),
        Flag("quiet", BOOL, "Show IDs only", short="q"),
        Flag("tree", BOOL, "Draw which image rests on which, and what they share"),
    ),
    maximum=1,
)
