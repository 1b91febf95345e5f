"""Which subnets and addresses are given out."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiffin.errors import Forbidden, InvalidParameter, TiffinError
from tiffin.network.addresses import Subnet, choose, mac_address, subnets


def test_a_pool_never_overlaps_with_what_the_host_has() -> None:
    taken = [ipaddress.ip_network("172.16.0.0/14"), ipaddress.ip_network("172.20.5.0/24")]
    assert str(choose(4, "m", taken)) == "172.21.0.0/16"


@given(
    st.lists(
        st.builds(
            lambda address, prefix: ipaddress.ip_network((address, prefix), strict=False),
            st.integers(0xAC110000, 0xAC1FFFFF),
            st.integers(14, 32),
        ),
        max_size=10,
    )
)
def test_what_is_chosen_overlaps_with_nothing(taken: list[ipaddress.IPv4Network]) -> None:
    chosen = choose(4, "m", taken)
    assert not any(chosen.overlaps(other) for other in taken)


def test_when_all_pools_are_taken_it_says_so() -> None:
    with pytest.raises(TiffinError, match="all predefined address pools"):
        choose(4, "m", [ipaddress.ip_network("0.0.0.0/0")])


def test_two_engines_have_ipv6_subnets_of_their_own() -> None:
    one, other = next(subnets(6, "a")), next(subnets(6, "b"))
    assert one.subnet_of(ipaddress.ip_network("fd00::/8"))
    assert not one.supernet(new_prefix=48).overlaps(other.supernet(new_prefix=48))


def test_addresses_come_in_a_circle_and_come_back() -> None:
    subnet = Subnet.of_config({"Subnet": "10.0.0.0/29"})
    assert str(subnet.gateway) == "10.0.0.1"
    first = [subnet.allocate("x") for _ in range(5)]
    assert [str(address) for address in first] == [f"10.0.0.{n}" for n in range(2, 7)]
    with pytest.raises(TiffinError, match="no available IPv4 addresses"):
        subnet.allocate("y")
    subnet.give_back(first[3])
    subnet.give_back(first[0])
    # The one after the last that was given, not the lowest.
    assert [str(subnet.allocate("z")) for _ in range(2)] == ["10.0.0.2", "10.0.0.5"]


@given(st.integers(24, 30), st.data())
def test_no_address_is_given_twice(prefix: int, data: st.DataObject) -> None:
    subnet = Subnet.of_config({"Subnet": f"10.1.2.0/{prefix}"})
    held: set[object] = set()
    for _ in range(60):
        if held and data.draw(st.booleans()):
            address = data.draw(st.sampled_from(sorted(held, key=str)))
            subnet.give_back(address)  # type: ignore[arg-type]
            held.discard(address)
            continue
        try:
            address = subnet.allocate("x")
        except TiffinError:
            assert len(held) == 2 ** (32 - prefix) - 3
            continue
        assert address not in held
        assert address in subnet.network
        assert address not in (
            subnet.gateway,
            subnet.network.network_address,
            subnet.network.broadcast_address,
        )
        held.add(address)


def test_a_range_limits_what_nobody_asked_for() -> None:
    subnet = Subnet.of_config(
        {
            "Subnet": "10.0.0.0/24",
            "IPRange": "10.0.0.128/30",
            "Gateway": "10.0.0.254",
            "AuxiliaryAddresses": {"printer": "10.0.0.129"},
        }
    )
    assert {str(subnet.allocate("x")) for _ in range(3)} == {f"10.0.0.{n}" for n in (128, 130, 131)}
    subnet.take(ipaddress.ip_address("10.0.0.7"), "y")
    with pytest.raises(Forbidden, match="Address already in use"):
        subnet.take(ipaddress.ip_address("10.0.0.129"), "y")
    with pytest.raises(InvalidParameter, match="no configured subnet"):
        subnet.take(ipaddress.ip_address("10.0.1.7"), "y")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"Subnet": "10.0.0.1/24"}, "it should be 10.0.0.0/24"),
        ({"Subnet": "nonsense"}, "invalid CIDR"),
        ({"Subnet": "10.0.0.0/24", "Gateway": "10.0.1.1"}, "no matching subnet for gateway"),
        ({"Subnet": "10.0.0.0/24", "IPRange": "10.0.1.0/25"}, "no matching subnet for range"),
    ],
)
def test_configurations_that_make_no_sense(config: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        Subnet.of_config(config)


def test_a_large_ipv6_subnet_is_no_trouble() -> None:
    subnet = Subnet.of_config({"Subnet": "fd00::/64"})
    assert [str(subnet.allocate("x")) for _ in range(2)] == ["fd00::2", "fd00::3"]


def test_the_same_address_has_the_same_mac() -> None:
    assert mac_address(ipaddress.ip_address("172.17.0.2"), b"abcd") == "02:42:ac:11:00:02"
    assert mac_address(None, b"\1\2\3\4") == "02:42:01:02:03:04"
