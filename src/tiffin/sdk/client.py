"""The client: where everything begins, whatever side the engine is on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from tiffin.sdk import streams
from tiffin.sdk.container import Moment, moment
from tiffin.sdk.containers import Containers
from tiffin.sdk.images import Images
from tiffin.sdk.networks import Networks
from tiffin.sdk.resource import api_filters
from tiffin.sdk.streams import Output
from tiffin.sdk.transport import Transport
from tiffin.sdk.volumes import Volumes

if TYPE_CHECKING:
    from tiffin.registry.credentials import Credentials

_Self = TypeVar("_Self", bound="Client")


class Client:
    """An engine, through its API. Use it as a context manager, or call :meth:`close`.

    Any thread may call it. Errors are those of :mod:`tiffin.errors`.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.credentials: dict[str, Credentials] = {}
        """Of registries that this client has logged in to; they end with it."""
        self.containers = Containers(self)
        self.images = Images(self)
        self.networks = Networks(self)
        self.volumes = Volumes(self)

    def ping(self) -> bool:
        """Whether it answers; raises Unreachable if not."""
        return bool(self.transport.call("GET", "/_ping") == "OK")

    def version(self) -> dict[str, Any]:
        """Which engine it is."""
        return dict(self.transport.call("GET", "/version"))

    def info(self) -> dict[str, Any]:
        """What it has and what it runs on."""
        return dict(self.transport.call("GET", "/info"))

    def df(self) -> dict[str, Any]:
        """What takes which room on the disk."""
        return dict(self.transport.call("GET", "/system/df"))

    @overload
    def events(
        self,
        *,
        since: Moment | None = ...,
        until: Moment | None = ...,
        filters: dict[str, Any] | None = ...,
        decode: Literal[True],
    ) -> Output[dict[str, Any]]: ...
    @overload
    def events(
        self,
        *,
        since: Moment | None = ...,
        until: Moment | None = ...,
        filters: dict[str, Any] | None = ...,
        decode: Literal[False] | None = ...,
    ) -> Output[bytes]: ...
    def events(
        self,
        *,
        since: Moment | None = None,
        until: Moment | None = None,
        filters: dict[str, Any] | None = None,
        decode: bool | None = None,
    ) -> Any:
        """What happens, as it happens, as JSON (``decode``: as dictionaries).

        ``since`` begins in the past; ``until`` ends it.
        """
        query = {"since": moment(since), "until": moment(until), "filters": api_filters(filters)}
        answer = self.transport.stream("GET", "/events", query)
        return streams.messages(answer) if decode else streams.lines(answer)

    def login(
        self,
        username: str,
        password: str | None = None,
        email: str | None = None,
        registry: str | None = None,
    ) -> dict[str, Any]:
        """Tries credentials at a registry, and keeps them for this client's pulls and pushes.

        Raises Unauthorized.
        """
        from tiffin.registry.credentials import HUB_KEY, Credentials, host_of, key_of

        key = key_of(host_of(registry)) if registry else HUB_KEY
        body = {"username": username, "password": password or "", "serveraddress": key}
        if email:
            body["email"] = email
        answer = dict(self.transport.call("POST", "/auth", None, body))
        token = answer.get("IdentityToken") or ""
        self.credentials[key] = Credentials(username, "" if token else password or "", token)
        return answer

    def close(self) -> None:
        """Lets go of the engine; containers go on running."""
        self.transport.close()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(
    base_url: str | None = None,
    *,
    root: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
) -> Client:
    """A client of a daemon: at ``unix:///path`` or ``tcp://host:port``, at ``TIFFIN_HOST``, or else
    that of an engine root (``root``, ``TIFFIN_ROOT``, the default one), which is started if it does
    not run, as the command line does.

    ``timeout`` bounds the wait for each answer. Raises Unreachable if nobody answers.
    """
    from tiffin.client.endpoint import Endpoint

    endpoint = Endpoint.choose(base_url or "", os.fspath(root) if root is not None else "")
    local = not isinstance(endpoint.address, tuple)
    client = Client(Transport(endpoint.connect, local=local, timeout=timeout))
    client.ping()
    return client
