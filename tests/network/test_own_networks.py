"""Networks of one's own: who reaches whom, with which addresses; what is refused."""

from __future__ import annotations

import io
import ipaddress
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import busybox_tar
from tiffin.engine import Engine
from tiffin.errors import Conflict, Forbidden, InvalidParameter, NotFound, Unsupported
from tiffin.network import links, rtnetlink
from tiffin.network.namespace import Namespace
from traffic import (
    HOST,
    HOST_BRIDGE,
    HTTPD,
    OUTSIDE,
    Echo,
    address,
    client,
    create,
    eventually,
    fetch,
    inside,
    leftovers,
    reaches,
    refused,
    serve,
    start,
)

pytestmark = pytest.mark.usefixtures("machine_without_networks")


def test_networks_do_not_see_each_other_unless_a_container_joins_both(engine: Engine) -> None:
    for name in ("one", "two"):
        engine.networks.create({"Name": name})
    first = serve(engine, "first", "one")
    second = serve(engine, "second", "two")
    target = address(engine, second, "two")
    assert refused(engine, first, target)
    engine.networks.connect("two", first, {"Aliases": ["guest"]})
    assert inside(engine, first, f"wget -q -O - http://{target}/") == "second\n"
    assert inside(engine, second, "wget -q -O - http://guest/") == "first\n"
    assert "first" in inside(engine, first, "cat /etc/hosts; wget -q -O - http://first/")
    engine.networks.disconnect("two", first)
    assert refused(engine, first, target)
    assert not inside(engine, second, "nslookup -type=a guest")
    assert list(engine.containers.inspect(first)["NetworkSettings"]["Networks"]) == ["one"]


def test_a_chosen_address_and_mac(engine: Engine) -> None:
    engine.networks.create(
        {
            "Name": "net",
            "EnableIPv6": True,
            "IPAM": {
                "Config": [
                    {"Subnet": "10.8.0.0/24", "IPRange": "10.8.0.128/25", "Gateway": "10.8.0.9"},
                    {"Subnet": "fd00:8::/64"},
                ]
            },
        }
    )
    box = start(
        engine,
        "sleep 100",
        "net",
        endpoint={
            "IPAMConfig": {"IPv4Address": "10.8.0.5", "IPv6Address": "fd00:8::55"},
            "MacAddress": "02:00:00:00:00:AA",
        },
    )
    shown = inside(engine, box, "ip addr show eth0; ip route; ip -6 route")
    for part in ("10.8.0.5/24", "fd00:8::55/64", "02:00:00:00:00:aa", "default via 10.8.0.9"):
        assert part in shown
    other = start(engine, "sleep 100", "net")
    assert address(engine, other, "net") == "10.8.0.128"
    with pytest.raises(Forbidden, match="Address already in use"):
        start(engine, "true", "net", endpoint={"IPAMConfig": {"IPv4Address": "10.8.0.5"}})
    for text in ("10.9.0.1", "not an address"):
        with pytest.raises(InvalidParameter):
            start(engine, "true", "net", endpoint={"IPAMConfig": {"IPv4Address": text}})
    with pytest.raises(InvalidParameter, match="user defined networks only"):
        create(engine, "true", endpoint={"IPAMConfig": {"IPv4Address": "172.17.0.9"}})
    engine.containers.restart(box, timeout=0)
    assert address(engine, box, "net") == "10.8.0.5"


def test_ipv6_between_containers_and_through_a_port(engine: Engine) -> None:
    engine.networks.create({"Name": "six", "EnableIPv6": True, "EnableIPv4": False})
    web = serve(
        engine, "modern", "six", PortBindings={"80/tcp": [{"HostPort": "8086", "HostIp": "::"}]}
    )
    target = address(engine, web, "six", 6)
    assert address(engine, web, "six") == ""
    assert client(engine, f"wget -q -O - 'http://[{target}]/'", "six") == (0, "modern\n")
    assert client(engine, "wget -q -O - http://modern/", "six") == (0, "modern\n")
    assert fetch("::1", 8086) == "modern"
    gateway = engine.networks.inspect("six")["IPAM"]["Config"][0]["Gateway"]
    assert fetch(gateway, 8086) == "modern"
    assert client(engine, f"wget -q -O - 'http://[{gateway}]:8086/'", "six") == (0, "modern\n")


def test_an_internal_network_is_cut_off(engine: Engine, outside: Namespace) -> None:
    engine.networks.create({"Name": "inner", "Internal": True})
    echo = Echo(outside, 7)
    try:
        web = serve(engine, "inner", "inner", PortBindings={"80/tcp": [{"HostPort": "8081"}]})
        box = start(engine, "sleep 100", "inner")
        assert inside(engine, box, "wget -q -O - http://inner/") == "inner\n"
        assert refused(engine, box, OUTSIDE, 7)
        assert "default" not in inside(engine, box, "ip route")
        with outside.visit():
            assert not reaches(HOST, 8081)
        assert not reaches("127.0.0.1", 8081)
        assert engine.containers.inspect(web)["NetworkSettings"]["Ports"] == {}
        # Not even with a route: whoever may change the container's routes gets nowhere.
        subnet = engine.networks.inspect("inner")["IPAM"]["Config"][0]
        with Namespace.of_process(engine.containers.inspect(web)["State"]["Pid"]) as place:
            links.set_routes(place, [("eth0", subnet["Gateway"])])
            with place.visit():
                assert not reaches(OUTSIDE, 7)
    finally:
        echo.close()


def test_without_icc_containers_do_not_talk(engine: Engine) -> None:
    engine.networks.create(
        {"Name": "apart", "Options": {"com.docker.network.bridge.enable_icc": "false"}}
    )
    web = serve(engine, "alone", "apart", PortBindings={"80/tcp": [{"HostPort": "8082"}]})
    box = start(engine, "sleep 100", "apart")
    assert refused(engine, box, address(engine, web, "apart"))
    # The host, and so a published port, is something else.
    assert fetch("127.0.0.1", 8082) == "alone"
    assert client(engine, f"wget -q -O - http://{HOST_BRIDGE}:8082/") == (0, "alone\n")
    gateway = engine.networks.inspect("apart")["IPAM"]["Config"][0]["Gateway"]
    for one in (box, web):
        assert inside(engine, one, f"wget -q -O - http://{gateway}:8082/") == "alone\n"


def test_without_icc_on_several_bridges(engine: Engine) -> None:
    engine._fabric._links._capacity = 1
    engine.networks.create(
        {"Name": "apart", "Options": {"com.docker.network.bridge.enable_icc": "false"}}
    )
    gateway = engine.networks.inspect("apart")["IPAM"]["Config"][0]["Gateway"]
    boxes = [serve(engine, f"web{number}", "apart") for number in range(3)]
    for box in boxes:
        for other in boxes:
            if box != other:
                assert refused(engine, box, address(engine, other, "apart"))
        assert inside(engine, box, f"ping -c 1 -W 5 {gateway}") or fetch(
            address(engine, box, "apart"), 80
        )


def test_options_of_a_network(engine: Engine, outside: Namespace) -> None:
    engine.networks.create(
        {
            "Name": "tuned",
            "Options": {
                "com.docker.network.bridge.name": "mybridge",
                "com.docker.network.driver.mtu": "1280",
                "com.docker.network.bridge.enable_ip_masquerade": "false",
                "com.docker.network.bridge.host_binding_ipv4": "127.0.0.1",
            },
        }
    )
    with rtnetlink.Socket() as kernel:
        assert kernel.link("mybridge") is not None
    assert client(engine, "cat /sys/class/net/eth0/mtu", "tuned") == (0, "1280\n")
    echo = Echo(outside, 7)
    try:
        code, seen = client(engine, f"ip -o -4 addr show eth0; nc {OUTSIDE} 7", "tuned")
        assert code == 0
        assert seen.split()[-1] == seen.split()[3].partition("/")[0]
    finally:
        echo.close()
    web = serve(engine, "local", "tuned", PortBindings={"80/tcp": [{"HostPort": "8083"}]})
    assert engine.containers.inspect(web)["NetworkSettings"]["Ports"]["80/tcp"] == [
        {"HostIp": "127.0.0.1", "HostPort": "8083"}
    ]
    with pytest.raises(InvalidParameter):
        engine.networks.create({"Name": "n3", "Options": {"com.docker.network.driver.mtu": "x"}})
    with pytest.raises(Conflict, match="an interface of that name is there already"):
        engine.networks.create(
            {"Name": "n4", "Options": {"com.docker.network.bridge.name": "mybridge"}}
        )
    assert [row["Name"] for row in engine.networks.list({"type": ["custom"]})] == ["tuned"]


def test_interfaces_are_called_as_the_network_says(engine: Engine) -> None:
    option = "com.docker.network.container_iface_prefix"
    engine.networks.create({"Name": "named", "Options": {option: "lan"}})
    engine.networks.create({"Name": "other", "Options": {option: "lan"}})
    engine.networks.create({"Name": "plain"})
    all_four = {"lo", "lan0", "eth0", "lan1"}
    box = serve(engine, "box", "named")
    for network in ("plain", "other"):
        engine.networks.connect(network, box)
    assert set(inside(engine, box, "ls /sys/class/net").split()) == all_four
    engine.containers.restart(box, 0)
    assert set(inside(engine, box, "ls /sys/class/net").split()) == all_four
    for prefix in ("far-too-long-a-name", "a/b", "1st"):
        with pytest.raises(InvalidParameter, match="container_iface_prefix"):
            engine.networks.create({"Name": "bad", "Options": {option: prefix}})


def test_a_network_is_not_made_over_what_the_host_has(engine: Engine, outside: Namespace) -> None:
    with rtnetlink.Socket() as kernel:
        link = kernel.link("wire")
        assert link is not None
        kernel.run(rtnetlink.add_address(link.index, ipaddress.ip_interface("172.18.3.1/24")))
    engine.networks.create({"Name": "careful"})
    assert engine.networks.inspect("careful")["IPAM"]["Config"][0]["Subnet"] == "172.19.0.0/16"
    with pytest.raises(Forbidden, match="Pool overlaps with other one"):
        engine.networks.create({"Name": "n2", "IPAM": {"Config": [{"Subnet": "172.19.1.0/24"}]}})


def test_names_and_ids_of_networks(engine: Engine) -> None:
    key = engine.networks.create({"Name": "net", "Labels": {"a": "b"}})["Id"]
    for reference in ("net", key, key[:8]):
        assert engine.networks.inspect(reference)["Id"] == key
    with pytest.raises(Conflict, match="network with name net already exists"):
        engine.networks.create({"Name": "net"})
    with pytest.raises(Forbidden):
        engine.networks.create({"Name": "bridge"})
    for name in ("bridge", "none", "host"):
        with pytest.raises(Forbidden, match="is a pre-defined network and cannot be removed"):
            engine.networks.remove(name)
    with pytest.raises(NotFound, match="network nope not found"):
        engine.networks.inspect("nope")
    assert [row["Id"] for row in engine.networks.list({"label": ["a=b"]})] == [key]
    assert [row["Name"] for row in engine.networks.list({"type": ["builtin"]})] == [
        "bridge",
        "host",
        "none",
    ]
    box = start(engine, "sleep 100", key[:10])
    assert list(engine.containers.inspect(box)["NetworkSettings"]["Networks"]) == ["net"]
    assert [row["Id"] for row in engine.containers.list(filters={"network": ["net"]})] == [box]
    with pytest.raises(Forbidden, match="has active endpoints"):
        engine.networks.remove("net")
    assert engine.networks.prune()["NetworksDeleted"] == []
    engine.containers.remove(box, force=True)
    assert engine.networks.prune()["NetworksDeleted"] == ["net"]
    missing = create(engine, "true", "nope")
    with pytest.raises(NotFound, match="network nope not found"):
        engine.containers.start(missing)


def test_a_stopped_container_is_connected_for_its_next_start(engine: Engine) -> None:
    engine.networks.create({"Name": "later"})
    box = create(engine, "ip -o -4 addr | wc -l", name="box")
    engine.networks.connect("later", "box", {"IPAMConfig": None})
    with pytest.raises(Conflict, match="already exists in network"):
        engine.networks.connect("later", "box", {})
    engine.containers.start(box)
    engine.containers.wait(box)
    _, output = engine.containers.logs(box, stdout=True, stderr=True)
    assert b"".join(data for _, data in output) == b"3\n"
    engine.networks.disconnect("later", "box")
    engine.networks.disconnect("bridge", "box")
    engine.containers.start(box)
    engine.containers.wait(box)


def test_more_endpoints_than_a_bridge_holds(engine: Engine) -> None:
    engine._fabric._links._capacity = 2
    engine.networks.create({"Name": "wide", "EnableIPv6": True})
    boxes = [serve(engine, f"box{number}", "wide") for number in range(5)]
    with rtnetlink.Socket() as kernel:
        assert sum(link.kind == "bridge" for link in kernel.links()) == 3
    for box in (boxes[0], boxes[3]):
        for number in range(5):
            assert inside(engine, box, f"wget -q -O - http://box{number}/") == f"box{number}\n"
    assert fetch(address(engine, boxes[4], "wide"), 80) == "box4"
    for box in boxes:
        engine.containers.remove(box, force=True)
    engine.networks.remove("wide")
    with rtnetlink.Socket() as kernel:
        assert not [link for link in kernel.links() if link.kind == "bridge"]


def test_a_bridge_full_of_those_that_have_just_left(engine: Engine) -> None:
    engine.networks.create({"Name": "full"})
    first = serve(engine, "first", "full")
    second = create(engine, HTTPD.format("second", 80), "full", name="second")
    with rtnetlink.Socket() as kernel, ThreadPoolExecutor() as pool:
        (bridge,) = [link for link in kernel.links() if link.kind == "bridge"]
        leaving = Namespace.new()
        made = 0
        with pytest.raises(OSError, match="full"):
            while made < 1100:
                kernel.run(
                    rtnetlink.new_veth(
                        f"x{made}", bridge.index, f"y{made}", peer_namespace=leaving.fd
                    )
                )
                made += 1
        # The kernel's limit, of which one has its place.
        assert made == 1022
        starting = pool.submit(engine.containers.start, second)
        eventually(lambda: sum(link.kind == "bridge" for link in kernel.links()) == 2)
        leaving.close()
        starting.result(60)
    fetched = eventually(lambda: inside(engine, first, "wget -q -O - http://second/"))
    assert fetched == "second\n"
    assert inside(engine, second, "wget -q -O - http://first/") == "first\n"


def test_further_link_local_addresses(engine: Engine) -> None:
    engine.networks.create({"Name": "net"})
    endpoint = {"IPAMConfig": {"LinkLocalIPs": ["169.254.8.8", "fe80::8"]}}
    box = start(engine, "sleep 100", "net", endpoint=endpoint)
    shown = inside(engine, box, "ip addr show eth0")
    assert "169.254.8.8/16" in shown and "fe80::8/64" in shown
    with pytest.raises(InvalidParameter, match="invalid link-local IP address"):
        create(engine, "true", "net", endpoint={"IPAMConfig": {"LinkLocalIPs": ["nine"]}})


def test_a_host_that_was_no_router_is_none_for_others(
    root: Path, busybox: Path, outside: Namespace, second_machine: Namespace
) -> None:
    forward = Path("/proc/sys/net/ipv4/ip_forward")
    before = forward.read_text()

    def passes() -> bool:
        with outside.visit():
            return not subprocess.run(
                ["busybox", "ping", "-c", "1", "-W", "1", "203.0.113.2"], capture_output=True
            ).returncode

    try:
        forward.write_text("1")
        assert eventually(passes)
        forward.write_text("0")
        assert not passes()
        with Engine(root) as engine:
            engine.images.import_(io.BytesIO(busybox_tar()), "busybox")
            serve(engine, "web", PortBindings={"80/tcp": [{"HostPort": "8083"}]})
            assert forward.read_text().strip() == "1"
            for machine, host in ((outside, HOST), (second_machine, "203.0.113.1")):
                with machine.visit():
                    assert fetch(host, 8083) == "web"
            assert not passes()
        # The next engine knows that it was this one.
        with Engine(root) as engine:
            assert not passes()
            assert inside(engine, "web", "ping -c 1 -W 5 203.0.113.2")
            engine.containers.remove("web", force=True)
            engine.shutdown_keeper()
        assert forward.read_text().strip() == "0"
        assert leftovers() == (["wire2"], "")
    finally:
        forward.write_text(before)


def test_macvlan_where_the_kernel_has_it_and_ipvlan_too(engine: Engine, outside: Namespace) -> None:
    body = {"IPAM": {"Config": [{"Subnet": "198.51.100.0/24", "IPRange": "198.51.100.128/25"}]}}
    for driver in ("macvlan", "ipvlan"):
        try:
            engine.networks.create(
                {"Name": driver, "Driver": driver, "Options": {"parent": "wire"}, **body}
            )
        except Unsupported as error:
            # By name, and what it lacks.
            assert driver in str(error)
            continue
        web = serve(engine, f"{driver}web", driver)
        target = address(engine, web, driver)
        with outside.visit():
            assert fetch(target, 80) == f"{driver}web"
        assert client(engine, f"wget -q -O - http://{driver}web/", driver)[1] == f"{driver}web\n"
        engine.containers.remove(web, force=True)
        engine.networks.remove(driver)
    with pytest.raises(Unsupported, match="could not find plugin weave"):
        engine.networks.create({"Name": "w2", "Driver": "weave"})
