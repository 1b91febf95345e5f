"""What comes bit by bit, as iterators that can be closed.

A container without a terminal multiplexes its output: frames of eight bytes (the stream's number,
three zeros, the length, big-endian) and content. One with a terminal sends what it prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from json import loads
from struct import Struct
from typing import Any, Generic, TypeVar

from tiffin.client.connection import Response
from tiffin.errors import TiffinError

T = TypeVar("T")

CHUNK = 2 * 1024 * 1024
"""Archives come in pieces of at most this size."""

STDOUT, STDERR, _COMPLAINT = 1, 2, 3
_HEADER = Struct(">B3xI")


class Output(Generic[T]):
    """An iterator over a stream; a context manager, and its end (or ``close``) ends the call."""

    def __init__(self, items: Iterator[T], close: Callable[[], None]) -> None:
        self._items = items
        self._close = close

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            return next(self._items)
        except BaseException:
            self._close()
            raise

    def close(self) -> None:
        """Stops, whatever is still to come."""
        self._items = iter(())
        self._close()

    def __enter__(self) -> Output[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Who forgets a stream half read must not keep its connection.
        self._close()


def frames(parts: Iterable[memoryview]) -> Iterator[tuple[int, bytes]]:
    """The frames of a multiplexed stream. Raises TiffinError with what the daemon complains of."""
    pending = bytearray()
    for part in parts:
        pending += part
        position = 0
        while len(pending) - position >= 8:
            number, size = _HEADER.unpack_from(pending, position)
            end = position + 8 + size
            if len(pending) < end:
                break
            content = bytes(memoryview(pending)[position + 8 : end])
            position = end
            if number == _COMPLAINT:
                raise TiffinError(content.decode(errors="replace").strip())
            yield number, content
        del pending[:position]


def pieces(parts: Iterable[memoryview], *, tty: bool) -> Iterator[tuple[int, bytes]]:
    """A container's output as (stream's number, content); a terminal's is all stdout."""
    if not tty:
        return frames(parts)
    return ((STDOUT, bytes(part)) for part in parts)


def pairs(items: Iterable[tuple[int, bytes]]) -> Iterator[tuple[bytes | None, bytes | None]]:
    """As (stdout, stderr), of which one is None."""
    return ((None, data) if number == STDERR else (data, None) for number, data in items)


def both(items: Iterable[tuple[int, bytes]]) -> tuple[bytes | None, bytes | None]:
    """All of stdout, and all of stderr; None where nothing came."""
    outputs: dict[int, list[bytes]] = {}
    for number, data in items:
        outputs.setdefault(number, []).append(data)
    joined = {number: b"".join(parts) for number, parts in outputs.items()}
    return joined.get(STDOUT), joined.get(STDERR)


def chunks(response: Response, size: int | None) -> Output[bytes]:
    """A body in pieces of at most ``size`` bytes; None: as they come."""

    def cut() -> Iterator[bytes]:
        for part in response.parts():
            if size is None or len(part) <= size:
                yield bytes(part)
            else:
                for start in range(0, len(part), size):
                    yield bytes(part[start : start + size])

    return Output(cut(), response.drop)


def messages(response: Response) -> Output[dict[str, Any]]:
    """A body of JSON messages, one a line."""
    return Output((loads(line) for line in response.lines()), response.drop)


def lines(response: Response) -> Output[bytes]:
    """The same, not parsed."""
    return Output(response.lines(), response.drop)


def last_error(message: dict[str, Any]) -> str:
    """What a message of a stream complains of, or nothing."""
    detail = message.get("errorDetail") or {}
    return str(detail.get("message") or message.get("error") or "")
