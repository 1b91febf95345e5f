"""Machines for tests of networks.

The whole run of tests has a network namespace of its own, which is "the host" here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tiffin.network import links, rtnetlink
from tiffin.network.namespace import Namespace
from traffic import HOST, OUTSIDE, clear_networks


@pytest.fixture
def machine_without_networks() -> None:
    clear_networks()


@pytest.fixture
def outside() -> Iterator[Namespace]:
    """Another machine, on a wire with the host; it sends everything to the host."""
    with machine_on("wire", HOST, OUTSIDE) as machine:
        yield machine


@pytest.fixture
def second_machine() -> Iterator[Namespace]:
    """One more machine, on a wire of its own with the host."""
    with machine_on("wire2", "203.0.113.1", "203.0.113.2") as machine:
        yield machine


@contextmanager
def machine_on(wire: str, near: str, far: str) -> Iterator[Namespace]:
    """A machine at the other end of a wire of the host, with the addresses of both ends."""
    with Namespace.new() as machine, rtnetlink.Socket() as kernel:
        kernel.run(rtnetlink.new_veth(wire, 0, "eth0", peer_namespace=machine.fd))
        bring_up(kernel, wire, near)
        links.prepare(machine)
        with machine.visit(), rtnetlink.Socket() as other:
            other.run(rtnetlink.add_route(bring_up(other, "eth0", far), ipaddress.ip_address(near)))
        yield machine
        kernel.run(rtnetlink.delete_link(wire))


def bring_up(kernel: rtnetlink.Socket, name: str, address: str) -> int:
    """Give an interface an address; its index."""
    link = kernel.link(name)
    assert link is not None
    kernel.run(
        rtnetlink.add_address(link.index, ipaddress.ip_interface(f"{address}/24")),
        rtnetlink.set_up(link.index),
    )
    return link.index
