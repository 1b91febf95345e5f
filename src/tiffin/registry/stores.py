"""Where a registry keeps what it was given: the local disk, or an object store.

A store holds contents under keys, which look like relative paths; *names* are what lies directly
below such a path. A content appears complete or not at all, and carries the time at which it was
written or last touched. Whoever takes a store serialises what must not happen at once; the store
itself keeps no order between keys.

The object store is any that fsspec knows (``s3://bucket/folder``, ``gs://…``), through the package
that it names for it. What is written there is seen at once by whoever asks, as S3 promises.
"""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

from tiffin.errors import InvalidParameter, NotFound, TiffinError, Unreachable, Unsupported
from tiffin.layer.space import space_needed

_BLOCK = 4 << 20


class Store(Protocol):
    """See the module's text. Any thread may use it; what is not there raises FileNotFoundError."""

    def read(self, key: str) -> bytes:
        """The content of a key."""

    def open(self, key: str) -> BinaryIO:
        """The content, to read and seek in."""

    def size(self, key: str) -> int:
        """How many bytes a key has."""

    def time(self, key: str) -> float:
        """When it was written or touched last, in seconds of the clock."""

    def touch(self, key: str) -> None:
        """Make it young again."""

    def write(self, key: str, content: bytes) -> None:
        """Keep a small content, in place of what was there."""

    def take(self, path: Path, key: str) -> None:
        """Keep a complete file of the local disk, and remove it there."""

    def delete(self, key: str) -> None:
        """Forget a key."""

    def names(self, folder: str) -> list[str]:
        """What lies directly below, keys and folders, sorted; nothing if there is nothing."""


class LocalStore:
    """A folder of the local disk. Several processes may use it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, key: str) -> bytes:
        return (self._root / key).read_bytes()

    def open(self, key: str) -> BinaryIO:
        return open(self._root / key, "rb", buffering=0)

    def size(self, key: str) -> int:
        return (self._root / key).stat().st_size

    def time(self, key: str) -> float:
        return (self._root / key).stat().st_mtime

    def touch(self, key: str) -> None:
        os.utime(self._root / key)

    def write(self, key: str, content: bytes) -> None:
        path = self._root / key
        with space_needed(self._root, "the registry"):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # No key ends in "~".
            temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}~")
            temporary.write_bytes(content)
            os.rename(temporary, path)

    def take(self, path: Path, key: str) -> None:
        target = self._root / key
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.rename(path, target)

    def delete(self, key: str) -> None:
        (self._root / key).unlink()

    def names(self, folder: str) -> list[str]:
        try:
            found = os.listdir(self._root / folder)
        except FileNotFoundError:
            return []
        return sorted(name for name in found if not name.endswith("~"))


class ObjectStore:
    """A folder of an object store; ``url`` is ``s3://BUCKET/FOLDER`` or another that fsspec takes.

    Credentials and the endpoint are the environment's, as for every client of such a store
    (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` …). Raises Unsupported where the package for it
    is missing, InvalidParameter for a URL that can't be used, NotFound where there is no such
    bucket, Unreachable where the store is out of reach.
    """

    def __init__(self, url: str, **options: Any) -> None:
        scheme = urlsplit(url).scheme
        try:
            import fsspec
        except ImportError as error:
            raise Unsupported(_missing(url)) from error
        try:
            self._files, root = fsspec.core.url_to_fs(
                url, use_listings_cache=False, skip_instance_cache=True, **options
            )
        except ImportError as error:
            raise Unsupported(_missing(url)) from error
        except ValueError as error:
            raise InvalidParameter(f"{url} is no object store that is known: {error}") from error
        if scheme == "file" or not root.strip("/"):
            raise InvalidParameter(f"{url} names no bucket of an object store")
        self._root = str(root).rstrip("/")
        self._url = url
        try:
            self._told(lambda: self._files.ls(self._root.partition("/")[0], detail=False))
        except FileNotFoundError as error:
            raise NotFound(f"{url}: {error}") from error

    def _key(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _told(self, action: Callable[[], Any]) -> Any:
        """What the action gives; the store's own errors as ours."""
        try:
            return action()
        except (FileNotFoundError, TiffinError):
            raise
        except PermissionError as error:
            raise TiffinError(f"{self._url}: the store refuses: {error}") from error
        except Exception as error:
            # Each store's client has errors of its own.
            raise Unreachable(f"{self._url}: the store can't be used: {error}") from error

    def read(self, key: str) -> bytes:
        return bytes(self._told(lambda: self._files.cat_file(self._key(key))))

    def open(self, key: str) -> BinaryIO:
        return io.BufferedReader(_Object(self, self.size(key), key), _BLOCK)

    def part(self, key: str, start: int, end: int) -> bytes:
        """The bytes from ``start`` to before ``end``."""
        return bytes(self._told(lambda: self._files.cat_file(self._key(key), start=start, end=end)))

    def size(self, key: str) -> int:
        return int(self._information(key)["size"] or 0)

    def time(self, key: str) -> float:
        found = self._information(key)
        changed: Any = found.get("LastModified") or found.get("created") or found.get("mtime") or 0
        return float(changed if isinstance(changed, (int, float)) else changed.timestamp())

    def _information(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = self._told(lambda: self._files.info(self._key(key)))
        if found["type"] != "file":
            raise FileNotFoundError(key)
        return found

    def touch(self, key: str) -> None:
        # Objects can't be touched; those that are hold nothing, or a word.
        self.write(key, self.read(key))

    def write(self, key: str, content: bytes) -> None:
        self._told(lambda: self._files.pipe_file(self._key(key), content))

    def take(self, path: Path, key: str) -> None:
        self._told(lambda: self._files.put_file(os.fspath(path), self._key(key)))
        path.unlink()

    def delete(self, key: str) -> None:
        # Who deletes what is not there is told nothing by such a store.
        self._information(key)
        self._told(lambda: self._files.rm_file(self._key(key)))

    def names(self, folder: str) -> list[str]:
        where = self._key(folder)
        try:
            found = self._told(lambda: self._files.ls(where, detail=False))
        except FileNotFoundError:
            return []
        names = {str(name).rstrip("/").rpartition("/")[2] for name in found if name != where}
        return sorted(names)


class _Object(io.RawIOBase):
    """An object of a store as a file."""

    def __init__(self, store: ObjectStore, size: int, key: str) -> None:
        self._store = store
        self._size = size
        self._name = key
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._size, self._position + len(buffer))
        if end <= self._position:
            return 0
        data = self._store.part(self._name, self._position, end)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _missing(url: str) -> str:
    scheme = urlsplit(url).scheme
    package = {"s3": "tiffin[s3]", "gs": "gcsfs", "az": "adlfs"}.get(scheme, "fsspec")
    return f"{url}: object stores need a package that is not installed: pip install '{package}'"
