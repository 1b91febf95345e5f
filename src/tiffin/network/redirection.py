"""Redirection: in a container's network namespace, questions to the embedded name server's port 53
go to the port where it really listens.

One rule of nftables in each namespace that has names. It is written as the kernel's own messages,
since every container has it: the program ``nft`` takes milliseconds, more the more descriptors
there are, and its library can't be used beside more than a thousand of them.

Source: the kernel's ``linux/netfilter/nf_tables.h`` and ``nfnetlink.h``; netlink(7).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct

from tiffin.errors import TiffinError, Unsupported
from tiffin.network import netlink
from tiffin.network.netlink import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    attribute,
    nest,
    text,
)

_NETLINK_NETFILTER = 12
_BATCH_BEGIN, _BATCH_END = 16, 17
_NFTABLES = 10
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE = (_NFTABLES << 8 | kind for kind in (0, 2, 3, 6))
_IPV4, _LOCAL_OUT, _PRIORITY, _ACCEPT = 2, 3, -100, 1
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_L4PROTO = 16
_DESTINATION_NAT = 1
_GENERIC = struct.Struct("!BBH")
_TABLE, _CHAIN = "tiffin", "names"
_Request = tuple[int, int, bytes]
"""Kind, flags and attributes of a message."""


def redirect(address: str, port: int) -> None:
    """In the calling thread's namespace: what is sent to ``address`` and port 53, by UDP and TCP,
    goes to ``port`` there, and no more to where an earlier call has led it.

    Raises Unsupported where there is no nftables; TiffinError.
    """
    name = text(1, _TABLE)
    to = ipaddress.IPv4Address(address).packed
    hook = nest(4, _number(1, _LOCAL_OUT), _number(2, _PRIORITY))
    chain = name + text(3, _CHAIN) + hook + _number(5, _ACCEPT) + text(7, "nat")
    rules = [
        (_NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, name + text(2, _CHAIN) + _rule(to, protocol, port))
        for protocol in (socket.IPPROTO_UDP, socket.IPPROTO_TCP)
    ]
    made: list[_Request] = [
        (_NEW_TABLE, NLM_F_CREATE | NLM_F_EXCL, name),
        (_NEW_CHAIN, NLM_F_CREATE, chain),
    ]
    code = _send([*made, *rules])
    if code == errno.EEXIST:
        # From an earlier time. Never removed at first: the kernel takes long for that.
        code = _send([(_DELETE_TABLE, 0, name), *made, *rules])
    if code in (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL):
        raise Unsupported(
            "the names of a container's network need nftables with NAT, which this kernel has not "
            "(modprobe nf_tables nft_chain_nat): use a network without names, --network bridge"
        )
    if code:
        raise TiffinError(
            f"the names of a container's network can't be set up: {os.strerror(code)}"
        )


def _send(requests: list[_Request]) -> int:
    """Carry requests out as one transaction: the number of the error, or 0."""
    last = len(requests)
    data = _message(_BATCH_BEGIN, NLM_F_REQUEST, 0, b"", _NFTABLES)
    for number, (kind, flags, body) in enumerate(requests, 1):
        data += _message(kind, NLM_F_REQUEST | NLM_F_ACK | flags, number, body)
    data += _message(_BATCH_END, NLM_F_REQUEST, last + 1, b"", _NFTABLES)
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        ) as kernel:
            kernel.send(data)
            acknowledged = 0
            while acknowledged < last:
                for _, _, body in netlink.messages(kernel.recv(1 << 16)):
                    if code := netlink.code(body):
                        return code
                    acknowledged += 1
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _rule(address: bytes, protocol: int, port: int) -> bytes:
    """The expressions of a rule: ``ip daddr … meta l4proto … th dport 53 dnat to …``."""
    return nest(
        4,
        *_load(_NETWORK_HEADER, 16, address),
        _expression("meta", _number(1, 1), _number(2, _L4PROTO)),
        _compare(bytes([protocol])),
        *_load(_TRANSPORT_HEADER, 2, struct.pack("!H", 53)),
        _expression("immediate", _number(1, 1), nest(2, attribute(1, address))),
        _expression("immediate", _number(1, 2), nest(2, attribute(1, struct.pack("!H", port)))),
        _expression(
            "nat",
            _number(1, _DESTINATION_NAT),
            _number(2, _IPV4),
            _number(3, 1),
            _number(5, 2),
        ),
    )


def _load(header: int, offset: int, value: bytes) -> tuple[bytes, bytes]:
    """Take bytes of a header, and go on if they are these."""
    place = [_number(1, 1), _number(2, header), _number(3, offset), _number(4, len(value))]
    return _expression("payload", *place), _compare(value)


def _compare(value: bytes) -> bytes:
    return _expression("cmp", _number(1, 1), _number(2, 0), nest(3, attribute(1, value)))


def _expression(name: str, *attributes: bytes) -> bytes:
    return nest(1, text(1, name), nest(2, *attributes))


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!i", value))


def _message(kind: int, flags: int, sequence: int, body: bytes, resource: int = 0) -> bytes:
    content = _GENERIC.pack(0 if resource else _IPV4, 0, resource) + body
    return netlink.message(kind, flags, sequence, content)
