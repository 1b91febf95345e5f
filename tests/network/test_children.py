"""Networks on an interface of the host: macvlan, ipvlan, VLANs, where the kernel has them.

No kernel needs nftables for them but for the names, so these run in guests too
(``tests/vm/guest.py``), whose kernel has more kinds of interfaces than most.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tiffin.engine import Engine
from tiffin.errors import Unsupported
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
