"""What a network is, and what an endpoint is: a container's place in a network.

Both are kept in the database, the settings as JSON.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Set
from typing import Any

import msgspec

from tiffin.errors import InvalidParameter

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

_PREFIX = "com.docker.network."
BRIDGE_NAME = f"{_PREFIX}bridge.name"
ICC = f"{_PREFIX}bridge.enable_icc"
MASQUERADE = f"{_PREFIX}bridge.enable_ip_masquerade"
HOST_BINDING = f"{_PREFIX}bridge.host_binding_ipv4"
MTU = f"{_PREFIX}driver.mtu"
INTERFACE_PREFIX = f"{_PREFIX}container_iface_prefix"
DEFAULT_BRIDGE = f"{_PREFIX}bridge.default_bridge"

CHILD_CHOICES = {
    "macvlan_mode": ("bridge", "private", "vepa", "passthru"),
    "ipvlan_mode": ("l2", "l3", "l3s"),
    "ipvlan_flag": ("bridge", "private", "vepa"),
}
"""How interfaces on one parent meet each other and the world: what may be asked, the default first.
"""

_INTERFACE = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,11}")
_TRUE = frozenset(("1", "t", "true"))
_FALSE = frozenset(("0", "f", "false"))


class NetworkSettings(msgspec.Struct):
    """A network as it was asked for, with what was chosen for it filled in."""

    driver: str = "bridge"
    ipv4: bool = True
    ipv6: bool = False
    internal: bool = False
    attachable: bool = False
    ipam: list[dict[str, Any]] = []
    """Docker's IPAM configurations: Subnet, IPRange, Gateway, AuxiliaryAddresses."""
    ipam_options: dict[str, str] = {}
    options: dict[str, str] = {}
    labels: dict[str, str] = {}

    def flag(self, option: str, default: bool) -> bool:
        """A yes-or-no option; raises InvalidParameter."""
        text = self.options.get(option)
        if text is None or text == "":
            return default
        if text.lower() not in _TRUE | _FALSE:
            raise InvalidParameter(f"invalid value for {option}: {text!r}: true or false")
        return text.lower() in _TRUE

    def free_interface(self, used: Set[str]) -> str:
        """The name of a container's interface in this network, beside those that it has."""
        prefix = self.interface_prefix
        return next(name for n in range(len(used) + 1) if (name := f"{prefix}{n}") not in used)

    @property
    def interface_prefix(self) -> str:
        """What the names of containers' interfaces begin with; raises InvalidParameter."""
        prefix = self.options.get(INTERFACE_PREFIX) or "eth"
        if not _INTERFACE.fullmatch(prefix):
            raise InvalidParameter(
                f"invalid value for {INTERFACE_PREFIX}: {prefix!r}: up to 12 letters, digits, "
                "'.', '_' and '-', a letter first"
            )
        return prefix

    def choice(self, option: str) -> str:
        """One of :data:`CHILD_CHOICES`; raises InvalidParameter in Docker's words."""
        choices = CHILD_CHOICES[option]
        chosen = self.options.get(option) or choices[0]
        if chosen not in choices:
            driver, _, what = option.partition("_")
            default = f"'{choices[0]}'" + (" mode" if what == "mode" else "")
            raise InvalidParameter(
                f"requested {driver} {what} '{chosen}' is not valid, {default} is the {driver} "
                f"driver default ({', '.join(choices)})"
            )
        return chosen

    @property
    def leads_out(self) -> bool:
        """Whether a default route may lead through it: not without a parent, as in Docker."""
        return not self.internal and (self.driver == "bridge" or bool(self.options.get("parent")))

    @property
    def icc(self) -> bool:
        """Whether the containers of the network may talk to each other."""
        return self.flag(ICC, True)

    @property
    def masquerade(self) -> bool:
        """Whether what leaves the network comes from the host's address."""
        return self.flag(MASQUERADE, True) and not self.internal

    @property
    def mtu(self) -> int:
        """The largest packet, 0 for the kernel's default; raises InvalidParameter."""
        text = self.options.get(MTU) or self.options.get("mtu") or "0"
        if not text.isdigit() or (0 < int(text) < 68) or int(text) > 65535:
            raise InvalidParameter(f"invalid value for {MTU}: {text!r}: 68 to 65535")
        return int(text)


class Asked(msgspec.Struct):
    """What a container wants of a network: Docker's ``EndpointSettings`` of a request."""

    ipv4: str = ""
    ipv6: str = ""
    mac: str = ""
    aliases: list[str] = []
    links: list[str] = []
    options: dict[str, str] = {}
    priority: int = 0
    link_local: list[str] = []

    @classmethod
    def of_request(cls, body: dict[str, Any] | None) -> Asked:
        """From the API's form; raises InvalidParameter for an address that is none."""
        body = body or {}
        ipam = body.get("IPAMConfig") or {}
        asked = cls(
            ipam.get("IPv4Address") or "",
            ipam.get("IPv6Address") or "",
            (body.get("MacAddress") or "").lower().replace("-", ":"),
            list(body.get("Aliases") or []),
            list(body.get("Links") or []),
            dict(body.get("DriverOpts") or {}),
            int(body.get("GwPriority") or 0),
            list(ipam.get("LinkLocalIPs") or []),
        )
        for text in asked.link_local:
            try:
                ipaddress.ip_address(text)
            except ValueError as error:
                raise InvalidParameter(f"invalid link-local IP address: {text}") from error
        for text, version in ((asked.ipv4, 4), (asked.ipv6, 6)):
            if text:
                try:
                    right = ipaddress.ip_address(text).version == version
                except ValueError:
                    right = False
                if not right:
                    raise InvalidParameter(f"invalid IPv{version} address: {text}")
        return asked


class Endpoint(msgspec.Struct):
    """A running container's place in a network."""

    id: str
    network: str
    """The network's ID."""
    container: str
    interface: str
    """Its name inside (``eth0``)."""
    mac: str
    ipv4: str = ""
    """With the prefix length (``172.17.0.2/16``)."""
    ipv6: str = ""
    names: list[str] = []
    """What it is called in the network."""
    link_local: list[str] = []
    """Further addresses, which nobody keeps account of; with the prefix length."""

    @property
    def interfaces(self) -> list[Interface]:
        """Its addresses."""
        return [ipaddress.ip_interface(text) for text in (self.ipv4, self.ipv6) if text]

    def address(self, version: int) -> str:
        """Its address without the prefix length, empty if it has none."""
        return (self.ipv4 if version == 4 else self.ipv6).partition("/")[0]


class Port(msgspec.Struct, frozen=True):
    """A published port: where it is on the host, and what it leads to."""

    protocol: str
    container_port: int
    host_address: str
    """``0.0.0.0`` and ``::`` are every address."""
    host_port: int
