"""Briefing: what the porter is told of a sandbox, and the sockets that it is given.

The messages are those of :mod:`tiffin.network.porter.server`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from tiffin.network import redirection
from tiffin.network.files import EMBEDDED
from tiffin.network.ledger import Network
from tiffin.network.namespace import Namespace
from tiffin.network.plans import SandboxPlan, is_named
from tiffin.network.porter.client import Message
from tiffin.network.porter.server import DESCRIPTORS
from tiffin.network.settings import Endpoint, Port

Held = list[tuple[Port, socket.socket]]
"""Published ports with the sockets that hold them."""
Joined = Sequence[tuple[Network, Endpoint]]
"""A container's places in networks."""

NAMES_PORT = 61053
"""Where the embedded name server really listens, at its address: above what the kernel gives out.
Port 53 is left to a name server that runs in the container."""


def join(network: Network, endpoint: Endpoint, title: str) -> Message:
    """Somebody is in a network, and called so there."""
    names = [name for name in endpoint.names if name]
    return (
        {
            "do": "join",
            "endpoint": endpoint.id,
            "network": network.id,
            "sandbox": endpoint.container,
            "names": [*names, *(f"{name}.{network.name}" for name in names)],
            "title": f"{title}.{network.name}",
            "v4": endpoint.address(4),
            "v6": endpoint.address(6),
        },
        (),
    )


def leave(endpoint: str) -> Message:
    """It is no more."""
    return {"do": "leave", "endpoint": endpoint}, ()


def names(plan: SandboxPlan, joined: Joined, sockets: Sequence[int] = ()) -> Message:
    """What a container's name server answers; ``sockets`` the first time."""
    outside = any(not network.settings.internal for network, _ in joined)
    aliases: dict[str, str] = {}
    for place in plan.places:
        for text in place.asked.links:
            target, _, alias = text.partition(":")
            aliases[(alias or target).lower()] = target.lower()
    return (
        {
            "do": "names",
            "sandbox": plan.container,
            "networks": [network.id for network, _ in joined if is_named(network)],
            "servers": plan.servers if outside else [],
            "links": aliases,
        },
        sockets,
    )


def unname(container: str) -> Message:
    """A container is in no network with names any more."""
    return {"do": "unname", "sandbox": container}, ()


def hold(container: str, held: Held, target: str) -> list[Message]:
    """Hold published ports, instead of those before; ``target`` is the address to lead to."""
    rows, fds = [], []
    for port, sock in held:
        rows.append([port.protocol, target, port.container_port])
        fds.append(sock.detach())
    return [
        (
            {
                "do": "hold",
                "sandbox": container,
                "ports": rows[start : start + DESCRIPTORS],
                "anew": start == 0,
            },
            fds[start : start + DESCRIPTORS],
        )
        for start in range(0, len(rows), DESCRIPTORS)
    ]


def aim(container: str, target: str) -> Message:
    """Held ports lead to another address from now on; to nowhere: they are let go."""
    return {"do": "aim", "sandbox": container, "address": target}, ()


def opened(container: str, pid: int) -> Message:
    """A container has its first process."""
    try:
        fds = [os.pidfd_open(pid)]
    except ProcessLookupError:
        # It has ended, which the keeper tells soon.
        fds = []
    return {"do": "open", "sandbox": container}, fds


def close(container: str) -> Message:
    """A container has ended."""
    return {"do": "close", "sandbox": container}, ()


def name_sockets(namespace: Namespace, *, redirect: bool = True) -> list[int]:
    """The embedded name server's sockets (UDP, TCP) in a namespace, as descriptors."""
    with namespace.visit():
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for sock in (udp, tcp):
                sock.bind((EMBEDDED, NAMES_PORT))
            tcp.listen(16)
            if redirect:
                redirection.redirect(EMBEDDED, NAMES_PORT)
            return [udp.detach(), tcp.detach()]
        except BaseException:
            udp.close()
            tcp.close()
            raise
