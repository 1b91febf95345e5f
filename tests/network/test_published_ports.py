"""Published ports: reached from everywhere they should be, and from nowhere else."""

from __future__ import annotations

import socket
import subprocess
import threading
import time

import pytest

from tiffin.engine import Engine
from tiffin.errors import TiffinError
from tiffin.network.namespace import Namespace
from traffic import (
    HOST,
    OUTSIDE,
    address,
    client,
    create,
    eventually,
    fetch,
    fetch_or_nothing,
    inside,
    reaches,
    serve,
    start,
)

pytestmark = pytest.mark.usefixtures("machine_without_networks")


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
