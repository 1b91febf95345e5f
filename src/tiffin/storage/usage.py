"""How much room a snapshot takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot's own files take: ``size`` in bytes (apparent sizes of everything but
    directories and whiteouts, a hard-linked file once), ``inodes`` in files and directories."""

    size: int
    inodes: int
