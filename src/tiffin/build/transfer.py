"""One COPY or ADD: its sources from everywhere, its key, its layer.

A source is a path in the context, in an earlier stage, in a named context or in an image; for ADD
also a URL or a git repository; or a heredoc. What is somewhere else is fetched only when the key
needs it (a URL without a checksum) or the step is made.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tiffin.build import copying, remote
from tiffin.build.context import BuildContext, from_folder
from tiffin.build.copying import Attributes, Placement
from tiffin.build.digests import DigestCache
from tiffin.build.downloads import Download
from tiffin.build.inline import InlineFiles
from tiffin.build.instructions import Add, Copy
from tiffin.build.ownership import mode_of, owner_of
from tiffin.build.parts import Parts
from tiffin.build.picking import Pick, Picker, picked_files
from tiffin.build.session import Session, State
from tiffin.build.tree import EmptyTree, LowerTree, Source, StageFiles
from tiffin.errors import BuildFailure, InvalidParameter, NotFound
from tiffin.layer.entry import Entry
from tiffin.layer.layer import Layer
from tiffin.layer.writer import LayerWriter


class _Part(Protocol):
    """Some of a COPY's sources."""

    def describe(self, parts: Parts) -> None:
        """Add what identifies it without its files."""

    def picks(self) -> list[Pick]:
        """What there is to copy."""

    def keyed(self) -> list[Entry]:
        """The entries that the key is made of, their contents known."""


class _Local:
    def __init__(self, picks: list[Pick]) -> None:
        self._picks = picks

    def describe(self, parts: Parts) -> None:
        for found in self._picks:
            if found.is_renamed:
                parts.add(f"source {found.name!r}", repr(found.entry.path))

    def picks(self) -> list[Pick]:
        return self._picks

    def keyed(self) -> list[Entry]:
        entries = picked_files(self._picks)
        if self._picks:
            identify = self._picks[0].source.identify
            for entry in entries:
                identify(entry)
        return entries


class _Url:
    def __init__(self, download: Download, *, unpack: bool) -> None:
        self._download = download
        self._unpack = unpack

    def describe(self, parts: Parts) -> None:
        if self._download.identity:
            parts.add(f"content of {self._download.name}", self._download.identity)

    def picks(self) -> list[Pick]:
        entry = self._download.fetched()
        return [Pick(entry.path, entry, self._download, unpack=self._unpack)]

    def keyed(self) -> list[Entry]:
        return [] if self._download.identity else [self._download.fetched()]


class _Git:
    def __init__(self, instruction: Add, source: str, work: Path | None, agent: str) -> None:
        self._repository = remote.Repository.parse(source, agent)
        self._keep = instruction.keep_git_dir
        self._excludes = instruction.excludes
        self._work = work
        self._commit = self._repository.commit()
        self._folder: Path | None = None
        self._picks: list[Pick] = []
        self._context: BuildContext | None = None
        wanted = instruction.checksum.removeprefix("sha1:").removeprefix("sha256:")
        if wanted and self._commit != wanted:
            raise BuildFailure(
                f"ADD failed: {source} is at commit {self._commit}, expected {wanted}"
            )

    def describe(self, parts: Parts) -> None:
        parts.add(f"commit of {self._repository.address}", self._commit)

    def picks(self) -> list[Pick]:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="git", dir=self._work))
            inside = self._repository.checkout(self._commit, self._folder, keep_git_dir=self._keep)
            self._context = from_folder(
                inside, DigestCache(), content=b"FROM scratch", ignored=False
            )
            self._picks = Picker(self._context.source, "ADD", excludes=self._excludes).pick(".")
        return self._picks

    def keyed(self) -> list[Entry]:
        return []

    def close(self) -> None:
        if self._context is not None:
            self._context.close()
        if self._folder is not None:
            shutil.rmtree(self._folder)


class Transfer:
    """See the module's text. Use :func:`opened`."""

    def __init__(self, session: Session, state: State, instruction: Copy, source: Source) -> None:
        """Finds everything that is here. Raises BuildFailure, InvalidParameter."""
        self._session = session
        self._state = state
        self._instruction = instruction
        self._where = copying.destination(state.config.working_dir, instruction.destination)
        self._parts: list[_Part] = []
        self._owned: list[Download | _Git] = []
        try:
            self._find(source)
        except BaseException:
            self.close()
            raise

    def _find(self, source: Source) -> None:
        instruction = self._instruction
        is_add = isinstance(instruction, Add)
        unpack = instruction.unpack if isinstance(instruction, Add) else False
        picker = Picker(
            source,
            instruction.name,
            from_stage=bool(instruction.source_stage),
            unpack=is_add and unpack is not False,
            excludes=instruction.excludes,
            parents=instruction.parents,
        )
        agent = self._session.options.ssh.get("default", "")
        for text in instruction.sources:
            if isinstance(instruction, Add) and remote.is_git(text):
                git = _Git(instruction, text, self._session.backend.work, agent)
                self._owned.append(git)
                self._parts.append(git)
            elif isinstance(instruction, Add) and remote.is_url(text):
                download = Download(
                    text, instruction.checksum, self._session.backend.work, self._session.downloads
                )
                self._owned.append(download)
                self._parts.append(_Url(download, unpack=bool(unpack)))
            else:
                self._parts.append(_Local(picker.pick(text)))
        if instruction.heredocs:
            inline = InlineFiles(instruction.heredocs, self._session.latest or 0)
            self._parts.append(
                _Local(
                    [
                        Pick(each.path.rpartition(b"/")[2], each, inline)
                        for each in (
                            inline.entry(os.fsencode(name.strip("/"))) for name in inline.names
                        )
                        if each is not None
                    ]
                )
            )

    def describe(self, parts: Parts) -> None:
        """Add everything that identifies it but the contents of files."""
        for each in self._parts:
            each.describe(parts)

    def identify(self, parts: Parts) -> None:
        """Add the files, their contents known."""
        entries: list[Entry] = []
        for each in self._parts:
            entries += each.keyed()
        parts.add_files(entries)

    def make(self, model: str | None = None) -> Layer:
        """Write the layer, which may be much like that of the chain ID ``model``. Raises
        BuildFailure."""
        instruction, state = self._instruction, self._state
        image = self._session.lower(state.top)
        attributes = Attributes(
            owner_of(instruction.chown, image),
            mode_of(instruction.chmod),
            self._session.latest,
        )
        picks = [pick for each in self._parts for pick in each.picks()]
        if not picks and not instruction.excludes:
            raise BuildFailure(f"{instruction.name} failed: no source files were specified")
        if len(picks) > 1 and not self._where.is_directory and not instruction.parents:
            raise BuildFailure(
                f"When using {instruction.name} with more than one source file, the destination "
                "must be a directory and end with a /"
            )
        below: LowerTree = EmptyTree() if instruction.link else image
        placements: list[Placement] = []

        def fill(writer: LayerWriter) -> None:
            placement = Placement(below, writer, attributes)
            placement.copy(picks, self._where)
            placements.append(placement)

        layer = self._session.backend.layers.write(state.top, fill, model=model)
        for placement in placements:
            placement.verify()
        return layer

    def close(self) -> None:
        """Remove what was fetched."""
        while self._owned:
            self._owned.pop().close()


@contextmanager
def opened(session: Session, state: State, instruction: Copy, source: Source) -> Iterator[Transfer]:
    """A transfer, and its end."""
    transfer = Transfer(session, state, instruction, source)
    try:
        yield transfer
    finally:
        transfer.close()


def source_named(session: Session, name: str, index: int, platform: str) -> Source:
    """The files that ``--from`` or ``from=`` means for a step of stage ``index``; the build context
    for no name. Raises InvalidParameter, NotFound."""
    if not name:
        return session.context.source
    context = session.named_context(name)
    if context is not None:
        return context.source
    earlier = session.stage_before(name, index)
    if earlier is not None:
        top = session.finished(earlier).state.top
        return StageFiles(session.lower(top), top)
    if name.lower() not in session.options.contexts and session.plan.find(name) == index:
        raise InvalidParameter(f"invalid from flag value {name}: refers to current build stage")
    if name == "scratch":
        return EmptyTree()
    try:
        config = session.backend.image(
            session.named_image(name), platform, pull=session.options.pull
        )
    except NotFound as error:
        raise NotFound(f"invalid from flag value {name}: {error.message}") from error
    if config.chain_id is None:
        return EmptyTree()
    session.hold(config.chain_id)
    return StageFiles(session.lower(config.chain_id), config.chain_id)
