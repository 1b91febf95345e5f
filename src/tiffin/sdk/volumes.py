"""Volumes: the collection ``client.volumes``, and the object that it gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tiffin.sdk.resource import Removable, api_filters
from tiffin.sdk.transport import escape

if TYPE_CHECKING:
    import builtins

    from tiffin.sdk.client import Client


class Volume(Removable):
    """One volume; as a context manager it is removed at the end of the block."""

    _id_attribute: ClassVar[str] = "Name"

    @property
    def name(self) -> str:
        """Its name."""
        return self.id

    def _inspect(self) -> dict[str, Any]:
        return dict(self.client.transport.call("GET", f"/volumes/{escape(self.id)}"))

    def remove(self, *, force: bool = False) -> None:
        """Removes it with all that is in it; raises Conflict while a container has it."""
        query = {"force": force}
        self.client.transport.call("DELETE", f"/volumes/{escape(self.id)}", query)

    def _take_away(self) -> None:
        self.remove()


class Volumes:
    """All volumes of an engine."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, volume_id: str) -> Volume:
        """The volume of a name; raises NotFound."""
        attrs = self._client.transport.call("GET", f"/volumes/{escape(volume_id)}")
        return Volume(self._client, attrs)

    def create(
        self,
        name: str | None = None,
        *,
        driver: str | None = None,
        driver_opts: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
    ) -> Volume:
        """Makes a volume; without a name it is given one."""
        body = {"Name": name, "Driver": driver, "DriverOpts": driver_opts, "Labels": labels}
        given = {member: value for member, value in body.items() if value is not None}
        return Volume(
            self._client, self._client.transport.call("POST", "/volumes/create", None, given)
        )

    def list(self, filters: dict[str, Any] | None = None) -> builtins.list[Volume]:
        """The volumes."""
        rows = self._client.transport.call("GET", "/volumes", {"filters": api_filters(filters)})
        return [Volume(self._client, row) for row in rows["Volumes"] or []]

    def prune(self, filters: dict[str, Any] | None = None) -> dict[str, Any]:
        """Removes the anonymous ones (``{"all": True}``: all) that no container has."""
        query = {"filters": api_filters(filters)}
        return dict(self._client.transport.call("POST", "/volumes/prune", query))
