"""Storage drivers: migrate, check, benchmark."""

from __future__ import annotations

import sys

from tiffin.cli.command import Command, CommandError, Invocation
from tiffin.cli.flags import BOOL, LIST, STRING, Flag
from tiffin.cli.progress import show_messages


def migrate(call: Invocation) -> int:
    """Moves all images and containers to another driver."""
    to = call.options["to"]
    if not to:
        raise CommandError("say where to: --to DRIVER (overlay2, btrfs, vfs…)")
    query = {"to": to, "options": ",".join(call.options["storage-opt"]) or None}
    show_messages(call.client.call("POST", "/storage/migrate", query), sys.stdout)
    return 0


def check(call: Invocation) -> int:
    """Compares every layer with its index."""
    query = {"repair": "1" if call.options["repair"] else None}
    headers = {}
    if call.options["repair"]:
        from tiffin.cli.registries import every_auth_header

        headers = every_auth_header()
    answer = call.client.call("POST", "/storage/check", query, headers=headers)
    show_messages(answer, sys.stdout)
    return 0


def benchmark(call: Invocation) -> int:
    """Measures the drivers on this machine's disk."""
    query = {"short": "1" if call.options["short"] else None}
    show_messages(call.client.call("POST", "/storage/benchmark", query), sys.stdout)
    return 0


MIGRATE = Command(
    migrate,
    "Move all images and containers to another storage driver",
    "--to DRIVER [OPTIONS]",
    (
        Flag("to", STRING, "The driver (overlay2, btrfs, fuse-overlayfs, devicemapper, zfs, vfs…)"),
        Flag("storage-opt", LIST, "Option of that driver (zfs.fsname=tank)"),
    ),
    maximum=0,
)
CHECK = Command(
    check,
    "Compare every file of every layer with what it should be",
    "[OPTIONS]",
    (
        Flag(
            "repair",
            BOOL,
            "Put right what can be, from other layers and from registries",
        ),
    ),
    maximum=0,
)
BENCHMARK = Command(
    benchmark,
    "Measure the storage drivers on this machine's disk, and recommend one",
    "[OPTIONS]",
    (Flag("short", BOOL, "A sixteenth as much"),),
    maximum=0,
)
