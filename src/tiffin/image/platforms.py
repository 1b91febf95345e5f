"""Platforms: the operating system, architecture and variant that an image is made for.

Source: OCI image specification, ``image-index.md``; the names are Go's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from tiffin.errors import InvalidParameter

# What uname calls a machine, and what Go (and so the specification) calls it.
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv8l": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
}

_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386"}
_SYSTEMS = ("linux", "windows", "darwin", "freebsd")


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on; as text ``linux/amd64`` or ``linux/arm/v7``."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def of_host(cls) -> Platform:
        """This machine's; what images made here say of themselves."""
        machine = os.uname().machine
        return cls("linux", *_ARCHITECTURES.get(machine, (machine, "")))

    @classmethod
    def parse(cls, text: str) -> Platform:
        """``os/architecture[/variant]``, or one of the first two alone; this machine's if empty.

        Raises InvalidParameter.
        """
        host = cls.of_host()
        parts = text.lower().split("/")
        if text in ("", *_SYSTEMS):
            return cls(text or host.os, host.architecture, host.variant)
        if len(parts) > 3 or not all(parts):
            raise InvalidParameter(f"invalid platform {text!r}: expected os/architecture[/variant]")
        if len(parts) == 1:
            parts = ["linux", parts[0]]
        architecture = _ALIASES.get(parts[1], parts[1])
        variant = parts[2] if len(parts) == 3 else ""
        if architecture == "arm64" and not variant:
            variant = "v8"
        return cls(parts[0], architecture, variant)

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    def runs(self, other: Platform) -> int:
        """How well an image for ``other`` runs on this platform: 0 not at all, more is better."""
        if (self.os, self.architecture) != (other.os, other.architecture):
            return 0
        if self.variant == other.variant:
            return 3
        # A 32 bit Arm runs images for older variants; a missing variant is anybody's.
        if not other.variant or not self.variant:
            return 2
        return 1 if self.architecture == "arm" and other.variant < self.variant else 0
