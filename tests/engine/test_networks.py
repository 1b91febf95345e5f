"""Containers that talk: real packets between containers, the host, and a machine outside.

The whole run of tests has a network namespace of its own, which is "the host" here.
"""

from __future__ import annotations

import io
import ipaddress
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from conftest import busybox_tar
from tiffin.engine import Engine
from tiffin.errors import Conflict, Forbidden, InvalidParameter, NotFound, TiffinError, Unsupported
from tiffin.network import links, netlink
from tiffin.network.namespace import Namespace
from traffic import (
    HOST,
    HOST_BRIDGE,
    OUTSIDE,
    address,
    child_engine,
    clear_networks,
    client,
    create,
    eventually,
    fetch,
    fetch_or_nothing,
    inside,
    leftovers,
    porters,
    reaches,
    refused,
    serve,
    start,
)


@pytest.fixture(autouse=True)
def machine_without_networks() -> None:
    clear_networks()


@pytest.fixture
def outside() -> Iterator[Namespace]:
    """Another machine, on a wire with the host; it sends everything to the host."""
    with Namespace.new() as machine, netlink.Socket() as kernel:
        kernel.run(netlink.new_veth("wire", 0, "eth0", peer_namespace=machine.fd))
        link = kernel.link("wire")
        assert link is not None
        kernel.run(
            netlink.add_address(link.index, ipaddress.ip_interface(f"{HOST}/24")),
            netlink.set_up(link.index),
        )
        links.prepare(machine)
        with machine.visit(), netlink.Socket() as other:
            end = other.link("eth0")
            assert end is not None
            other.run(
                netlink.add_address(end.index, ipaddress.ip_interface(f"{OUTSIDE}/24")),
                netlink.set_up(end.index),
                netlink.add_route(end.index, ipaddress.ip_address(HOST)),
            )
        yield machine
        kernel.run(netlink.delete_link("wire"))


class Echo:
    """A server that says to whoever connects where the connection came from."""

    def __init__(self, place: Namespace | None, port: int) -> None:
        with place.visit() if place is not None else nullcontext():
            self._socket = socket.create_server(("0.0.0.0", port))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, peer = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.sendall(peer[0].encode() + b"\n")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


# -- the default network --------------------------------------------------------------------


def test_containers_of_the_default_network_reach_each_other_and_the_host(engine: Engine) -> None:
    web = serve(engine, "hello")
    target = address(engine, web)
    assert client(engine, f"wget -q -O - http://{target}/") == (0, "hello\n")
    assert fetch(target, 80) == "hello"
    view = engine.networks.inspect("bridge")
    assert view["Containers"][web]["IPv4Address"] == f"{target}/16"
    # Nobody knows names there.
    assert client(engine, "wget -q -O - http://hello/")[0] == 1


def test_what_leaves_comes_from_the_host(engine: Engine, outside: Namespace) -> None:
    echo = Echo(outside, 7)
    try:
        assert client(engine, f"nc {OUTSIDE} 7") == (0, f"{HOST}\n")
    finally:
        echo.close()


def test_nobody_outside_routes_into_a_network(engine: Engine, outside: Namespace) -> None:
    web = serve(engine, "hidden")
    with outside.visit():
        assert not reaches(address(engine, web), 80)


def test_addresses_are_free_again(engine: Engine) -> None:
    engine.networks.create({"Name": "small", "IPAM": {"Config": [{"Subnet": "10.9.0.0/29"}]}})
    for _ in range(12):
        assert client(engine, "true", "small")[0] == 0
    assert engine.networks.inspect("small")["Containers"] == {}
    held = [start(engine, "sleep 100", "small") for _ in range(5)]
    with pytest.raises(TiffinError, match="no available IPv4 addresses"):
        start(engine, "true", "small")
    engine.containers.remove(held[0], force=True)
    assert client(engine, "true", "small")[0] == 0


def test_none_and_host(engine: Engine) -> None:
    assert client(engine, "ip -o link | wc -l", "none") == (0, "1\n")
    echo = Echo(None, 7)
    try:
        assert client(engine, "nc 127.0.0.1 7", "host") == (0, "127.0.0.1\n")
    finally:
        echo.close()
    with pytest.raises(InvalidParameter, match="conflicting options"):
        engine.containers.create(
            {
                "Image": "busybox",
                "HostConfig": {"NetworkMode": "none"},
                "NetworkingConfig": {"EndpointsConfig": {"bridge": {}, "none": {}}},
            }
        )


def test_another_containers_network(engine: Engine) -> None:
    web = serve(engine, "shared", config={"Hostname": "boss"})
    assert client(
        engine, "wget -q -O - http://127.0.0.1/; cat /etc/hostname", f"container:{web}"
    ) == (0, "shared\nboss\n")
    other = create(engine, "true", "container:shared")
    engine.containers.stop("shared", timeout=0)
    with pytest.raises(Conflict, match="cannot join network of a non running container"):
        engine.containers.start(other)
    for body, host in (
        ({"Hostname": "x"}, {}),
        ({}, {"PortBindings": {"80/tcp": [{}]}}),
        ({}, {"Dns": ["1.1.1.1"]}),
        ({"ExposedPorts": {"80/tcp": {}}}, {}),
    ):
        with pytest.raises(InvalidParameter, match="conflicting options"):
            create(engine, "true", "container:shared", config=body, **host)


# -- networks of one's own ------------------------------------------------------------------


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
    with netlink.Socket() as kernel:
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


def test_a_network_is_not_made_over_what_the_host_has(engine: Engine, outside: Namespace) -> None:
    with netlink.Socket() as kernel:
        link = kernel.link("wire")
        assert link is not None
        kernel.run(netlink.add_address(link.index, ipaddress.ip_interface("172.18.3.1/24")))
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
    with netlink.Socket() as kernel:
        assert sum(link.kind == "bridge" for link in kernel.links()) == 3
    for box in (boxes[0], boxes[3]):
        for number in range(5):
            assert inside(engine, box, f"wget -q -O - http://box{number}/") == f"box{number}\n"
    assert fetch(address(engine, boxes[4], "wide"), 80) == "box4"
    for box in boxes:
        engine.containers.remove(box, force=True)
    engine.networks.remove("wide")
    with netlink.Socket() as kernel:
        assert not [link for link in kernel.links() if link.kind == "bridge"]


def test_further_link_local_addresses(engine: Engine) -> None:
    engine.networks.create({"Name": "net"})
    endpoint = {"IPAMConfig": {"LinkLocalIPs": ["169.254.8.8", "fe80::8"]}}
    box = start(engine, "sleep 100", "net", endpoint=endpoint)
    shown = inside(engine, box, "ip addr show eth0")
    assert "169.254.8.8/16" in shown and "fe80::8/64" in shown
    with pytest.raises(InvalidParameter, match="invalid link-local IP address"):
        create(engine, "true", "net", endpoint={"IPAMConfig": {"LinkLocalIPs": ["nine"]}})


@pytest.fixture
def second_machine() -> Iterator[Namespace]:
    """One more machine, on a wire of its own with the host."""
    with Namespace.new() as machine, netlink.Socket() as kernel:
        kernel.run(netlink.new_veth("wire2", 0, "eth0", peer_namespace=machine.fd))
        near = kernel.link("wire2")
        assert near is not None
        kernel.run(
            netlink.add_address(near.index, ipaddress.ip_interface("203.0.113.1/24")),
            netlink.set_up(near.index),
        )
        links.prepare(machine)
        with machine.visit(), netlink.Socket() as other:
            end = other.link("eth0")
            assert end is not None
            other.run(
                netlink.add_address(end.index, ipaddress.ip_interface("203.0.113.2/24")),
                netlink.set_up(end.index),
                netlink.add_route(end.index, ipaddress.ip_address("203.0.113.1")),
            )
        yield machine
        kernel.run(netlink.delete_link("wire2"))


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
        assert passes()
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


# -- published ports ------------------------------------------------------------------------


def test_a_published_port_is_reached_from_everywhere(engine: Engine, outside: Namespace) -> None:
    engine.networks.create({"Name": "net"})
    engine.networks.create({"Name": "other"})
    web = serve(
        engine,
        "public",
        "net",
        PortBindings={"80/tcp": [{"HostPort": "8090"}]},
        config={"ExposedPorts": {"443/tcp": {}}},
    )
    for where in ("127.0.0.1", "::1", HOST, "127.0.0.5"):
        assert fetch(where, 8090) == "public"
    with outside.visit():
        assert fetch(HOST, 8090) == "public"
    # Through the host and back into the same network, from another, and to itself.
    for network in ("net", "other", "bridge"):
        assert client(engine, f"wget -q -O - http://{HOST}:8090/", network) == (0, "public\n")
    assert inside(engine, web, f"wget -q -O - http://{HOST}:8090/") == "public\n"
    view = engine.containers.inspect(web)["NetworkSettings"]["Ports"]
    assert view == {
        "80/tcp": [
            {"HostIp": "0.0.0.0", "HostPort": "8090"},
            {"HostIp": "::", "HostPort": "8090"},
        ],
        "443/tcp": None,
    }
    (row,) = engine.containers.list()
    assert {"PrivatePort": 443, "Type": "tcp"} in row["Ports"]
    assert {
        "IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8090, "Type": "tcp"
    } in row["Ports"]  # fmt: skip
    engine.containers.stop(web, timeout=0)
    assert not reaches("127.0.0.1", 8090)
    engine.containers.start(web)
    assert eventually(lambda: fetch_or_nothing("127.0.0.1", 8090)) == "public"


def test_a_port_at_one_address_is_nowhere_else(engine: Engine, outside: Namespace) -> None:
    serve(engine, "private", PortBindings={"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8091"}]})
    assert fetch("127.0.0.1", 8091) == "private"
    assert not reaches(HOST, 8091)
    with outside.visit():
        assert not reaches(HOST, 8091)
    assert client(engine, f"nc -w 1 {HOST} 8091 </dev/null")[0] == 1


def test_containers_do_not_reach_the_hosts_own_loopback(engine: Engine) -> None:
    box = start(engine, "sleep 100")
    with socket.create_server(("127.0.0.1", 8092)) as server:
        # A container that routes the host's 127.0.0.1 to the bridge still gets nothing.
        gateway = engine.containers.inspect(box)["NetworkSettings"]["Gateway"]
        pid = engine.containers.inspect(box)["State"]["Pid"]
        with Namespace.of_process(pid) as place, place.visit():
            subprocess.run(
                f"ip route add 127.0.0.1/32 via {gateway} dev eth0; "
                "ip addr del 127.0.0.1/8 dev lo; sysctl -qw net.ipv4.conf.all.route_localnet=1",
                shell=True,
                capture_output=True,
                check=False,
            )
            assert not reaches("127.0.0.1", 8092)
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_port_in_use_stops_the_start_before_anything_runs(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        box = create(engine, "true", PortBindings={"80/tcp": [{"HostPort": port}]})
        with pytest.raises(TiffinError, match="address already in use"):
            engine.containers.start(box)
        state = engine.containers.inspect(box)["State"]
        assert (state["Status"], state["StartedAt"][:4]) == ("created", "0001")
    engine.containers.start(box)
    engine.containers.wait(box)
    serve(engine, "first", PortBindings={"80/tcp": [{"HostPort": "8093"}]})
    with pytest.raises(
        TiffinError, match=r"Bind for 0\.0\.0\.0:8093 failed: port is already alloc"
    ):
        start(engine, "true", PortBindings={"80/tcp": [{"HostPort": "8093"}]})
    # Nobody else on the host gets it either.
    with pytest.raises(OSError, match="already in use"), socket.socket() as sock:
        sock.bind(("0.0.0.0", 8093))
        sock.listen()


def test_ranges_and_free_ports(engine: Engine) -> None:
    bindings = {f"{port}/udp": [{"HostPort": str(port + 100)}] for port in range(9000, 9020)}
    start(engine, "sleep 100", PortBindings=bindings)
    box = serve(
        engine,
        "many",
        PortBindings={"80/tcp": [{"HostPort": "9200-9210"}, {}]},
        PublishAllPorts=True,
        config={"ExposedPorts": {"81/tcp": {}, "82/udp": {}}},
    )
    ports = engine.containers.inspect(box)["NetworkSettings"]["Ports"]
    numbers = {int(one["HostPort"]) for one in ports["80/tcp"]}
    assert 9200 in numbers
    assert len(numbers) == 2
    for number in numbers:
        assert fetch("127.0.0.1", number) == "many"
    assert ports["81/tcp"][0]["HostPort"] != "0"
    assert ports["82/udp"]


class Pong:
    """A UDP server in a container's network that answers each datagram with where it is from."""

    def __init__(self, engine: Engine, container: str, port: int) -> None:
        pid = engine.containers.inspect(container)["State"]["Pid"]
        with Namespace.of_process(pid) as place, place.visit():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.bind(("0.0.0.0", port))
            self._address = ("127.0.0.1", port)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (got := self._socket.recvfrom(65536))[0] != b"end":
            self._socket.sendto(got[1][0].encode() + b" " + got[0], got[1])

    def close(self, engine: Engine, container: str) -> None:
        pid = engine.containers.inspect(container)["State"]["Pid"]
        with (
            Namespace.of_process(pid) as place,
            place.visit(),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last,
        ):
            last.sendto(b"end", self._address)
        self._thread.join()
        self._socket.close()


def ask(target: tuple[str, int], data: bytes = b"ping") -> tuple[bytes, bytes]:
    """Send a datagram; who the server saw, and what it gave back."""
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(data, target)
        answer, peer = sock.recvfrom(65536)
        assert peer[:2] == target
        seen, _, rest = answer.partition(b" ")
        return seen, rest


def test_udp_goes_both_ways_and_loses_nothing(engine: Engine, outside: Namespace) -> None:
    box = start(engine, "sleep 100", PortBindings={"53/udp": [{"HostPort": "5353"}]})
    server = Pong(engine, box, 53)
    try:
        with outside.visit():
            assert ask((HOST, 5353)) == (OUTSIDE.encode(), b"ping")
            assert sum(ask((HOST, 5353), b"%d" % n)[1] == b"%d" % n for n in range(200)) == 200
        assert ask(("127.0.0.1", 5353))[1] == b"ping"
        # The kernel routes ::1 nowhere: the porter carries it.
        assert ask(("::1", 5353), b"x" * 9000)[1] == b"x" * 9000
        other = start(engine, "sleep 100")
        pid = engine.containers.inspect(other)["State"]["Pid"]
        with Namespace.of_process(pid) as place, place.visit():
            assert ask((address(engine, box), 53))[0] == address(engine, other).encode()
            assert ask((HOST, 5353))[1] == b"ping"
    finally:
        server.close(engine, box)


def test_a_lot_goes_through_ipv6_localhost(engine: Engine) -> None:
    start(
        engine,
        "while :; do head -c 20000000 /dev/zero | nc -l -p 80; done",
        PortBindings={"80/tcp": [{"HostPort": "8094"}]},
    )

    def received() -> bool:
        total = 0
        with socket.create_connection(("::1", 8094), timeout=10) as sock:
            while total < 20_000_000 and (data := sock.recv(1 << 20)):
                total += len(data)
        return total == 20_000_000

    assert eventually(received)


def test_the_thousandth_port_is_one_more_element(engine: Engine) -> None:
    bindings = {f"{port}/tcp": [{"HostPort": str(port)}] for port in range(20000, 21000)}
    begun = time.monotonic()
    box = start(engine, "sleep 100", PortBindings=bindings)
    took = time.monotonic() - begun
    assert took < 10
    table = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
    rules = [line for line in table.stdout.splitlines() if "dnat" in line and "map" in line]
    assert len(rules) == 4
    assert "20999 : " in table.stdout
    engine.containers.remove(box, force=True)


# -- names ----------------------------------------------------------------------------------


def test_names_of_a_network(engine: Engine) -> None:
    engine.networks.create({"Name": "net"})
    web = serve(engine, "web", "net", endpoint={"Aliases": ["www", "Shop"]})
    box = start(engine, "sleep 100", "net", name="box")
    target = address(engine, web, "net")
    for name in ("web", "www", "shop", "WEB", web[:12], "web.net", "www.net"):
        assert f"Address: {target}" in inside(engine, box, f"nslookup -type=a {name}")
    assert inside(engine, box, "wget -q -O - http://www/") == "web\n"
    assert "web.net" in inside(engine, box, f"nslookup {target}")
    assert "nameserver 127.0.0.11" in inside(engine, box, "cat /etc/resolv.conf")
    engine.containers.rename("web", "renamed")
    eventually(lambda: inside(engine, box, "nslookup -type=a renamed"))
    assert not inside(engine, box, "nslookup -type=a web")
    engine.containers.remove(web, force=True)
    eventually(lambda: not inside(engine, box, "nslookup -type=a www"))


def test_an_alias_of_several_goes_around(engine: Engine) -> None:
    engine.networks.create({"Name": "net"})
    for word in ("red", "green", "blue"):
        serve(engine, word, "net", endpoint={"Aliases": ["any"]})
    box = start(engine, "sleep 100", "net")
    said = inside(engine, box, "for i in $(seq 9); do wget -q -O - http://any/; done")
    assert set(said.split()) == {"red", "green", "blue"}


class NameServer:
    """A name server on the host: every name has one address; over TCP another."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.53", 53))
        self._tcp = socket.create_server(("127.0.0.53", 53))
        self._threads = [
            threading.Thread(target=run, daemon=True) for run in (self._datagrams, self._streams)
        ]
        for thread in self._threads:
            thread.start()

    def _answer(self, message: bytes, address: str) -> bytes:
        from tiffin.network.porter import wire

        question = wire.parse(message)
        assert question is not None
        self.asked.append(question.name)
        if question.name == "missing.example":
            return wire.answer(message, question, [], code=wire.NXDOMAIN)
        records = [(wire.A, socket.inet_aton(address))] if question.kind == wire.A else []
        return wire.answer(message, question, records)

    def _datagrams(self) -> None:
        while True:
            try:
                message, sender = self._udp.recvfrom(4096)
            except OSError:
                return
            if not message:
                return
            self._udp.sendto(self._answer(message, "203.0.113.1"), sender)

    def _streams(self) -> None:
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            with connection:
                length = int.from_bytes(connection.recv(2), "big")
                answer = self._answer(connection.recv(length), "203.0.113.2")
                connection.sendall(len(answer).to_bytes(2, "big") + answer)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.53", 53))
        self._tcp.shutdown(socket.SHUT_RDWR)
        self._tcp.close()
        for thread in self._threads:
            thread.join()
        self._udp.close()


def test_other_names_are_asked_elsewhere(engine: Engine) -> None:
    engine.networks.create({"Name": "net"})
    engine.networks.create({"Name": "inner", "Internal": True})
    server = NameServer()
    try:
        options = {"Dns": ["127.0.0.53"], "DnsSearch": ["example"], "DnsOptions": ["ndots:1"]}
        box = start(engine, "sleep 100", "net", **options)
        assert "203.0.113.1" in inside(engine, box, "nslookup -type=a some.example")
        assert not inside(engine, box, "nslookup -type=a missing.example")
        conf = inside(engine, box, "cat /etc/resolv.conf")
        assert "search example\noptions ndots:1\n" in conf
        # Over TCP it is asked over TCP.
        pid = engine.containers.inspect(box)["State"]["Pid"]
        with (
            Namespace.of_process(pid) as place,
            place.visit(),
            socket.create_connection(("127.0.0.11", 53), timeout=5) as sock,
        ):
            query = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\4some\7example\0\0\1\0\1"
            sock.sendall(len(query).to_bytes(2, "big") + query)
            answer = sock.recv(4096)
        assert answer[2:4] == b"\x12\x34"
        assert answer.endswith(socket.inet_aton("203.0.113.2"))
        asked = len(server.asked)
        hidden = start(engine, "sleep 100", "inner", **options)
        assert not inside(engine, hidden, "nslookup -type=a some.example")
        assert len(server.asked) == asked
    finally:
        server.close()


def test_a_name_server_may_run_in_a_container(engine: Engine) -> None:
    engine.networks.create({"Name": "net"})
    box = start(engine, "nc -l -p 53 -w 20 & nc -u -l -p 53 -w 20 & wait", "net", name="dns")
    eventually(lambda: ":0035" in inside(engine, box, "cat /proc/net/tcp /proc/net/tcp6"))
    assert inside(engine, box, "nslookup -type=a dns")


def test_links_on_the_default_network(engine: Engine) -> None:
    web = serve(engine, "web", config={"ExposedPorts": {"80/tcp": {}}})
    target = address(engine, web)
    box = start(engine, "sleep 100", Links=["web:shop"], name="box")
    assert inside(engine, box, "wget -q -O - http://shop/") == "web\n"
    variables = inside(engine, box, "cat /proc/1/environ | tr '\\0' '\\n'")
    for line in (
        f"SHOP_PORT=tcp://{target}:80",
        f"SHOP_PORT_80_TCP_ADDR={target}",
        "SHOP_NAME=/box/shop",
    ):
        assert line in variables.splitlines()
    engine.containers.stop(web, timeout=0)
    with pytest.raises(Conflict, match="Cannot link to a non running container"):
        start(engine, "true", Links=["web:shop"])


def test_links_on_a_network_of_ones_own_are_names_for_one(engine: Engine) -> None:
    engine.networks.create({"Name": "net"})
    serve(engine, "web", "net")
    box = start(engine, "sleep 100", "net", Links=["web:shop"])
    other = start(engine, "sleep 100", "net")
    assert inside(engine, box, "wget -q -O - http://shop/") == "web\n"
    assert not inside(engine, other, "nslookup -type=a shop")


def test_the_files_in_etc(engine: Engine) -> None:
    box = start(
        engine,
        "sleep 100",
        config={"Hostname": "host1", "Domainname": "example.com"},
        ExtraHosts=["db:10.1.2.3", "gw:host-gateway"],
        Dns=["9.9.9.9"],
    )
    hosts = inside(engine, box, "cat /etc/hosts").splitlines()
    settings = engine.containers.inspect(box)["NetworkSettings"]
    assert hosts[0] == "127.0.0.1\tlocalhost"
    assert hosts[-3:] == [
        "10.1.2.3\tdb",
        f"{settings['Gateway']}\tgw",
        f"{settings['IPAddress']}\thost1.example.com host1",
    ]
    assert "nameserver 9.9.9.9" in inside(engine, box, "cat /etc/resolv.conf")
    assert inside(engine, box, "hostname; cat /etc/hostname") == "host1\nhost1.example.com\n"
    echo = Echo(None, 7)
    try:
        assert inside(engine, box, "nc gw 7") == f"{settings['IPAddress']}\n"
    finally:
        echo.close()


# -- the end --------------------------------------------------------------------------------


def test_removing_leaves_nothing(root: Path, busybox: Path) -> None:
    with Engine(root) as engine:
        engine.images.import_(io.BytesIO(busybox_tar()), "busybox")
        engine.networks.create({"Name": "net", "EnableIPv6": True})
        boxes = [
            start(
                engine,
                "sleep 100",
                network,
                PortBindings={"80/tcp": [{"HostPort": str(8100 + number)}]},
            )
            for number, network in enumerate(("net", "net", "bridge"))
        ]
        assert porters(root)
        for box in boxes:
            engine.containers.remove(box, force=True)
        engine.networks.remove("net")
        eventually(lambda: not [name for name in leftovers()[0] if name.startswith("tf")])
        assert "8100" not in leftovers()[1]
        rows = engine._database.all("SELECT * FROM endpoints")
        assert not rows
        engine.shutdown_keeper()
    eventually(lambda: not leftovers()[0])
    assert leftovers() == ([], "")
    eventually(lambda: not porters(root))


def test_networks_go_on_when_the_engine_is_killed(root: Path, busybox: Path) -> None:
    with Engine(root) as engine:
        engine.images.import_(io.BytesIO(busybox_tar()), "busybox")
        engine.networks.create({"Name": "net"})

    def work(engine: Engine) -> None:
        serve(engine, "web", "net", PortBindings={"80/tcp": [{"HostPort": "8110"}]})
        # The porter starts with the first container; what follows it may not be told in time.
        assert eventually(lambda: fetch_or_nothing("::1", 8110)) == "web"
        start(engine, "while ! nslookup -type=a web; do :; done; sleep 100", "net", name="box")
        start(engine, "sleep 0.1", "net", name="short", PortBindings={"1/tcp": [{}]})

    child_engine(root, work)
    # No engine runs.
    assert fetch("127.0.0.1", 8110) == "web"
    assert fetch("::1", 8110) == "web"
    with Engine(root) as engine:
        # What the porter had not been told yet, the new engine tells it soon.
        assert eventually(lambda: inside(engine, "box", "wget -q -O - http://web/")) == "web\n"
        eventually(lambda: not engine.containers.inspect("short")["State"]["Running"])

        def members() -> list[str]:
            view = engine.networks.inspect("net")["Containers"]
            return sorted(one["Name"] for one in view.values())

        eventually(lambda: members() == ["box", "web"])
        before = address(engine, "web", "net")
        assert before != address(engine, start(engine, "sleep 9", "net", name="new"), "net")
        assert inside(engine, "new", "wget -q -O - http://web/") == "web\n"
        with pytest.raises(TiffinError, match="already allocated"):
            start(engine, "true", PortBindings={"80/tcp": [{"HostPort": "8110"}]})
        for name in ("web", "box", "short", "new"):
            engine.containers.remove(name, force=True)
        assert not reaches("127.0.0.1", 8110)
        engine.shutdown_keeper()
    eventually(lambda: not leftovers()[0])
    assert leftovers() == ([], "")


def test_a_killed_porter_is_replaced(engine: Engine) -> None:
    engine.networks.create({"Name": "net"})
    serve(engine, "web", "net", PortBindings={"80/tcp": [{"HostPort": "8111"}]})
    box = start(engine, "sleep 100", "net")
    assert inside(engine, box, "wget -q -O - http://web/")
    (porter,) = porters(engine.root.path)
    os.kill(porter, signal.SIGKILL)
    eventually(lambda: porters(engine.root.path) not in ([], [porter]))
    assert eventually(lambda: inside(engine, box, "wget -q -O - http://web/")) == "web\n"
    assert eventually(lambda: fetch_or_nothing("::1", 8111)) == "web"
    assert fetch("127.0.0.1", 8111) == "web"


def test_a_flushed_firewall_comes_back(engine: Engine) -> None:
    serve(engine, "web", PortBindings={"80/tcp": [{"HostPort": "8112"}]})
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    start(engine, "sleep 100", PortBindings={"81/tcp": [{"HostPort": "8113"}]})
    assert fetch("127.0.0.1", 8112) == "web"
    assert client(engine, f"wget -q -O - http://{HOST_BRIDGE}:8112/") == (0, "web\n")


def test_tables_of_others_are_not_touched(engine: Engine) -> None:
    foreign = "table inet theirs {\n\tchain c {\n\t\tcounter packets 0 bytes 0\n\t}\n}\n"
    subprocess.run(["nft", "-f", "-"], input=foreign, text=True, check=True)
    try:
        client(engine, "true")
        shown = subprocess.run(
            ["nft", "list", "table", "inet", "theirs"], capture_output=True, text=True, check=True
        )
        assert shown.stdout == foreign
        tables = subprocess.run(
            ["nft", "-j", "list", "tables"], capture_output=True, text=True, check=True
        )
        names = [
            one["table"]["name"] for one in json.loads(tables.stdout)["nftables"] if "table" in one
        ]
        assert sorted(names)[0] == "theirs"
        assert len(names) == 2
    finally:
        subprocess.run(["nft", "delete", "table", "inet", "theirs"], check=True)


def test_without_nftables_networks_are_refused_clearly(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiffin.network import firewall

    monkeypatch.setattr(firewall, "nftables", firewall._Nftables())
    monkeypatch.setattr(firewall, "_LIBRARIES", ("libnothing.so",))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unsupported, match=r"networks need nftables .* --network none"):
        client(engine, "true")
    assert client(engine, "true", "none")[0] == 0
    monkeypatch.undo()
    assert client(engine, "true")[0] == 0


def test_many_come_and_go_at_once(engine: Engine) -> None:
    engine.networks.create({"Name": "busy"})
    serve(engine, "web", "busy")
    failures: list[object] = []

    def work(number: int) -> None:
        for turn in range(4):
            done = client(engine, "wget -q -O - http://web/", "busy")
            if done != (0, "web\n"):
                failures.append((number, turn, done))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(engine.networks.inspect("busy")["Containers"]) == 1


def test_events_tell_who_comes_and_goes(engine: Engine) -> None:
    engine.networks.create({"Name": "net"})
    with engine.events.subscribe() as queue:
        box = start(engine, "sleep 100", "net")
        engine.networks.connect("bridge", box)
        engine.containers.remove(box, force=True)
        engine.networks.remove("net")
        told = []
        while not queue.empty():
            event = queue.get()
            if event["Type"] == "network":
                attributes = event["Actor"]["Attributes"]
                told.append((event["Action"], attributes["name"]))
    assert told == [
        ("connect", "net"),
        ("connect", "bridge"),
        ("disconnect", "net"),
        ("disconnect", "bridge"),
        ("destroy", "net"),
    ]


def test_stats_count_what_goes_through_the_interfaces(engine: Engine) -> None:
    server = serve(engine, "page")
    address = engine.containers.inspect(server)["NetworkSettings"]["Networks"]["bridge"]
    reader = start(engine, "sleep 600")
    beside = start(engine, "sleep 600", f"container:{reader}")
    get = f"wget -q -O - http://{address['IPAddress']}/"
    assert inside(engine, reader, f"for i in 1 2 3 4 5 6 7 8 9; do {get}; done") == "page\n" * 9
    taken = engine.containers.stats(reader)["networks"]
    assert list(taken) == ["eth0"]
    assert taken["eth0"]["rx_bytes"] > 9 * 100
    assert taken["eth0"]["tx_packets"] > 9 * 3
    assert (taken["eth0"]["rx_errors"], taken["eth0"]["tx_dropped"]) == (0, 0)
    assert engine.containers.stats(beside)["networks"]["eth0"]["rx_bytes"] > 9 * 100
    assert "networks" not in engine.containers.stats(start(engine, "sleep 600", "none"))
    assert "networks" not in engine.containers.stats(start(engine, "sleep 600", "host"))
