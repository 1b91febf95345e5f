"""The ledger: which networks there are, who is in them with which addresses, which ports are given.

In memory and in the database, which agree after each method. Nothing here touches a link or a rule.
An endpoint's row is written before anything is made for it, and deleted once its addresses may be
given to others: what an engine that was killed has left is found by comparing with these rows.
"""

from __future__ import annotations

import ipaddress
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from tiffin.errors import Conflict, Forbidden, InvalidParameter, NotFound
from tiffin.network.addresses import Subnet, mac_address
from tiffin.network.settings import Asked, Endpoint, NetworkSettings, Port
from tiffin.store.database import Database

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(slots=True)
class Network:
    """A network with what is in it."""

    id: str
    name: str
    settings: NetworkSettings
    created: int
    subnets: list[Subnet] = field(default_factory=list)
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    """By container."""

    def subnet(self, version: int) -> Subnet | None:
        """Its (first) subnet of a version."""
        for subnet in self.subnets:
            if subnet.network.version == version:
                return subnet
        return None


class Ledger:
    """The networks, endpoints and published ports of a root. Usable from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.lock = threading.RLock()
        self._networks: dict[str, Network] = {}
        self._ports: dict[str, list[Port]] = {}
        for row in database.all("SELECT * FROM networks ORDER BY created"):
            settings = msgspec.json.decode(row["settings"], type=NetworkSettings)
            self._networks[row["id"]] = self._open(row["id"], row["name"], settings, row["created"])
        for row in database.all("SELECT * FROM endpoints"):
            endpoint = msgspec.json.decode(row["settings"], type=Endpoint)
            network = self._networks[endpoint.network]
            network.endpoints[endpoint.container] = endpoint
            for interface in endpoint.interfaces:
                for subnet in network.subnets:
                    if interface.ip in subnet.network:
                        subnet.take(interface.ip, endpoint.id)
        for row in database.all("SELECT * FROM published_ports"):
            self._ports[row["container"]] = msgspec.json.decode(row["ports"], type=list[Port])

    @staticmethod
    def _open(key: str, name: str, settings: NetworkSettings, created: int) -> Network:
        subnets = [
            Subnet.of_config(config, with_gateway=settings.driver == "bridge")
            for config in settings.ipam
            if config.get("Subnet")
        ]
        return Network(key, name, settings, created, subnets)

    # -- networks ---------------------------------------------------------------------------

    def networks(self) -> list[Network]:
        """Every network, the oldest first."""
        with self.lock:
            return list(self._networks.values())

    def find(self, reference: str) -> Network | None:
        """The network that an ID, a name or an unambiguous prefix of an ID names.

        Raises InvalidParameter where a prefix fits several.
        """
        with self.lock:
            found = self._networks.get(reference)
            if found is not None:
                return found
            for network in self._networks.values():
                if network.name == reference:
                    return network
            fitting = [key for key in self._networks if reference and key.startswith(reference)]
        if len(fitting) > 1:
            raise InvalidParameter(f"network {reference} is ambiguous ({len(fitting)} matches)")
        return self._networks[fitting[0]] if fitting else None

    def find_name(self, name: str) -> Network | None:
        """The network of a name."""
        with self.lock:
            return next((one for one in self._networks.values() if one.name == name), None)

    def get(self, reference: str) -> Network:
        """Like :meth:`find`; raises NotFound in Docker's words."""
        found = self.find(reference)
        if found is None:
            raise NotFound(f"network {reference} not found")
        return found

    def add(self, name: str, settings: NetworkSettings) -> Network:
        """Record a network. Raises Conflict (name), Forbidden (overlap), InvalidParameter."""
        key, created = secrets.token_hex(32), time.time_ns()
        network = self._open(key, name, settings, created)
        with self.lock:
            for other in self._networks.values():
                if other.name == name:
                    raise Conflict(f"network with name {name} already exists")
                for subnet in network.subnets:
                    if any(_overlap(subnet, one) for one in other.subnets):
                        raise Forbidden(
                            "invalid pool request: Pool overlaps with other one on this address "
                            f"space: {subnet.network} and network {other.name}"
                        )
            # The gateway that was chosen is part of what is kept.
            for config, subnet in zip(settings.ipam, network.subnets, strict=True):
                if subnet.gateway is not None:
                    config["Gateway"] = str(subnet.gateway)
            try:
                self._database.execute(
                    "INSERT INTO networks VALUES (?, ?, ?, ?)",
                    (key, name, msgspec.json.encode(settings), created),
                )
            except sqlite3.IntegrityError as error:
                raise Conflict(f"network with name {name} already exists") from error
            self._networks[key] = network
        return network

    def save(self, network: Network) -> None:
        """Write a network's settings again."""
        self._database.execute(
            "UPDATE networks SET settings = ? WHERE id = ?",
            (msgspec.json.encode(network.settings), network.id),
        )

    def renumber(self, network: Network) -> None:
        """Take over a network's IPAM configuration that was changed; nothing may be in it."""
        fresh = self._open(network.id, network.name, network.settings, network.created)
        network.subnets = fresh.subnets
        for config, subnet in zip(network.settings.ipam, network.subnets, strict=True):
            if subnet.gateway is not None:
                config["Gateway"] = str(subnet.gateway)

    def save_endpoint(self, endpoint: Endpoint) -> None:
        """Write an endpoint again."""
        self._database.execute(
            "UPDATE endpoints SET settings = ? WHERE id = ?",
            (msgspec.json.encode(endpoint), endpoint.id),
        )

    def drop(self, network: Network) -> None:
        """Forget a network; raises Forbidden, in Docker's words, while something is in it."""
        with self.lock:
            if network.endpoints:
                raise Forbidden(
                    f"error while removing network: network {network.name} has active endpoints"
                )
            self._database.execute("DELETE FROM networks WHERE id = ?", (network.id,))
            self._networks.pop(network.id, None)

    # -- endpoints --------------------------------------------------------------------------

    def join(
        self, network: Network, container: str, asked: Asked, interface: str, names: list[str]
    ) -> Endpoint:
        """Give a container its place in a network.

        Raises Forbidden (address in use), InvalidParameter (not of the network), Conflict (it is
        there already), TiffinError (no address left).
        """
        key = secrets.token_hex(32)
        with self.lock:
            if network.id not in self._networks:
                raise NotFound(f"network {network.name} not found")
            if container in network.endpoints:
                raise Conflict(f"container {container[:12]} is in network {network.name} already")
            got: list[tuple[Subnet, Address]] = []
            try:
                for version, text in ((4, asked.ipv4), (6, asked.ipv6)):
                    subnet = self._subnet_for(network, version, text)
                    if subnet is None:
                        continue
                    if text:
                        address: Address = ipaddress.ip_address(text)
                        subnet.take(address, key)
                    else:
                        address = subnet.allocate(key)
                    got.append((subnet, address))
                endpoint = Endpoint(key, network.id, container, interface, "", names=names)
                for subnet, address in got:
                    text = f"{address}/{subnet.network.prefixlen}"
                    if address.version == 4:
                        endpoint.ipv4 = text
                    else:
                        endpoint.ipv6 = text
                endpoint.link_local = [
                    f"{address}/{64 if ':' in address else 16}" for address in asked.link_local
                ]
                first = got[0][1] if got else None
                endpoint.mac = asked.mac or mac_address(first, secrets.token_bytes(4))
                self._database.execute(
                    "INSERT INTO endpoints VALUES (?, ?, ?, ?)",
                    (key, network.id, container, msgspec.json.encode(endpoint)),
                )
            except BaseException:
                for subnet, address in got:
                    subnet.give_back(address)
                raise
            network.endpoints[container] = endpoint
        return endpoint

    @staticmethod
    def _subnet_for(network: Network, version: int, wanted: str) -> Subnet | None:
        subnets = [one for one in network.subnets if one.network.version == version]
        if not wanted:
            return subnets[0] if subnets else None
        address = ipaddress.ip_address(wanted)
        for subnet in subnets:
            if address in subnet.network:
                return subnet
        raise InvalidParameter(
            f"invalid endpoint settings: no configured subnet contains IP address {wanted}"
        )

    def leave(self, endpoint: Endpoint) -> None:
        """Forget an endpoint; its addresses are free again."""
        with self.lock:
            self._database.execute("DELETE FROM endpoints WHERE id = ?", (endpoint.id,))
            network = self._networks.get(endpoint.network)
            if network is None:
                return
            if network.endpoints.get(endpoint.container) is endpoint:
                del network.endpoints[endpoint.container]
            for interface in endpoint.interfaces:
                for subnet in network.subnets:
                    if interface.ip in subnet.network:
                        subnet.give_back(interface.ip)

    def of_container(self, container: str) -> list[tuple[Network, Endpoint]]:
        """A container's places, in the order of its interfaces."""
        with self.lock:
            found = [
                (network, network.endpoints[container])
                for network in self._networks.values()
                if container in network.endpoints
            ]
        return sorted(found, key=lambda pair: (len(pair[1].interface), pair[1].interface))

    def containers(self) -> set[str]:
        """The containers that have an endpoint or a port."""
        with self.lock:
            found = set(self._ports)
            for network in self._networks.values():
                found.update(network.endpoints)
            return found

    # -- ports ------------------------------------------------------------------------------

    def publish(self, container: str, ports: list[Port]) -> None:
        """Record the published ports of a container."""
        with self.lock:
            self._database.execute(
                "INSERT OR REPLACE INTO published_ports VALUES (?, ?)",
                (container, msgspec.json.encode(ports)),
            )
            self._ports[container] = ports

    def unpublish(self, container: str) -> None:
        """Forget them."""
        with self.lock:
            if self._ports.pop(container, None) is not None:
                self._database.execute(
                    "DELETE FROM published_ports WHERE container = ?", (container,)
                )

    def ports(self, container: str) -> list[Port]:
        """The published ports of a container."""
        with self.lock:
            return self._ports.get(container, [])

    def taken(self) -> set[tuple[str, str, int]]:
        """(protocol, address, port) of every published port."""
        with self.lock:
            return {
                (port.protocol, port.host_address, port.host_port)
                for ports in self._ports.values()
                for port in ports
            }


def _overlap(one: Subnet, other: Subnet) -> bool:
    return one.network.version == other.network.version and one.network.overlaps(other.network)


def pools_taken(networks: Iterable[Network]) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """The subnets of networks."""
    return [subnet.network for network in networks for subnet in network.subnets]
