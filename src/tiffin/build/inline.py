"""Files whose text is in the Dockerfile itself: the heredocs of a COPY, as a source."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tiffin.build.parser import Heredoc
from tiffin.build.tree import EmptyTree
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.writer import Content


class InlineFiles(EmptyTree):
    """Heredocs by their names, which may be paths."""

    def __init__(self, heredocs: Iterable[Heredoc], mtime_ns: int = 0) -> None:
        self.names: list[str] = []
        self._contents: dict[bytes, bytes] = {}
        self._entries: dict[bytes, Entry] = {}
        for heredoc in heredocs:
            content = heredoc.text.encode("utf-8", "surrogateescape")
            path = os.fsencode(heredoc.name.strip("/"))
            self.names.append(heredoc.name)
            self._contents[path] = content
            self._entries[path] = Entry(
                path,
                Kind.FILE,
                0o644,
                mtime_ns=mtime_ns,
                size=len(content),
                digest=hashlib.sha256(content).digest(),
            )

    def entry(self, path: bytes) -> Entry | None:
        return self._entries.get(path) or super().entry(path)

    def children(self, path: bytes) -> list[Entry]:
        return [] if path else sorted(self._entries.values(), key=lambda entry: entry.path)

    @contextmanager
    def opened(self, entry: Entry) -> Iterator[Content]:
        yield self._contents[entry.path]
