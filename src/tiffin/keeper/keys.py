"""Detach keys: the sequence that leaves a terminal and lets its container run on.

A sequence is written as Docker writes it, ``ctrl-p,ctrl-q``: items apart by commas, each one
character, ``ctrl-`` and one of ``a`` to ``z``, ``@ [ \\ ] ^ _``, or ``DEL``.

Source: https://docs.docker.com/reference/cli/docker/container/attach/ (--detach-keys).
"""

from __future__ import annotations

from tiffin.errors import InvalidParameter

DEFAULT = b"\x10\x11"
"""ctrl-p ctrl-q."""


def parse_keys(text: str | None) -> bytes:
    """The bytes that a terminal sends for the sequence. Raises InvalidParameter.

    No text, or an empty one, is the default sequence.
    """
    if not text:
        return DEFAULT
    return bytes(_key(item, text) for item in text.split(","))


def _key(item: str, text: str) -> int:
    if len(item) == 1 and item.isascii():
        return ord(item)
    if item == "DEL":
        return 0x7F
    control = item.removeprefix("ctrl-")
    if control != item and len(control) == 1 and control in "@abcdefghijklmnopqrstuvwxyz[\\]^_":
        return ord(control.upper()) - 0x40
    raise InvalidParameter(
        f"Invalid detach keys ({text}) provided: {item!r} is neither a character nor ctrl-<letter>"
    )


class KeyMatcher:
    """Finds the sequence in typed bytes, however they are cut into reads.

    The bytes of a sequence that is not yet whole are held back; once it can't become whole any
    more, they are given out in front of what followed.
    """

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = 0
        # For each number of matched bytes, the longest proper prefix that also ends there (the
        # table of Knuth, Morris and Pratt), so that "ppq" still matches "pq".
        self._back = [0] * (len(keys) + 1)
        matched = 0
        for position in range(1, len(keys)):
            while matched and keys[position] != keys[matched]:
                matched = self._back[matched]
            matched += keys[position] == keys[matched]
            self._back[position + 1] = matched

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """The bytes to deliver now, and whether the sequence is whole (the rest is dropped)."""
        keys, matched, start = self._keys, self._held, self._held
        if not matched and data.find(keys[:1]) < 0:
            return data, False
        for position, byte in enumerate(data):
            while matched and byte != keys[matched]:
                matched = self._back[matched]
            matched += byte == keys[matched]
            if matched == len(keys):
                self._held = 0
                whole = keys[:start] + data[: position + 1]
                return whole[: -len(keys)], True
        self._held = matched
        whole = keys[:start] + data
        return whole[: len(whole) - matched], False

    def finish(self) -> bytes:
        """The bytes held back, at the end of what is typed."""
        held, self._held = self._keys[: self._held], 0
        return held
