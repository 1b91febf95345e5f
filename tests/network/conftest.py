"""Machines for tests of networks.

The whole run of tests has a network namespace of its own, which is "the host" here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

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
    with Namespace.new() as machine, rtnetlink.Socket() as kernel:
        kernel.run(rtnetlink.new_veth("wire", 0, "eth0", peer_namespace=machine.fd))
        link = kernel.link("wire")
        assert link is not None
        kernel.run(
            rtnetlink.add_address(link.index, ipaddress.ip_interface(f"{HOST}/24")),
            rtnetlink.set_up(link.index),
        )
        links.prepare(machine)
        with machine.visit(), rtnetlink.Socket() as other:
            end = other.link("eth0")
            assert end is not None
            other.run(
                rtnetlink.add_address(end.index, ipaddress.ip_interface(f"{OUTSIDE}/24")),
                rtnetlink.set_up(end.index),
                rtnetlink.add_route(end.index, ipaddress.ip_address(HOST)),
            )
        yield machine
        kernel.run(rtnetlink.delete_link("wire"))


@pytest.fixture
def second_machine() -> Iterator[Namespace]:
    """One more machine, on a wire of its own with the host."""
    with Namespace.new() as machine, rtnetlink.Socket() as kernel:
        kernel.run(rtnetlink.new_veth("wire2", 0, "eth0", peer_namespace=machine.fd))
        near = kernel.link("wire2")
        assert near is not None
        kernel.run(
            rtnetlink.add_address(near.index, ipaddress.ip_interface("203.0.113.1/24")),
            rtnetlink.set_up(near.index),
        )
        links.prepare(machine)
        with machine.visit(), rtnetlink.Socket() as other:
            end = other.link("eth0")
            assert end is not None
            other.run(
                rtnetlink.add_address(end.index, ipaddress.ip_interface("203.0.113.2/24")),
                rtnetlink.set_up(end.index),
                rtnetlink.add_route(end.index, ipaddress.ip_address("203.0.113.1")),
            )
        yield machine
        kernel.run(rtnetlink.delete_link("wire2"))
