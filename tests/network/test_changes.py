"""Networks of containers that run: connected, disconnected, renamed."""

from __future__ import annotations

import pytest

from tiffin.engine import Engine
from tiffin.errors import Conflict, InvalidParameter, NotFound, TiffinError
from traffic import address, create, eventually, fetch, inside, porters, reaches, serve, start

pytestmark = pytest.mark.usefixtures("machine_without_networks")


def test_in_and_out_of_a_network_again_and_again(engine: Engine) -> None:
    engine.networks.create({"Name": "net", "IPAM": {"Config": [{"Subnet": "10.77.0.0/24"}]}})
    serve(engine, "web", "net")
    box = start(engine, "sleep 100")
    for last in (17, 18, 17):
        wanted = f"10.77.0.{last}"
        engine.networks.connect("net", box, {"IPAMConfig": {"IPv4Address": wanted}})
        assert address(engine, box, "net") == wanted
        assert eventually(lambda: inside(engine, box, "wget -q -O - http://web/")) == "web\n"
        engine.networks.disconnect("net", box)
        assert "net" not in engine.containers.inspect(box)["NetworkSettings"]["Networks"]
        assert not inside(engine, box, "ip addr show eth1")
        # It has left the names too: there is no name server in the default network.
        assert "127.0.0.11" not in inside(engine, box, "cat /etc/resolv.conf")
    with pytest.raises(Conflict, match="is not connected to network net"):
        engine.networks.disconnect("net", box, force=True)


def test_the_first_to_need_a_porter_may_run_already(engine: Engine) -> None:
    box = start(engine, "sleep 100")
    assert not porters(engine.root.path)
    engine.networks.create({"Name": "net"})
    engine.networks.connect("net", box, {"Aliases": ["one.more"]})
    assert "127.0.0.11" in inside(engine, box, "cat /etc/resolv.conf")
    mine = address(engine, box, "net")
    assert eventually(lambda: mine in inside(engine, box, "nslookup one.more"))


def test_ports_go_where_the_container_goes(engine: Engine) -> None:
    engine.networks.create({"Name": "net"})
    engine.networks.create({"Name": "inner", "Internal": True})
    web = serve(engine, "web", PortBindings={"80/tcp": [{"HostPort": "8120"}]})
    for reach in ("127.0.0.1", "::1"):
        assert fetch(reach, 8120) == "web"
    engine.networks.disconnect("bridge", web)
    # As with Docker, nothing is published where it is in no network.
    assert not engine.containers.inspect(web)["NetworkSettings"]["Ports"].get("80/tcp")
    assert not reaches("127.0.0.1", 8120)
    engine.networks.connect("inner", web)
    assert not reaches("127.0.0.1", 8120)
    engine.networks.connect("net", web)
    for reach in ("127.0.0.1", "::1"):
        assert fetch(reach, 8120) == "web"
    # From one to the other without a gap.
    engine.networks.connect("bridge", web)
    engine.networks.disconnect("net", web)
    for reach in ("127.0.0.1", "::1"):
        assert fetch(reach, 8120) == "web"
    engine.networks.disconnect("bridge", web)
    other = serve(engine, "other", PortBindings={"80/tcp": [{"HostPort": "8120"}]})
    assert fetch("127.0.0.1", 8120) == "other"
    with pytest.raises(TiffinError, match="already allocated"):
        engine.networks.connect("net", web)
    # What could not be had was not done by half.
    assert "net" not in engine.containers.inspect(web)["NetworkSettings"]["Networks"]
    engine.containers.remove(other, force=True)
    eventually(lambda: not reaches("127.0.0.1", 8120))
    engine.networks.connect("net", web)
    assert fetch("127.0.0.1", 8120) == "web"


def test_a_chosen_mac_is_shown_before_the_start_and_used(engine: Engine) -> None:
    engine.networks.create({"Name": "net"})
    box = create(engine, "sleep 100")
    mac = "02:42:ac:11:00:fe"
    engine.networks.connect("net", box, {"MacAddress": mac})

    def shown() -> str:
        view = engine.containers.inspect(box)["NetworkSettings"]["Networks"]["net"]
        return str(view["MacAddress"])

    assert shown() == mac
    engine.containers.start(box)
    assert shown() == mac
    assert mac in inside(engine, box, "ip link show eth1")


def test_names_of_networks_may_be_anything(engine: Engine) -> None:
    engine.networks.create({"Name": "my net, 2nd"})
    web = serve(engine, "web", "my net, 2nd")
    box = start(engine, "sleep 100", "my net, 2nd")
    assert inside(engine, box, "wget -q -O - http://web/") == "web\n"
    for one in (web, box):
        engine.containers.remove(one, force=True)
    engine.networks.remove("my net, 2nd")
    with pytest.raises(InvalidParameter):
        engine.networks.create({"Name": "  "})


def test_a_link_is_kept_by_identity_and_can_be_removed(engine: Engine) -> None:
    db = start(
        engine,
        "sleep 100",
        name="db",
        config={"Env": ["USER=me", "HOME=/x"], "ExposedPorts": {"443/tcp": {}, "80/tcp": {}}},
    )
    box = create(engine, "sleep 100", name="box", Links=["db:store"])
    engine.containers.rename("db", "database")
    engine.containers.start(box)
    environment = inside(engine, box, "env").splitlines()
    host = address(engine, db)
    assert {
        "STORE_NAME=/box/store",
        f"STORE_PORT=tcp://{host}:80",
        f"STORE_PORT_443_TCP_ADDR={host}",
        "STORE_ENV_USER=me",
    } <= set(environment)
    assert not [line for line in environment if line.startswith("STORE_ENV_HOME")]
    assert engine.containers.inspect(box)["HostConfig"]["Links"] == ["/database:/box/store"]
    (row,) = [one for one in engine.containers.list() if one["Id"] == db]
    assert row["Names"] == ["/database", "/box/store"]
    with pytest.raises(NotFound):
        engine.containers.remove("box/other", link=True)
    engine.containers.remove("box/store", link=True)
    assert not engine.containers.inspect(box)["HostConfig"]["Links"]
    assert {one["Id"] for one in engine.containers.list()} == {db, box}


# -- kills ----------------------------------------------------------------------------------
