"""Files behind URLs: fetched for ADD, kept, and asked for again only if they have changed.

A file gets mode 0600 and the time that the server says (``Last-Modified``). What was fetched is
kept as a layer of its own with a record in the build cache, one a URL, so that it is counted,
pruned and collected as every other. The next time the server is asked with ``If-None-Match`` and,
where the date is old enough to tell (RFC 9110, 8.8.2.2), ``If-Modified-Since``; if it says that
nothing has changed, what is kept is taken. A file whose checksum is given and kept is not asked
for at all.

Source: the Dockerfile reference, "ADD"; BuildKit asks in the same way.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import posixpath
import re
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from tiffin.build.cache import DOWNLOAD, BuildCache
from tiffin.build.tree import EmptyTree, LowerTree
from tiffin.errors import BuildFailure, InvalidParameter
from tiffin.layer.entry import Entry, Kind
from tiffin.layer.layer import Layer
from tiffin.layer.writer import Content, LayerWriter

_BLOCK = 1 << 20
_PATIENCE = 60
_ALGORITHMS = ("sha256", "sha384", "sha512")
_KEPT = b"content"
_OLD_ENOUGH = 60
_NOT_MODIFIED = 304


class _Layers(Protocol):
    """The part of the layer store that is needed."""

    def write(self, parent: str | None, fill: Any) -> Layer: ...
    def lower(self, chain: str | None) -> LowerTree: ...
    def get(self, chain_id: str) -> Layer: ...
    def keep(self, chain_id: str) -> None: ...


class Memory:
    """What was fetched from URLs before."""

    def __init__(self, cache: BuildCache, layers: _Layers, used: list[str]) -> None:
        """Call the methods under a lease. The keys of records go to ``used``."""
        self._cache = cache
        self._layers = layers
        self._used = used

    def find(self, url: str) -> tuple[dict[str, Any], str] | None:
        """What is known of a file, and the layer that holds it."""
        key = _key(url)
        with self._cache.together():
            record = self._cache.find(key)
            if record is None or record.top is None:
                return None
            self._layers.get(record.top)
            self._layers.keep(record.top)
        self._used.append(key)
        return json.loads(record.config), record.top

    def open(self, chain: str) -> int:
        """A descriptor of what a layer holds."""
        return self._layers.lower(chain).open(_KEPT)

    def keep(self, url: str, known: dict[str, Any], file: IO[bytes]) -> None:
        """Keep a file, instead of what was kept of the URL before."""
        entry = Entry(_KEPT, Kind.FILE, 0o600, size=known["size"], mtime_ns=0)

        def fill(writer: LayerWriter) -> None:
            fd = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                writer.add(entry, fd)
            finally:
                os.close(fd)

        layer = self._layers.write(None, fill)
        key = _key(url)
        shown = urllib.parse.urlsplit(url)
        host = shown.netloc.rpartition("@")[2]
        name = urllib.parse.urlunsplit((shown.scheme, host, shown.path, "", ""))
        self._cache.keep_download(
            key, f"http url {name}", json.dumps(known).encode(), layer.chain_id, known["size"]
        )
        self._used.append(key)


def _key(url: str) -> str:
    return DOWNLOAD + hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()


class Download(EmptyTree):
    """One file from a URL, as a source. Closing it removes what was fetched."""

    def __init__(
        self, url: str, checksum: str, work: Path | None, memory: Memory | None = None
    ) -> None:
        """Fetches nothing yet. Raises InvalidParameter for a malformed ``checksum``."""
        self._url = url
        self._work = work
        self._memory = memory
        self._checksum = _checked_sum(checksum)
        self._file: IO[bytes] | None = None
        self._entry: Entry | None = None
        self.name = posixpath.basename(urllib.parse.urlsplit(url).path) or "__unnamed__"

    @property
    def identity(self) -> str:
        """What is known of the content without fetching it: its checksum, or nothing."""
        return f"{self._checksum[0]}:{self._checksum[1]}" if self._checksum else ""

    def close(self) -> None:
        """Remove what was fetched."""
        if self._file is not None:
            self._file.close()

    def fetched(self) -> Entry:
        """The file, fetched by the first call. Raises BuildFailure."""
        if self._entry is None:
            self._entry = self._fetch()
        return self._entry

    def _fetch(self) -> Entry:
        found = self._memory.find(self._url) if self._memory is not None else None
        if found is not None and self._checksum is not None:
            if self._checksum == ("sha256", found[0]["sha256"]):
                return self._kept(*found)
            found = None
        headers = {"User-Agent": "tiffin"}
        if found is not None:
            if found[0]["etag"]:
                headers["If-None-Match"] = found[0]["etag"]
            if found[0]["since"]:
                headers["If-Modified-Since"] = found[0]["since"]
        request = urllib.request.Request(self._url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
                return self._read(answer)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == _NOT_MODIFIED and found is not None:
                return self._kept(*found)
            raise self._failed(error) from error
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> BuildFailure:
        reason = getattr(error, "reason", None) or error
        return BuildFailure(f"ADD failed: can't fetch {self._url}: {reason}")

    def _kept(self, known: dict[str, Any], chain: str) -> Entry:
        assert self._memory is not None
        self._file = os.fdopen(self._memory.open(chain), "rb")
        return self._described(known)

    def _read(self, answer: Any) -> Entry:
        running = hashlib.sha256()
        wanted = hashlib.new(self._checksum[0]) if self._checksum else None
        # Closed by close(); it has no name.
        self._file = tempfile.TemporaryFile(dir=self._work)  # noqa: SIM115
        size = 0
        modified = answer.headers.get("Last-Modified", "")
        while block := answer.read(_BLOCK):
            self._file.write(block)
            running.update(block)
            if wanted is not None:
                wanted.update(block)
            size += len(block)
        self._file.flush()
        if wanted is not None and f"{wanted.name}:{wanted.hexdigest()}" != self.identity:
            raise BuildFailure(
                f"ADD failed: digest mismatch {wanted.name}:{wanted.hexdigest()}: {self.identity} "
                f"(of {self._url})"
            )
        moment = _seconds(modified)
        said = _seconds(answer.headers.get("Date", "")) or int(time.time())
        known = {
            "etag": answer.headers.get("ETag", ""),
            "since": modified if moment and said - moment >= _OLD_ENOUGH else "",
            "mtime": moment,
            "size": size,
            "sha256": running.hexdigest(),
        }
        if self._memory is not None and (known["etag"] or known["since"] or wanted is not None):
            self._memory.keep(self._url, known, self._file)
        return self._described(known)

    def _described(self, known: dict[str, Any]) -> Entry:
        return Entry(
            os.fsencode(self.name),
            Kind.FILE,
            0o600,
            0,
            0,
            known["mtime"] * 1_000_000_000,
            known["size"],
            digest=bytes.fromhex(known["sha256"]),
        )

    def entry(self, path: bytes) -> Entry | None:
        if path == os.fsencode(self.name):
            return self.fetched()
        return super().entry(path)

    @contextmanager
    def opened(self, entry: Entry) -> Iterator[Content]:
        self.fetched()
        assert self._file is not None
        fd = os.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def _seconds(text: str) -> int:
    """A date of HTTP's; 0 for one that says nothing."""
    try:
        return int(email.utils.parsedate_to_datetime(text).timestamp()) if text else 0
    except ValueError:
        return 0


def _checked_sum(text: str) -> tuple[str, str] | None:
    if not text:
        return None
    algorithm, _, digits = text.partition(":")
    if algorithm not in _ALGORITHMS:
        raise InvalidParameter(
            f"invalid checksum {text!r}: write it as sha256:…, one of {', '.join(_ALGORITHMS)}"
        )
    if (
        not re.fullmatch(r"[0-9a-f]+", digits)
        or len(digits) != hashlib.new(algorithm).digest_size * 2
    ):
        raise InvalidParameter(f"invalid checksum {text!r}: it has not the length of {algorithm}")
    return algorithm, digits
