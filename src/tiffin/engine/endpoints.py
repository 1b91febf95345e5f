"""The endpoints of one registry domain that a pull may ask: its mirrors, then the registry itself.

They are asked in order; the one that knew what a name stands for is asked first from then on. What
one does not have, or can't give just now, the next one may.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from tiffin.errors import (
    Forbidden,
    InvalidParameter,
    NotFound,
    TiffinError,
    TooManyRequests,
    Unauthorized,
    Unreachable,
)
from tiffin.image.manifest import Descriptor, Index, Manifest, Platform
from tiffin.image.reference import Reference

if TYPE_CHECKING:
    from tiffin.registry.client import Registry

Answer = TypeVar("Answer")

NEXT = (NotFound, Unreachable, TooManyRequests, Unauthorized)
"""What an endpoint may fail with, so that the next one is asked."""
_DEPTH = 4
"""Indexes in indexes."""


class Endpoints:
    """See the module's text."""

    def __init__(self, clients: Sequence[Registry]) -> None:
        self.clients = list(clients)

    def lead(self, reference: Reference, ask: Callable[[Registry], Answer]) -> Answer:
        """The first answer about ``reference``; who gave it is asked first from now on.

        Raises what the last one failed with, in Docker's words.
        """
        refusal: TiffinError | None = None
        for number, client in enumerate(self.clients):
            try:
                answer = ask(client)
            except (*NEXT, Forbidden) as error:
                refusal = error
                continue
            self.clients.insert(0, self.clients.pop(number))
            return answer
        assert refusal is not None
        if isinstance(refusal, Unauthorized | Forbidden):
            raise type(refusal)(
                f"pull access denied for {reference.familiar_name}, repository does not exist or"
                f" may require 'docker login': {refusal.message}"
            ) from refusal
        if isinstance(refusal, NotFound):
            raise NotFound(
                f"manifest for {reference.familiar} not found: manifest unknown: {refusal.message}"
            ) from refusal
        raise refusal

    def first(self, ask: Callable[[Registry], Answer]) -> Answer:
        """The first answer; raises what the last one fails with."""
        for client in self.clients[:-1]:
            try:
                return ask(client)
            except NEXT:
                continue
        return ask(self.clients[-1])

    def image(self, found: Manifest | Index, wanted: Platform, repository: str) -> Manifest:
        """The manifest for a platform, through indexes. Raises NotFound, InvalidParameter."""
        for _ in range(_DEPTH):
            if isinstance(found, Manifest):
                return found
            entries = found.best_first(wanted)
            if not entries:
                raise NotFound(f"no matching manifest for {wanted} in the manifest list entries")
            found = self.first(partial(_manifest_of, repository, entries[0]))
        raise InvalidParameter("invalid manifest: its indexes are nested too deeply")


def _manifest_of(repository: str, entry: Descriptor, client: Registry) -> Manifest | Index:
    return client.manifest(repository, entry.digest, entry)
