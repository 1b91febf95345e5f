"""Links, addresses and routes, through rtnetlink: the requests, and what is there.

Links are named by index or, where that is 0, by name.

Source: rtnetlink(7); ``include/uapi/linux/{rtnetlink,if_link,if_addr}.h``.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass

from tiffin.network import netlink
from tiffin.network.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Request,
    attribute,
    attributes,
    nest,
    text,
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_SETLINK = 19
RTM_NEWADDR = 20
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26

IFF_UP = 1
IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINK = 5
IFLA_MASTER = 10
IFLA_LINKINFO = 18
IFLA_IFALIAS = 20
IFLA_NET_NS_FD = 28
IFLA_NUM_TX_QUEUES = 31
IFLA_NUM_RX_QUEUES = 32
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
IFLA_INFO_SLAVE_KIND = 4
IFLA_INFO_SLAVE_DATA = 5
IFLA_VLAN_ID = 1
IFLA_MACVLAN_MODE = 1
IFLA_IPVLAN_MODE = 1
IFLA_IPVLAN_FLAGS = 2
IFLA_BRPORT_MODE = 4
IFLA_BRPORT_ISOLATED = 33
VETH_INFO_PEER = 1
MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
IPVLAN_FLAGS = {"bridge": 0, "private": 1, "vepa": 2}

IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_BROADCAST = 4
IFA_F_NODAD = 0x02

RTA_DST = 1
RTA_OIF = 4
RTA_GATEWAY = 5
RT_TABLE_MAIN = 254
RTPROT_BOOT = 3
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
RTN_UNICAST = 1

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _mac(address: str) -> bytes:
    return bytes.fromhex(address.replace(":", ""))


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface."""

    index: int
    name: str
    up: bool
    kind: str
    alias: str
    mac: str
    mtu: int
    master: int


def _link_body(index: int, flags: int, mask: int, *parts: bytes) -> bytes:
    return _LINK.pack(socket.AF_UNSPEC, 0, index, flags, mask) + b"".join(parts)


def new_bridge(name: str, mac: str, mtu: int = 0) -> Request:
    """Make a bridge, up, with a fixed address."""
    parts = [text(IFLA_IFNAME, name), attribute(IFLA_ADDRESS, _mac(mac))]
    if mtu:
        parts.append(_number(IFLA_MTU, mtu))
    parts.append(nest(IFLA_LINKINFO, text(IFLA_INFO_KIND, "bridge")))
    body = _link_body(0, IFF_UP, IFF_UP, *parts)
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"make bridge {name}")


def new_veth(
    name: str,
    master: int,
    peer: str,
    *,
    peer_namespace: int | None = None,
    peer_mac: str = "",
    peer_master: int = 0,
    mtu: int = 0,
) -> Request:
    """Make a pair, one end here at a bridge and up, the other down (up at a bridge) elsewhere.

    Each has one queue: the kernel gives it as many as there are processors, which cost memory and
    do nothing, since a packet is handed over by the processor that sends it.

    ``peer_namespace`` is a descriptor of a network namespace; None leaves the peer here.
    """
    size = [_number(IFLA_NUM_TX_QUEUES, 1), _number(IFLA_NUM_RX_QUEUES, 1)]
    if mtu:
        size.append(_number(IFLA_MTU, mtu))
    other = [text(IFLA_IFNAME, peer), *size]
    if peer_mac:
        other.append(attribute(IFLA_ADDRESS, _mac(peer_mac)))
    if peer_namespace is not None:
        other.append(_number(IFLA_NET_NS_FD, peer_namespace))
    flags = IFF_UP if peer_master else 0
    info = nest(
        IFLA_LINKINFO,
        text(IFLA_INFO_KIND, "veth"),
        nest(
            IFLA_INFO_DATA,
            nest(VETH_INFO_PEER, _link_body(0, flags, flags, *other)),
        ),
    )
    parts = [text(IFLA_IFNAME, name), *size, info]
    if master:
        parts.append(_number(IFLA_MASTER, master))
    body = _link_body(0, IFF_UP, IFF_UP, *parts)
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"make link {name}")


def new_child(
    name: str,
    parent: int,
    kind: str,
    mode: str = "",
    flag: str = "",
    *,
    namespace: int,
    mac: str = "",
    mtu: int = 0,
) -> Request:
    """Make a macvlan or ipvlan interface of ``parent`` in another namespace."""
    info = [text(IFLA_INFO_KIND, kind)]
    data = []
    if mode and kind == "macvlan":
        data.append(_number(IFLA_MACVLAN_MODE, MACVLAN_MODES[mode]))
    elif mode:
        data.append(attribute(IFLA_IPVLAN_MODE, struct.pack("=H", IPVLAN_MODES[mode])))
    if flag:
        data.append(attribute(IFLA_IPVLAN_FLAGS, struct.pack("=H", IPVLAN_FLAGS[flag])))
    if data:
        info.append(nest(IFLA_INFO_DATA, *data))
    parts = [
        text(IFLA_IFNAME, name),
        _number(IFLA_LINK, parent),
        _number(IFLA_NET_NS_FD, namespace),
        nest(IFLA_LINKINFO, *info),
    ]
    if mac:
        parts.append(attribute(IFLA_ADDRESS, _mac(mac)))
    if mtu:
        parts.append(_number(IFLA_MTU, mtu))
    body = _link_body(0, 0, 0, *parts)
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"make {kind} interface {name}")


def new_vlan(name: str, parent: int, number: int) -> Request:
    """Make a VLAN interface (``eth0.10``), up."""
    body = _link_body(
        0,
        IFF_UP,
        IFF_UP,
        text(IFLA_IFNAME, name),
        _number(IFLA_LINK, parent),
        nest(
            IFLA_LINKINFO,
            text(IFLA_INFO_KIND, "vlan"),
            nest(IFLA_INFO_DATA, attribute(IFLA_VLAN_ID, struct.pack("=H", number))),
        ),
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"make VLAN interface {name}")


def new_dummy(name: str) -> Request:
    """Make an interface that leads nowhere, up."""
    body = _link_body(
        0,
        IFF_UP,
        IFF_UP,
        text(IFLA_IFNAME, name),
        nest(IFLA_LINKINFO, text(IFLA_INFO_KIND, "dummy")),
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"make interface {name}")


def set_alias(name: str, alias: str) -> Request:
    """Write a line on a link that says whose it is; the kernel takes none when it makes one."""
    body = _link_body(0, 0, 0, text(IFLA_IFNAME, name), text(IFLA_IFALIAS, alias))
    return Request(RTM_SETLINK, 0, body, f"describe link {name}")


def set_up(index: int) -> Request:
    """Bring a link up."""
    return Request(RTM_SETLINK, 0, _link_body(index, IFF_UP, IFF_UP), f"bring link {index} up")


def set_down(name: str) -> Request:
    """Bring a link down; that there is none is fine."""
    body = _link_body(0, 0, IFF_UP, text(IFLA_IFNAME, name))
    return Request(RTM_SETLINK, 0, body, f"bring {name} down", (errno.ENODEV,))


def set_master(name: str, master: int) -> Request:
    """Put a link at a bridge, and bring it up."""
    body = _link_body(0, IFF_UP, IFF_UP, text(IFLA_IFNAME, name), _number(IFLA_MASTER, master))
    return Request(RTM_SETLINK, 0, body, f"put {name} at bridge {master}")


def set_port(name: str, *, isolated: bool, hairpin: bool) -> Request:
    """How a bridge treats a port. ``isolated``: it does not talk to other isolated ports, whatever
    filters there are. ``hairpin``: frames may leave where they came from."""
    settings = []
    if isolated:
        settings.append(attribute(IFLA_BRPORT_ISOLATED, b"\1"))
    if hairpin:
        settings.append(attribute(IFLA_BRPORT_MODE, b"\1"))
    port = nest(
        IFLA_LINKINFO,
        text(IFLA_INFO_SLAVE_KIND, "bridge"),
        nest(IFLA_INFO_SLAVE_DATA, *settings),
    )
    body = _link_body(0, 0, 0, text(IFLA_IFNAME, name), port)
    return Request(RTM_NEWLINK, 0, body, f"set up the bridge's port {name}")


def delete_link(name: str) -> Request:
    """Remove a link; that there is none is fine."""
    body = _link_body(0, 0, 0, text(IFLA_IFNAME, name))
    return Request(RTM_DELLINK, 0, body, f"remove link {name}", (errno.ENODEV,))


def add_address(index: int, interface: Interface) -> Request:
    """Give a link an address, ready at once (IPv6's duplicate detection takes a second)."""
    family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    flags = IFA_F_NODAD if interface.version == 6 else 0
    body = _ADDRESS.pack(family, interface.network.prefixlen, flags, 0, index)
    packed = interface.ip.packed
    body += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    if interface.version == 4 and interface.network.prefixlen < 31:
        body += attribute(IFA_BROADCAST, interface.network.broadcast_address.packed)
    return Request(
        RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body, f"add address {interface}", (errno.EEXIST,)
    )


def add_route(
    index: int, gateway: Address | None, destination: Network | None = None, *, version: int = 4
) -> Request:
    """A route through a gateway, or straight to the link; the default one without destination."""
    if gateway is not None:
        version = gateway.version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    length = destination.prefixlen if destination is not None else 0
    scope = RT_SCOPE_UNIVERSE if gateway is not None else RT_SCOPE_LINK
    body = _ROUTE.pack(family, length, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 0)
    if destination is not None:
        body += attribute(RTA_DST, destination.network_address.packed)
    if gateway is not None:
        body += attribute(RTA_GATEWAY, gateway.packed)
    body += _number(RTA_OIF, index)
    what = f"add route to {destination or 'everywhere'} by {gateway or f'link {index}'}"
    return Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, what)


def delete_default_route(version: int) -> Request:
    """Remove the default route; that there is none is fine."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    body = _ROUTE.pack(family, 0, 0, 0, RT_TABLE_MAIN, 0, RT_SCOPE_UNIVERSE, 0, 0)
    return Request(RTM_DELROUTE, 0, body, "remove the default route", (errno.ESRCH, errno.ENOENT))


class Socket(netlink.Socket):
    """A connection to the kernel's rtnetlink in the namespace of the calling thread."""

    def __init__(self) -> None:
        super().__init__(socket.NETLINK_ROUTE)

    def __enter__(self) -> Socket:
        return self

    def links(self) -> list[Link]:
        """Every link of the namespace."""
        return [_parse_link(body) for body in self.dump(RTM_GETLINK, _link_body(0, 0, 0))]

    def link(self, name: str) -> Link | None:
        """The link of a name."""
        body = _link_body(0, 0, 0, text(IFLA_IFNAME, name))
        try:
            return _parse_link(self.ask(RTM_GETLINK, body, f"look up link {name}"))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def addresses(self) -> list[tuple[int, Interface]]:
        """(link index, address) of every address of the namespace."""
        found = []
        for body in self.dump(RTM_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
            _, prefix, _, _, index = _ADDRESS.unpack_from(body)
            said = attributes(body, _ADDRESS.size)
            packed = said.get(IFA_LOCAL) or said.get(IFA_ADDRESS)
            if packed:
                found.append((index, ipaddress.ip_interface((packed, prefix))))
        return found

    def routes(self) -> list[tuple[Network, int]]:
        """(destination, link index) of every unicast route but the default ones."""
        found = []
        for body in self.dump(RTM_GETROUTE, _ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)):
            _, length, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(body)
            said = attributes(body, _ROUTE.size)
            if kind == RTN_UNICAST and length and RTA_DST in said:
                index = struct.unpack("=I", said.get(RTA_OIF, b"\0\0\0\0"))[0]
                network = ipaddress.ip_network((said[RTA_DST], length), strict=False)
                found.append((network, index))
        return found


def _parse_link(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    said = attributes(body, _LINK.size)

    def words(data: bytes) -> str:
        return data.rstrip(b"\0").decode(errors="replace")

    info = attributes(said.get(IFLA_LINKINFO, b""), 0)
    return Link(
        index,
        words(said.get(IFLA_IFNAME, b"")),
        bool(flags & IFF_UP),
        words(info.get(IFLA_INFO_KIND, b"")),
        words(said.get(IFLA_IFALIAS, b"")),
        ":".join(f"{byte:02x}" for byte in said.get(IFLA_ADDRESS, b"")),
        struct.unpack("=I", said.get(IFLA_MTU, b"\0\0\0\0"))[0],
        struct.unpack("=I", said.get(IFLA_MASTER, b"\0\0\0\0"))[0],
    )
