"""Names of networks, links, and the files in ``/etc``."""

from __future__ import annotations

import socket
import threading

import pytest

from tiffin.engine import Engine
from tiffin.errors import Conflict
from tiffin.network.namespace import Namespace
from traffic import Echo, address, eventually, inside, serve, start

pytestmark = pytest.mark.usefixtures("machine_without_networks")


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


def test_names_by_tcp_and_addresses_of_either_kind_back_to_names(engine: Engine) -> None:
    engine.networks.create({"Name": "net", "EnableIPv6": True})
    web = start(engine, "sleep 100", "net", name="web")
    box = start(engine, "sleep 100", "net", name="box")
    for version in (4, 6):
        there = address(engine, web, "net", version)
        assert "name = web.net" in inside(engine, box, f"nslookup {there}")
    pid = engine.containers.inspect(box)["State"]["Pid"]
    with (
        Namespace.of_process(pid) as place,
        place.visit(),
        socket.create_connection(("127.0.0.11", 53), timeout=60) as sock,
    ):
        # Two questions on one connection.
        for kind, packed in (
            (1, socket.inet_aton(address(engine, web, "net"))),
            (28, socket.inet_pton(socket.AF_INET6, address(engine, web, "net", 6))),
        ):
            query = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\3web\0\0" + bytes([kind]) + b"\0\1"
            sock.sendall(len(query).to_bytes(2, "big") + query)
            length = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")
            answer = sock.recv(length, socket.MSG_WAITALL)
            assert answer[:2] == b"\x12\x34"
            assert answer.endswith(packed)


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
    assert inside(engine, box, "hostname; cat /etc/hostname") == "host1\nhost1\n"
    echo = Echo(None, 7)
    try:
        assert inside(engine, box, "nc gw 7") == f"{settings['IPAddress']}\n"
    finally:
        echo.close()
