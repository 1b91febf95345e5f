"""Answers of registries: their bodies, and the errors that they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from tiffin.errors import Forbidden, InvalidParameter, TiffinError, Unauthorized, Unreachable

DOCUMENT_LIMIT = 8 << 20
"""Bytes of a document, if nothing else is said."""

BROKEN: tuple[type[Exception], ...] = (HTTPError, OSError)
"""What reading an answer raises when its connection breaks."""
UNREADABLE: tuple[type[Exception], ...] = (InvalidParameter, HTTPError, OSError)


class Answer:
    """An answer whose body has not been read; :meth:`close` it, or read it to its end."""

    def __init__(self, response: urllib3.BaseHTTPResponse, url: str) -> None:
        self._response = response
        self.url = url
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    @property
    def length(self) -> int | None:
        """The body's length, if it is announced."""
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isdigit() else None

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes of the body; empty at its end. Raises one of ``BROKEN``."""
        return self._response.read(size, decode_content=False)

    def whole(self, limit: int = DOCUMENT_LIMIT) -> bytes:
        """The whole body; raises InvalidParameter where it is too long, or one of ``BROKEN``."""
        data = self._response.read(limit + 1, decode_content=True)
        if len(data) > limit:
            self._response.close()
            raise InvalidParameter(f"the answer of {shown(self.url)} is longer than {limit} bytes")
        self._response.release_conn()
        return data

    def close(self) -> None:
        """Let go of it; a connection whose answer was not read to its end is closed."""
        self._response.close()
        self._response.release_conn()


def failure(answer: Answer, what: str) -> TiffinError:
    """The error that an answer is; reads and closes it. ``what`` says what was wanted."""
    try:
        body = answer.whole()
    except UNREADABLE:
        body = b""
    said = ""
    try:
        errors = json.loads(body)["errors"]
        said = "; ".join(
            f"{error.get('code', '').lower().replace('_', ' ')}: {error.get('message', '')}"
            for error in errors
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        said = body[:200].decode(errors="replace").strip() if body[:1] not in (b"<", b"") else ""
    host = urlsplit(answer.url).netloc.rpartition("@")[2]
    text = f"{what}: registry {host} answers {answer.status}" + (f" ({said})" if said else "")
    if answer.status == 401:
        return Unauthorized(text)
    if answer.status == 403:
        return Forbidden(text)
    if answer.status in (502, 503, 504):
        return Unreachable(text)
    return TiffinError(text)


def shown(url: str) -> str:
    """A URL as a message may have it: without user, password and query, which may be secrets."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if host else parts.path
