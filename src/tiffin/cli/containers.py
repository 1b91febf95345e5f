"""Commands on containers that exist: stop, kill, rm, wait, top, diff, commit and the like."""

from __future__ import annotations

import sys

from tiffin.cli import values
from tiffin.cli.command import Command, CommandError, Invocation, report
from tiffin.cli.flags import BOOL, INT, LIST, STRING, Flag
from tiffin.cli.tables import columns
from tiffin.client.connection import DaemonError, escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_MANY = "[OPTIONS] CONTAINER [CONTAINER...]"
_CHANGES = {0: "C", 1: "A", 2: "D"}


def _each_post(call: Invocation, verb: str, **query: Any) -> int:
    def action(name: str) -> None:
        call.client.post(f"/containers/{escape(name)}/{verb}", **query)
        print(name, flush=True)

    return call.each(action)


def _simple(verb: str) -> Callable[[Invocation], int]:
    return lambda call: _each_post(call, verb)


def stop(call: Invocation) -> int:
    """Stops containers: their stop signal, then after the timeout a kill."""
    return _each_post(call, "stop", **_timeout(call))


def restart(call: Invocation) -> int:
    """Stops and starts containers."""
    return _each_post(call, "restart", **_timeout(call))


def _timeout(call: Invocation) -> dict[str, Any]:
    options = call.options
    seconds = options["time"] if "time" in options.given else options["timeout"]
    return {"signal": options["signal"] or None, "t": seconds}


def kill(call: Invocation) -> int:
    """Sends containers a signal."""
    return _each_post(call, "kill", signal=call.options["signal"] or "SIGKILL")


def rename(call: Invocation) -> int:
    """Gives a container another name."""
    old, new = call.arguments
    if not old.strip() or not new.strip():
        raise CommandError("Error: Neither old nor new names may be empty")
    try:
        call.client.post(f"/containers/{escape(old)}/rename", name=new)
    except DaemonError as error:
        report(error.message)
        raise CommandError(f"Error: failed to rename container named {old}") from None
    return 0


def remove(call: Invocation) -> int:
    """Removes containers."""
    options = call.options

    def action(name: str) -> None:
        if not name.strip("/"):
            raise CommandError("Container name cannot be empty")
        try:
            call.client.delete(
                f"/containers/{escape(name.strip('/'))}",
                v=options["volumes"],
                link=options["link"],
                force=options["force"],
            )
        except DaemonError as error:
            if not (options["force"] and error.http_status == 404):
                raise
            # Gone is what was wanted.
            report(error.message)
            return
        print(name, flush=True)

    return call.each(action)


def wait(call: Invocation) -> int:
    """Waits until containers stop and prints their exit codes."""
    condition = call.options["condition"] or None

    def action(name: str) -> None:
        answer = call.client.post(f"/containers/{escape(name)}/wait", condition=condition)
        message = (answer.get("Error") or {}).get("Message")
        if message:
            report(message)
        print(answer["StatusCode"], flush=True)

    return call.each(action)


def top(call: Invocation) -> int:
    """Shows the processes of a container."""
    name, arguments = call.arguments[0], call.arguments[1:]
    answer = call.client.get(f"/containers/{escape(name)}/top", ps_args=" ".join(arguments) or None)
    sys.stdout.write(columns([answer["Titles"], *(answer["Processes"] or ())], minimum=20))
    return 0


def diff(call: Invocation) -> int:
    """Shows what a container added (A), changed (C) and deleted (D)."""
    changes = call.client.get(f"/containers/{escape(call.arguments[0])}/changes")
    for change in changes or ():
        print(_CHANGES[change["Kind"]], change["Path"])
    return 0


def port(call: Invocation) -> int:
    """Shows where the ports of a container are published."""
    name = call.arguments[0]
    found = call.client.get(f"/containers/{escape(name)}/json")
    published = (found.get("NetworkSettings") or {}).get("Ports") or {}
    if len(call.arguments) == 1:
        lines = [
            f"{port} -> {_host(binding)}"
            for port, bindings in published.items()
            for binding in bindings or ()
        ]
        sys.stdout.writelines(line + "\n" for line in sorted(lines))
        return 0
    wanted = call.arguments[1]
    key = wanted if "/" in wanted else f"{wanted}/tcp"
    bindings = published.get(key)
    if not bindings:
        raise CommandError(f"Error: No public port '{wanted}' published for {name}")
    sys.stdout.writelines(_host(binding) + "\n" for binding in bindings)
    return 0


def _host(binding: dict[str, str]) -> str:
    address = binding["HostIp"]
    return (
        f"[{address}]:{binding['HostPort']}"
        if ":" in address
        else (f"{address}:{binding['HostPort']}")
    )


def commit(call: Invocation) -> int:
    """Makes an image out of a container and prints its ID."""
    options = call.options
    repository, tag = "", ""
    if len(call.arguments) > 1:
        repository, tag = split_name(call.arguments[1])
    answer = call.client.post(
        "/commit",
        container=call.arguments[0],
        repo=repository or None,
        tag=tag or None,
        comment=options["message"] or None,
        author=options["author"] or None,
        changes=options["change"] or None,
        pause="1" if options["pause"] else "0",
    )
    print(answer["Id"])
    return 0


def split_name(name: str) -> tuple[str, str]:
    """An image's name as repository and tag; the tag may be empty."""
    head, colon, tag = name.rpartition(":")
    if not colon or "/" in tag or "@" in name:
        return name, ""
    return head, tag


def prune(call: Invocation) -> int:
    """Removes all stopped containers."""
    from tiffin.cli.pruning import prune_one

    return prune_one(
        call,
        "containers",
        "WARNING! This will remove all stopped containers.",
        "Deleted Containers:",
    )


def update(call: Invocation) -> int:
    """Changes limits of containers."""
    options = call.options
    body: dict[str, Any] = {
        field: options[name] for name, field in _UPDATES.items() if name in options.given
    }
    if "restart" in options.given:
        body["RestartPolicy"] = values.restart_policy(options["restart"])
    if not body:
        raise CommandError("you must provide one or more flags when using this command")

    def action(name: str) -> None:
        answer = call.client.post(f"/containers/{escape(name)}/update", body)
        for warning in (answer or {}).get("Warnings") or ():
            report(warning)
        print(name, flush=True)

    return call.each(action)


_UPDATES = {
    "blkio-weight": "BlkioWeight",
    "cpu-period": "CpuPeriod",
    "cpu-quota": "CpuQuota",
    "cpu-shares": "CpuShares",
    "cpus": "NanoCpus",
    "cpuset-cpus": "CpusetCpus",
    "cpuset-mems": "CpusetMems",
    "memory": "Memory",
    "memory-reservation": "MemoryReservation",
    "memory-swap": "MemorySwap",
    "pids-limit": "PidsLimit",
}

_SIGNAL = Flag("signal", STRING, "Signal to send", short="s")
_STOPPING = (
    _SIGNAL,
    Flag("timeout", INT, "Seconds to wait before killing", short="t"),
    Flag("time", INT, "Same as --timeout"),
)

STOP = Command(stop, "Stop running containers", _MANY, _STOPPING, minimum=1)
RESTART = Command(restart, "Stop and start containers", _MANY, _STOPPING, minimum=1)
KILL = Command(kill, "Send a signal to containers", _MANY, (_SIGNAL,), minimum=1)
PAUSE = Command(
    _simple("pause"),
    "Freeze all processes of containers",
    "CONTAINER [CONTAINER...]",
    minimum=1,
)
UNPAUSE = Command(
    _simple("unpause"),
    "Let frozen containers go on",
    "CONTAINER [CONTAINER...]",
    minimum=1,
)
RENAME = Command(
    rename, "Give a container another name", "CONTAINER NEW_NAME", minimum=2, maximum=2
)
RM = Command(
    remove,
    "Remove containers",
    _MANY,
    (
        Flag("force", BOOL, "Kill containers that run, ignore those that don't exist", short="f"),
        Flag("link", BOOL, "Remove the link of that name", short="l"),
        Flag("volumes", BOOL, "Remove anonymous volumes too", short="v"),
    ),
    minimum=1,
)
WAIT = Command(
    wait,
    "Wait until containers stop, print their exit codes",
    "[OPTIONS] CONTAINER [CONTAINER...]",
    (Flag("condition", STRING, "What to wait for: not-running, next-exit, removed"),),
    minimum=1,
)
TOP = Command(
    top,
    "Show the processes of a container",
    "CONTAINER [ps OPTIONS]",
    minimum=1,
    interspersed=False,
)
DIFF = Command(
    diff,
    "Show what a container changed in its file system",
    "CONTAINER",
    minimum=1,
    maximum=1,
    notes="Each line is A (added), C (changed) or D (deleted) and a path.",
)
PORT = Command(
    port,
    "Show the ports of a container",
    "CONTAINER [PRIVATE_PORT[/PROTO]]",
    minimum=1,
    maximum=2,
)
COMMIT = Command(
    commit,
    "Make an image out of what a container changed",
    "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
    (
        Flag("author", STRING, "Who made the image", short="a"),
        Flag("change", LIST, "Apply an instruction of Dockerfiles to the image", short="c"),
        Flag("message", STRING, "What the image is", short="m"),
        Flag("pause", BOOL, "Freeze the container meanwhile", short="p", default=True),
    ),
    minimum=1,
    maximum=2,
)
PRUNE = Command(
    prune,
    "Remove all stopped containers",
    "[OPTIONS]",
    (
        Flag("filter", values.FILTERS, "Remove only what fits (until=…, label=…)"),
        Flag("force", BOOL, "Do not ask", short="f"),
    ),
    maximum=0,
)
UPDATE = Command(
    update,
    "Change the limits of containers",
    _MANY,
    (
        Flag("blkio-weight", INT, "Share of block I/O (10 to 1000)"),
        Flag("cpu-period", INT, "Period of the CPU quota in microseconds"),
        Flag("cpu-quota", INT, "CPU time in each period in microseconds"),
        Flag("cpu-shares", INT, "Share of the CPUs, relative to others", short="c"),
        Flag("cpus", values.DECIMAL, "Number of CPUs"),
        Flag("cpuset-cpus", STRING, "CPUs to run on (0-3, 0,1)"),
        Flag("cpuset-mems", STRING, "Memory nodes to use (0-3, 0,1)"),
        Flag("memory", values.BYTES, "Memory limit", short="m"),
        Flag("memory-reservation", values.BYTES, "Soft limit of memory"),
        Flag("memory-swap", values.SWAP, "Limit of memory and swap together, -1 for none"),
        Flag("pids-limit", INT, "Number of processes, -1 for no limit"),
        Flag("restart", STRING, "When to start again after an exit"),
    ),
    minimum=1,
)
