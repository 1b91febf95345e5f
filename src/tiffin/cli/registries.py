"""Registries: pull, push, login, logout, search.

The client has the credentials (Docker's ``config.json``), and gives those of one registry to the
daemon with each request.
"""

from __future__ import annotations

import os
import sys

from tiffin.cli.command import Command, CommandError, Invocation, report
from tiffin.cli.flags import BOOL, INT, STRING, Flag
from tiffin.cli.listing import FORMAT, Listing
from tiffin.cli.progress import show_messages
from tiffin.cli.tables import columns, ellipsis
from tiffin.cli.values import FILTERS, filters
from tiffin.client.connection import DaemonError, escape
from tiffin.errors import Unauthorized
from tiffin.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tiffin.client.connection import Client

_HUB = "docker.io"


def auth_headers(domain: str) -> dict[str, str]:
    """The header with the user's credentials for a registry; empty without any."""
    from tiffin.registry.credentials import CredentialsFile, key_of

    found = CredentialsFile().get(domain)
    return {"X-Registry-Auth": found.header(key_of(domain))} if found else {}


def every_auth_header() -> dict[str, str]:
    """The header with the user's credentials for all registries, for what may need any of them."""
    from tiffin.registry.credentials import CredentialsFile, config_header

    known = CredentialsFile().all()
    return {"X-Registry-Config": config_header(known)} if known else {}


def pull_image(client: Client, image: str, platform: str, out: Any) -> None:
    """Pulls an image, telling how it goes on ``out``; raises TiffinError."""
    from tiffin.image.reference import Reference

    reference = Reference.parse(image).with_default_tag()
    query = {
        "fromImage": reference.name_only().familiar,
        "tag": reference.digest or reference.tag,
        "platform": platform or None,
    }
    headers = auth_headers(reference.domain)
    show_messages(client.call("POST", "/images/create", query, headers=headers), out)


def pull(call: Invocation) -> int:
    """Brings an image, or all of a repository."""
    from tiffin.image.reference import Reference

    options = call.options
    reference = Reference.parse(call.arguments[0])
    everything = options["all-tags"]
    if everything and not reference.is_name_only:
        raise CommandError("tag can't be used with --all-tags/-a")
    quiet = options["quiet"]
    if reference.is_name_only and not everything:
        reference = reference.with_default_tag()
        if not quiet:
            print(f"Using default tag: {reference.tag}", flush=True)
    query = {
        "fromImage": reference.name_only().familiar,
        "tag": None if everything else reference.digest or reference.tag,
        "platform": options["platform"] or None,
        "why": options["why"],
    }
    response = call.client.call(
        "POST", "/images/create", query, headers=auth_headers(reference.domain)
    )
    answers: list[Any] = []
    if quiet:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            show_messages(response, nowhere, aux=answers.append)
    else:
        show_messages(response, sys.stdout, aux=answers.append)
    for answer in answers:
        if "Why" in answer:
            sys.stdout.write(_explanation(answer["Why"]))
    print(reference.canonical)
    return 0


def _explanation(why: dict[str, Any]) -> str:
    """What a pull cost, layer by layer."""
    words = {"here": "here already", "shared": "shared with another image", "fetched": "new"}
    rows = [["LAYER", "SIZE", "FETCHED", "TIME", "WHY", "CREATED BY"]]
    for layer in why["Layers"]:
        reason = words.get(layer["Origin"], layer["Origin"])
        if layer["Origin"] == "fetched" and why["Previous"]:
            reason = "fetched again" if layer["Before"] else "new since the last pull"
        if layer["Resumed"]:
            reason += f", {human_size(layer['Resumed'])} from an earlier attempt"
        rows.append(
            [
                layer["Digest"].partition(":")[2][:12],
                human_size(layer["Size"]),
                human_size(layer["Fetched"]),
                f"{layer['Seconds']:.1f}s" if layer["Origin"] == "fetched" else "-",
                reason,
                ellipsis(layer["CreatedBy"], 45),
            ]
        )
    total = f"{human_size(why['Fetched'])} of {human_size(why['Size'])} fetched\n"
    return columns(rows) + total


def push(call: Invocation) -> int:
    """Pushes an image, or all of a repository."""
    from tiffin.image.reference import Reference

    options = call.options
    reference = Reference.parse(call.arguments[0])
    if reference.digest is not None:
        raise CommandError("cannot push a digest reference")
    everything = options["all-tags"]
    if everything and reference.tag is not None:
        raise CommandError("tag can't be used with --all-tags/-a")
    quiet = options["quiet"]
    if reference.tag is None and not everything:
        reference = reference.with_default_tag()
        if not quiet:
            print(f"Using default tag: {reference.tag}", flush=True)
    query = {
        "tag": reference.tag,
        "compression": options["compression"] or None,
        "compression-level": options["compression-level"],
    }
    name = escape(reference.name_only().familiar)
    headers = auth_headers(reference.domain)
    response = call.client.call("POST", f"/images/{name}/push", query, headers=headers)
    if quiet:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            show_messages(response, nowhere)
        print(reference.canonical)
    else:
        show_messages(response, sys.stdout)
    return 0


# Credentials


def _secret(prompt: str) -> str:
    from getpass import getpass

    return getpass(prompt)


def login(call: Invocation) -> int:
    """Checks credentials with the registry and keeps them."""
    from tiffin.registry.credentials import Credentials, CredentialsFile, host_of, key_of

    options = call.options
    domain = host_of(call.arguments[0]) if call.arguments else _HUB
    user, password = options["username"], options["password"]
    if options["password-stdin"]:
        if password:
            raise CommandError("conflicting options: --password and --password-stdin")
        if not user:
            raise CommandError("the --password-stdin option requires --username")
        password = sys.stdin.read().rstrip("\r\n")
    elif password:
        report("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
    file = CredentialsFile()
    known = None if user or password else file.get(domain)
    if known is None:
        if not user or not password:
            if not sys.stdin.isatty():
                raise CommandError(
                    "Error: Cannot perform an interactive login from a non TTY device"
                )
            user = user or input("Username: ").strip()
            password = password or _secret("Password: ")
        if not user or not password:
            raise CommandError("Error: username and password are needed")
        known = Credentials(user, password)
    body = {
        "username": known.username,
        "password": known.password,
        "identitytoken": known.identity_token,
        "serveraddress": key_of(domain),
    }
    try:
        answer = call.client.post("/auth", body)
    except DaemonError as error:
        raise (Unauthorized if error.http_status == 401 else CommandError)(error.message) from None
    token = str(answer.get("IdentityToken") or "")
    if token:
        known = Credentials(known.username, "", token)
    helper = file.store(domain, known)
    if not helper:
        report(
            f"WARNING! The credentials are stored unencrypted in '{file.path}'.\n"
            "Configure a credential helper (credsStore) to keep them elsewhere."
        )
    print(answer.get("Status") or "Login Succeeded")
    return 0


def logout(call: Invocation) -> int:
    """Forgets the credentials of a registry."""
    from tiffin.registry.credentials import CredentialsFile, host_of, key_of

    domain = host_of(call.arguments[0]) if call.arguments else _HUB
    shown = key_of(domain)
    if CredentialsFile().erase(domain):
        print(f"Removing login credentials for {shown}")
    else:
        print(f"Not logged in to {shown}")
    return 0


# Search


def _listing(truncate: bool) -> Listing:
    def description(row: dict[str, Any]) -> str:
        text = " ".join(row["description"].split())
        return ellipsis(text, 45) if truncate else text

    return Listing(
        "*formatter.searchContext",
        {
            "Name": ("NAME", lambda row: row["name"]),
            "Description": ("DESCRIPTION", description),
            "StarCount": ("STARS", lambda row: str(row["star_count"])),
            "IsOfficial": ("OFFICIAL", lambda row: "[OK]" if row["is_official"] else ""),
        },
    )


def search(call: Invocation) -> int:
    """Searches a registry for images."""
    from json import dumps

    options = call.options
    given = filters(options["filter"])
    term = call.arguments[0]
    first = term.partition("/")[0]
    domain = first if "." in first or ":" in first else _HUB
    response = call.client.call(
        "GET",
        "/images/search",
        {
            "term": term,
            "limit": options["limit"],
            "filters": dumps(given) if given else None,
        },
        headers=auth_headers(domain),
    )
    rows = response.json()
    names = ("Name", "Description", "StarCount", "IsOfficial")
    _listing(not options["no-trunc"]).show(rows, options["format"], names)
    return 0


_ALL_TAGS = "All tags of the repository"
PULL = Command(
    pull,
    "Bring an image from a registry",
    "[OPTIONS] NAME[:TAG|@DIGEST]",
    (
        Flag("all-tags", BOOL, _ALL_TAGS, short="a"),
        Flag("platform", STRING, "For another platform (os/architecture[/variant])"),
        Flag("quiet", BOOL, "Show no progress", short="q"),
        Flag("why", BOOL, "Say which layers were new, and what they cost"),
    ),
    minimum=1,
    maximum=1,
)
PUSH = Command(
    push,
    "Store an image in a registry",
    "[OPTIONS] NAME[:TAG]",
    (
        Flag("all-tags", BOOL, _ALL_TAGS, short="a"),
        Flag("compression", STRING, "Pack layers so (gzip, zstd, none)"),
        Flag("compression-level", INT, "How hard to pack (gzip: 0 to 9, zstd: 1 to 22)"),
        Flag("quiet", BOOL, "Show no progress", short="q"),
    ),
    minimum=1,
    maximum=1,
)
LOGIN = Command(
    login,
    "Log in to a registry",
    "[OPTIONS] [SERVER]",
    (
        Flag("password", STRING, "Password or token", short="p"),
        Flag("password-stdin", BOOL, "Take the password from stdin"),
        Flag("username", STRING, "Username", short="u"),
    ),
    maximum=1,
)
LOGOUT = Command(logout, "Log out from a registry", "[SERVER]", maximum=1)
SEARCH = Command(
    search,
    "Search a registry for images",
    "[OPTIONS] TERM",
    (
        Flag("filter", FILTERS, "Show only what fits (name=value)", short="f"),
        FORMAT,
        Flag("limit", INT, "At most so many results"),
        Flag("no-trunc", BOOL, "Cut nothing short"),
    ),
    minimum=1,
    maximum=1,
)
