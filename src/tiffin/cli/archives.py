"""Images and file systems as archives: save, load, import, export."""

from __future__ import annotations

import os
import sys

from tiffin.cli.command import Command, CommandError, Invocation
from tiffin.cli.containers import split_name
from tiffin.cli.flags import BOOL, LIST, STRING, Flag
from tiffin.cli.progress import show_messages
from tiffin.cli.sources import send_file
from tiffin.cli.terminal import is_terminal
from tiffin.cli.values import platform_object
from tiffin.client.connection import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from tiffin.client.connection import Response


def _download(response: Response, path: str) -> None:
    """Writes an answer to a file, which appears under its name only when it is whole."""
    if not path:
        response.copy_to(1)
        return
    temporary = f"{path}.{os.getpid()}.tmp"
    if os.path.exists(path) and not os.path.isfile(path):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            response.copy_to(fd)
        finally:
            os.close(fd)
        return
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        response.copy_to(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)


def _check_output(path: str, what: str) -> None:
    if not path and is_terminal(1):
        raise CommandError(
            f"cowardly refusing to {what.split()[0]} to a terminal. Use the -o flag or redirect"
        )
    folder = os.path.dirname(path) or "."
    if path and not os.path.isdir(folder):
        raise CommandError(
            f"failed to {what}: invalid output path: stat {folder}: no such file or directory"
        )


def save(call: Invocation) -> int:
    """Writes images to an archive."""
    path = call.options["output"]
    _check_output(path, "save image")
    query = {"names": call.arguments, "platform": platform_object(call.options["platform"])}
    response = call.client.call("GET", "/images/get", query)
    _download(response, path)
    return 0


def export(call: Invocation) -> int:
    """Writes a container's file system as a tar."""
    path = call.options["output"]
    _check_output(path, "export container")
    name = escape(call.arguments[0])
    response = call.client.call("GET", f"/containers/{name}/export")
    _download(response, path)
    return 0


def load(call: Invocation) -> int:
    """Loads the images of an archive."""
    options = call.options
    path = options["input"]
    if not path and is_terminal(0):
        raise CommandError("requested load from stdin, but stdin is empty")
    query = {
        "quiet": "1" if options["quiet"] or not is_terminal(1) else "0",
        "platform": platform_object(options["platform"]),
    }
    response = _send(call, path, "/images/load", query)
    if response.headers.get("content-type", "").startswith("application/json"):
        show_messages(response, sys.stdout)
    else:
        response.copy_to(1)
    return 0


def _send(call: Invocation, path: str, where: str, query: Mapping[str, Any]) -> Response:
    if path:
        return send_file(call.client, call.endpoint, path, where, query)
    return call.client.upload("POST", where, query, 0)


def import_image(call: Invocation) -> int:
    """Makes an image out of a tar of a file system and prints its ID."""
    options = call.options
    source = call.arguments[0]
    query: dict[str, Any] = {
        "fromSrc": "-",
        "message": options["message"] or None,
        "changes": options["change"] or None,
        "platform": options["platform"] or None,
    }
    if len(call.arguments) > 1:
        repository, tag = split_name(call.arguments[1])
        query.update(repo=repository, tag=tag or None)
    if source.startswith(("http://", "https://")):
        query["fromSrc"] = source
        response = call.client.call("POST", "/images/create", query)
    else:
        response = _send(call, "" if source == "-" else source, "/images/create", query)
    show_messages(response, sys.stdout)
    return 0


SAVE = Command(
    save,
    "Write images to an archive",
    "[OPTIONS] IMAGE [IMAGE...]",
    (
        Flag("output", STRING, "Write to this file instead of stdout", short="o"),
        Flag("platform", STRING, "Only if the images are for this platform (os/architecture)"),
    ),
    minimum=1,
)
EXPORT = Command(
    export,
    "Write a container's file system as a tar",
    "[OPTIONS] CONTAINER",
    (Flag("output", STRING, "Write to this file instead of stdout", short="o"),),
    minimum=1,
    maximum=1,
)
LOAD = Command(
    load,
    "Load images from an archive",
    "[OPTIONS]",
    (
        Flag("input", STRING, "Read this file instead of stdin", short="i"),
        Flag("platform", STRING, "Load only images for this platform (os/architecture)"),
        Flag("quiet", BOOL, "Show no progress", short="q"),
    ),
    maximum=0,
)
IMPORT = Command(
    import_image,
    "Make an image out of a tar of a file system",
    "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
    (
        Flag("change", LIST, "Apply an instruction of Dockerfiles to the image", short="c"),
        Flag("message", STRING, "What the image is", short="m"),
        Flag("platform", STRING, "Platform of the image (os/architecture)"),
    ),
    minimum=1,
    maximum=2,
)
