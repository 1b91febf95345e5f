"""Answers that report progress: JSON messages, one a line, each sent at once.

An operation that fails before its first message is answered with a proper status; after it, the
last message carries the error, as Docker's clients expect: ``{"errorDetail": …, "error": …}``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tiffin.api import documents
from tiffin.api.exchange import Response
from tiffin.errors import BuildFailure, TiffinError


class Progress:
    """Call it with each message (``{"status": …}``, ``{"stream": …}``, ``{"aux": …}``)."""

    def __init__(self, response: Response) -> None:
        self._writer = response.stream("application/json")

    def __call__(self, message: dict[str, Any]) -> None:
        self._writer.write(documents.encode(message) + b"\r\n")
        self._writer.flush()

    @property
    def started(self) -> bool:
        """Whether a status can no longer be sent."""
        return self._writer.started

    def fail(self, error: TiffinError) -> None:
        """Say as the last message what went wrong."""
        detail: dict[str, Any] = {"message": error.message}
        if isinstance(error, BuildFailure):
            # The client exits with it.
            detail["code"] = error.exit_code
        self({"errorDetail": detail, "error": error.message})


@contextmanager
def reported(response: Response) -> Iterator[Progress]:
    """A progress for the block, whose failure is told as its answer still can."""
    progress = Progress(response)
    try:
        yield progress
    except TiffinError as error:
        if not progress.started:
            raise
        progress.fail(error)
