"""One upload of a blob: chunks in order, then its digest.

Each chunk says which bytes it is (``Content-Range``). Where a connection breaks inside a chunk, the
registry is asked how far it got, and the rest is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urljoin

from tiffin.errors import DigestMismatch, NotFound, TiffinError, Unreachable
from tiffin.registry.answers import Answer, failure
from tiffin.registry.transport import FAILED, Transport

CHUNK = 16 << 20
"""Bytes of one chunk, unless the registry wants larger ones."""
_TYPE = {"Content-Type": "application/octet-stream"}


class Forgotten(NotFound):
    """The registry knows nothing of the upload any more: all of it has to be sent again."""


class Upload:
    """See the module's text. Used by one thread; :meth:`cancel` it if it is not finished."""

    def __init__(
        self,
        transport: Transport,
        scopes: frozenset[str],
        location: str,
        minimum: int,
        again: Callable[[], str],
        exists: Callable[[str], bool],
    ) -> None:
        """``again`` begins another one, and gives its location; ``exists`` says whether a digest
        is there."""
        self._transport = transport
        self._again = again
        self._exists = exists
        self._scopes = scopes
        self.location = location
        self.chunk = max(CHUNK, minimum)
        """Bytes that each call of :meth:`send` should have, but for the last."""
        self.offset = 0

    def send(self, data: bytes | memoryview) -> None:
        """Add a chunk; raises Forgotten, Unreachable, TiffinError."""
        start = self.offset
        end = start + len(data)
        failures = 0
        view = memoryview(data)
        while self.offset < end:
            rest = view[self.offset - start :]
            try:
                answer = self._request(
                    "PATCH",
                    self.location,
                    {**_TYPE, "Content-Range": f"{self.offset}-{end - 1}"},
                    rest,
                )
            except FAILED as error:
                failures += 1
                self._failed(failures, error)
                continue
            if answer.status in (416, 500, 502, 504):
                failures += 1
                self._failed(failures, failure(answer, "upload"))
                continue
            if answer.status == 404:
                answer.close()
                raise self._forgotten()
            if answer.status not in (201, 202, 204):
                raise failure(answer, "upload")
            self._move(answer)
            answer.close()
            self.offset = end

    def finish(self, digest: str, data: bytes | memoryview = b"") -> None:
        """Add the last chunk, and say the digest of all.

        Raises DigestMismatch, Forgotten, Unreachable, TiffinError.
        """
        if self.offset and data:
            self.send(data)
            data = b""
        headers = dict(_TYPE)
        start = self.offset
        for failures in range(1, self._transport.patience.attempts + 1):
            separator = "&" if "?" in self.location else "?"
            location = f"{self.location}{separator}digest={digest}"
            broken: Exception
            try:
                # What arrived of an attempt before this one stays.
                answer = self._request("PUT", location, headers, data[self.offset - start :])
            except FAILED as error:
                broken = error
            else:
                if answer.status == 404:
                    answer.close()
                    broken = self._forgotten()
                    self._wait(failures, broken)
                    if self._gone(digest, not start, broken):
                        return
                    continue
                if answer.status not in (500, 502, 504):
                    break
                broken = failure(answer, f"upload of {digest}")
            try:
                self._failed(failures, broken)
            except Forgotten as missing:
                if self._gone(digest, not start, missing):
                    return
        else:
            raise broken
        if answer.status not in (200, 201, 204):
            refusal = failure(answer, f"upload of {digest}")
            if answer.status == 400 and "digest" in refusal.message:
                raise DigestMismatch(refusal.message)
            raise refusal
        answer.close()

    def _gone(self, digest: str, whole: bool, error: Exception) -> bool:
        """There is no such upload any more: whether it was finished.

        Or the registry gave it up when the connection broke. Then another one begins, if all that
        there is is to be sent once more anyway (``whole``).
        """
        if self._exists(digest):
            return True
        if not whole:
            raise error
        self.location = self._again()
        self.offset = 0
        return False

    def cancel(self) -> None:
        """Tell the registry that nothing more comes; whatever it says, this is over."""
        try:
            self._transport.request(
                "DELETE", self.location, scopes=self._scopes, repeat=False
            ).close()
        except (TiffinError, OSError):
            # The registry forgets unfinished uploads by itself after a while.
            return

    def _request(
        self, method: str, location: str, headers: dict[str, str], data: bytes | memoryview
    ) -> Answer:
        return self._transport.request(
            method,
            location,
            headers={**headers, "Content-Length": str(len(data))},
            body=bytes(data),
            scopes=self._scopes,
            repeat=False,
        )

    def _wait(self, failures: int, error: Exception) -> None:
        patience = self._transport.patience
        if failures >= patience.attempts:
            if isinstance(error, TiffinError):
                raise error
            raise Unreachable(
                f"registry {self._transport.endpoint.host} broke the connection in the middle of"
                f" an upload, {failures} times: {error}"
            ) from error
        self._transport.wait(patience.delay(failures - 1))

    def _failed(self, failures: int, error: Exception) -> None:
        """After a chunk that failed: find out how far the registry got."""
        self._wait(failures, error)
        answer = self._transport.request("GET", self.location, scopes=self._scopes)
        if answer.status == 404:
            answer.close()
            raise self._forgotten()
        if answer.status not in (200, 202, 204):
            raise failure(answer, "upload")
        range_end = answer.headers.get("Range", "").removeprefix("bytes=").partition("-")[2]
        self._move(answer)
        answer.close()
        got = int(range_end) + 1 if range_end.isdigit() else 0
        if got == 1 and self.offset == 0:
            # "0-0" is what some registries say of an upload without a byte.
            got = 0
        if got >= self.offset:
            self.offset = got
            return
        raise TiffinError(
            f"registry {self._transport.endpoint.host} has lost a part of the upload: push again"
        )

    def _forgotten(self) -> Forgotten:
        host = self._transport.endpoint.host
        return Forgotten(f"registry {host} has forgotten the upload: push again")

    def _move(self, answer: Answer) -> None:
        location = answer.headers.get("Location")
        if location:
            self.location = urljoin(answer.url, location)
