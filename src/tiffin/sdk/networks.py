"""Networks: the collection ``client.networks``, and the object that it gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tiffin.sdk.container import Container
from tiffin.sdk.resource import Removable, api_filters
from tiffin.sdk.transport import escape
from tiffin.sdk.types import EndpointConfig

if TYPE_CHECKING:
    import builtins

    from tiffin.sdk.client import Client


class Network(Removable):
    """One network; as a context manager it is removed at the end of the block."""

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.attrs["Name"])

    @property
    def containers(self) -> list[Container]:
        """The containers that are connected (at the last reload)."""
        return [self.client.containers.get(one) for one in self.attrs.get("Containers") or {}]

    def _inspect(self) -> dict[str, Any]:
        return dict(self.client.transport.call("GET", f"/networks/{self.id}"))

    def connect(
        self,
        container: str | Container,
        *,
        aliases: list[str] | None = None,
        links: dict[str, str] | list[str] | None = None,
        ipv4_address: str | None = None,
        ipv6_address: str | None = None,
        link_local_ips: list[str] | None = None,
        driver_opt: dict[str, str] | None = None,
        mac_address: str | None = None,
    ) -> None:
        """Connects a container, under further names or at a given address if wanted."""
        endpoint = EndpointConfig(
            aliases, links, ipv4_address, ipv6_address, link_local_ips, driver_opt, mac_address
        )
        body = {"Container": _identity(container), "EndpointConfig": endpoint}
        self.client.transport.call("POST", f"/networks/{self.id}/connect", None, body)

    def disconnect(self, container: str | Container, *, force: bool = False) -> None:
        """Takes a container off it."""
        body = {"Container": _identity(container), "Force": force}
        self.client.transport.call("POST", f"/networks/{self.id}/disconnect", None, body)

    def remove(self) -> None:
        """Removes it."""
        self.client.transport.call("DELETE", f"/networks/{self.id}")

    def _take_away(self) -> None:
        self.reload()
        for container in self.attrs.get("Containers") or {}:
            self.disconnect(container, force=True)
        self.remove()


def _identity(container: str | Container) -> str:
    return container if isinstance(container, str) else container.id


class Networks:
    """All networks of an engine."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(
        self, network_id: str, *, verbose: bool | None = None, scope: str | None = None
    ) -> Network:
        """The network of a name or ID; raises NotFound."""
        query = {"verbose": verbose, "scope": scope}
        attrs = self._client.transport.call("GET", f"/networks/{escape(network_id)}", query)
        return Network(self._client, attrs)

    def create(
        self,
        name: str,
        driver: str | None = None,
        options: dict[str, Any] | None = None,
        ipam: dict[str, Any] | None = None,
        *,
        check_duplicate: bool | None = None,
        internal: bool = False,
        labels: dict[str, str] | None = None,
        enable_ipv6: bool = False,
        attachable: bool | None = None,
        scope: str | None = None,
        ingress: bool | None = None,
    ) -> Network:
        """Makes a network."""
        body = {
            "Name": name,
            "Driver": driver,
            "Options": options,
            "IPAM": ipam,
            "CheckDuplicate": check_duplicate,
            "Internal": internal or None,
            "Labels": labels,
            "EnableIPv6": enable_ipv6 or None,
            "Attachable": attachable,
            "Scope": scope,
            "Ingress": ingress,
        }
        given = {member: value for member, value in body.items() if value is not None}
        return self.get(self._client.transport.call("POST", "/networks/create", None, given)["Id"])

    def list(
        self,
        names: builtins.list[str] | None = None,
        ids: builtins.list[str] | None = None,
        *,
        filters: dict[str, Any] | None = None,
        greedy: bool = False,
    ) -> builtins.list[Network]:
        """The networks; ``greedy``: with the containers that are connected."""
        given = {**(filters or {})}
        given.update({key: value for key, value in (("name", names), ("id", ids)) if value})
        rows = self._client.transport.call("GET", "/networks", {"filters": api_filters(given)})
        found = [Network(self._client, row) for row in rows]
        if greedy:
            for network in found:
                network.reload()
        return found

    def prune(self, filters: dict[str, Any] | None = None) -> dict[str, Any]:
        """Removes those that no container uses."""
        query = {"filters": api_filters(filters)}
        return dict(self._client.transport.call("POST", "/networks/prune", query))
