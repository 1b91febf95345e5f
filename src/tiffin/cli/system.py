"""The engine as a whole: info, version, system prune, shutdown, and the daemon itself."""

from __future__ import annotations

import os
import sys

from tiffin.cli import values
from tiffin.cli.command import Command, CommandError, Invocation
from tiffin.cli.flags import BOOL, INT, LIST, STRING, Flag
from tiffin.client.connection import Client
from tiffin.errors import TiffinError, Unreachable
from tiffin.units import binary_size, human_size
from tiffin.version import API_VERSION, __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tiffin.client.connection import Response

_GONE_MILLISECONDS = 20_000
"""How long a daemon may take to leave before the command stops waiting for it."""


def _client_version() -> dict[str, str]:
    machine = os.uname().machine
    return {
        "Version": __version__,
        "ApiVersion": API_VERSION,
        "PythonVersion": ".".join(map(str, sys.version_info[:3])),
        "Os": "linux",
        "Arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine),
    }


def version(call: Invocation) -> int:
    """Shows the versions of client and daemon."""
    client = _client_version()
    server: dict[str, Any] | None = None
    failure: TiffinError | None = None
    try:
        server = call.client.get("/version")
    except TiffinError as error:
        failure = error
    form = call.options["format"]
    if form:
        from tiffin.cli.listing import render

        sys.stdout.write(render(form, {"Client": client, "Server": server}))
    else:
        sys.stdout.write(_version_text(client, server))
    if failure is not None:
        raise failure
    return 0


def _version_text(client: dict[str, str], server: dict[str, Any] | None) -> str:
    lines = [
        "Client:",
        f" Version:           {client['Version']}",
        f" API version:       {client['ApiVersion']}",
        f" Python version:    {client['PythonVersion']}",
        f" OS/Arch:           {client['Os']}/{client['Arch']}",
    ]
    if server is not None:
        lines += ["", "Server:"]
        for component in server.get("Components") or [{"Name": "Engine", "Details": {}, **server}]:
            lines += _component(component)
    return "\n".join(lines) + "\n"


def _component(component: dict[str, Any]) -> list[str]:
    details = component.get("Details") or {}
    lines = [f" {component['Name']}:", f"  {'Version:':<18}{component['Version']}"]
    api = details.get("ApiVersion")
    if api:
        lowest = details.get("MinAPIVersion")
        text = f"{api} (minimum version {lowest})" if lowest else api
        lines.append(f"  {'API version:':<18}{text}")
    for name, title in (
        ("GoVersion", "Built with:"),
        ("GitCommit", "Git commit:"),
        ("BuildTime", "Built:"),
    ):
        if details.get(name) and not details[name].startswith("0001-"):
            lines.append(f"  {title:<18}{details[name]}")
    if details.get("Os"):
        lines.append(f"  {'OS/Arch:':<18}{details['Os']}/{details.get('Arch', '')}")
    return lines


def info(call: Invocation) -> int:
    """Shows how the engine is set up."""
    form = call.options["format"]
    client = {"Version": __version__}
    found = call.client.get("/info")
    if form:
        from tiffin.cli.listing import render

        sys.stdout.write(render(form, {**found, "ClientInfo": client}))
        return 0
    sys.stdout.write("\n".join(_info_lines(found)) + "\n")
    for warning in found.get("Warnings") or ():
        sys.stderr.write(warning + "\n")
    return 0


def _info_lines(found: dict[str, Any]) -> list[str]:
    lines = [
        "Client:",
        f" Version:    {__version__}",
        "",
        "Server:",
        f" Containers: {found['Containers']}",
        f"  Running: {found['ContainersRunning']}",
        f"  Paused: {found['ContainersPaused']}",
        f"  Stopped: {found['ContainersStopped']}",
        f" Images: {found['Images']}",
        f" Server Version: {found['ServerVersion']}",
        f" Storage Driver: {found['Driver']}",
        *(f"  {name}: {value}" for name, value in found.get("DriverStatus") or ()),
    ]
    for title, name in (
        ("Logging Driver", "LoggingDriver"),
        ("Cgroup Driver", "CgroupDriver"),
        ("Cgroup Version", "CgroupVersion"),
    ):
        if found.get(name):
            lines.append(f" {title}: {found[name]}")
    plugins = found.get("Plugins") or {}
    if plugins:
        lines.append(" Plugins:")
        lines += [
            f"  {kind}: {' '.join(plugins[kind])}"
            for kind in ("Volume", "Network", "Log")
            if plugins.get(kind)
        ]
    runtimes = " ".join(sorted(found.get("Runtimes") or {}))
    for title, value in (
        ("Runtimes", runtimes),
        ("Default Runtime", found.get("DefaultRuntime")),
        ("Init Binary", found.get("InitBinary")),
    ):
        if value:
            lines.append(f" {title}: {value}")
    if found.get("SecurityOptions"):
        lines.append(" Security Options:")
        lines += [f"  {_security(text)}" for text in found["SecurityOptions"]]
    for title, name in (
        ("Kernel Version", "KernelVersion"),
        ("Operating System", "OperatingSystem"),
        ("OSType", "OSType"),
        ("Architecture", "Architecture"),
        ("CPUs", "NCPU"),
    ):
        lines.append(f" {title}: {found.get(name, '')}")
    lines.append(f" Total Memory: {binary_size(found.get('MemTotal') or 0)}")
    for title, name in (("Name", "Name"), ("ID", "ID"), ("Docker Root Dir", "DockerRootDir")):
        lines.append(f" {title}: {found.get(name, '')}")
    lines.append(f" Debug Mode: {'true' if found.get('Debug') else 'false'}")
    if found.get("Labels"):
        lines += [" Labels:", *(f"  {label}" for label in found["Labels"])]
    lines.append(f" Experimental: {'true' if found.get('ExperimentalBuild') else 'false'}")
    lines += _registry_lines(found.get("RegistryConfig") or {})
    restore = "true" if found.get("LiveRestoreEnabled") else "false"
    return [*lines, f" Live Restore Enabled: {restore}", ""]


def _registry_lines(found: dict[str, Any]) -> list[str]:
    indexes = found.get("IndexConfigs") or {}
    insecure = sorted(name for name, index in indexes.items() if not index.get("Secure"))
    insecure += found.get("InsecureRegistryCIDRs") or ()
    lines = []
    for title, names in (
        ("Insecure Registries", insecure),
        ("Registry Mirrors", found.get("Mirrors") or ()),
    ):
        if names:
            lines += [f" {title}:", *(f"  {name}" for name in names)]
    return lines


def _security(text: str) -> str:
    fields = dict(field.partition("=")[::2] for field in text.split(","))
    name = fields.pop("name", text)
    more = "".join(f"\n   {key.capitalize()}: {value}" for key, value in fields.items() if value)
    return name + more


def prune(call: Invocation) -> int:
    """Removes stopped containers, unused networks and images, and the build cache."""
    from json import dumps

    from tiffin.cli.pruning import confirmed, removed

    options, client = call.options, call.client
    lines = ["WARNING! This will remove:", "  - all stopped containers"]
    lines.append("  - all networks not used by at least one container")
    if options["volumes"]:
        lines.append("  - all anonymous volumes not used by at least one container")
    if options["all"]:
        lines.append("  - all images without at least one container associated to them")
        lines.append("  - all build cache")
    else:
        lines += ["  - all dangling images", "  - unused build cache"]
    if not options["force"] and not confirmed("\n".join(lines) + "\n"):
        return 0
    given = values.filters(options["filter"])
    if options["volumes"] and "until" in given:
        raise CommandError('ERROR: The "until" filter is not supported with "--volumes"')
    labels = {name: each for name, each in given.items() if name != "until"}
    dangling = {"dangling": ["false" if options["all"] else "true"]}
    steps: list[tuple[str, str, dict[str, list[str]], dict[str, Any]]] = [
        ("/containers/prune", "Deleted Containers:", given, {}),
        ("/networks/prune", "Deleted Networks:", given, {}),
        ("/images/prune", "Deleted Images:", {**given, **dangling}, {}),
        ("/build/prune", "Deleted build cache objects:", given, {"all": options["all"]}),
    ]
    if options["volumes"]:
        steps.insert(1, ("/volumes/prune", "Deleted Volumes:", labels, {}))
    total = 0
    for path, title, filters, query in steps:
        answer = client.post(path, filters=dumps(filters) if filters else None, **query)
        total += removed(answer, title)
    print(f"Total reclaimed space: {human_size(total)}")
    return 0


def shutdown(call: Invocation) -> int:
    """Stops the daemon and the keeper; with ``--force``, containers that run before them."""
    options, endpoint = call.options, call.endpoint
    # A keeper can be there without a daemon; only a daemon can stop it.
    alone = endpoint.automatic and os.path.exists(f"{endpoint.root}/keeper/keeper.sock")
    client = Client(endpoint, start=alone and not options["daemon-only"])
    try:
        if options["force"]:
            for item in client.get("/containers/json"):
                client.post(f"/containers/{item['Id']}/stop", t=options["timeout"])
        stopping = client.start(
            "POST", "/tiffin/shutdown", {"keeper": "0" if options["daemon-only"] else "1"}
        )
    except Unreachable:
        print(f"No daemon answers at {endpoint.text}: there is nothing to stop")
        return 0
    _wait_for_exit(stopping)
    stopping.close()
    return 0


def _wait_for_exit(stopping: Response) -> None:
    """Waits until the daemon behind an answer is gone: what comes next finds a free root."""
    import select
    import socket
    import struct

    connection = stopping.socket
    if connection.family == socket.AF_UNIX:
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        try:
            process = os.pidfd_open(struct.unpack("3i", peer)[0])
        except ProcessLookupError:
            return
        try:
            poller = select.poll()
            poller.register(process, select.POLLIN)
            poller.poll(_GONE_MILLISECONDS)
        finally:
            os.close(process)


def serve(call: Invocation) -> int:
    """Runs the daemon in the foreground, until a signal ends it."""
    from tiffin.api.daemon import Access
    from tiffin.api.daemon import serve as serve_root

    options = call.options
    hosts = options["host"] or ([] if call.endpoint.automatic else [call.endpoint.text])
    return serve_root(
        call.endpoint.root,
        hosts,
        on_demand=options["on-demand"],
        storage_driver=options["storage-driver"] or None,
        storage_options=options["storage-opt"],
        ready_fd=options["ready-fd"],
        access=Access(
            group=options["group"],
            authority=options["tlscacert"],
            certificate=options["tlscert"],
            key=options["tlskey"],
            insecure_tcp=options["insecure-tcp"],
        ),
    )


_FORMAT = Flag("format", STRING, "json, or a Go template", short="f")

VERSION = Command(
    version, "Show the versions of client and daemon", "[OPTIONS]", (_FORMAT,), maximum=0
)
INFO = Command(info, "Show how the engine is set up", "[OPTIONS]", (_FORMAT,), maximum=0)
PRUNE = Command(
    prune,
    "Remove everything that is not in use",
    "[OPTIONS]",
    (
        Flag("all", BOOL, "Remove all unused images, not just those without a name", short="a"),
        Flag("filter", values.FILTERS, "Remove only what fits (label=…, until=…)"),
        Flag("force", BOOL, "Do not ask", short="f"),
        Flag("volumes", BOOL, "Remove anonymous volumes too"),
    ),
    maximum=0,
)
SHUTDOWN = Command(
    shutdown,
    "Stop the daemon and the keeper",
    "[OPTIONS]",
    (
        Flag("daemon-only", BOOL, "Leave the keeper, and containers that run, alone"),
        Flag("force", BOOL, "Stop containers that run, too", short="f"),
        Flag("timeout", INT, "Seconds that a container gets to stop by itself", short="t"),
    ),
    maximum=0,
)
SERVE = Command(
    serve,
    "Run the daemon in the foreground",
    "[OPTIONS]",
    (
        Flag("host", LIST, "Listen at this socket (unix:///path, tcp://host:port)", short="H"),
        Flag("group", STRING, "The group that may use the unix socket", short="G"),
        Flag("tlscacert", STRING, "The CA of the clients' certificates, for tcp://"),
        Flag("tlscert", STRING, "The daemon's own certificate, for tcp://"),
        Flag("tlskey", STRING, "The key of the daemon's certificate"),
        Flag("insecure-tcp", BOOL, "Listen on tcp:// without TLS: who reaches it is root here"),
        Flag("on-demand", BOOL, "Leave when there is nothing to do"),
        Flag("storage-driver", STRING, "How new layers are kept (overlay2, btrfs…)", short="s"),
        Flag("storage-opt", LIST, "Option of the storage driver (btrfs.min_space=10g)"),
        Flag("ready-fd", INT, "Say in this descriptor when the daemon is ready"),
    ),
    maximum=0,
)
