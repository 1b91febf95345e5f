"""What the command line does with registries by itself, without a daemon: ``image copy`` and
``manifest``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tiffin.cli.command import Command, CommandError, Invocation
from tiffin.cli.flags import BOOL, STRING, Flag
from tiffin.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tiffin.image.reference import Reference
    from tiffin.registry.client import Registry


def _connector(call: Invocation, *, insecure: bool = False) -> Callable[[Reference], Registry]:
    """Makes clients of registries, with the user's credentials and the root's configuration."""
    from tiffin.registry.client import Registry
    from tiffin.registry.credentials import CredentialsFile
    from tiffin.registry.endpoints import SYSTEM_FOLDERS, Configuration

    file = CredentialsFile()

    def connect(reference: Reference) -> Registry:
        configuration = Configuration(
            (Path(call.endpoint.root), *SYSTEM_FOLDERS),
            insecure=[reference.domain] if insecure else [],
        )
        (endpoint,) = configuration.endpoints(reference.domain, mirrors=False)
        return Registry(endpoint, file.get(reference.domain))

    return connect


def _parsed(text: str) -> Reference:
    from tiffin.image.reference import Reference

    return Reference.parse(text).with_default_tag()


def _platform(text: str) -> Any:
    from tiffin.image.platforms import Platform

    return Platform.parse(text) if text else None


def copy(call: Invocation) -> int:
    """Copies an image from one place to another as it is."""
    from tiffin.registry.copying import Copy
    from tiffin.registry.places import RegistryPlace, opened

    options = call.options
    source_text, target_text = call.arguments
    connect = _connector(call)
    quiet = options["quiet"]

    def say(line: str) -> None:
        if not quiet:
            print(line, flush=True)

    with (
        opened(source_text, connect, reading=True) as (source, name),
        opened(target_text, connect, reading=False) as (target, target_name),
    ):
        if (
            isinstance(source, RegistryPlace)
            and isinstance(target, RegistryPlace)
            and source.client.host == target.client.host
        ):
            target.mount_from = source.repository
        work = Copy(source, target, say)
        digest = work.run(
            name,
            target_name,
            platform=_platform(options["platform"]),
            referrers=options["referrers"],
        )
    say(f"{human_size(work.copied)} copied, {human_size(work.skipped)} were there")
    print(digest)
    return 0


# Manifests


def inspect(call: Invocation) -> int:
    """Prints the manifest of an image in a registry, or a list that is being made."""
    from json import dumps, loads

    from tiffin.registry.lists import ManifestLists, entries_of

    options = call.options
    connect = _connector(call, insecure=options["insecure"])
    reference = _parsed(call.arguments[-1])
    if len(call.arguments) == 2:
        # A manifest of a list that is being made.
        wanted = reference.canonical
        for entry in ManifestLists().load(_parsed(call.arguments[0])):
            if wanted in (entry.get("source"), entry["digest"]):
                print(dumps(entry, indent=3))
                return 0
        raise CommandError(f"No such manifest: {reference.familiar}")
    lists = ManifestLists()
    if lists.has(reference):
        sys.stdout.write(lists.document(reference)[0].decode() + "\n")
        return 0
    with connect(reference) as client:
        raw, media_type = client.raw_manifest(
            reference.path, reference.digest or str(reference.tag)
        )
        if options["verbose"]:
            found = []
            for entry in entries_of(reference, client):
                inner, kind = client.raw_manifest(reference.path, entry["digest"])
                found.append(
                    {
                        "Ref": f"{reference.name}@{entry['digest']}",
                        "Descriptor": {**entry, "mediaType": kind},
                        "Manifest": loads(inner),
                    }
                )
            print(dumps(found[0] if len(found) == 1 else found, indent=3))
            return 0
    document = loads(raw)
    document.setdefault("mediaType", media_type)
    print(dumps(document, indent=3))
    return 0


def create(call: Invocation) -> int:
    """Begins a list of manifests."""
    from tiffin.registry.lists import ManifestLists, entries_of

    options = call.options
    connect = _connector(call, insecure=options["insecure"])
    name = _parsed(call.arguments[0])
    entries: list[dict[str, Any]] = []
    for text in call.arguments[1:]:
        reference = _parsed(text)
        with connect(reference) as client:
            entries += entries_of(reference, client)
    ManifestLists().create(name, entries, amend=options["amend"])
    print(f"Created manifest list {name.canonical}")
    return 0


def annotate(call: Invocation) -> int:
    """Says what platform a manifest of a list is for."""
    from tiffin.registry.lists import ManifestLists

    options = call.options
    name, reference = _parsed(call.arguments[0]), _parsed(call.arguments[1])
    lists = ManifestLists()
    found = [
        entry["digest"]
        for entry in lists.load(name)
        if entry["digest"] == reference.digest or entry.get("source") == reference.canonical
    ]
    if not found:
        raise CommandError(f"manifest for image {reference.familiar} does not exist in {name}")
    for digest in found:
        lists.annotate(
            name,
            digest,
            os=options["os"],
            architecture=options["arch"],
            variant=options["variant"],
            **{"os.version": options["os-version"]},
        )
    return 0


def push(call: Invocation) -> int:
    """Stores a list in its registry, with the manifests that are not there yet."""
    from tiffin.image.reference import Reference
    from tiffin.registry.copying import Copy
    from tiffin.registry.lists import ManifestLists
    from tiffin.registry.places import RegistryPlace

    options = call.options
    connect = _connector(call, insecure=options["insecure"])
    name = _parsed(call.arguments[0])
    lists = ManifestLists()
    raw, media_type = lists.document(name)
    with connect(name) as client:
        target = RegistryPlace(client, name.path)
        for entry in lists.load(name):
            source = Reference.parse(entry["source"])
            if source.name == name.name:
                continue
            with connect(source) as other:
                place = RegistryPlace(other, source.path)
                if source.domain == name.domain:
                    target.mount_from = source.path
                Copy(place, target).run(entry["digest"], entry["digest"])
                print(f"Pushed ref {name.name}@{entry['digest']}", flush=True)
        digest = client.put_manifest(name.path, str(name.tag), raw, media_type)
    if options["purge"]:
        lists.remove(name)
    print(digest)
    return 0


def remove(call: Invocation) -> int:
    """Forgets lists that were not pushed."""
    from tiffin.registry.lists import ManifestLists

    return call.each(lambda text: ManifestLists().remove(_parsed(text)))


_INSECURE = Flag("insecure", BOOL, "The registry may speak plain HTTP, or be signed by nobody")
COPY = Command(
    copy,
    "Copy an image between registries, OCI layouts and archives, as it is",
    "[OPTIONS] SOURCE DESTINATION",
    (
        Flag("platform", STRING, "Only the image for this platform, without the others"),
        Flag("quiet", BOOL, "Print the digest alone", short="q"),
        Flag("referrers", BOOL, "With signatures and whatever else refers to it"),
    ),
    minimum=2,
    maximum=2,
    notes=(
        "A place is a name (registry/team/app:1), oci:FOLDER[:TAG] or oci-archive:FILE[:TAG].\n"
        "All platforms are copied, nothing is unpacked, and no digest changes."
    ),
)
MANIFEST_INSPECT = Command(
    inspect,
    "Show the manifest of an image in a registry",
    "[OPTIONS] [LIST] MANIFEST",
    (_INSECURE, Flag("verbose", BOOL, "With descriptors, and all of a list", short="v")),
    minimum=1,
    maximum=2,
)
MANIFEST_CREATE = Command(
    create,
    "Begin a list of manifests, to annotate and push",
    "[OPTIONS] LIST MANIFEST [MANIFEST...]",
    (_INSECURE, Flag("amend", BOOL, "Add to a list that was begun", short="a")),
    minimum=2,
)
MANIFEST_ANNOTATE = Command(
    annotate,
    "Say what platform a manifest of a list is for",
    "[OPTIONS] LIST MANIFEST",
    (
        Flag("arch", STRING, "Architecture"),
        Flag("os", STRING, "Operating system"),
        Flag("os-version", STRING, "Its version"),
        Flag("variant", STRING, "Variant of the architecture"),
    ),
    minimum=2,
    maximum=2,
)
MANIFEST_PUSH = Command(
    push,
    "Store a list in its registry",
    "[OPTIONS] LIST",
    (_INSECURE, Flag("purge", BOOL, "Forget the list here afterwards", short="p")),
    minimum=1,
    maximum=1,
)
MANIFEST_RM = Command(remove, "Forget lists that were not pushed", "LIST [LIST...]", minimum=1)
