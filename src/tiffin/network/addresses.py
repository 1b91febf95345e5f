"""Addresses: which subnet a network gets, and which address an endpoint.

Words: a *pool* is a range of subnets that networks without one of their own get theirs from; a
*subnet* is one network's; an *address* one endpoint's. Nothing here touches the system: what must
not be met (the host's routes, other networks) is given.

Addresses are given out in a circle, so that one that was just given back is the last to be used
again: neighbours may still think that they know who has it. What is allocated is kept by the
caller, with the endpoint, and told again with :meth:`Subnet.take` at the next start.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tiffin.errors import Forbidden, InvalidParameter, TiffinError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

POOLS: tuple[tuple[str, int], ...] = (
    ("172.17.0.0/16", 16),
    ("172.18.0.0/15", 16),
    ("172.20.0.0/14", 16),
    ("172.24.0.0/14", 16),
    ("172.28.0.0/14", 16),
    ("192.168.0.0/16", 20),
)
"""(range, prefix length of a subnet), in order: those that Docker's users know."""


def subnets(version: int, mark: str) -> Iterator[Network]:
    """The subnets to choose from, in order. ``mark`` makes the IPv6 ones this engine's own."""
    if version == 4:
        for pool, length in POOLS:
            yield from ipaddress.ip_network(pool).subnets(new_prefix=length)
        return
    # RFC 4193: fd00::/8 with forty bits of chance, then sixteen of subnets.
    digest = hashlib.sha256(f"tiffin {mark}".encode()).digest()
    site = ipaddress.IPv6Network((b"\xfd" + digest[:5] + bytes(10), 48))
    yield from site.subnets(new_prefix=64)


def choose(version: int, mark: str, taken: Iterable[Network]) -> Network:
    """A subnet that overlaps with none of ``taken``; raises TiffinError if there is none left."""
    avoid = [network for network in taken if network.version == version]
    for subnet in subnets(version, mark):
        if not any(subnet.overlaps(other) for other in avoid):
            return subnet
    raise TiffinError(
        "all predefined address pools have been fully subnetted: remove networks that are not "
        "used, or give one with --subnet"
    )


def parse_subnet(text: str) -> Network:
    """A subnet as the user wrote it; raises InvalidParameter in Docker's words."""
    try:
        return ipaddress.ip_network(text, strict=True)
    except ValueError:
        pass
    try:
        loose = ipaddress.ip_interface(text)
    except ValueError as error:
        raise InvalidParameter(f"invalid subnet {text}: invalid CIDR block notation") from error
    raise InvalidParameter(f"invalid subnet {text}: it should be {loose.network}")


def parse_address(text: str, what: str) -> Address:
    """An address as the user wrote it; raises InvalidParameter."""
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise InvalidParameter(f"invalid {what}: {text!r} is not an IP address") from error


@dataclass(slots=True)
class Subnet:
    """One subnet of a network with what is taken of it."""

    network: Network
    gateway: Address | None
    range: Network
    """Where addresses are given out that nobody asked for."""
    auxiliary: Mapping[str, Address] = field(default_factory=dict)
    """Addresses that others use (``--aux-address``)."""
    _owners: dict[int, str] = field(default_factory=dict)
    _cursor: int = 0

    @classmethod
    def of_config(cls, config: Mapping[str, object], *, with_gateway: bool = True) -> Subnet:
        """From an element of Docker's IPAM configuration; a missing gateway is the first address.

        Raises InvalidParameter.
        """
        network = parse_subnet(str(config["Subnet"]))
        given = str(config.get("Gateway") or "")
        gateway: Address | None = None
        if given:
            gateway = parse_address(given.partition("/")[0], "gateway")
            if gateway not in network:
                raise InvalidParameter(f"no matching subnet for gateway {given}")
        scope = network
        if config.get("IPRange"):
            scope = parse_subnet(str(config["IPRange"]))
            if scope.version != network.version or not scope.subnet_of(network):  # type: ignore[arg-type]
                raise InvalidParameter(f"no matching subnet for range {scope}")
        auxiliary = {}
        for name, text in dict(config.get("AuxiliaryAddresses") or {}).items():  # type: ignore[call-overload]
            address = parse_address(str(text), "auxiliary address")
            if address not in network:
                raise InvalidParameter(f"no matching subnet for aux-address {text}")
            auxiliary[str(name)] = address
        subnet = cls(network, gateway, scope, auxiliary)
        for name, address in auxiliary.items():
            subnet._owners[int(address)] = f"auxiliary address {name}"
        if gateway is None and with_gateway:
            subnet.gateway = subnet.allocate("gateway")
        elif gateway is not None:
            subnet._owners[int(gateway)] = "gateway"
        return subnet

    def _usable(self, scope: Network) -> tuple[int, int]:
        first, last = int(scope.network_address), int(scope.broadcast_address)
        whole = self.network
        # The network's own address and the broadcast one belong to nobody.
        if first == int(whole.network_address) and whole.prefixlen < whole.max_prefixlen - 1:
            first += 1
        if (
            whole.version == 4
            and last == int(whole.broadcast_address)
            and whole.prefixlen < whole.max_prefixlen - 1
        ):
            last -= 1
        return first, last

    def allocate(self, owner: str) -> Address:
        """The next free address; raises TiffinError when there is none left."""
        first, last = self._usable(self.range)
        size = last - first + 1
        start = min(max(self._cursor, first), last)
        for offset in range(size):
            number = first + (start - first + offset) % size
            if number not in self._owners:
                self._owners[number] = owner
                self._cursor = number + 1 if number < last else first
                return self._address(number)
            if offset > len(self._owners):
                break
        raise TiffinError(f"no available IPv{self.network.version} addresses on {self.network}")

    def _address(self, number: int) -> Address:
        if self.network.version == 4:
            return ipaddress.IPv4Address(number)
        return ipaddress.IPv6Address(number)

    def take(self, address: Address, owner: str) -> None:
        """Take one address; raises Forbidden in Docker's words if somebody has it, and
        InvalidParameter if it is not of this subnet."""
        first, last = self._usable(self.network)
        if address.version != self.network.version or not first <= int(address) <= last:
            raise InvalidParameter(
                f"no configured subnet contains IP address {address} (it is {self.network})"
            )
        if int(address) in self._owners:
            raise Forbidden(f"Address already in use: {address}")
        self._owners[int(address)] = owner

    def give_back(self, address: Address) -> None:
        """Make an address free again."""
        self._owners.pop(int(address), None)

    @property
    def used(self) -> int:
        """How many addresses are taken."""
        return len(self._owners)


def mac_address(address: Address | None, chance: bytes) -> str:
    """A MAC address: made from an IPv4 address, so that whoever remembers the pair is right.

    ``chance`` are four random bytes for an endpoint without one.
    """
    packed = address.packed if address is not None and address.version == 4 else chance[:4]
    return ":".join(f"{byte:02x}" for byte in b"\x02\x42" + packed)
