"""Which shared libraries a program needs, and where the dynamic loader of this host finds them.

The search is glibc's: a name with a slash is a path; else DT_RPATH of the object and of those that
brought it in (unless it has a DT_RUNPATH), then its DT_RUNPATH, then the loader's cache, then the
system's directories; a file counts only if it is for the same machine. LD_LIBRARY_PATH is left out:
an image does not have it. musl's search comes out the same, as it has no cache.

Source: ld.so(8), ldconfig(8), the System V ABI's chapter on dynamic linking.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

__all__ = ["Binary", "Closure", "Library", "Loader", "read_binary"]

_MAGIC = b"\x7fELF"
_LDCONFIG = ("/sbin/ldconfig", "/usr/sbin/ldconfig")
_LIB_DIRECTORIES = ("/lib", "/usr/lib", "/usr/local/lib")


@dataclass(frozen=True, slots=True)
class Binary:
    """What an ELF file says to the loader."""

    path: str
    machine: tuple[str, int]
    """The machine's name and the width in bits: two files that go together have the same."""
    interpreter: str | None
    """The dynamic loader; None for libraries and static programs."""
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Library:
    """A library as the loader found it."""

    name: str
    path: str
    """As found: maybe through symlinks."""
    by_cache: bool
    """Whether only the loader's cache knows its directory, which an image would lack."""


@dataclass(slots=True)
class Closure:
    """All that a program loads before its first own instruction."""

    libraries: list[Library] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    """Names that are nowhere, each with the path of the one that needs it."""


def read_binary(path: str) -> Binary | None:
    """What the file says to the loader; None if it is no ELF file, or a broken one."""
    with open(path, "rb") as file:
        if file.read(4) != _MAGIC:
            return None
        try:
            elf = ELFFile(file)
            interpreter = None
            tags: dict[str, list[str]] = {"DT_NEEDED": [], "DT_RPATH": [], "DT_RUNPATH": []}
            for segment in elf.iter_segments():
                if isinstance(segment, InterpSegment):
                    interpreter = segment.get_interp_name()
                elif isinstance(segment, DynamicSegment):
                    for tag in segment.iter_tags():
                        kind = tag.entry.d_tag
                        if kind in tags:
                            tags[kind].append(_text(tag, kind))
            return Binary(
                path,
                (str(elf["e_machine"]), elf.elfclass),
                interpreter,
                tuple(tags["DT_NEEDED"]),
                _directories(tags["DT_RPATH"], path),
                _directories(tags["DT_RUNPATH"], path),
            )
        except (ELFError, UnicodeDecodeError, ValueError, KeyError):
            return None


class Loader:
    """The search for libraries on this host."""

    def __init__(self) -> None:
        self._binaries: dict[str, Binary | None] = {}

    def binary(self, path: str) -> Binary | None:
        """``read_binary``, once for each file."""
        real = os.path.realpath(path)
        if real not in self._binaries:
            self._binaries[real] = read_binary(real)
        return self._binaries[real]

    def closure(self, binary: Binary) -> Closure:
        """The libraries that ``binary`` needs, and those that they need, nearest first."""
        closure = Closure()
        seen: set[str] = set()
        # Each object with those that brought it in, itself first.
        queue: list[tuple[Binary, ...]] = [(binary,)]
        for chain in queue:
            for name in chain[0].needed:
                if name in seen:
                    continue
                seen.add(name)
                library = self.find(name, *chain)
                if library is None:
                    closure.missing.append((name, chain[0].path))
                    continue
                closure.libraries.append(library)
                found = self.binary(library.path)
                assert found is not None
                queue.append((found, *chain))
        return closure

    def find(self, name: str, *chain: Binary) -> Library | None:
        """The library that ``chain[0]`` gets for ``name``; the rest of the chain brought it in."""
        needing = chain[0]
        if "/" in name:
            return self._library(name, name, needing)
        for directory in self._own_directories(chain):
            if library := self._library(name, f"{directory}/{name}", needing):
                return library
        system = self._system_directories(needing)
        for path in self._cache.get(name, ()):
            by_cache = os.path.realpath(os.path.dirname(path)) not in system
            if library := self._library(name, path, needing, by_cache):
                return library
        for directory in system:
            if library := self._library(name, f"{directory}/{name}", needing):
                return library
        return None

    def system_directory(self, binary: Binary) -> str:
        """A directory that the loader of ``binary`` searches without a cache."""
        return self._system_directories(binary)[0]

    def _library(
        self, name: str, path: str, needing: Binary, by_cache: bool = False
    ) -> Library | None:
        if not os.path.isfile(path):
            return None
        found = self.binary(path)
        fits = found is not None and found.machine == needing.machine
        return Library(name, path, by_cache) if fits else None

    def _own_directories(self, chain: tuple[Binary, ...]) -> Iterator[str]:
        if not chain[0].runpath:
            for binary in chain:
                if not binary.runpath:
                    yield from binary.rpath
        yield from chain[0].runpath

    def _system_directories(self, binary: Binary) -> list[str]:
        """Where libc is, and the usual ones; real paths."""
        directories: list[str] = []
        for path in self._cache.get("libc.so.6", ()):
            found = self.binary(path) if os.path.isfile(path) else None
            if found is not None and found.machine == binary.machine:
                folder = os.path.dirname(path)
                directories += [folder, f"/usr{folder}"]
        if not directories and binary.machine[1] == 64:
            directories += ["/lib64", "/usr/lib64"]
        directories += _LIB_DIRECTORIES[: 2 if self._cache else 3]
        existing = (os.path.realpath(each) for each in directories if os.path.isdir(each))
        return list(dict.fromkeys(existing))

    @cached_property
    def _cache(self) -> dict[str, list[str]]:
        """The paths by name that the loader's cache has, best first."""
        paths: dict[str, list[str]] = {}
        ldconfig = next(filter(os.path.exists, _LDCONFIG), None)
        if ldconfig is None:
            return paths
        ran = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, env={"LC_ALL": "C"})
        for line in ran.stdout.splitlines():
            left, arrow, path = line.strip().partition(" => ")
            name, _, flags = left.partition(" ")
            # What is for better processors only would not run everywhere.
            if arrow and "hwcap" not in flags:
                paths.setdefault(name, []).append(path)
        return paths


def _text(tag: Any, kind: str) -> str:
    return str(getattr(tag, kind.removeprefix("DT_").lower()))


def _directories(values: list[str], path: str) -> tuple[str, ...]:
    """The directories of an RPATH, with the loader's words for places filled in."""
    origin = os.path.dirname(os.path.realpath(path))
    directories = []
    for directory in ":".join(values).split(":"):
        for word in ("$ORIGIN", "${ORIGIN}"):
            directory = directory.replace(word, origin)
        if "$LIB" in directory or "${LIB}" in directory:
            multiarch = f"lib/{os.uname().machine}-linux-gnu"
            directories += [
                directory.replace("${LIB}", lib).replace("$LIB", lib)
                for lib in (multiarch, "lib64", "lib")
            ]
        elif directory:
            directories.append(directory)
    return tuple(directories)
