"""Which files a COPY, an ADD or a ``RUN --mount=type=bind`` takes of one tree.

A source is a path or a pattern; a directory stands for what is in it. ``--exclude`` patterns, as in
``.dockerignore``, are matched inside each directory that is taken; ``--parents`` keeps the
directories that a source is written with, from a ``/./`` on, and knows ``**``.

Source: the Dockerfile reference (COPY).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tiffin.build import wildcards
from tiffin.build.dockerignore import Ignore
from tiffin.build.tree import Source, join, resolve
from tiffin.errors import BuildFailure
from tiffin.layer.entry import Entry, Kind


@dataclass(frozen=True, slots=True)
class Pick:
    """One source of a COPY, found."""

    name: bytes
    """The last part of the source as written: what a file is called in a directory."""
    entry: Entry
    """What it leads to."""
    source: Source
    """What it is read from."""
    below: tuple[Entry, ...] = ()
    """For a directory: everything in it that is taken, each directory before what is in it."""
    parents: tuple[Entry, ...] = ()
    """With ``--parents``: the directories that it keeps, the outermost first."""
    keep_owners: bool = False
    unpack: bool = False
    """Whether it is unpacked if it is an archive."""

    @property
    def is_renamed(self) -> bool:
        """Whether a symlink gives a file another name than its own."""
        own = self.entry.path.rpartition(b"/")[2]
        return self.entry.kind is not Kind.DIRECTORY and own != self.name

    @property
    def files(self) -> Iterable[Entry]:
        """What it brings, in the order in which it is copied."""
        return self.below if self.entry.kind is Kind.DIRECTORY else (self.entry,)


class Picker:
    """Finds the sources of one COPY or ADD in one tree."""

    def __init__(
        self,
        source: Source,
        name: str,
        *,
        from_stage: bool = False,
        unpack: bool = False,
        excludes: Iterable[str] = (),
        parents: bool = False,
    ) -> None:
        """``name`` is the instruction's; raises InvalidParameter for a malformed exclusion."""
        self._source = source
        self._name = name
        self._from_stage = from_stage
        self._unpack = unpack
        self._ignore = Ignore(list(excludes))
        self._parents = parents

    def pick(self, pattern: str) -> list[Pick]:
        """What a source, as written, stands for; raises BuildFailure for nothing at all."""
        pivot, found, rest = pattern.partition("/./") if self._parents else ("", "", pattern)
        if not found:
            pivot, rest = "", pattern
        start = self._parts(pivot, pattern)
        parts = self._parts(rest, pattern)
        wild = wildcards.has_wildcards("/".join([*start, *parts])) or (
            self._parents and "**" in parts
        )
        if wild:
            return self._wild(start, parts)
        cleaned = "/".join([*start, *parts])
        path = resolve(self._source, os.fsencode(cleaned))
        entry = self._source.entry(path)
        if entry is None:
            where = "" if self._from_stage else "file not found in build context or excluded by "
            where += "" if self._from_stage else ".dockerignore: "
            raise BuildFailure(f"{self._name} failed: {where}stat {cleaned}: file does not exist")
        last = [*start, *parts][-1:] or [""]
        if self._parents:
            base = resolve(self._source, os.fsencode("/".join(start)))
            return self._taken(os.fsencode(last[0]), entry, self._above(base, parts))
        return self._taken(os.fsencode(last[0]), entry)

    def _parts(self, text: str, pattern: str) -> list[str]:
        parts: list[str] = []
        for part in text.split("/"):
            if part == "..":
                if not parts and not self._from_stage:
                    raise BuildFailure(
                        f"{self._name} failed: forbidden path outside the build context: "
                        f"{pattern} ()"
                    )
                parts = parts[:-1]
            elif part not in ("", "."):
                parts.append(part)
        return parts

    def _wild(self, start: list[str], parts: list[str]) -> list[Pick]:
        picks: list[Pick] = []
        for base in _matches(self._source, [b""], start, self._parents):
            for path in _matches(self._source, [base], parts, self._parents):
                name = path.rpartition(b"/")[2]
                entry = self._source.entry(resolve(self._source, path))
                if entry is None:
                    raise BuildFailure(
                        f"{os.fsdecode(path)} is a symbolic link to something that is not in the "
                        "context"
                    )
                above: tuple[Entry, ...] = ()
                if self._parents:
                    inside = os.fsdecode(path)[len(base) :].strip("/")
                    above = self._above(base, inside.split("/") if inside else [])
                picks += self._taken(name, entry, above)
        return picks

    def _above(self, base: bytes, parts: list[str]) -> tuple[Entry, ...]:
        """The directories that a source below ``base`` lies in."""
        found: list[Entry] = []
        path = base
        for part in parts[:-1]:
            path = join(path, os.fsencode(part))
            entry = self._source.entry(resolve(self._source, path))
            if entry is not None and entry.kind is Kind.DIRECTORY:
                found.append(entry)
        return tuple(found)

    def _taken(self, name: bytes, entry: Entry, parents: tuple[Entry, ...] = ()) -> list[Pick]:
        below: tuple[Entry, ...] = ()
        if entry.kind is Kind.DIRECTORY:
            below = tuple(self._walk(entry))
        elif self._ignore and self._ignore.excludes(os.fsdecode(name)):
            return []
        return [Pick(name, entry, self._source, below, parents, self._from_stage, self._unpack)]

    def _walk(self, directory: Entry) -> Iterator[Entry]:
        if not self._ignore:
            yield from walk(self._source, directory)
            return
        skip = len(directory.path) + 1 if directory.path else 0
        pending = [(directory, self._ignore.root)]
        while pending:
            here, above = pending.pop()
            for entry in self._source.children(here.path):
                shown = os.fsdecode(entry.path[skip:])
                out, state = self._ignore.check(shown, above)
                if not out:
                    yield entry
                if entry.kind is Kind.DIRECTORY and (
                    not out or self._ignore.may_hold_exceptions(shown)
                ):
                    pending.append((entry, state))


def _matches(source: Source, found: list[bytes], parts: list[str], deep: bool) -> list[bytes]:
    """What a pattern matches, one component after the other; directories that are symlinks are
    not looked into. With ``deep``, ``**`` stands for any number of directories."""
    for part in parts:
        below: list[bytes] = []
        if deep and part == "**":
            for directory in found:
                below.append(directory)
                entry = source.entry(directory)
                if entry is not None and entry.kind is Kind.DIRECTORY:
                    below += [each.path for each in walk(source, entry)]
        elif not wildcards.has_wildcards(part):
            for directory in found:
                path = join(directory, os.fsencode(part.replace("\\", "")))
                if source.entry(path) is not None:
                    below.append(path)
        else:
            expression = wildcards.compiled(part)
            for directory in found:
                below += [
                    entry.path
                    for entry in source.children(directory)
                    if expression.fullmatch(os.fsdecode(entry.path.rpartition(b"/")[2]))
                ]
        found = below
    return sorted(set(found))


def walk(source: Source, directory: Entry) -> Iterator[Entry]:
    """Everything below a directory, each directory before what is in it."""
    for entry in source.children(directory.path):
        yield entry
        if entry.kind is Kind.DIRECTORY:
            yield from walk(source, entry)


def picked_files(picks: Iterable[Pick]) -> list[Entry]:
    """Every entry that the picks bring, in the order in which they are copied."""
    return [entry for each in picks for entry in (*each.parents, *each.files)]
