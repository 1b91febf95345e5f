"""``build``: a Dockerfile and its context to an image.

The context is a folder, or a tar (or a lone Dockerfile) on stdin. A tiffin daemon on this machine
reads the folder in place; any other gets it as a tar, without what ``.dockerignore`` names.
"""

from __future__ import annotations

import os
import sys

from tiffin.cli import values
from tiffin.cli.build_output import Output, discard, write_metadata
from tiffin.cli.build_query import build_query
from tiffin.cli.command import Command, CommandError, Invocation
from tiffin.cli.flags import BOOL, INT, LIST, STRING, Flag
from tiffin.cli.progress import show_messages
from tiffin.cli.registries import every_auth_header
from tiffin.cli.sources import post_source
from tiffin.client.sources import folder_tar, ignored_names
from tiffin.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tiffin.client.connection import Response

_REMOTE = ("http://", "https://", "git://", "ssh://", "git@", "github.com/")
_MODES = ("auto", "tty", "plain", "rawjson", "quiet")
_TAR_MAGICS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")


def _query(call: Invocation, dockerfile: str) -> dict[str, Any]:
    query = build_query(call, dockerfile)
    options = call.options
    if call.client.is_tiffin():
        query.update(excerpt="1", **{"as-docker": "0"})
        if _mode(call) in ("tty", "rawjson"):
            query["events"] = "1"
        if options["debug"]:
            query["debug"] = "tty" if sys.stdin.isatty() and sys.stdout.isatty() else "plain"
        if options["check"]:
            query["check"] = "1"
    return query


def _mode(call: Invocation) -> str:
    """How progress is shown."""
    mode: str = call.options["progress"] or os.environ.get("BUILDKIT_PROGRESS", "") or "auto"
    if call.options["quiet"]:
        return "quiet"
    if mode not in _MODES:
        raise CommandError(f"invalid progress mode {mode!r}: one of {', '.join(_MODES)}")
    if mode == "auto":
        drawn = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        return "tty" if drawn and call.client.is_tiffin() else "plain"
    return mode


def _send(call: Invocation) -> Response:
    """Sends the context in the way that fits and returns the answer's stream."""
    context = call.arguments[0]
    dockerfile: str = call.options["file"]
    if context == "-":
        if dockerfile == "-":
            raise CommandError(
                "invalid argument: can't use stdin for both build context and dockerfile"
            )
        return _send_stdin(call, dockerfile)
    if context.startswith(_REMOTE):
        query = {**_query(call, dockerfile), "remote": context}
        if dockerfile == "-":
            return call.client.upload(
                "POST", "/build", query, _rest(b""), headers=every_auth_header()
            )
        return call.client.call("POST", "/build", query, headers=every_auth_header())
    if not os.path.isdir(context):
        raise CommandError(f'unable to prepare context: path "{context}" not found')
    return _send_folder(call, context, dockerfile)


def _send_folder(call: Invocation, context: str, dockerfile: str) -> Response:
    folder = os.path.realpath(context)
    if dockerfile == "-":
        name, extra = ".dockerfile.stdin", sys.stdin.buffer.read()
    else:
        name, extra = _dockerfile(folder, dockerfile)
    query = _query(call, name)
    if extra is None:
        response = post_source(
            call.client, call.endpoint, folder, "/build", query, every_auth_header()
        )
        if response is not None:
            return response
    ignored = ignored_names(folder, name)
    parts = folder_tar(folder, ignored)
    if extra is not None:
        parts = _with_file(name, extra, parts)
    if not call.options["quiet"]:
        parts = _counted(parts)
    return call.client.upload("POST", "/build", query, parts, headers=every_auth_header())


def _dockerfile(folder: str, given: str) -> tuple[str, bytes | None]:
    """The Dockerfile's name in the context, and its content when it lies outside."""
    if not given:
        path = os.path.join(folder, "Dockerfile")
        if not os.path.exists(path) and os.path.exists(os.path.join(folder, "dockerfile")):
            path = os.path.join(folder, "dockerfile")
    elif os.path.isabs(given):
        path = given
    else:
        # As docker does: against the context first, then against the current folder.
        path = os.path.join(folder, given)
        if not os.path.exists(path):
            path = os.path.abspath(given)
    if not os.path.exists(path):
        shown = os.path.join(folder, given or "Dockerfile")
        raise CommandError(
            "unable to prepare context: unable to evaluate symlinks in Dockerfile path: "
            f"lstat {shown}: no such file or directory"
        )
    real = os.path.realpath(path)
    inside = os.path.relpath(real, folder)
    if inside == ".." or inside.startswith("../"):
        with open(real, "rb") as file:
            return f".dockerfile.{os.getpid():x}", file.read()
    return inside, None


def _counted(parts: Iterator[bytes]) -> Iterator[bytes]:
    total = 0
    terminal = sys.stdout.isatty()
    for part in parts:
        total += len(part)
        if terminal:
            sys.stdout.write(f"\rSending build context  {human_size(total)}\x1b[K")
            sys.stdout.flush()
        yield part
    start = "\r" if terminal else ""
    end = "\x1b[K\n" if terminal else "\n"
    sys.stdout.write(f"{start}Sending build context  {human_size(total)}{end}")
    sys.stdout.flush()


def _send_stdin(call: Invocation, dockerfile: str) -> Response:
    """Stdin is a tar, or else the Dockerfile itself, with an empty context."""
    head = b""
    while len(head) < 512:
        part = os.read(0, 65536)
        if not part:
            break
        head += part
    if _is_archive(head):
        return call.client.upload(
            "POST", "/build", _query(call, dockerfile), _rest(head), headers=every_auth_header()
        )
    if dockerfile:
        raise CommandError("unable to prepare context: stdin is no tar, so -f names no file in it")
    text = b"".join(_rest(head))
    if not text.strip():
        raise CommandError("unable to prepare context: the Dockerfile (stdin) is empty")
    return call.client.upload(
        "POST",
        "/build",
        _query(call, "Dockerfile"),
        _with_file("Dockerfile", text, None),
        headers=every_auth_header(),
    )


def _is_archive(head: bytes) -> bool:
    return head.startswith(_TAR_MAGICS) or head[257:262] == b"ustar"


def _rest(head: bytes) -> Iterator[bytes]:
    yield head
    while part := os.read(0, 1 << 20):
        yield part


def _with_file(name: str, content: bytes, parts: Iterator[bytes] | None) -> Iterator[bytes]:
    """A tar that has one more file, in front of the others."""
    import tarfile

    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = 0o644
    yield entry.tobuf(tarfile.PAX_FORMAT)
    yield content + b"\0" * (-len(content) % 512)
    if parts is None:
        yield b"\0" * 1024
    else:
        yield from parts


def build(call: Invocation) -> int:
    """Builds an image and prints what the daemon tells about it."""
    options = call.options
    outputs = [Output(text) for text in options["output"]]
    if options["push"]:
        outputs.append(Output("type=registry"))
    names = [name for output in outputs for name in output.tags]
    options["tag"].extend(name for name in dict.fromkeys(names) if name not in options["tag"])
    if any(output.pushed for output in outputs) and not options["tag"]:
        raise CommandError("tag is needed when pushing to registry")
    if options["check"]:
        return _check(call)
    answers: dict[str, str] = {}
    mode = "quiet" if any(each.to_stdout for each in outputs) else _mode(call)
    response = _send(call)
    try:
        _show(response, mode, answers)
    except CommandError as failure:
        if "Failed" in answers:
            from tiffin.cli.build_debug import look_inside

            return look_inside(call, answers["Failed"], failure)
        raise
    identifier = answers.get("ID", "")
    if mode == "quiet" and not any(each.to_stdout for each in outputs):
        print(identifier)
    if options["iidfile"]:
        if not identifier:
            raise CommandError(f"the daemon named no image to write to {options['iidfile']}")
        with open(options["iidfile"], "w", encoding="ascii") as file:
            file.write(identifier)
    for output in outputs:
        output.write(call, identifier, quiet=mode in ("quiet", "rawjson"))
    if options["metadata-file"]:
        digest = next((output.digest for output in outputs if output.digest), "")
        write_metadata(call, options["metadata-file"], identifier, digest)
    if outputs and not options["tag"] and not any(each.stays for each in outputs):
        discard(call, identifier)
    return 0


def _show(response: Response, mode: str, answers: dict[str, str]) -> None:
    if mode == "tty":
        from tiffin.cli.build_display import show_events

        show_events(response, aux=answers.update)
    elif mode == "rawjson":
        from tiffin.cli.build_display import show_raw

        show_raw(response, aux=answers.update)
    elif mode == "quiet":
        from io import StringIO

        held = StringIO()
        try:
            show_messages(response, held, aux=answers.update)
        except CommandError:
            sys.stderr.write(held.getvalue())
            raise
    else:
        show_messages(response, sys.stdout, aux=answers.update)


def _check(call: Invocation) -> int:
    """Prints what is questionable in the Dockerfile; 1 if there is anything."""
    if not call.client.is_tiffin():
        raise CommandError("--check needs a daemon of tiffin's")
    answer = _send(call).json()
    findings = answer["Findings"]
    if not findings:
        print("Check complete, no warnings found.")
        return 0
    some = "1 warning has" if len(findings) == 1 else f"{len(findings)} warnings have"
    print(f"Check complete, {some} been found!\n\n{answer['Text']}")
    return 1


BUILD = Command(
    build,
    "Build an image from a Dockerfile",
    "[OPTIONS] PATH | URL | -",
    (
        Flag("allow", LIST, "Allow what RUN asks for (network.host, security.insecure)"),
        Flag("annotation", LIST, "Add an annotation to the image's manifest (name=value)"),
        Flag("add-host", values.HOSTS, "Add a line to /etc/hosts of RUN (name:address)"),
        Flag("build-arg", LIST, "Set a build argument (name=value, or name from here)"),
        Flag(
            "build-context",
            LIST,
            "A further context (name=FOLDER, URL, docker-image:// or oci-layout://)",
        ),
        Flag(
            "cache-from",
            LIST,
            "Take steps from there (IMAGE, type=registry,ref= or type=local,src=)",
        ),
        Flag(
            "cache-to",
            LIST,
            "Put the cache there (type=registry,ref=, type=local,dest= or inline)",
        ),
        Flag("cgroup-parent", STRING, "Parent of the cgroup of RUN"),
        Flag("cpu-period", INT, "Period of the CPU quota in microseconds"),
        Flag("cpu-quota", INT, "CPU time in each period in microseconds"),
        Flag("cpu-shares", INT, "Share of the CPUs, relative to others", short="c"),
        Flag("cpuset-cpus", STRING, "CPUs to run on (0-3, 0,1)"),
        Flag("cpuset-mems", STRING, "Memory nodes to use (0-3, 0,1)"),
        Flag("check", BOOL, "Say what is questionable in the Dockerfile, and build nothing"),
        Flag("debug", BOOL, "Open a shell in a step that fails"),
        Flag("file", STRING, "Name of the Dockerfile (PATH/Dockerfile)", short="f"),
        Flag("force-rm", BOOL, "Remove intermediate containers even after a failure"),
        Flag("iidfile", STRING, "Write the image's ID to this file"),
        Flag("jobs", INT, "How many stages to build at once"),
        Flag("label", values.LABELS, "Attach a label to the image (name=value)"),
        Flag("memory", values.BYTES, "Memory limit of RUN", short="m"),
        Flag("memory-swap", values.SWAP, "Limit of memory and swap together, -1 for none"),
        Flag("metadata-file", STRING, "Write what was built to this file, as JSON"),
        Flag("network", STRING, "Network of RUN (none, host, …)"),
        Flag("no-cache", BOOL, "Do every step anew"),
        Flag("no-cache-filter", LIST, "Do every step of these stages anew"),
        Flag(
            "output",
            LIST,
            "Where the result goes (type=local, tar, oci, docker, registry)",
            short="o",
        ),
        Flag("platform", STRING, "Platform to build for (os/architecture)"),
        Flag("progress", STRING, "How progress is shown (auto, tty, plain, rawjson, quiet)"),
        Flag("pull", BOOL, "Look for newer versions of the images that the build starts from"),
        Flag("push", BOOL, "Push the image to its registry (--output type=registry)"),
        Flag("quiet", BOOL, "Print only the image's ID", short="q"),
        Flag("rm", BOOL, "Remove intermediate containers", default=True),
        Flag("secret", LIST, "A secret for RUN --mount=type=secret (id=…,src=FILE or env=NAME)"),
        Flag("security-opt", LIST, "Security options of RUN (no-new-privileges, seccomp=…)"),
        Flag("shm-size", values.BYTES, "Size of /dev/shm of RUN"),
        Flag("squash", BOOL, "Put what was built into one layer"),
        Flag("ssh", LIST, "An agent for RUN --mount=type=ssh (default, id=SOCKET or id=KEY,…)"),
        Flag("tag", LIST, "Name the image (name[:tag])", short="t"),
        Flag("target", STRING, "Build only up to this stage"),
        Flag("ulimit", values.ULIMITS, "Limit of each process of RUN (name=soft[:hard])"),
        Flag("verify", BOOL, "Build twice, and name the first file that differs"),
        Flag("why", BOOL, "Say more of why steps did not come from the cache"),
    ),
    minimum=1,
    maximum=1,
)
