"""Programs for other machines, which the kernel hands to an interpreter (``binfmt_misc``).

A *handler* says which first bytes of a file it takes, and which program runs such a file. With the
flag ``F`` (fix binary) the kernel holds the interpreter open from the beginning, so that it runs in
any mount namespace; without it, it has to be in the container's own files.

Source: ``Documentation/admin-guide/binfmt-misc.rst``; the ELF header of ``elf(5)``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("/proc/sys/fs/binfmt_misc")
_NOT_HANDLERS = ("register", "status")

_MACHINES = {
    "386": (3, 1, "<"),
    "amd64": (62, 2, "<"),
    "arm": (40, 1, "<"),
    "arm64": (183, 2, "<"),
    "loong64": (258, 2, "<"),
    "mips": (8, 1, ">"),
    "mips64": (8, 2, ">"),
    "mips64le": (8, 2, "<"),
    "mipsle": (8, 1, "<"),
    "ppc64": (21, 2, ">"),
    "ppc64le": (21, 2, "<"),
    "riscv64": (243, 2, "<"),
    "s390x": (22, 2, ">"),
}
"""By an image's architecture: ``e_machine``, the class of the ELF file, and its byte order."""


@dataclass(frozen=True, slots=True)
class Handler:
    """One enabled handler that goes by a file's first bytes."""

    name: str
    interpreter: str
    flags: str
    offset: int
    magic: bytes
    mask: bytes

    @property
    def fixed(self) -> bool:
        """Whether the interpreter is open already, and need not be in the container."""
        return "F" in self.flags

    def takes(self, head: bytes) -> bool:
        """Whether it runs a file that begins so."""
        part = head[self.offset : self.offset + len(self.magic)]
        return len(part) == len(self.magic) and all(
            byte & mask == magic & mask
            for byte, magic, mask in zip(part, self.magic, self.mask, strict=True)
        )


def handlers(folder: Path = FOLDER) -> Iterator[Handler]:
    """The handlers that are enabled; none where the kernel has no binfmt_misc, or where it isn't
    mounted."""
    try:
        if (folder / "status").read_text().strip() != "enabled":
            return
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return
    for name in names:
        if name in _NOT_HANDLERS:
            continue
        try:
            handler = _parse(name, (folder / name).read_text())
        except FileNotFoundError:
            continue  # it was removed just now
        if handler is not None:
            yield handler


def _parse(name: str, text: str) -> Handler | None:
    lines = text.splitlines()
    if "enabled" not in lines[:1]:
        return None
    fields: dict[str, str] = {}
    for line in lines[1:]:
        key, _, value = line.partition(" ")
        fields[key.rstrip(":")] = value
    if "magic" not in fields:
        return None  # it goes by the file's name
    magic = bytes.fromhex(fields["magic"])
    mask = bytes.fromhex(fields["mask"]) if "mask" in fields else b"\xff" * len(magic)
    return Handler(
        name,
        fields.get("interpreter", ""),
        fields.get("flags", ""),
        int(fields.get("offset", "0")),
        magic,
        mask,
    )


def handler_of(architecture: str, folder: Path = FOLDER) -> Handler | None:
    """What runs programs for an architecture, as images name it; None for nothing."""
    machine = _MACHINES.get(architecture)
    if machine is None:
        return None
    head = _elf_header(*machine)
    return next((handler for handler in handlers(folder) if handler.takes(head)), None)


def _elf_header(machine: int, size: int, order: str) -> bytes:
    """The beginning of a program for it: executable, version 1, System V."""
    identity = b"\x7fELF" + bytes((size, 1 if order == "<" else 2, 1)) + bytes(9)
    return identity + struct.pack(f"{order}HHI", 2, machine, 1) + bytes(40)
