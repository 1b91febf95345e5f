"""Links, addresses and routes, through rtnetlink.

A *request* is one message that the kernel answers with success or an errno; :meth:`Socket.run`
sends any number of them in one system call and reads the answers. A socket belongs to the network
namespace in which it was made, whoever uses it. Links are named by index or, where that is 0, by
name.

Small on purpose: a start of a container sends two batches through it, and the large libraries
take longer to import than that start takes as a whole.

Source: rtnetlink(7), netlink(7); ``include/uapi/linux/{netlink,rtnetlink,if_link,if_addr}.h``.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLMSG_ERROR = 2
NLMSG_DONE = 3

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
IFLA_PROTINFO = 12
IFLA_LINKINFO = 18
IFLA_IFALIAS = 20
IFLA_GROUP = 27
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
IFLA_BRPORT_MODE = 4
IFLA_BRPORT_ISOLATED = 33
VETH_INFO_PEER = 1
MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}

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

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_GROUP_MASK = 0x3FFF


def _attribute(kind: int, data: bytes) -> bytes:
    length = 4 + len(data)
    return _ATTRIBUTE.pack(length, kind) + data + b"\0" * (-length % 4)


def _nest(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(parts))


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


@dataclass(frozen=True, slots=True)
class Request:
    """One message to the kernel; ``what`` says in an error what could not be done."""

    kind: int
    flags: int
    body: bytes
    what: str
    tolerated: tuple[int, ...] = ()
    """Errnos that mean that all is well already."""


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


def _link_body(index: int, flags: int, mask: int, *attributes: bytes) -> bytes:
    return _LINK.pack(socket.AF_UNSPEC, 0, index, flags, mask) + b"".join(attributes)


def new_bridge(name: str, mac: str, mtu: int = 0) -> Request:
    """Make a bridge, up, with a fixed address."""
    attributes = [_text(IFLA_IFNAME, name), _attribute(IFLA_ADDRESS, _mac(mac))]
    if mtu:
        attributes.append(_number(IFLA_MTU, mtu))
    attributes.append(_nest(IFLA_LINKINFO, _text(IFLA_INFO_KIND, "bridge")))
    body = _link_body(0, IFF_UP, IFF_UP, *attributes)
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
    other = [_text(IFLA_IFNAME, peer), *size]
    if peer_mac:
        other.append(_attribute(IFLA_ADDRESS, _mac(peer_mac)))
    if peer_namespace is not None:
        other.append(_number(IFLA_NET_NS_FD, peer_namespace))
    flags = IFF_UP if peer_master else 0
    info = _nest(
        IFLA_LINKINFO,
        _text(IFLA_INFO_KIND, "veth"),
        _nest(
            IFLA_INFO_DATA,
            _nest(VETH_INFO_PEER, _link_body(0, flags, flags, *other)),
        ),
    )
    attributes = [_text(IFLA_IFNAME, name), *size, info]
    if master:
        attributes.append(_number(IFLA_MASTER, master))
    body = _link_body(0, IFF_UP, IFF_UP, *attributes)
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"make link {name}")


def new_child(
    name: str,
    parent: int,
    kind: str,
    mode: int | None,
    *,
    namespace: int,
    mac: str = "",
    mtu: int = 0,
) -> Request:
    """Make a macvlan or ipvlan interface of ``parent`` in another namespace."""
    info = [_text(IFLA_INFO_KIND, kind)]
    if mode is not None and kind == "macvlan":
        info.append(_nest(IFLA_INFO_DATA, _number(IFLA_MACVLAN_MODE, mode)))
    elif mode is not None:
        info.append(_nest(IFLA_INFO_DATA, _attribute(IFLA_IPVLAN_MODE, struct.pack("=H", mode))))
    attributes = [
        _text(IFLA_IFNAME, name),
        _number(IFLA_LINK, parent),
        _number(IFLA_NET_NS_FD, namespace),
        _nest(IFLA_LINKINFO, *info),
    ]
    if mac:
        attributes.append(_attribute(IFLA_ADDRESS, _mac(mac)))
    if mtu:
        attributes.append(_number(IFLA_MTU, mtu))
    body = _link_body(0, 0, 0, *attributes)
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"make {kind} interface {name}")


def new_vlan(name: str, parent: int, number: int) -> Request:
    """Make a VLAN interface (``eth0.10``), up."""
    body = _link_body(
        0,
        IFF_UP,
        IFF_UP,
        _text(IFLA_IFNAME, name),
        _number(IFLA_LINK, parent),
        _nest(
            IFLA_LINKINFO,
            _text(IFLA_INFO_KIND, "vlan"),
            _nest(IFLA_INFO_DATA, _attribute(IFLA_VLAN_ID, struct.pack("=H", number))),
        ),
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"make VLAN interface {name}")


def new_dummy(name: str) -> Request:
    """Make an interface that leads nowhere, up."""
    body = _link_body(
        0,
        IFF_UP,
        IFF_UP,
        _text(IFLA_IFNAME, name),
        _nest(IFLA_LINKINFO, _text(IFLA_INFO_KIND, "dummy")),
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"make interface {name}")


def set_alias(name: str, alias: str) -> Request:
    """Write a line on a link that says whose it is; the kernel takes none when it makes one."""
    body = _link_body(0, 0, 0, _text(IFLA_IFNAME, name), _text(IFLA_IFALIAS, alias))
    return Request(RTM_SETLINK, 0, body, f"describe link {name}")


def set_up(index: int) -> Request:
    """Bring a link up."""
    return Request(RTM_SETLINK, 0, _link_body(index, IFF_UP, IFF_UP), f"bring link {index} up")


def set_down(name: str) -> Request:
    """Bring a link down; that there is none is fine."""
    body = _link_body(0, 0, IFF_UP, _text(IFLA_IFNAME, name))
    return Request(RTM_SETLINK, 0, body, f"bring {name} down", (errno.ENODEV,))


def set_master(name: str, master: int) -> Request:
    """Put a link at a bridge, and bring it up."""
    body = _link_body(0, IFF_UP, IFF_UP, _text(IFLA_IFNAME, name), _number(IFLA_MASTER, master))
    return Request(RTM_SETLINK, 0, body, f"put {name} at bridge {master}")


def set_name(index: int, name: str) -> Request:
    """Give a link another name; it must be down."""
    return Request(
        RTM_SETLINK, 0, _link_body(index, 0, 0, _text(IFLA_IFNAME, name)), f"name a link {name}"
    )


def set_mtu(index: int, mtu: int) -> Request:
    """Set the largest packet of a link."""
    return Request(
        RTM_SETLINK, 0, _link_body(index, 0, 0, _number(IFLA_MTU, mtu)), f"set MTU {mtu}"
    )


def set_port(name: str, *, isolated: bool, hairpin: bool) -> Request:
    """How a bridge treats a port. ``isolated``: it does not talk to other isolated ports, whatever
    filters there are. ``hairpin``: frames may leave where they came from."""
    settings = []
    if isolated:
        settings.append(_attribute(IFLA_BRPORT_ISOLATED, b"\1"))
    if hairpin:
        settings.append(_attribute(IFLA_BRPORT_MODE, b"\1"))
    port = _nest(
        IFLA_LINKINFO,
        _text(IFLA_INFO_SLAVE_KIND, "bridge"),
        _nest(IFLA_INFO_SLAVE_DATA, *settings),
    )
    body = _link_body(0, 0, 0, _text(IFLA_IFNAME, name), port)
    return Request(RTM_NEWLINK, 0, body, f"set up the bridge's port {name}")


def delete_link(name: str) -> Request:
    """Remove a link; that there is none is fine."""
    body = _link_body(0, 0, 0, _text(IFLA_IFNAME, name))
    return Request(RTM_DELLINK, 0, body, f"remove link {name}", (errno.ENODEV,))


def add_address(index: int, interface: Interface) -> Request:
    """Give a link an address, ready at once (IPv6's duplicate detection takes a second)."""
    family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    flags = IFA_F_NODAD if interface.version == 6 else 0
    body = _ADDRESS.pack(family, interface.network.prefixlen, flags, 0, index)
    packed = interface.ip.packed
    body += _attribute(IFA_LOCAL, packed) + _attribute(IFA_ADDRESS, packed)
    if interface.version == 4 and interface.network.prefixlen < 31:
        body += _attribute(IFA_BROADCAST, interface.network.broadcast_address.packed)
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
        body += _attribute(RTA_DST, destination.network_address.packed)
    if gateway is not None:
        body += _attribute(RTA_GATEWAY, gateway.packed)
    body += _number(RTA_OIF, index)
    what = f"add route to {destination or 'everywhere'} by {gateway or f'link {index}'}"
    return Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, what)


def delete_default_route(version: int) -> Request:
    """Remove the default route; that there is none is fine."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    body = _ROUTE.pack(family, 0, 0, 0, RT_TABLE_MAIN, 0, RT_SCOPE_UNIVERSE, 0, 0)
    return Request(RTM_DELROUTE, 0, body, "remove the default route", (errno.ESRCH, errno.ENOENT))


class Socket:
    """A connection to the kernel's rtnetlink in the namespace of the calling thread."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._sequence = 0

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, *requests: Request) -> None:
        """Carry requests out in order.

        Raises OSError of the first that failed, named; those after it were tried all the same.
        """
        first = self._sequence + 1
        parts = []
        for request in requests:
            self._sequence += 1
            flags = NLM_F_REQUEST | NLM_F_ACK | request.flags
            length = _HEADER.size + len(request.body)
            parts.append(_HEADER.pack(length, request.kind, flags, self._sequence, 0))
            parts.append(request.body)
        self._socket.send(b"".join(parts))
        pending = len(requests)
        failure: OSError | None = None
        while pending:
            for kind, sequence, body in self._receive():
                if kind != NLMSG_ERROR or sequence < first:
                    continue
                pending -= 1
                request = requests[sequence - first]
                code = -struct.unpack_from("=i", body)[0]
                if code and code not in request.tolerated and failure is None:
                    failure = OSError(code, f"{request.what}: {os.strerror(code)}")
        if failure is not None:
            raise failure

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        data = self._socket.recv(1 << 18)
        offset = 0
        while offset < len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
            yield kind, sequence, data[offset + _HEADER.size : offset + length]
            offset += (length + 3) & ~3

    def _dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        self._sequence += 1
        header = _HEADER.pack(
            _HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, 0
        )
        self._socket.send(header + body)
        while True:
            for answer, sequence, content in self._receive():
                if sequence != self._sequence:
                    continue
                if answer == NLMSG_DONE:
                    return
                if answer == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", content)[0]
                    raise OSError(code, f"list: {os.strerror(code)}")
                yield content

    def links(self) -> list[Link]:
        """Every link of the namespace."""
        return [_parse_link(body) for body in self._dump(RTM_GETLINK, _link_body(0, 0, 0))]

    def link(self, name: str) -> Link | None:
        """The link of a name."""
        self._sequence += 1
        body = _link_body(0, 0, 0, _text(IFLA_IFNAME, name))
        header = _HEADER.pack(
            _HEADER.size + len(body), RTM_GETLINK, NLM_F_REQUEST, self._sequence, 0
        )
        self._socket.send(header + body)
        while True:
            for kind, sequence, content in self._receive():
                if sequence != self._sequence:
                    continue
                if kind != NLMSG_ERROR:
                    return _parse_link(content)
                code = -struct.unpack_from("=i", content)[0]
                if code == errno.ENODEV:
                    return None
                raise OSError(code, f"look up link {name}: {os.strerror(code)}")

    def addresses(self) -> list[tuple[int, Interface]]:
        """(link index, address) of every address of the namespace."""
        found = []
        for body in self._dump(RTM_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
            _, prefix, _, _, index = _ADDRESS.unpack_from(body)
            attributes = _parse(body, _ADDRESS.size)
            packed = attributes.get(IFA_LOCAL) or attributes.get(IFA_ADDRESS)
            if packed:
                found.append((index, ipaddress.ip_interface((packed, prefix))))
        return found

    def routes(self) -> list[tuple[Network, int]]:
        """(destination, link index) of every unicast route but the default ones."""
        found = []
        for body in self._dump(RTM_GETROUTE, _ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)):
            _, length, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(body)
            attributes = _parse(body, _ROUTE.size)
            if kind == RTN_UNICAST and length and RTA_DST in attributes:
                index = struct.unpack("=I", attributes.get(RTA_OIF, b"\0\0\0\0"))[0]
                network = ipaddress.ip_network((attributes[RTA_DST], length), strict=False)
                found.append((network, index))
        return found

    def default_links(self) -> list[int]:
        """The indices of the links that the default routes lead through."""
        found = []
        for body in self._dump(RTM_GETROUTE, _ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)):
            _, length, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(body)
            attributes = _parse(body, _ROUTE.size)
            if kind == RTN_UNICAST and not length and RTA_OIF in attributes:
                found.append(struct.unpack("=I", attributes[RTA_OIF])[0])
        return found


def _parse(body: bytes, offset: int) -> dict[int, bytes]:
    attributes = {}
    while offset + 4 <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < 4:
            break
        attributes[kind & _GROUP_MASK] = body[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return attributes


def _parse_link(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    attributes = _parse(body, _LINK.size)

    def text(data: bytes) -> str:
        return data.rstrip(b"\0").decode(errors="replace")

    info = _parse(attributes.get(IFLA_LINKINFO, b""), 0)
    return Link(
        index,
        text(attributes.get(IFLA_IFNAME, b"")),
        bool(flags & IFF_UP),
        text(info.get(IFLA_INFO_KIND, b"")),
        text(attributes.get(IFLA_IFALIAS, b"")),
        ":".join(f"{byte:02x}" for byte in attributes.get(IFLA_ADDRESS, b"")),
        struct.unpack("=I", attributes.get(IFLA_MTU, b"\0\0\0\0"))[0],
        struct.unpack("=I", attributes.get(IFLA_MASTER, b"\0\0\0\0"))[0],
    )
