"""Ports: what is to be published, and the host's ports that it gets.

A published port is *held* by a socket bound on the host as long as it is published: whoever else
wants the port learns so at once, and a port that is in use is an error before anything has
started. What arrives is redirected by the firewall in the kernel; the socket itself gets only what
the firewall does not catch (see :mod:`tiffin.network.porter`).

Source: Docker Engine API v1.50, ``PortMap``; docs.docker.com, "Port publishing and mapping".
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tiffin.errors import InvalidParameter, TiffinError, Unsupported
from tiffin.network.settings import Port

PROTOCOLS = ("tcp", "udp", "sctp")
_TRIES = 64
_KINDS = {
    "tcp": (socket.SOCK_STREAM, 0),
    "udp": (socket.SOCK_DGRAM, 0),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A port to publish: ``addresses`` of the host, and the range to choose from (0: any)."""

    protocol: str
    container_port: int
    addresses: tuple[str, ...]
    first: int
    last: int


def parse_port(text: str) -> tuple[int, str]:
    """``80`` or ``80/tcp``; raises InvalidParameter in Docker's words."""
    number, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in PROTOCOLS:
        raise InvalidParameter(f"invalid proto: {protocol}")
    if not number.isdigit() or not 0 < int(number) < 65536:
        raise InvalidParameter(f"invalid port: {text}")
    return int(number), protocol


def parse_range(text: str) -> tuple[int, int]:
    """``8000-8010``, ``8080``, or nothing (any port); raises InvalidParameter."""
    if text in ("", "0"):
        return 0, 0
    first, dash, last = text.partition("-")
    last = last if dash else first
    if not (first.isdigit() and last.isdigit()) or not 0 < int(first) <= int(last) < 65536:
        raise InvalidParameter(f"invalid port specification: {text!r}")
    return int(first), int(last)


def wanted(
    bindings: Mapping[str, Any] | None,
    exposed: Iterable[str],
    publish_all: bool,
    default_address: str = "",
) -> list[Wanted]:
    """What is to be published, in order of the container's ports.

    ``bindings`` is Docker's PortBindings. Raises InvalidParameter.
    """
    found = []
    for key, hosts in (bindings or {}).items():
        port, protocol = parse_port(key)
        for host in hosts or [{}]:
            first, last = parse_range(str(host.get("HostPort") or ""))
            address = host.get("HostIp") or default_address
            found.append(Wanted(protocol, port, _addresses(address), first, last))
    if publish_all:
        bound = {parse_port(key) for key in bindings or {}}
        for key in exposed:
            if parse_port(key) not in bound:
                port, protocol = parse_port(key)
                found.append(Wanted(protocol, port, _addresses(default_address), 0, 0))
    # Those that insist on one port come first, so that no free choice takes it.
    return sorted(found, key=lambda one: (one.first == 0, one.last > one.first))


def _addresses(text: str) -> tuple[str, ...]:
    if not text:
        return ("0.0.0.0", "::")
    try:
        return (str(ipaddress.ip_address(text.strip("[]"))),)
    except ValueError as error:
        raise InvalidParameter(f"invalid host IP address: {text}") from error


def show(address: str, port: int) -> str:
    """``1.2.3.4:80`` or ``[::1]:80``."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def hold(one: Wanted, taken: set[tuple[str, str, int]]) -> list[tuple[Port, socket.socket]]:
    """Bind a free port at all of its addresses.

    ``taken`` are (protocol, address, port) of this engine. Raises TiffinError in Docker's words if
    the port is in use, and Unsupported where the kernel has no such protocol.
    """
    if one.first:
        error: TiffinError | None = None
        for number in range(one.first, one.last + 1):
            try:
                return _hold_one(one, number, taken)
            except TiffinError as caught:
                error = caught
        assert error is not None
        raise error
    for _ in range(_TRIES):
        try:
            return _hold_one(one, _free_port(one), taken)
        except OSError as error:
            raise _refusal(one, one.addresses[0], 0, error) from error
        except TiffinError:
            # Free at the first of the addresses, in use at another.
            continue
    raise TiffinError("failed to find a free port: all ports are allocated")


def _free_port(one: Wanted) -> int:
    address = one.addresses[0]
    with socket.socket(
        socket.AF_INET6 if ":" in address else socket.AF_INET,
        *_KINDS[one.protocol],
    ) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _hold_one(
    one: Wanted, number: int, taken: set[tuple[str, str, int]]
) -> list[tuple[Port, socket.socket]]:
    held: list[tuple[Port, socket.socket]] = []
    try:
        for address in one.addresses:
            any_address = "::" if ":" in address else "0.0.0.0"
            if {(one.protocol, address, number), (one.protocol, any_address, number)} & taken:
                raise TiffinError(
                    f"Bind for {show(address, number)} failed: port is already allocated"
                )
            port = Port(one.protocol, one.container_port, address, number)
            try:
                held.append((port, bind(port)))
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT and len(one.addresses) > 1:
                    # A host without IPv6.
                    continue
                raise _refusal(one, address, number, error) from error
    except BaseException:
        for _, sock in held:
            sock.close()
        raise
    return held


def _refusal(one: Wanted, address: str, number: int, error: OSError) -> TiffinError:
    if error.errno == errno.EPROTONOSUPPORT:
        return Unsupported(
            f"port {one.container_port}/{one.protocol} can't be published: this kernel has no "
            f"{one.protocol.upper()} (CONFIG_IP_SCTP)"
        )
    if error.errno == errno.EADDRINUSE:
        return TiffinError(
            f"failed to bind host port for {show(address, number)}:{one.container_port}"
            f"/{one.protocol}: address already in use"
        )
    return TiffinError(
        f"failed to bind host port {show(address, number)}/{one.protocol}: "
        f"{(error.strerror or str(error)).lower()}"
    )


def bind(port: Port) -> socket.socket:
    """The socket that holds a port.

    Raises OSError: EADDRINUSE, EADDRNOTAVAIL, EACCES, EPROTONOSUPPORT.
    """
    kind, protocol = _KINDS[port.protocol]
    family = socket.AF_INET6 if ":" in port.host_address else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if port.protocol == "tcp":
            # Connections that have ended don't count as somebody who has the port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((port.host_address, port.host_port))
        if kind == socket.SOCK_STREAM:
            try:
                sock.listen(128)
            except OSError as error:
                if port.protocol != "sctp" or error.errno != errno.ENOSYS:
                    raise
                # The kernel lacks the hash that SCTP's cookies are signed with. It is held and
                # redirected all the same; nobody can listen on this host.
    except BaseException:
        sock.close()
        raise
    return sock
