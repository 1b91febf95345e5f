"""``inspect``: everything the daemon says about containers, images and volumes."""

from __future__ import annotations

import sys

from tiffin.cli.command import Command, CommandError, Invocation, report
from tiffin.cli.flags import BOOL, STRING, Flag
from tiffin.client.connection import DaemonError, escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tiffin.client.connection import Client

_KINDS = ("container", "image", "network", "volume")


def _paths(kind: str, name: str) -> str:
    quoted = escape(name)
    return {
        "container": f"/containers/{quoted}/json",
        "image": f"/images/{quoted}/json",
        "network": f"/networks/{quoted}",
        "volume": f"/volumes/{quoted}",
    }[kind]


def _find(client: Client, name: str, kinds: tuple[str, ...], size: bool) -> Any:
    for kind in kinds:
        query = {"size": size} if kind == "container" and size else {}
        try:
            return client.get(_paths(kind, name), **query)
        except DaemonError as error:
            # A daemon without networks answers 501; a name that is none of a volume's, 400.
            if len(kinds) == 1 or error.http_status not in (400, 404, 501):
                raise
    what = kinds[0] if len(kinds) == 1 else "object"
    raise CommandError(f"Error: No such {what}: {name}")


def _inspect(call: Invocation, kinds: tuple[str, ...]) -> int:
    options = call.options
    size = bool(options.get("size"))
    found: list[Any] = []
    errors: list[str] = []
    for name in call.arguments:
        try:
            found.append(_find(call.client, name, kinds, size))
        except (CommandError, DaemonError) as error:
            errors.append(error.message)
    code = _show(options["format"], found)
    for message in errors:
        report(message)
    return 1 if errors else code


def _show(form: str, found: list[Any]) -> int:
    from json import dumps

    if not form:
        text = dumps(found, indent=4, ensure_ascii=False) if found else "[]"
        sys.stdout.write(text + "\n")
        return 0
    if form == "json":
        from tiffin.cli.gotemplate import json_of

        sys.stdout.write(json_of(found) + "\n")
        return 0
    from tiffin.cli.gotemplate import Template, TemplateError
    from tiffin.cli.listing import unescape

    try:
        template = Template(unescape(form))
        for item in found:
            sys.stdout.write(template.render(item) + "\n")
    except TemplateError as error:
        sys.stdout.write("\n")
        report(f"template parsing error: {error}")
        return 1
    return 0


def inspect(call: Invocation) -> int:
    """Shows containers, images, networks or volumes, whichever has the name."""
    kind = call.options["type"]
    if kind and kind not in _KINDS:
        known = ", ".join(f'"{each}"' for each in _KINDS)
        raise CommandError(f'unknown type: "{kind}": must be one of {known}')
    return _inspect(call, (kind,) if kind else _KINDS)


def _of(kind: str) -> Callable[[Invocation], int]:
    def run(call: Invocation) -> int:
        return _inspect(call, (kind,))

    return run


_FORMAT = Flag("format", STRING, "json, or a Go template", short="f")
_SIZE = Flag("size", BOOL, "Show how large containers are", short="s")

INSPECT = Command(
    inspect,
    "Show everything about containers, images or volumes",
    "[OPTIONS] NAME|ID [NAME|ID...]",
    (_FORMAT, _SIZE, Flag("type", STRING, "Look only for things of this type")),
    minimum=1,
)
CONTAINER_INSPECT = Command(
    _of("container"),
    "Show everything about containers",
    "[OPTIONS] CONTAINER [CONTAINER...]",
    (_FORMAT, _SIZE),
    minimum=1,
)
IMAGE_INSPECT = Command(
    _of("image"),
    "Show everything about images",
    "[OPTIONS] IMAGE [IMAGE...]",
    (_FORMAT,),
    minimum=1,
)
NETWORK_INSPECT = Command(
    _of("network"),
    "Show everything about networks",
    "[OPTIONS] NETWORK [NETWORK...]",
    (_FORMAT, Flag("verbose", BOOL, "Accepted: there is nothing more to show", short="v")),
    minimum=1,
)
VOLUME_INSPECT = Command(
    _of("volume"),
    "Show everything about volumes",
    "[OPTIONS] VOLUME [VOLUME...]",
    (_FORMAT,),
    minimum=1,
)
