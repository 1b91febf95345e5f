"""What is left of networks: by removals, kills, and what others do to the firewall."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from conftest import busybox_tar
from tiffin.engine import Engine
from tiffin.errors import TiffinError, Unsupported
from traffic import (
    HOST_BRIDGE,
    address,
    child_engine,
    client,
    eventually,
    fetch,
    fetch_or_nothing,
    inside,
    leftovers,
    porters,
    reaches,
    serve,
    start,
)

pytestmark = pytest.mark.usefixtures("machine_without_networks")


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


DOCKERS = """
table ip nat {
	chain PREROUTING {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local counter packets 0 bytes 0 jump DOCKER
	}

	chain DOCKER {
		tcp dport 8199 counter packets 0 bytes 0 dnat to 172.30.0.9:80
	}
}
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy accept;
		counter packets 0 bytes 0 jump DOCKER-USER
	}

	chain DOCKER-USER {
		counter packets 0 bytes 0 return
	}
}
table inet theirs {
	set ports {
		type inet_service
		elements = { 22, 80 }
	}
}
"""
"""What Docker and a firewall have set up."""


def foreign_tables() -> str:
    """All rules but the engine's own, without what they have counted."""
    done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    shown = []
    for line in done.stdout.splitlines():
        if " tiffin_" not in line:
            words = ["nft", "list", *line.split()]
            shown.append(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return re.sub(r"counter packets \d+ bytes \d+", "counter", "".join(shown))


def test_tables_of_others_are_not_touched(root: Path, busybox: Path) -> None:
    subprocess.run(["nft", "-f", "-"], input=DOCKERS, text=True, check=True)
    before = foreign_tables()
    assert "DOCKER-USER" in before
    assert "{ 22, 80 }" in before
    with Engine(root) as engine:
        engine.images.import_(io.BytesIO(busybox_tar()), "busybox")
        for name, internal in (("net", False), ("inner", True)):
            engine.networks.create({"Name": name, "Internal": internal, "EnableIPv6": True})
            assert foreign_tables() == before
        box = serve(engine, "web", "net", PortBindings={"80/tcp": [{"HostPort": "8198"}]})
        assert fetch("127.0.0.1", 8198) == "web"
        assert foreign_tables() == before
        engine.networks.connect("inner", box, {})
        engine.networks.disconnect("net", box)
        assert foreign_tables() == before
        # One that holds a place again, with a table that somebody has taken away.
        subprocess.run(
            ["nft", "delete", "table", "inet", engine._fabric._firewall.table], check=True
        )
        again = serve(engine, "again", "net", PortBindings={"80/tcp": [{"HostPort": "8197"}]})
        assert fetch("127.0.0.1", 8197) == "again"
        assert foreign_tables() == before
        for one in (box, again):
            engine.containers.remove(one, force=True)
        for name in ("net", "inner"):
            engine.networks.remove(name)
        engine.shutdown_keeper()
    eventually(lambda: "tiffin_" not in leftovers()[1])
    assert foreign_tables() == before


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
