"""Networks on an interface of the host: macvlan, ipvlan, VLANs, where the kernel has them.

No kernel needs nftables for them but for the names, so these run in guests too
(``tests/vm/guest.py``), whose kernel has more kinds of interfaces than most.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tiffin.engine import Engine
from tiffin.errors import Forbidden, InvalidParameter, Unsupported
from tiffin.network import redirection, rtnetlink
from traffic import address, eventually, inside, start


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An interface of the host that leads nowhere; containers are asked by address."""
    monkeypatch.setattr(redirection, "redirect", lambda *_: None)
    with rtnetlink.Socket() as kernel:
        kernel.run(rtnetlink.new_veth("parent", 0, "other"))
        other = kernel.link("other")
        assert other is not None
        # Without the other end the pair has no carrier.
        kernel.run(rtnetlink.set_up(other.index))
        yield "parent"
        kernel.run(rtnetlink.delete_link("parent"))


@pytest.mark.parametrize(
    ("driver", "options", "meets"),
    [
        ("macvlan", {}, True),
        ("macvlan", {"macvlan_mode": "private"}, False),
        ("macvlan", {"parent": "parent.7"}, True),
        ("ipvlan", {}, True),
        ("ipvlan", {"ipvlan_mode": "l3"}, True),
        ("ipvlan", {"ipvlan_mode": "l3s"}, True),
        ("ipvlan", {"ipvlan_flag": "private"}, False),
        ("ipvlan", {"parent": "parent.7"}, True),
    ],
    ids=str,
)
def test_containers_on_one_parent(
    engine: Engine, parent: str, driver: str, options: dict[str, str], meets: bool
) -> None:
    options = {"parent": parent, **options}
    body = {"Name": "net", "Driver": driver, "Options": options}
    kinds = (driver, "VLAN")
    try:
        engine.networks.create({**body, "IPAM": {"Config": [{"Subnet": "198.51.100.0/24"}]}})
        one, other = (start(engine, "sleep 100", "net") for _ in range(2))
    except Unsupported as error:
        # By name: what is missing is what was tried.
        assert any(f"no interfaces of the kind {kind}" in error.message for kind in kinds)
        assert "net" not in [row["Name"] for row in engine.networks.list()]
        return

    def answers() -> str:
        return inside(engine, one, f"ping -c 1 -W 2 {address(engine, other, 'net')}")

    if meets:
        assert eventually(answers)
    else:
        assert not answers()
    for box in (one, other):
        engine.containers.remove(box, force=True)
    engine.networks.remove("net")
    with rtnetlink.Socket() as kernel:
        assert kernel.link("parent.7") is None


@pytest.mark.parametrize(
    ("driver", "options", "said"),
    [
        (
            "macvlan",
            {"macvlan_mode": "none"},
            "requested macvlan mode 'none' is not valid, 'bridge' mode is the macvlan driver",
        ),
        (
            "ipvlan",
            {"ipvlan_mode": "l4"},
            "requested ipvlan mode 'l4' is not valid, 'l2' mode is the ipvlan driver default",
        ),
        (
            "ipvlan",
            {"ipvlan_flag": "none"},
            "requested ipvlan flag 'none' is not valid, 'bridge' is the ipvlan driver default",
        ),
        ("ipvlan", {"parent": "lo"}, "loopback interface is not a valid ipvlan parent link"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_options_that_make_no_sense(
    engine: Engine, driver: str, options: dict[str, str], said: str
) -> None:
    # Whatever the kernel has.
    with pytest.raises(InvalidParameter, match=said):
        engine.networks.create({"Name": "net", "Driver": driver, "Options": options})
    assert "net" not in [row["Name"] for row in engine.networks.list()]


def test_vlans_have_numbers(engine: Engine, parent: str) -> None:
    options = {"parent": f"{parent}.4095"}
    try:
        with pytest.raises(InvalidParameter, match="vlan id must be between 1-4094, received"):
            engine.networks.create({"Name": "net", "Driver": "macvlan", "Options": options})
    except Unsupported:
        pytest.skip("this kernel has no macvlan")


def test_without_a_parent_there_is_no_way_out(engine: Engine, parent: str) -> None:
    ipam = {"Config": [{"Subnet": "198.51.100.0/24", "Gateway": "198.51.100.9"}]}
    try:
        engine.networks.create({"Name": "net", "Driver": "macvlan", "IPAM": ipam})
    except Unsupported as error:
        assert "kind" in error.message
        return
    one, other = (start(engine, "sleep 100", "net") for _ in range(2))
    assert eventually(
        lambda: inside(engine, one, f"ping -c 1 -W 2 {address(engine, other, 'net')}")
    )
    assert "default" not in inside(engine, one, "ip route")
    view = engine.containers.inspect(one)["NetworkSettings"]["Networks"]["net"]
    assert view["Gateway"] == ""


def test_an_address_is_there_again_at_once(engine: Engine, parent: str) -> None:
    # The kernel takes the interface of an ended container apart a little later.
    ipam = {"Config": [{"Subnet": "198.51.100.0/24"}]}
    options = {"parent": parent}
    drivers = []
    for driver in ("macvlan", "ipvlan"):
        body = {"Name": driver, "Driver": driver, "IPAM": ipam, "Options": options}
        try:
            engine.networks.create(body)
        except Unsupported:
            continue
        drivers.append(driver)
        wanted = {"IPAMConfig": {"IPv4Address": "198.51.100.7"}}
        box = start(engine, "sleep 100", driver, endpoint=wanted)
        for _ in range(10):
            engine.containers.restart(box, timeout=0)
        assert address(engine, box, driver) == "198.51.100.7"
        engine.containers.remove(box, force=True)
        engine.networks.remove(driver)
    if not drivers:
        pytest.skip("this kernel has neither macvlan nor ipvlan")


def test_a_parent_is_shared_unless_it_is_passed_through(engine: Engine, parent: str) -> None:
    def create(name: str, mode: str) -> None:
        options = {"parent": parent, "macvlan_mode": mode}
        engine.networks.create({"Name": name, "Driver": "macvlan", "Options": options})

    try:
        create("one", "bridge")
    except Unsupported:
        pytest.skip("this kernel has no macvlan")
    create("two", "private")
    with pytest.raises(Forbidden, match="cannot use mode passthru, macvlan network one"):
        create("three", "passthru")
    for name in ("one", "two"):
        engine.networks.remove(name)
    create("three", "passthru")
    with pytest.raises(Forbidden, match="already using parent interface parent in mode passthru"):
        create("one", "bridge")
    engine.networks.remove("three")


@pytest.mark.parametrize("given", [{"Gateway": "198.51.100.9"}, {}], ids=["gateway", "none"])
def test_there_is_a_default_route_where_a_gateway_was_named(
    engine: Engine, parent: str, given: dict[str, str]
) -> None:
    ipam = {"Config": [{"Subnet": "198.51.100.0/24", **given}]}
    body = {"Driver": "macvlan", "IPAM": ipam, "Options": {"parent": parent}}
    try:
        engine.networks.create({"Name": "net", **body})
    except Unsupported:
        pytest.skip("this kernel has no macvlan")
    box = start(engine, "sleep 100", "net", PortBindings={"80/tcp": [{"HostPort": "8123"}]})
    route = "default via 198.51.100.9" if given else ""
    assert route in inside(engine, box, "ip route")
    assert ("default" in inside(engine, box, "ip route")) is bool(given)
    # Nothing is published past a parent, nor said to be.
    assert engine.containers.inspect(box)["NetworkSettings"]["Ports"] == {}
    engine.containers.remove(box, force=True)
    engine.networks.remove("net")
    engine.networks.create({"Name": "net", "Internal": True, **body})
    assert "default" not in inside(engine, start(engine, "sleep 100", "net"), "ip route")
