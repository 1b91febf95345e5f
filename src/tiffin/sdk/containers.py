"""Containers: the collection ``client.containers``, which makes, finds and runs them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from tiffin.errors import ContainerError, ImageNotFound, NotFound, TiffinError
from tiffin.sdk import settings
from tiffin.sdk.container import Container
from tiffin.sdk.resource import api_filters
from tiffin.sdk.settings import Command, ContainerSettings
from tiffin.sdk.streams import Output
from tiffin.sdk.transport import escape

if TYPE_CHECKING:
    import builtins

    from tiffin.sdk.client import Client
    from tiffin.sdk.images import Image


class Containers:
    """All containers of an engine."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, container_id: str) -> Container:
        """The container of an ID or name; raises NotFound."""
        path = f"/containers/{escape(container_id)}/json"
        return Container(self._client, self._client.transport.call("GET", path))

    def list(
        self,
        *,
        all: bool = False,
        before: str | None = None,
        filters: dict[str, Any] | None = None,
        limit: int = -1,
        since: str | None = None,
        sparse: bool = False,
        ignore_removed: bool = False,
    ) -> builtins.list[Container]:
        """The running containers; ``all`` of them; those that the filters leave.

        ``sparse``: with what the list says alone, without asking for each.
        """
        given = {**(filters or {})}
        given.update(
            {name: value for name, value in (("before", before), ("since", since)) if value}
        )
        query = {"all": all, "limit": limit if limit > 0 else None, "filters": api_filters(given)}
        rows = self._client.transport.call("GET", "/containers/json", query)
        if sparse:
            return [Container(self._client, row) for row in rows]
        found = []
        for row in rows:
            try:
                found.append(self.get(row["Id"]))
            except NotFound:
                if not ignore_removed:
                    raise
        return found

    def prune(self, filters: dict[str, Any] | None = None) -> dict[str, Any]:
        """Removes those that do not run: ``{"ContainersDeleted", "SpaceReclaimed"}``."""
        query = {"filters": api_filters(filters)}
        return dict(self._client.transport.call("POST", "/containers/prune", query))

    def create(
        self,
        image: str | Image,
        command: Command = None,
        *,
        detach: bool = False,
        **options: Unpack[ContainerSettings],
    ) -> Container:
        """Makes a container without starting it; raises ImageNotFound."""
        name = image if isinstance(image, str) else image.id
        query, body = settings.body(name, command, options, detach=detach)
        made = self._client.transport.call("POST", "/containers/create", query, body)
        return self.get(made["Id"])

    @overload
    def run(
        self,
        image: str | Image,
        command: Command = ...,
        stdout: bool = ...,
        stderr: bool = ...,
        remove: bool = ...,
        *,
        detach: Literal[True],
        stream: bool = ...,
        **options: Unpack[ContainerSettings],
    ) -> Container: ...
    @overload
    def run(
        self,
        image: str | Image,
        command: Command = ...,
        stdout: bool = ...,
        stderr: bool = ...,
        remove: bool = ...,
        *,
        detach: Literal[False] = ...,
        stream: Literal[True],
        **options: Unpack[ContainerSettings],
    ) -> Output[bytes]: ...
    @overload
    def run(
        self,
        image: str | Image,
        command: Command = ...,
        stdout: bool = ...,
        stderr: bool = ...,
        remove: bool = ...,
        *,
        detach: Literal[False] = ...,
        stream: Literal[False] = ...,
        **options: Unpack[ContainerSettings],
    ) -> bytes: ...
    def run(
        self,
        image: str | Image,
        command: Command = None,
        stdout: bool = True,
        stderr: bool = False,
        remove: bool = False,
        *,
        detach: bool = False,
        stream: bool = False,
        **options: Unpack[ContainerSettings],
    ) -> Container | Output[bytes] | bytes:
        """Runs a command in a new container; what it said, once it has ended.

        ``detach``: the container at once, which goes on running. ``stream``: what it says, piece
        by piece, as it says it. ``remove``: the container is removed at its end. An image that is
        not there is pulled. Raises ContainerError for another exit code than 0 (with ``stream``
        at the end of the iteration), StartFailure, ImageNotFound. Where the log driver keeps
        nothing that can be read, the output is empty.
        """
        if detach and remove:
            options["auto_remove"] = True
        elif not detach and options.get("auto_remove"):
            # The engine must not be quicker than the reader of the output.
            options["auto_remove"], remove = False, True
        try:
            container = self.create(image, command, detach=detach, **options)
        except ImageNotFound:
            if not isinstance(image, str):
                raise
            self._client.images.pull(image, platform=options.get("platform"))
            container = self.create(image, command, detach=detach, **options)
        if detach:
            try:
                container.start()
            except TiffinError:
                if remove:
                    _gone(container)
                raise
            return container
        output = _Run(container, command, image, stdout=stdout, stderr=stderr, remove=remove)
        return Output(output.items(), output.close) if stream else b"".join(output.items())


_READABLE = ("json-file", "journald", "local")


class _Run:
    """A container that is run to its end."""

    def __init__(
        self,
        container: Container,
        command: Command,
        image: str | Image,
        *,
        stdout: bool,
        stderr: bool,
        remove: bool,
    ) -> None:
        self._container = container
        self._command = command
        self._image = image if isinstance(image, str) else image.id
        self._streams = {"stdout": stdout, "stderr": stderr}
        self._remove = remove
        self._logs: Output[bytes] | None = None
        try:
            container.start()
            driver = container.attrs["HostConfig"]["LogConfig"]["Type"]
            if driver in _READABLE and (stdout or stderr):
                self._logs = container.logs(**self._streams, stream=True)
        except BaseException:
            self.close()
            raise

    def items(self) -> Iterator[bytes]:
        """What it says; raises ContainerError at the end if it failed."""
        try:
            if self._logs is not None:
                yield from self._logs
            status = self._container.wait()["StatusCode"]
            if status:
                said = None
                if self._logs is not None:
                    said = self._container.logs(stdout=False, stderr=True)
                raise ContainerError(self._container, status, self._command, self._image, said)
        finally:
            self.close()

    def close(self) -> None:
        """Takes the container away if that was asked for; a running one too."""
        if self._logs is not None:
            self._logs.close()
        if self._remove:
            self._remove = False
            _gone(self._container)


def _gone(container: Container) -> None:
    with container:
        pass
